import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gateway.comparing.agreement import accuracy, agreement, classes
from gateway.comparing.pairing import Pair
from gateway.errors import RequestError

SAME = Pair("y", "y", "name")
scores = arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(2, 4)), elements=st.floats(-9, 9, width=32))


@given(scores)
def test_a_model_agrees_with_itself(values: np.ndarray) -> None:
    found = agreement(SAME, "FP32", values, values)
    assert (found.unequal, found.max_difference, found.mean_difference, found.same_class) == (0, 0, 0, 1)
    assert (found.rows, found.elements) == (len(values), values.size)


@given(scores, st.floats(0.001, 5))
def test_a_constant_difference_is_found_and_changes_no_class(values: np.ndarray, more: float) -> None:
    other = values.astype(np.float64) + more
    found = agreement(SAME, "FP32", values, other)
    assert found.max_difference == pytest.approx(more, abs=1e-5)
    assert found.mean_difference == pytest.approx(more, abs=1e-5)
    assert found == agreement(SAME, "FP64", other, values)


def test_other_classes_and_what_is_no_number_are_counted() -> None:
    a = np.array([[1, 2], [4, 3], [np.nan, 0]], np.float32)
    b = np.array([[1, 2], [3, 4], [np.inf, 0]], np.float32)
    found = agreement(SAME, "FP32", a, b)
    assert (found.max_difference, found.unequal) == (1.0, 1)
    assert found.same_class == pytest.approx(2 / 3, abs=1e-5)


def test_text_is_equal_or_not() -> None:
    a, b = np.array([b"de", b"en"], object), np.array([b"de", b"fr"], object)
    found = agreement(SAME, "BYTES", a, b)
    assert (found.unequal, found.elements, found.max_difference, found.same_class) == (1, 2, None, None)


def test_integers_are_subtracted_and_counted() -> None:
    found = agreement(SAME, "INT64", np.array([1, 2, 3]), np.array([1, 2, 9]))
    assert (found.unequal, found.max_difference, found.mean_difference, found.same_class) == (1, 6, 2, None)


def test_large_integers_differ_by_what_they_do() -> None:
    a = np.array([2**62, 2**62 + 1, -(2**63)])
    found = agreement(SAME, "INT64", a, a + np.array([0, 1, 0]))
    assert (found.unequal, found.max_difference) == (1, 1)
    assert agreement(SAME, "UINT64", a[:2].astype(np.uint64), a[:2]).unequal == 0


def test_only_a_list_for_each_row_may_be_scores_of_classes() -> None:
    for shape in ((2, 3, 4), (2, 3, 4, 4), (2,), (2, 1)):
        assert agreement(SAME, "FP32", np.zeros(shape), np.zeros(shape)).same_class is None


def test_channels_elsewhere_are_put_in_place_first() -> None:
    a = np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4)
    axes = [0, 2, 3, 1]
    assert agreement(Pair("y", "z", "order", axes), "FP32", a, a.transpose(axes)).max_difference == 0
    with pytest.raises(RequestError, match=r"has shape \[1, 2, 3, 4\], 'y' \[1, 3, 4, 2\]"):
        agreement(SAME, "FP32", a, a.transpose(axes))


def test_accuracy_is_by_the_highest_score() -> None:
    labels = np.array([0, 1, 1, 0])
    a = np.eye(2, dtype=np.float32)[[0, 1, 1, 1]]
    b = np.eye(2, dtype=np.float32)[[0, 0, 1, 0]]
    found = accuracy([("y", a, b)], labels)
    assert found is not None
    assert (found.a, found.b, found.only_a, found.only_b, found.rows, found.p) == (0.75, 0.75, 1, 1, 4, 1.0)


def test_accuracy_is_by_equality_where_the_output_is_a_class() -> None:
    text = np.array([b"de", b"en"], object)
    numbers = np.array([[3], [4]])
    for said, labels, share in ((text, np.array(["de", "fr"]), 0.5), (numbers, np.array([3.0, 4.0]), 1.0)):
        found = accuracy([("y", said, said)], labels)
        assert found is not None
        assert found.b == share


def test_by_labels_that_no_output_answers_nothing_is_judged() -> None:
    vector = np.zeros((3, 1), np.float32)  # a probability, or a logit: nobody knows where it becomes the other class
    assert classes(vector) is None
    for labels in (np.array([1, 2, 3]), np.array(["a", "b", "c"])):
        assert accuracy([("y", vector, vector)], labels) is None
