import json
import math
import struct
from typing import Any

import ml_dtypes
import msgspec
import numpy as np
import orjson
import pytest
import simdjson
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gateway.errors import RequestError
from gateway.http.tensor_json import ELEMENT_WISE, json_from_raw, lists_of, raw_from_json
from gateway.tensors import DTYPES, Array, pack_bytes, raw_from_array, unpack_bytes

quick = settings(max_examples=60, deadline=None)

FLOATS = ("FP16", "BF16", "FP32", "FP64")
INTEGERS = ("INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64")
NUMBERS = (*FLOATS, *INTEGERS)
EVERY = (*NUMBERS, "BOOL", "BYTES")
LARGEST = {"FP16": 65504.0, "BF16": 3.3e38, "FP32": 3.4e38, "FP64": 1.7e308}

shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)


def from_text(datatype: str, shape: tuple[int, ...], text: bytes) -> bytes:
    return bytes(raw_from_json("x", datatype, shape, math.prod(shape), msgspec.Raw(text)))


def from_simdjson(datatype: str, shape: tuple[int, ...], text: bytes) -> bytes:
    data = simdjson.Parser().parse(text)
    assert isinstance(data, simdjson.Array)
    if datatype not in ELEMENT_WISE and text.count(b"[") != lists_of(data, shape):
        raise RequestError("what the caller checks for a whole body")
    return bytes(raw_from_json("x", datatype, shape, math.prod(shape), data))


PATHS = {"text": from_text, "simdjson": from_simdjson}
both_paths = pytest.mark.parametrize("convert", PATHS.values(), ids=PATHS)


def elements_of(datatype: str) -> st.SearchStrategy[Any]:
    if datatype == "BOOL":
        return st.booleans() | st.sampled_from([0, 1])
    if datatype == "BYTES":
        return st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
    if datatype in FLOATS:
        largest = LARGEST[datatype]
        return st.floats(-largest, largest) | st.integers(-1000, 1000)
    info = np.iinfo(DTYPES[datatype])
    return st.integers(int(info.min), int(info.max)) | st.sampled_from([int(info.min), int(info.max)])


def raw_of(datatype: str, values: list[Any]) -> bytes:
    if datatype == "BYTES":
        return pack_bytes(value.encode() for value in values)
    wide = np.array(values, np.float64) if datatype in FLOATS else np.array(values, object)
    return wide.astype(DTYPES[datatype]).tobytes()


def nested(values: list[Any], shape: tuple[int, ...]) -> Any:
    if len(shape) <= 1:
        return values
    step = math.prod(shape[1:])
    return [nested(values[at * step : (at + 1) * step], shape[1:]) for at in range(shape[0])]


@both_paths
@pytest.mark.parametrize("datatype", EVERY)
@quick
@given(shapes, st.booleans(), st.data())
def test_json_data_become_the_bytes_that_numpy_makes_of_them(
    convert: Any, datatype: str, shape: tuple[int, ...], flat: bool, data: st.DataObject
) -> None:
    count = math.prod(shape)
    values = data.draw(st.lists(elements_of(datatype), min_size=count, max_size=count))
    text = orjson.dumps(values if flat else nested(values, shape))
    assert convert(datatype, shape, text) == raw_of(datatype, values)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=12,
)


@pytest.mark.parametrize("datatype", EVERY)
@quick
@given(shapes, json_values)
@example((1,), [10**400])
@example((1,), [10**30])
@example((1,), [-(10**30)])
@example((2,), ["a", 1])
@example((1,), [{}])
@example((1,), [[[]]])
@example((), [[1]])
def test_any_json_as_text_is_bytes_or_a_request_error(datatype: str, shape: tuple[int, ...], value: Any) -> None:
    try:
        raw = from_text(datatype, shape, json.dumps(value).encode())
    except RequestError:
        return
    if datatype == "BYTES":
        assert len(unpack_bytes(raw, math.prod(shape))) == math.prod(shape)
    else:
        assert len(raw) == math.prod(shape) * DTYPES[datatype].itemsize


