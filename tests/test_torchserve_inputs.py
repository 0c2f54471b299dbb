import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import GatewayError, RequestError
from gateway.http.dialect import Body
from gateway.http.torchserve_inputs import Inputs, read
from gateway.tensors import Signature, TensorSpec, array_from_raw, pack_bytes

ONE = Signature("forward", (TensorSpec("x", "FP32", (-1, 3)),), ())
TEXT = Signature("forward", (TensorSpec("text", "BYTES", (-1,)),), ())
TWO = Signature("forward", (TensorSpec("a", "FP32", (-1, 2)), TensorSpec("n", "INT64", (-1,))), ())
OPEN = Signature("forward", (TensorSpec("x", "FP32", None, strict=False),), (), open_inputs=True)
JSON, RAW, URLENCODED = "application/json", "application/octet-stream", "application/x-www-form-urlencoded"


def given_as(data: bytes, kind: str = "", signature: Signature = ONE) -> Inputs:
    headers = [(b"content-type", kind.encode())] if kind else []
    return read(Body(data, None, None, headers), signature)


def arrays(found: Inputs) -> dict[str, Any]:
    return {each.name: array_from_raw(each.datatype, each.shape, each.raw).tolist() for each in found.tensors}


@pytest.mark.parametrize("kind", [JSON, "", "text/plain", URLENCODED])
@pytest.mark.parametrize(
    ("body", "values", "row"),
    [
        ([1, 2, 3], [[1, 2, 3]], True),
        ([[1, 2, 3]], [[1, 2, 3]], False),
        ([[1, 2, 3], [4, 5, 6]], [[1, 2, 3], [4, 5, 6]], False),
        ({"data": [1, 2, 3]}, [[1, 2, 3]], True),
        ({"body": [[1, 2, 3]]}, [[1, 2, 3]], False),
        ({"x": [1, 2, 3]}, [[1, 2, 3]], True),
        ({"data": {"x": [1, 2, 3]}}, [[1, 2, 3]], True),
        ({"instances": [[1, 2, 3]]}, [[1, 2, 3]], False),
        ({"instances": [{"x": [1, 2, 3]}]}, [[1, 2, 3]], False),
        ({"inputs": [[1, 2, 3]]}, [[1, 2, 3]], False),
        ({"inputs": {"x": [[1, 2, 3]]}}, [[1, 2, 3]], False),
        ([{"x": [1, 2, 3]}, {"x": [4, 5, 6]}], [[1, 2, 3], [4, 5, 6]], False),
    ],
)
def test_json_is_a_row_or_a_batch_by_its_rank(kind: str, body: Any, values: Any, row: bool) -> None:
    found = given_as(json.dumps(body).encode(), kind)
    assert arrays(found) == {"x": values}
    assert found.row is row
    assert found.predictions is (isinstance(body, dict) and "instances" in body)


def test_many_numbers_are_read_the_same_way() -> None:
    wide = Signature("forward", (TensorSpec("x", "FP32", (-1, 20_000)),), ())
    numbers = [float(number) for number in range(20_000)]
    for body in (numbers, [numbers], {"data": numbers}, {"x": [numbers]}):
        assert arrays(given_as(json.dumps(body).encode(), JSON, wide)) == {"x": [numbers]}


def test_a_form_has_the_value_in_its_field_data_or_a_field_for_each_input() -> None:
    assert arrays(given_as(b"data=[1,2,3]", URLENCODED)) == {"x": [[1, 2, 3]]}
    assert arrays(given_as(b"other=1&x=[[1,2,3]]", URLENCODED)) == {"x": [[1, 2, 3]]}
    assert arrays(given_as(b"body=hello+world", URLENCODED, TEXT)) == {"text": [b"hello world"]}
    assert arrays(given_as(b"a=[1,2]&n=7", URLENCODED, TWO)) == {"a": [[1, 2]], "n": [7]}
    raw = np.array([1, 2, 3], np.float32).tobytes()
    head = b'--z\r\nContent-Disposition: form-data; name="data"\r\nContent-Type: application/octet-stream\r\n\r\n'
    assert arrays(given_as(head + raw + b"\r\n--z--", "multipart/form-data; boundary=z")) == {"x": [[1, 2, 3]]}


