import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from gateway.errors import GatewayError, RequestError
from gateway.http import tfserving_json
from gateway.http.json_codec import budget
from gateway.http.json_codec.budget import LARGE
from gateway.http.json_codec.numbers import Numbers
from gateway.http.tfserving_json import bytes_of, parse, shape_of, tensor_of
from gateway.http.tfserving_outputs import pieces
from gateway.tensors import DTYPES, array_from_raw

PADDING = " " * (LARGE + 1)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec="utf-8"), max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["b64", "a", ""]), inner, max_size=3),
    max_leaves=20,
)
SHAPES = arrays.array_shapes(min_dims=0, max_dims=4, max_side=4)


def said_of(text: bytes) -> str:
    try:
        parse(text)
    except GatewayError as error:
        return error.message
    return "JSON"


def instances(text: str) -> Any:
    return parse(text.encode())["instances"]


@pytest.mark.parametrize("datatype", ["FP32", "FP64", "FP16", "INT8", "INT32", "INT64", "UINT64", "UINT8", "BOOL"])
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_a_tensor_read_small_or_large_and_written_is_the_same(datatype: str, data: st.DataObject) -> None:
    array = data.draw(arrays.arrays(DTYPES[datatype], SHAPES))
    text = b"".join(pieces(array)).decode()
    for padding in ("", PADDING):
        shape, raw = tensor_of(datatype, instances(f'{{"instances":{text}{padding}}}'))
        assert shape == array.shape
        assert np.array_equal(array_from_raw(datatype, shape, raw), array, equal_nan=datatype[0] == "F")


@given(value=JSON)
@settings(max_examples=300, deadline=None)
def test_any_json_is_a_tensor_or_one_clear_sentence_the_same_small_and_large(value: Any) -> None:
    text = json.dumps({"instances": value}, ensure_ascii=False)
    for datatype in ("FP32", "INT64", "BYTES", "BOOL"):
        found = []
        for padding in ("", PADDING):
            try:
                shape, raw = tensor_of(datatype, instances(text[:-1] + padding + "}"))
                found.append((shape, bytes(raw)))
            except RequestError as error:
                found.append((type(error), "\n" in error.message))
        assert found[0] == found[1]
        assert found[0] != (RequestError, True)


@given(raw=st.binary(max_size=60))
@settings(max_examples=300, deadline=None)
def test_bytes_that_are_no_json_are_one_clear_sentence(raw: bytes) -> None:
    for text in (raw, raw + PADDING.encode(), b'{"instances":[' + raw + b"]}"):
        assert said_of(text).startswith("JSON")


def test_a_large_array_of_numbers_is_left_unconverted() -> None:
    assert isinstance(instances(f'{{"instances":[[1,2]]{PADDING}}}'), Numbers)
    assert instances(f'{{"instances":[["a"]]{PADDING}}}') == [["a"]]
    found = parse(f'{{"inputs":{{"a":[1],"b":[2]}}{PADDING}}}'.encode())["inputs"]
    assert [tensor_of("INT32", each) for each in found.values()] == [((1,), b"\1\0\0\0"), ((1,), b"\2\0\0\0")]


@pytest.mark.parametrize("text", ["[[1,2],[3],[4,5,6]]", "[[1,2],[3,[4]]]", "[[1],2]", "[1,[2]]", "[[1,2],[3,null]]"])
def test_a_large_array_that_is_ragged_is_refused_like_a_small_one(text: str) -> None:
    for padding in ("", PADDING):
        with pytest.raises(RequestError):
            tensor_of("FP32", instances(f'{{"instances":{text}{padding}}}'))


def test_values_that_must_be_looked_at_one_by_one_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "MOST_VALUES", 10)
    with pytest.raises(RequestError, match="more than 10 values"):
        instances(f'{{"instances":{["a"] * 20}{PADDING}}}'.replace("'", '"'))
    with pytest.raises(RequestError, match="more than 10 values"):
        tensor_of("FP32", instances(f'{{"instances":{[[1, 2]] * 10 + [[1]]}{PADDING}}}'))
    monkeypatch.setattr(tfserving_json, "MOST_TOKEN_BYTES", 10)
    with pytest.raises(RequestError, match="NaN or Infinity is limited"):
        instances('{"instances":[NaN]}')


def test_a_token_in_a_string_stays_a_string() -> None:
    assert instances('{"instances":["Inf \\" Inf", NaN, Inf, -Inf]}')[0] == 'Inf " Inf'


@pytest.mark.parametrize("text", ["aGVsbG8=", "aGVsbG8", "__8=", "//8="])
def test_both_alphabets_of_base64_are_read_padded_or_not(text: str) -> None:
    assert bytes_of({"b64": text}) in {b"hello", b"\xff\xff"}


@pytest.mark.parametrize("value", [{"b64": "a"}, {"b64": "ä"}, {"b64": "a b="}, {"b64": 1}, {"c": "a"}, 1])
def test_what_is_no_base64_is_refused(value: Any) -> None:
    with pytest.raises(RequestError):
        bytes_of(value)


def test_the_shape_is_what_the_first_elements_tell() -> None:
    assert shape_of(1) == ()
    assert shape_of([[], []]) == (2, 0)
    assert shape_of([[1, 2], [3]]) == (2, 2)