@pytest.mark.parametrize("datatype", EVERY)
@quick
@given(shapes, st.lists(json_values, max_size=5))
@example((1,), [-1])
@example((2,), ["a", 1])
@example((1,), [{}])
@example((1,), [[[]]])
@example((), [[1]])
@example((3,), [1, [], [2, 3]])
def test_any_json_array_through_simdjson_is_bytes_or_a_request_error(
    datatype: str, shape: tuple[int, ...], value: list[Any]
) -> None:
    text = json.dumps(value).encode()
    try:
        simdjson.Parser().parse(text)
    except (ValueError, RuntimeError):
        return  # a number beyond 64 bits is refused with the whole body
    try:
        raw = from_simdjson(datatype, shape, text)
    except RequestError:
        return
    if datatype == "BYTES":
        assert len(unpack_bytes(raw, math.prod(shape))) == math.prod(shape)
    else:
        assert len(raw) == math.prod(shape) * DTYPES[datatype].itemsize


def outcome(convert: Any, datatype: str, shape: tuple[int, ...], text: bytes) -> bytes | str:
    try:
        found: bytes = convert(datatype, shape, text)
    except RequestError:
        return "refused"
    return found


nearly_numbers = st.integers(-2, 300) | st.sampled_from([True, None, 1.5, 2.0, "1", 10**18, -(10**18), 2**63, 1e300])
nearly_right = st.tuples(
    shapes,
    st.lists(nearly_numbers | st.lists(nearly_numbers | st.lists(nearly_numbers, max_size=3), max_size=3), max_size=4),
)


@pytest.mark.parametrize("datatype", EVERY)
@settings(max_examples=150, deadline=None)
@given(nearly_right)
@example(((2,), [1, [2]]))
@example(((3,), [1, [], [2, 3]]))
@example(((2, 2), [[1, [2]], [3, 4]]))
@example(((1,), [2.0]))
@example(((0,), []))
@example(((2, 0), [[], []]))
@example(((2, 0), []))
@example(((), [1]))
@example(((), [[1]]))
@example(((1,), [[1]]))
def test_small_and_large_bodies_are_judged_alike(datatype: str, case: tuple[tuple[int, ...], list[Any]]) -> None:
    shape, value = case
    text = orjson.dumps(value)
    assert outcome(from_text, datatype, shape, text) == outcome(from_simdjson, datatype, shape, text)


@both_paths
@pytest.mark.parametrize("datatype", INTEGERS)
def test_an_integer_out_of_range_is_refused(convert: Any, datatype: str) -> None:
    info = np.iinfo(DTYPES[datatype])
    for value in (int(info.min) - 1, int(info.max) + 1):
        if not -(2**63) <= value < 2**64:
            continue  # simdjson reads no such number; the next test has it
        with pytest.raises(RequestError, match="'x'"):
            convert(datatype, (2,), orjson.dumps([1, value]))


@pytest.mark.parametrize("datatype", [*INTEGERS, "FP16", "BOOL", "BYTES"])
@pytest.mark.parametrize("value", [2**64, -(2**63) - 1, 10**40, -(10**400)])
def test_an_integer_beyond_64_bits_is_refused(datatype: str, value: int) -> None:
    with pytest.raises(RequestError):
        from_text(datatype, (1,), f"[{value}]".encode())


@both_paths
@pytest.mark.parametrize(("datatype", "value"), [("FP16", 65520.0), ("FP16", -1e9), ("BF16", 3.4e38), ("FP32", 3.5e38)])
def test_a_float_out_of_range_is_refused_and_does_not_become_infinite(
    convert: Any, datatype: str, value: float
) -> None:
    for text in (orjson.dumps([0.0, value]), orjson.dumps([[0.0], [value]])):
        shape = (2,) if text[1:2] != b"[" else (2, 1)
        with pytest.raises(RequestError, match="range"):
            convert(datatype, shape, text)


