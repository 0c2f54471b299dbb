import math
import time
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gateway.errors import RequestError
from gateway.tensors import (
    COPIED,
    DTYPES,
    ITEMSIZES,
    MAX_ELEMENTS,
    Array,
    array_from_raw,
    check_raw,
    element_count,
    pack_bytes,
    raw_from_array,
    rows_of,
    unpack_bytes,
)

quick = settings(max_examples=100, deadline=None)
shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
numeric = st.sampled_from(sorted(ITEMSIZES))


def array_of(datatype: str, shape: tuple[int, ...], seed: int) -> Array:
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, 2 if datatype == "BOOL" else 256, math.prod(shape) * ITEMSIZES[datatype]).astype(np.uint8)
    return np.frombuffer(raw.tobytes(), DTYPES[datatype]).reshape(shape)


@quick
@given(numeric, shapes, st.integers(0, 2**32 - 1))
def test_every_datatype_and_shape_survives_the_way_through_raw_bytes(
    datatype: str, shape: tuple[int, ...], seed: int
) -> None:
    array = array_of(datatype, shape, seed)
    name, raw = raw_from_array(array)
    assert name == datatype
    assert len(raw) == array.nbytes
    check_raw("x", datatype, shape, raw)
    back = array_from_raw(datatype, shape, raw)
    assert back.dtype == array.dtype
    assert back.shape == shape
    assert back.tobytes() == array.tobytes()  # bit by bit, NaNs too


@quick
@given(shapes, st.data())
def test_strings_survive_the_way_through_raw_bytes(shape: tuple[int, ...], data: st.DataObject) -> None:
    count = math.prod(shape)
    elements = data.draw(st.lists(st.binary(max_size=9), min_size=count, max_size=count))
    array = np.empty(count, dtype=object)
    array[:] = elements
    datatype, raw = raw_from_array(array.reshape(shape))
    assert datatype == "BYTES"
    check_raw("x", "BYTES", shape, raw)
    back = array_from_raw("BYTES", shape, raw)
    assert back.shape == shape
    assert back.ravel().tolist() == elements


@pytest.mark.parametrize("datatype", sorted(ITEMSIZES))
def test_an_array_that_is_not_contiguous_is_sent_in_row_major_order(datatype: str) -> None:
    whole = array_of(datatype, (4, 6), 0)
    for view in (whole[:, ::2], whole.T, whole[::-1], np.asfortranarray(whole), whole[1:3, 1:3]):
        _, raw = raw_from_array(view)
        assert bytes(raw) == b"".join(element.tobytes() for element in view.ravel())


def test_strings_of_every_numpy_kind_are_bytes() -> None:
    for array in (
        np.array(["ä", "b"]),
        np.array(["ä".encode(), b"b"]),
        np.array(["ä", b"b"], dtype=object),
    ):
        datatype, raw = raw_from_array(array)
        assert datatype == "BYTES"
        assert unpack_bytes(raw, 2) == ["ä".encode(), b"b"]


def test_bfloat16_keeps_its_values() -> None:
    array = np.array([1.5, -0.0, 3e38, np.inf], ml_dtypes.bfloat16)
    datatype, raw = raw_from_array(array)
    assert (datatype, len(raw)) == ("BF16", 8)
    assert array_from_raw("BF16", (4,), raw).astype(np.float32).tolist() == array.astype(np.float32).tolist()


def test_a_large_contiguous_array_is_not_copied() -> None:
    array = np.zeros(COPIED, np.float32)
    _, raw = raw_from_array(array)
    array[0] = 1.0
    assert bytes(raw) == array.tobytes()


@pytest.mark.parametrize("dtype", ["complex64", ">f4", ">i8", "datetime64[s]", "timedelta64[s]", "longdouble", "i4,i4"])
def test_an_array_the_protocol_has_no_datatype_for_is_a_type_error(dtype: str) -> None:
    with pytest.raises(TypeError, match="no datatype"):
        raw_from_array(np.zeros(2, dtype))