def test_a_body_with_control_characters_is_no_form_whatever_curl_calls_it() -> None:
    for body in (b"\xff\xd8\xff\xe0\0\x10JFIF", b"GIF89a=\0\0\1", b"BM=\0\0"):
        assert arrays(given_as(body, URLENCODED, TEXT)) == {"text": [body]}
    raw = np.array([1, 2, 3], np.float32).tobytes()
    assert arrays(given_as(raw, URLENCODED)) == {"x": [[1, 2, 3]]}
    assert arrays(given_as("data=Où".encode(), URLENCODED, TEXT)) == {"text": ["Où".encode()]}


def test_bytes_are_one_string_or_exactly_one_tensor() -> None:
    assert arrays(given_as(b"\xff[1]", "image/jpeg", TEXT)) == {"text": [b"\xff[1]"]}
    assert arrays(given_as(b'{"a": 1}', "", TEXT)) == {"text": [b'{"a": 1}']}
    assert arrays(given_as(b'["a", {"b64": "/w=="}]', JSON, TEXT)) == {"text": [b"a", b"\xff"]}
    for kind in ("", RAW):
        raw = np.arange(6, dtype=np.float32).tobytes()
        assert arrays(given_as(raw, kind)) == {"x": [[0, 1, 2], [3, 4, 5]]}
        assert not given_as(raw, kind).row


def test_inputs_that_the_signature_leaves_open_are_handed_on() -> None:
    assert arrays(given_as(b'{"x": [1.5], "more": [2]}', JSON, OPEN)) == {"x": [1.5], "more": [2]}


@pytest.mark.parametrize(
    ("body", "kind", "signature", "said"),
    [
        (b"", "", ONE, "no body"),
        (b"12345", RAW, ONE, "no whole number of FP32 elements"),
        (b"[1,2", JSON, ONE, "JSON"),
        (b"[1,2", "text/plain", ONE, "JSON"),
        (b'[1],"data":[1,2,3]', JSON, ONE, "JSON"),
        (b'[["a"],', JSON, TEXT, "JSON"),
        (b"[" * 5000 + b'"' + b"]" * 5000, JSON, TEXT, "nested"),
        (b'{"y": [1, 2, 3]}', JSON, ONE, "no input 'y'; its inputs are 'x'"),
        (b"[1, 2]", JSON, TWO, "multiple input tensors"),
        (b'{"a": [1, 2], "n": [7, 8]}', JSON, TWO, "'a' is given as one row and input 'n' as a batch"),
        (b'{"a": [1, 2]}', JSON, TWO, "Missing named input: n"),
        (b"other=1", URLENCODED, ONE, "the form has 'other'"),
        (b"data=1", "multipart/form-data", ONE, "no boundary"),
    ],
)
def test_what_does_not_fit_is_refused(body: bytes, kind: str, signature: Signature, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        given_as(body, kind, signature)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["data", "body", "instances", "inputs", "x", "a", "n", "text", "b64"]), inner, max_size=3
        )
    ),
    max_leaves=12,
)
BODIES = st.binary(max_size=200) | VALUES.map(lambda value: json.dumps(value).encode())
KINDS = ["", JSON, RAW, URLENCODED, "text/plain", "image/png", "multipart/form-data; boundary=z"]


@settings(max_examples=400)
@given(body=BODIES, kind=st.sampled_from(KINDS), signature=st.sampled_from([ONE, TEXT, TWO, OPEN]))
def test_whatever_comes_is_tensors_or_an_error_of_ours(body: bytes, kind: str, signature: Signature) -> None:
    try:
        found = given_as(body, kind, signature)
    except GatewayError:
        return
    for tensor in found.tensors:
        shape: Sequence[int] = tensor.shape
        assert len(tensor.raw) == len(pack_bytes([])) or shape is not None
        array_from_raw(tensor.datatype, shape, tensor.raw)