@both_paths
@pytest.mark.parametrize("datatype", NUMBERS)
@pytest.mark.parametrize("value", [True, None, "1", {}, "NaN"])
def test_what_is_no_number_is_no_element_of_a_number_tensor(convert: Any, datatype: str, value: Any) -> None:
    for values in ([value], [1, value], [[1, value]], [[value, 1]]):
        shape = (1, 2) if isinstance(values[0], list) else (len(values),)
        with pytest.raises(RequestError, match="'x'"):
            convert(datatype, shape, orjson.dumps(values))


@both_paths
@pytest.mark.parametrize("datatype", INTEGERS)
@pytest.mark.parametrize("value", [1.5, 1.0, 1e3])
def test_a_fraction_is_no_element_of_an_integer_tensor(convert: Any, datatype: str, value: float) -> None:
    with pytest.raises(RequestError, match="'x'"):
        convert(datatype, (1,), orjson.dumps([value]))


@both_paths
@pytest.mark.parametrize("value", [2, -1, 1.0, "true", None, {}])
def test_what_is_no_truth_value_is_no_element_of_a_bool_tensor(convert: Any, value: Any) -> None:
    with pytest.raises(RequestError, match="BOOL"):
        convert("BOOL", (2,), orjson.dumps([True, value]))


@both_paths
@pytest.mark.parametrize("value", [1, True, None, {}, 1.5])
def test_what_is_no_string_is_no_element_of_a_bytes_tensor(convert: Any, value: Any) -> None:
    with pytest.raises(RequestError, match="must be strings"):
        convert("BYTES", (2,), orjson.dumps(["a", value]))


@both_paths
@pytest.mark.parametrize("datatype", EVERY)
def test_too_few_and_too_many_elements_are_refused(convert: Any, datatype: str) -> None:
    one: Any = "a" if datatype == "BYTES" else 1
    for count in (0, 5, 7, 12):
        with pytest.raises(RequestError, match="'x'"):
            convert(datatype, (2, 3), orjson.dumps([one] * count))


@both_paths
@pytest.mark.parametrize("datatype", EVERY)
def test_wrong_nesting_is_refused(convert: Any, datatype: str) -> None:
    one: Any = "a" if datatype == "BYTES" else 1
    wrong: list[Any] = [
        [[one] * 2] * 3,
        [[one] * 3, [one] * 2, [one]],
        [[one] * 6],
        [[[one]] * 3] * 2,
        [[one] * 3, one, one, one],
    ]
    for value in wrong:
        with pytest.raises(RequestError):
            convert(datatype, (2, 3), orjson.dumps(value))


@both_paths
@pytest.mark.parametrize("datatype", NUMBERS)
def test_a_list_in_place_of_an_element_is_refused(convert: Any, datatype: str) -> None:
    for shape, value in (((2,), [1, [2]]), ((3,), [1, [], [2, 3]]), ((2, 2), [[1, [2]], [3, 4]])):
        with pytest.raises(RequestError):
            convert(datatype, shape, orjson.dumps(value))


@pytest.mark.parametrize("text", [b"1", b'"abc"', b"{}", b"null", b"true"])
@pytest.mark.parametrize("datatype", EVERY)
def test_data_that_are_no_array_are_refused(datatype: str, text: bytes) -> None:
    with pytest.raises(RequestError, match="not an array"):
        from_text(datatype, (1,), text)


@pytest.mark.parametrize("text", [b'["\xff"]', b'["a", "\xc3"]', b'[["\xed\xa0\x80"]]'])
@pytest.mark.parametrize("datatype", ["FP32", "FP16", "INT32", "BOOL", "BYTES"])
def test_strings_that_are_no_utf8_are_a_request_error(datatype: str, text: bytes) -> None:
    with pytest.raises(RequestError):
        from_text(datatype, (1,), text)


