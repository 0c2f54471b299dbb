import json
import tracemalloc
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.errors import RequestError
from gateway.http import oip_json, tensor_json, tfserving_json
from gateway.http.json_codec import numbers
from gateway.http.tensor_json import raw_from_json

LEAVES = st.integers(-2, 300) | st.floats(-5, 5) | st.booleans() | st.sampled_from([None, "a", {}, 2**63, -(2**70)])
DATA = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3), max_leaves=8)
REQUESTS = st.fixed_dictionaries(
    {
        "name": st.just("x"),
        "datatype": st.sampled_from(["FP32", "FP16", "BF16", "INT8", "INT64", "UINT64", "BOOL", "BYTES"]),
        "shape": st.lists(st.integers(0, 3), max_size=3),
        "data": st.lists(DATA, max_size=4),
    }
)


def outcome(text: bytes) -> Any:
    try:
        request, data = oip_json.parse(text)
        (item,), (each,) = request.inputs, data
        assert each is not None
        count = int(np.prod(item.shape, dtype=int))
        return bytes(raw_from_json("x", item.datatype, item.shape, count, each))
    except RequestError as error:
        return error.message


@settings(max_examples=400, deadline=None)
@given(REQUESTS)
@example({"name": "x", "datatype": "BOOL", "shape": [2], "data": [1, 0]})
@example({"name": "x", "datatype": "INT8", "shape": [2], "data": [1, 300]})
@example({"name": "x", "datatype": "FP32", "shape": [2, 1], "data": [[1], [2]]})
@example({"name": "x", "datatype": "FP32", "shape": [2], "data": [1, [2]]})
def test_every_way_of_reading_gives_the_same_tensor_or_the_same_sentence(item: dict[str, Any]) -> None:
    text = json.dumps({"inputs": [item]}).encode()
    small = outcome(text)
    assert outcome(text + b" " * (oip_json.LARGE_JSON + 1)) == small
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(oip_json, "LARGE_JSON", 1)
        assert outcome(text) == small
        patch.setattr(oip_json, "VERY_LARGE_JSON", 1)
        patch.setattr(tensor_json, "LARGE", 0)
        patch.setattr(numbers, "PIECE", 1)
        assert outcome(text) == small


@pytest.mark.parametrize("padding", [0, oip_json.LARGE_JSON + 1, oip_json.VERY_LARGE_JSON + 1])
def test_the_last_of_two_equal_keys_counts_and_a_number_too_large_is_called_so(padding: int) -> None:
    item = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":[1],"data":[%b]}]}' + b" " * padding
    assert outcome(item % b"2") == np.float32(2).tobytes()
    assert "too large" in outcome(item % b"1e400")


@pytest.mark.parametrize("datatype", ["FP32", "INT8", "BOOL"])
def test_millions_of_nested_lists_are_read_at_the_cost_of_their_numbers(datatype: str) -> None:
    unit = b"[true]" if datatype == "BOOL" else b"[1]"
    count = 2_000_000
    text = b"[" + (unit + b",") * (count - 1) + unit + b"]"
    head = b'{"inputs":[{"name":"x","datatype":"%b","shape":[%d,1],"data":' % (datatype.encode(), count)
    whole = b'{"instances":' + text + b"}"
    tracemalloc.start()
    try:
        raw = outcome(head + text + b"}]}")
        shape, same = tfserving_json.tensor_of(datatype, tfserving_json.parse(whole)["instances"])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (shape, bytes(same)) == ((count, 1), raw)
    assert peak < 6 * len(whole)  # half of it for what the test itself holds


def test_lists_that_can_only_be_looked_at_one_by_one_are_refused_before_they_are() -> None:
    text = b"[" + b"[1],[]," * 1_000_000 + b"[1]]"
    for body in (b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,1],"data":' + text + b"}]}",):
        tracemalloc.start()
        assert "too many lists" in outcome(body)
        assert tracemalloc.get_traced_memory()[1] < 4 * len(body)
        tracemalloc.stop()


def test_commas_and_quotes_within_a_string_count_as_nothing() -> None:
    long = json.dumps('a,"[{' * 400_000).encode()
    assert len(outcome(b'{"inputs":[{"name":"x","datatype":"BYTES","shape":[1],"data":[' + long + b"]}]}")) == 2_000_004
    assert len(tfserving_json.parse(b'{"instances":[' + long + b"]}")["instances"][0]) == 2_000_000


def test_tensorflow_servings_arrays_may_have_more_elements_than_simdjson_can_count() -> None:
    count = 0xFFFFFF + 2
    document = tfserving_json.parse(b'{"instances":[' + b"1," * (count - 1) + b"1]}")
    shape, raw = tfserving_json.tensor_of("INT8", document["instances"])
    assert shape == (count,)
    assert bytes(raw) == b"\1" * count


def test_more_elements_than_simdjson_can_count_are_read() -> None:
    count = 0xFFFFFF + 2
    found = numbers.read(b"[" + b"1," * (count - 1) + b"1]")
    assert found is not None
    assert found.shape == (count,)
    assert found.kind == "int"


@pytest.mark.parametrize(
    ("text", "kind"),
    [("[1,2]", "int"), ("[1,2.0]", "float"), ("[1,18446744073709551615]", "uint"), ("[[true],[false]]", "bool")],
)
def test_the_kind_of_the_numbers_is_told(text: str, kind: str) -> None:
    found = numbers.read(text.encode())
    assert found is not None
    assert found.kind == kind
    assert found.values.tolist() == np.array(json.loads(text), found.values.dtype).ravel().tolist()


@pytest.mark.parametrize(
    "text", ["[1,[2]]", "[[1],2]", "[[1,2],[3]]", "[[],[1]]", "[1,null]", '["a"]', "[{}]", "[[[1]],[2]]"]
)
def test_what_is_no_regular_array_of_numbers_is_left_to_others(text: str) -> None:
    assert msgspec.json.decode(text) is not None
    assert numbers.read(text.encode()) is None
