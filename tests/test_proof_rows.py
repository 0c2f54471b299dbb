"""The rows that a model is tried with: what they must contain, whatever the example is."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.instance.proof_rows import MOST_ROWS, rows_like
from gateway.tensors import Array

NUMBERS = ["bool", "uint8", "int8", "int32", "int64", "float16", "float32", "float64", ml_dtypes.bfloat16]
shapes = st.lists(st.integers(0, 5), max_size=3).map(lambda rest: (1, *rest))


def text(*items: bytes) -> Array:
    made = np.empty(len(items), object)
    made[:] = items
    return made.reshape(1, -1)


arrays = st.one_of(
    st.builds(
        lambda dtype, shape, high: (np.arange(np.prod(shape, dtype=int)).reshape(shape) % (high + 1)).astype(dtype),
        st.sampled_from(NUMBERS),
        shapes,
        st.integers(0, 60),
    ),
    st.lists(st.binary(max_size=9), max_size=3).map(lambda items: text(*items)),
)


@given(st.dictionaries(st.sampled_from("abcdef"), arrays, min_size=1))
def test_rows_are_like_the_example_and_all_different(example: dict[str, Array]) -> None:
    rows = rows_like(example)
    assert 1 <= len(rows) <= MOST_ROWS
    assert all(np.array_equal(rows[0][name], array) for name, array in example.items())
    contents = set()
    for row in rows:
        assert row.keys() == example.keys()
        for name, array in example.items():
            assert (row[name].shape, row[name].dtype) == (array.shape, array.dtype)
        contents.add(tuple(str(array.tolist()) for array in row.values()))
    assert len(contents) == len(rows)


@given(st.dictionaries(st.sampled_from("abcdef"), arrays, min_size=1))
def test_the_same_example_always_gives_the_same_rows(example: dict[str, Array]) -> None:
    one, other = rows_like(example), rows_like(example)
    assert str([[array.tolist() for array in row.values()] for row in one]) == str(
        [[array.tolist() for array in row.values()] for row in other]
    )


@given(shapes, st.integers(0, 10_000))
def test_whole_numbers_stay_within_what_the_example_shows_but_for_zero_and_one(
    shape: tuple[int, ...], high: int
) -> None:
    example = np.full(shape, high, np.int64)
    for row in rows_like({"x": example}):
        assert row["x"].min(initial=0) >= 0
        assert row["x"].max(initial=0) <= max(1, high)


def lengths(rows: list[dict[str, Array]], name: str) -> set[int]:
    """How many ones each mask of ones and zeros begins with."""
    masks = [row[name].ravel() for row in rows if set(row[name].ravel().tolist()) <= {0, 1}]
    return {int(mask.argmin()) if not mask.all() else len(mask) for mask in masks}


def test_text_is_of_none_one_three_and_thirty_words_digits_commas_and_other_letters() -> None:
    texts = [row["x"].item() for row in rows_like({"x": np.array([b"1"], object)})]
    assert {len(each.split()) for each in texts} >= {0, 1, 3, 30}
    assert any(each.isdigit() and len(each) > 1 for each in texts)
    assert any(b"," in each for each in texts)
    assert any(not each.isascii() for each in texts)


def test_floating_point_numbers_are_of_every_scale() -> None:
    rows = [row["x"] for row in rows_like({"x": np.full((1, 4, 4), 0.5, np.float32)})]
    assert any((row == 0).all() for row in rows)
    assert any((row == 1).all() for row in rows)
    assert any((row == 1e4).all() for row in rows)
    assert any(100 < row.max() < 256 for row in rows)
    assert any(0 < row.min() < row.max() < 1 for row in rows)
    assert any(row.min() < -2 and 2 < row.max() <= 3 for row in rows)


def test_two_rows_are_equal_but_for_one_element() -> None:
    rows = [row["x"] for row in rows_like({"x": np.full((1, 4, 4), 0.5, np.float32)})]
    assert any(int((one != other).sum()) == 1 for one in rows for other in rows)


@pytest.mark.parametrize("dtype", ["int64", "int32", "float32", "bool"])
@pytest.mark.parametrize("order", [("ids", "mask"), ("mask", "ids")])
def test_next_to_ordinary_values_a_mask_has_prefixes_of_ones_of_several_lengths(
    dtype: str, order: tuple[str, str]
) -> None:
    arrays: dict[str, Any] = {"ids": np.array([[3, 60, 7, 2, 9, 4, 31, 8]]), "mask": np.ones((1, 8), dtype)}
    rows = rows_like({name: arrays[name] for name in order})
    ordinary = [row for row in rows if row["ids"].max() > 1]
    assert len(lengths(ordinary, "mask") - {0}) >= 3
    assert 8 in lengths(ordinary, "mask")


def test_rows_are_padded_with_zeros_at_their_end() -> None:
    rows = [row["ids"].ravel() for row in rows_like({"ids": np.array([[3, 60, 7, 2, 9, 4, 31, 8]])})]
    padded = {int(np.flatnonzero(row).max()) + 1 for row in rows if row.any() and row.max() > 1}
    assert len(padded) >= 3