@pytest.mark.parametrize("datatype", EVERY)
@pytest.mark.parametrize("text", [b"[1e999]", b"[-1e999]", b"[[1e999]]", b"[1e-999]"])
def test_a_number_beyond_a_double_is_never_infinite(datatype: str, text: bytes) -> None:
    try:
        raw = from_text(datatype, (1, 1) if text.startswith(b"[[") else (1,), text)
    except RequestError:
        return
    assert datatype in FLOATS
    assert not raw.strip(b"\0")


def test_a_sentence_about_a_long_value_stays_short() -> None:
    for datatype in ("INT32", "BOOL"):
        with pytest.raises(RequestError) as caught:
            from_text(datatype, (2,), orjson.dumps([1, "x" * 10_000]))
        assert len(caught.value.message) < 200


@pytest.mark.parametrize("datatype", EVERY)
@quick
@given(shapes, st.integers(0, 2**32 - 1))
def test_what_is_sent_as_json_is_read_back_the_same(datatype: str, shape: tuple[int, ...], seed: int) -> None:
    rng = np.random.default_rng(seed)
    array: Array
    if datatype == "BYTES":
        array = np.array([f"wört {value}" for value in rng.integers(0, 99, math.prod(shape))], object).reshape(shape)
    elif datatype in FLOATS:
        array = rng.standard_normal(shape).astype(DTYPES[datatype])
    elif datatype == "BOOL":
        array = np.asarray(rng.random(shape) < 0.5)
    else:
        info = np.iinfo(DTYPES[datatype])
        array = rng.integers(info.min, info.max, shape, DTYPES[datatype], endpoint=True)
    array = np.asarray(array)
    _, raw = raw_from_array(array)
    text = json_from_raw("y", datatype, shape, raw)
    assert orjson.loads(text) == json.loads(text)
    assert len(json.loads(text)) == math.prod(shape)
    assert from_text(datatype, shape, text) == bytes(raw)


@pytest.mark.parametrize("datatype", FLOATS)
def test_nan_and_infinities_are_null(datatype: str) -> None:
    array = np.array([1.5, np.nan, np.inf, -np.inf, -2.0]).astype(DTYPES[datatype])
    assert json.loads(json_from_raw("y", datatype, (5,), array.tobytes())) == [1.5, None, None, None, -2.0]


@pytest.mark.parametrize("datatype", NUMBERS)
def test_an_output_at_an_odd_address_is_read_all_the_same(datatype: str) -> None:
    array = np.arange(1, 5).astype(DTYPES[datatype])
    raw = memoryview(b"?" + array.tobytes())[1:]
    assert json.loads(json_from_raw("y", datatype, (4,), raw)) == [1, 2, 3, 4]


def test_the_smallest_and_largest_integers_are_exact() -> None:
    for datatype, code in (("INT64", "q"), ("UINT64", "Q")):
        info = np.iinfo(DTYPES[datatype])
        values = [int(info.min), int(info.max), int(info.max) - 1]
        raw = struct.pack(f"<3{code}", *values)
        assert json.loads(json_from_raw("y", datatype, (3,), raw)) == values
        assert from_text(datatype, (3,), orjson.dumps(values)) == raw
        assert from_simdjson(datatype, (3,), orjson.dumps(values)) == raw


def test_bytes_that_are_no_text_ask_for_binary_data() -> None:
    with pytest.raises(RequestError, match="binary_data"):
        json_from_raw("y", "BYTES", (1,), pack_bytes([b"\xff\xfe"]))


def test_bfloat16_is_rounded_to_the_nearest() -> None:
    raw = from_text("BF16", (2,), b"[1.00390625, 3.14159]")
    assert np.frombuffer(raw, ml_dtypes.bfloat16).astype(np.float32).tolist() == [1.0, 3.140625]
