import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.comparing.pairing import Pair, layouts, paired, rows_at_once
from gateway.errors import RequestError
from gateway.tensors import TensorSpec

NAMES = ("one", "two")


def spec(name: str, datatype: str = "FP32", shape: tuple[int, ...] | None = (-1, 4)) -> TensorSpec:
    return TensorSpec(name, datatype, shape)


@given(st.lists(st.sampled_from("abcdefgh"), unique=True), st.randoms(use_true_random=False))
def test_equal_names_go_together_in_whatever_order(names: list[str], random: object) -> None:
    shuffled = list(names)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    found = paired("input", NAMES, [spec(name) for name in names], [spec(name) for name in shuffled])
    assert found == [Pair(name, name, "name") for name in names]


def test_other_names_go_together_in_their_order() -> None:
    found = paired("input", NAMES, [spec("image"), spec("mask")], [spec("x_mask"), spec("image")])
    assert found == [Pair("image", "image", "name"), Pair("mask", "x_mask", "order")]


@pytest.mark.parametrize("one", ["FP16", "BF16", "FP32", "FP64"])
def test_floats_of_any_size_go_together(one: str) -> None:
    assert paired("input", NAMES, [spec("x", one)], [spec("x")])


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (spec("y", "BYTES", (-1,)), "'y' BYTES [-1] of two"),
        (spec("x", "INT64"), "'x' INT64 [-1, 4] of two"),
        (spec("x", shape=(-1, 5)), "'x' FP32 [-1, 5] of two"),
        (spec("x", shape=(-1, 4, 1)), "'x' FP32 [-1, 4, 1] of two"),
    ],
)
def test_what_does_not_go_together_is_named(other: TensorSpec, what: str) -> None:
    with pytest.raises(RequestError) as caught:
        paired("input", NAMES, [spec("x")], [other])
    assert "input 'x' FP32 [-1, 4] of one" in caught.value.message
    assert what in caught.value.message


def test_another_number_of_tensors_is_told_with_all_of_them() -> None:
    with pytest.raises(RequestError, match=r"one has 'x' FP32 \[-1, 4\] and two has none"):
        paired("input", NAMES, [spec("x")], [])


@pytest.mark.parametrize("size", [3, 4, 5])
def test_channels_first_become_channels_last_and_back(size: int) -> None:
    first = [2, 3, *range(7, 7 + size - 2)]
    last = [2, *first[2:], 3]
    for one, other in ((first, last), (last, first)):
        (axes,) = layouts([-1, *one[1:]], [-1, *other[1:]])
        assert axes
        assert np.zeros(one).transpose(axes).shape == tuple(other)


@given(st.lists(st.integers(-1, 9), max_size=5))
def test_a_shape_goes_with_itself_and_with_any(shape: list[int]) -> None:
    assert layouts(shape, shape) == layouts(shape, None) == layouts(None, shape) == [[]]


@pytest.mark.parametrize(
    ("one", "other", "orders"),
    [
        ((-1, 3, -1, -1), (-1, -1, -1, 3), [[0, 2, 3, 1]]),
        ((-1, -1, -1, 3), (-1, 3, -1, -1), [[0, 3, 1, 2]]),
        ((-1, 3, -1, -1), (-1, 3, 224, 224), [[]]),
        ((-1, 3, -1, -1), (-1, -1, -1, -1), [[], [0, 2, 3, 1], [0, 3, 1, 2]]),
        ((-1, -1, 8), (-1, -1, -1), [[], [0, 2, 1]]),
        ((-1, 3, 5), (-1, 4, 5), []),
    ],
)
def test_known_sizes_tell_where_the_channels_stand_as_far_as_they_can(
    one: tuple[int, ...], other: tuple[int, ...], orders: list[list[int]]
) -> None:
    assert layouts(one, other) == orders
    if orders:
        (found,) = paired("input", NAMES, [spec("x", shape=one)], [spec("x", shape=other)])
        assert (found.axes, found.unsure) == (orders[0], len(orders) > 1)


def test_rows_are_open_or_as_many_as_a_model_takes_at_once() -> None:
    assert rows_at_once([(-1, 4), None, (-1,)]) is None
    assert rows_at_once([(8, 4), (-1, 4)]) == 8
    for shapes in ([(), (-1,)], [(1, 4), (2, 4)], [(0, 4)]):
        with pytest.raises(RequestError, match="no rows"):
            rows_at_once(shapes)
