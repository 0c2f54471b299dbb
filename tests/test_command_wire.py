"""Requests and answers as bytes: what is encoded is decoded again, and nothing else is."""

from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.commands.wire import JSON_SIZE, decode, encode
from gateway.errors import CallFailed
from gateway.tensors import DTYPES

ARRAYS: dict[str, Any] = {
    name: np.array([[b"a", b"\xff"], [b"", b"\xc3\xa9"]], object)
    if name == "BYTES"
    else np.array([[0, 1], [1, 0]]).astype(dtype)
    for name, dtype in DTYPES.items()
}


def answered(body: bytes, json_size: int | None) -> tuple[bytes, str | None]:
    """The inputs of a request as the outputs of an answer."""
    size = len(body) if json_size is None else json_size
    head = orjson.loads(body[:size])
    text = orjson.dumps({"model_name": "m", "model_version": "1", "outputs": head["inputs"]})
    return text + body[size:], None if json_size is None else str(len(text))


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("datatype", list(DTYPES))
def test_every_datatype_survives_both_ways(datatype: str, binary: bool) -> None:
    array = ARRAYS[datatype]
    if datatype == "BYTES" and not binary:
        array = array[1]  # JSON has text only
    body, headers = encode({"x": (datatype, array), "y": (datatype, array[:1])}, binary=binary)
    answer = decode(*answered(body, int(headers[JSON_SIZE]) if binary else None))
    assert answer.head == {"model_name": "m", "model_version": "1"}
    assert list(answer.outputs) == ["x", "y"]
    assert answer.datatypes == {"x": datatype, "y": datatype}
    assert answer.outputs["x"].dtype == DTYPES[datatype]
    assert np.array_equal(answer.outputs["x"], array)


def test_what_is_wanted_beside_the_inputs_is_in_the_request() -> None:
    body, headers = encode({}, binary=False, outputs=["a"], signature="s")
    assert orjson.loads(body) == {"inputs": [], "outputs": [{"name": "a"}], "parameters": {"signature_name": "s"}}
    assert JSON_SIZE not in headers
    assert orjson.loads(encode({}, binary=True)[0])["parameters"] == {"binary_data_output": True}


def test_an_answer_can_be_shown_as_the_protocol_has_it() -> None:
    data = np.array([1.5, np.nan], np.float32)
    head = {"model_name": "m", "outputs": [{"name": "y", "datatype": "FP32", "shape": [2]}]}
    head["outputs"][0]["parameters"] = {"binary_data_size": 8}  # type: ignore[index]
    text = orjson.dumps(head)
    answer = decode(text + data.tobytes(), str(len(text)))
    assert orjson.loads(orjson.dumps(answer.as_json())) == {
        "model_name": "m",
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [2], "data": [1.5, None]}],
    }


def test_bytes_that_are_no_text_cannot_be_json() -> None:
    body, headers = encode({"x": ("BYTES", ARRAYS["BYTES"])}, binary=True)
    answer = decode(*answered(body, int(headers[JSON_SIZE])))
    with pytest.raises(CallFailed, match="-o DIR writes it"):
        answer.as_json()


def test_null_is_no_number() -> None:
    answer = decode(b'{"outputs":[{"name":"y","datatype":"FP32","shape":[2],"data":[1,null]}]}', None)
    assert np.array_equal(answer.outputs["y"], np.array([1, np.nan], np.float32), equal_nan=True)


OUTPUT = b'{"outputs":[{"name":"y","datatype":"%b","shape":%b,%b}]}'


@pytest.mark.parametrize(
    ("body", "size"),
    [
        (b"", None),
        (b"[]", None),
        (b"{}", None),
        (b'{"outputs":3}', None),
        (b'{"outputs":[3]}', None),
        (b'{"outputs":[]}', "many"),
        (b'{"outputs":[]}', "3"),
        (OUTPUT % (b"FP32", b"[2]", b'"data":[1]'), None),
        (OUTPUT % (b"FP32", b"[2]", b'"data":["a","b"]'), None),
        (OUTPUT % (b"FP99", b"[1]", b'"data":[1]'), None),
        (OUTPUT % (b"FP32", b'["a"]', b'"data":[1]'), None),
        (OUTPUT % (b"FP32", b"[1]", b'"parameters":{"binary_data_size":4}'), None),
        (OUTPUT % (b"FP32", b"[1]", b'"parameters":{"binary_data_size":"4"}'), None),
        (OUTPUT % (b"FP32", b"[-1]", b'"parameters":{"binary_data_size":-4}'), None),
        (OUTPUT % (b"BYTES", b"[1]", b'"parameters":{"binary_data_size":2}') + b"ab", "72"),
        (OUTPUT % (b"FP32", b"[1099511627776,1099511627776]", b'"parameters":{"binary_data_size":0}'), None),
    ],
)
def test_an_answer_that_makes_no_sense_is_refused(body: bytes, size: str | None) -> None:
    with pytest.raises(CallFailed, match="cannot be understood"):
        decode(body, size)


@given(st.binary(max_size=200), st.none() | st.integers(-5, 205).map(str))
def test_no_answer_breaks_the_client(noise: bytes, size: str | None) -> None:
    with pytest.raises(CallFailed, match="cannot be understood"):
        decode(noise, size)