@pytest.mark.parametrize("datatype", sorted(ITEMSIZES))
def test_raw_bytes_of_the_wrong_length_are_refused(datatype: str) -> None:
    for length in (0, ITEMSIZES[datatype] * 6 - 1, ITEMSIZES[datatype] * 6 + 1, ITEMSIZES[datatype] * 5):
        with pytest.raises(RequestError):
            check_raw("x", datatype, (2, 3), bytes(length))
        with pytest.raises(RequestError):
            array_from_raw(datatype, (2, 3), bytes(length))


@quick
@given(st.binary(max_size=60), st.integers(0, 20) | st.integers(0, 2**41))
def test_any_bytes_are_that_many_strings_or_a_request_error(raw: bytes, count: int) -> None:
    try:
        elements = unpack_bytes(raw, count)
    except RequestError:
        return
    assert len(elements) == count
    assert pack_bytes(elements) == raw


@quick
@given(st.lists(st.binary(max_size=20), max_size=8), st.integers(0, 12), st.binary(max_size=3))
def test_strings_that_are_fewer_or_more_or_torn_are_refused(elements: list[bytes], count: int, rest: bytes) -> None:
    raw = pack_bytes(elements) + rest
    if count == len(elements) and not rest:
        assert unpack_bytes(memoryview(raw), count) == elements
    else:
        with pytest.raises(RequestError):
            unpack_bytes(raw, count)


@quick
@given(numeric, st.lists(st.integers(0, 2**63), max_size=70), st.binary(max_size=64))
def test_any_shape_and_bytes_are_a_tensor_or_a_request_error(datatype: str, shape: list[int], raw: bytes) -> None:
    try:
        check_raw("x", datatype, shape, raw)
    except RequestError:
        return
    assert array_from_raw(datatype, shape, raw).shape == tuple(shape)


@pytest.mark.parametrize(
    ("shape", "count"),
    [((), 1), ((0,), 0), ((3, 0, 5), 0), ((2, 3), 6), ((1,) * 64, 1), ((MAX_ELEMENTS,), MAX_ELEMENTS)],
)
def test_elements_of_a_shape_are_counted(shape: tuple[int, ...], count: int) -> None:
    assert element_count(shape) == count


@pytest.mark.parametrize(
    "shape",
    [
        (5_000_000_000, 0),
        (0, 1 << 27),
        (1 << 17, 0),
        (1 << 9, 1 << 9, 0),
        (1 << 31,),
        (-1,),
        (2, -3),
        (0, -1),
        (1 << 41,),
        (1 << 20, 1 << 21),
        (1,) * 65,
        (0,) * 65,
        (0, 1 << 63),
        (1 << 200, 1 << 200),
    ],
)
def test_an_absurd_shape_is_a_request_error_in_a_short_sentence(shape: tuple[int, ...]) -> None:
    with pytest.raises(RequestError) as caught:
        element_count(shape)
    assert len(caught.value.message) < 400


def test_a_shape_of_very_many_dimensions_is_refused_at_once() -> None:
    shape = [1 << 62] * 20_000
    started = time.perf_counter()
    with pytest.raises(RequestError) as caught:
        element_count(shape)
    assert time.perf_counter() - started < 0.1  # multiplied out it takes 0.7 s, ten times as many a minute
    assert len(caught.value.message) < 400


def test_the_sentence_about_a_negative_dimension_does_not_repeat_a_whole_request() -> None:
    with pytest.raises(RequestError) as caught:
        element_count([1] * 1000 + [-1])
    assert len(caught.value.message) < 400


def test_strings_of_a_shape_beyond_memory_are_a_request_error() -> None:
    with pytest.raises(RequestError):
        array_from_raw("BYTES", (1 << 40,), b"")


@pytest.mark.parametrize(
    ("shapes", "rows"),
    [
        ([(4, 2), (4,)], 4),
        ([(4,), (5,)], None),
        ([(4,), ()], None),
        ([()], None),
        ([], None),
        ([(0, 3)], 0),
        ([(1,), (1, 1)], 1),
    ],
)
def test_rows_are_the_leading_dimension_that_all_inputs_share(shapes: Any, rows: int | None) -> None:
    assert rows_of(shapes) == rows
    assert rows_of(iter(shapes)) == rows
