import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import InferenceFailed
from gateway.instance.classes import look_like_probabilities, softmax, top_classes
from gateway.store.processing import Classes
from gateway.tensors import Array


@given(st.lists(st.permutations(range(7)), min_size=1, max_size=4), st.integers(1, 9))
def test_the_most_probable_classes_are_those_that_torch_finds(ranks: list[list[int]], top: int) -> None:
    scores = np.array(ranks, np.float32) * 1.7 - 5
    labels, probabilities = top_classes(scores, Classes(top), [b"class %d" % index for index in range(7)])
    expected, classes = torch.topk(torch.softmax(torch.from_numpy(scores), dim=1), min(top, 7), dim=1)
    np.testing.assert_allclose(probabilities, expected.numpy(), rtol=1e-5)
    assert labels.tolist() == [[b"class %d" % index for index in row] for row in classes.tolist()]


def test_of_equal_classes_the_lower_one_is_first_and_those_without_a_label_have_their_number() -> None:
    labels, probabilities = top_classes(np.array([[1, 2, 2, 0]], np.int64), Classes(softmax=False), [b"a", b"b"])
    assert labels.tolist() == [[b"b", b"2", b"a", b"3"]]
    assert probabilities.tolist() == [[2.0, 2.0, 1.0, 0.0]]
    assert probabilities.dtype == np.float32


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16, np.uint8])
def test_scores_may_be_of_any_number_type(dtype: type) -> None:
    labels, probabilities = top_classes(np.array([[1, 3, 2]], dtype), Classes(2), [])
    assert labels.tolist() == [[b"1", b"2"]]
    assert probabilities[0] == pytest.approx([0.66524, 0.24473], rel=1e-3)


def test_no_rows_are_no_classes_and_what_is_no_number_comes_last() -> None:
    labels, probabilities = top_classes(np.zeros((0, 4), np.float32), Classes(2), [])
    assert labels.shape == probabilities.shape == (0, 2)
    labels, _ = top_classes(np.array([[np.nan, 1, 2]], np.float32), Classes(softmax=False), [])
    assert labels.tolist() == [[b"2", b"1", b"0"]]


@pytest.mark.parametrize("scores", [np.zeros(3), np.zeros((1, 2, 3)), np.zeros(()), np.array([[b"a"]], object)])
def test_what_is_no_row_of_scores_for_each_input_is_refused(scores: Array) -> None:
    with pytest.raises(InferenceFailed, match=r"shape \[rows, classes\]"):
        top_classes(scores, Classes(), [])


def test_probabilities_are_told_from_scores() -> None:
    assert look_like_probabilities(softmax(np.random.default_rng(0).normal(size=(3, 10))))
    assert not look_like_probabilities(np.array([[0.5, 0.4]]))
    assert not look_like_probabilities(np.array([[1.5, -0.5]]))
