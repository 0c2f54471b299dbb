"""When two answers of a model count as the same, and what is said of those that do not."""

import tracemalloc
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from gateway.errors import InferenceFailed
from gateway.instance.batch_agreement import agree, disagreement, is_sensitive, magnitudes
from gateway.tensors import Array


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        ([1.0, 2.0], [1.0, 2.00001], True),
        ([1.0, 2.0], [1.0, 2.01], False),
        ([np.nan, 1.0], [np.nan, 1.0], True),
        ([np.nan, 1.0], [0.0, 1.0], False),
        ([np.inf, 1.0], [np.inf, 1.0], True),
        ([np.inf, 1.0], [-np.inf, 1.0], False),
        ([1e6, 1e-6], [1e6, 0.0], True),
        ([], [], True),
    ],
)
def test_answers_agree_but_for_rounding(left: list[float], right: list[float], same: bool) -> None:
    assert agree(np.array(left, np.float32), np.array(right, np.float32)) is same


@pytest.mark.parametrize(
    ("left", "right", "dtype"),
    [([[50000, 0.3]], [[50000, 0.7]], np.float32), ([[1764543210.0, 0.3]], [[1764543210.0, 0.9]], np.float64)],
)
def test_a_large_column_does_not_hide_what_differs_in_another(left: Any, right: Any, dtype: Any) -> None:
    assert not agree(np.array(left, dtype), np.array(right, dtype))


def test_a_number_near_zero_is_judged_by_its_column_in_the_batch() -> None:
    alone, together = np.array([[1e-4, 5.0]], np.float32), np.array([[1.01e-4, 5.0]], np.float32)
    assert agree(alone, together, magnitudes(np.array([[1e-4, 5.0], [7.0, 5.0]], np.float32)))
    assert not agree(alone * 1e3, together * 1e3)


def test_a_large_answer_is_compared_without_copies_of_all_of_it() -> None:
    answer = np.ones((2, 1 << 20), np.float32)
    other = answer + np.float32(1e-6)
    tracemalloc.start()
    try:
        assert agree(answer, other)
        assert tracemalloc.get_traced_memory()[1] < answer.nbytes
    finally:
        tracemalloc.stop()


def test_answers_of_other_shapes_or_kinds_do_not_agree() -> None:
    assert not agree(np.zeros((2, 1)), np.zeros(2))
    assert not agree(np.zeros(2, np.float32), np.zeros(2))
    assert not agree(np.array([1, 2]), np.array([1, 3]))
    assert not agree(np.array([b"a"], object), np.array([b"b"], object))
    assert agree(np.array([b"a"], object), np.array([b"a"], object))


@pytest.mark.parametrize(
    ("alone", "together", "words"),
    [
        ({"y": np.zeros(2)}, {"y": np.zeros(2)}, None),
        ({"y": np.zeros(2)}, {"z": np.zeros(2)}, "the names of the outputs differ"),
        ({"y": np.zeros((1, 2))}, {"y": np.zeros((1, 3))}, "output 'y' has shape [1, 3] instead of [1, 2]"),
        (
            {"x": np.ones(1), "y": np.array([1, 2])},
            {"x": np.ones(1), "y": np.array([1, 5])},
            "output 'y' differs by up to 3",
        ),
        ({"y": np.array([np.nan, 1.0])}, {"y": np.array([np.inf, 1.25])}, "output 'y' differs by up to 0.25"),
        ({"y": np.array([np.nan])}, {"y": np.array([0.0])}, "output 'y' differs"),
        ({"y": np.array([b"cat"], object)}, {"y": np.array([b"dog"], object)}, "output 'y' differs"),
        ({"y": np.zeros(1, np.float32)}, {"y": np.zeros(1)}, "output 'y' differs"),
    ],
)
def test_a_disagreement_names_the_output_and_the_largest_difference(
    alone: dict[str, Array], together: dict[str, Array], words: str | None
) -> None:
    assert disagreement(alone, together) == words


def test_an_answer_is_sensitive_if_a_change_like_rounding_moves_it() -> None:
    def chaotic(inputs: Mapping[str, Array]) -> dict[str, Array]:
        return {"y": np.sin(np.asarray(inputs["x"], np.float64) * 1e9)}

    def smooth(inputs: Mapping[str, Array]) -> dict[str, Array]:
        return {"y": np.asarray(inputs["x"], np.float64) * 2}

    floats, whole = {"x": np.array([[0.3, 0.7]])}, {"x": np.array([[3, 7]])}
    assert is_sensitive(chaotic, floats, chaotic(floats))
    assert not is_sensitive(smooth, floats, smooth(floats))
    assert not is_sensitive(chaotic, whole, chaotic(whole))


def test_an_answer_that_cannot_be_had_again_is_not_called_sensitive() -> None:
    def fails(_: Mapping[str, Array]) -> dict[str, Array]:
        raise InferenceFailed("no")

    assert not is_sensitive(fails, {"x": np.ones((1, 2))}, {"y": np.ones((1, 2))})
