import copy
import json
import math
import time
from typing import Any, cast

import msgspec
import numpy as np
import orjson
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from gateway.errors import RequestError
from gateway.http import form as form_module
from gateway.http import oip, oip_json
from gateway.http.oip import Body, OipRequest, decode, encode_response, raw_shape
from gateway.http.oip_json import LARGE_JSON, parse
from gateway.ipc.arena import THRESHOLD
from gateway.ipc.batching import Batching
from gateway.ipc.channel import Channel
from gateway.ipc.framing import (
    MAX_HEADER,
    OFFSET,
    REMEMBERED_BYTES,
    RequestHeader,
    ResultHeader,
    TensorHeader,
    split_payload,
)
from gateway.ipc.messages import Ready, VersionRoute
from gateway.metrics import VersionCounters
from gateway.routing import Target
from gateway.store.manifest import ModelConfig
from gateway.tensors import (
    MAX_STRINGS,
    Array,
    Buffer,
    Signature,
    TensorSpec,
    array_from_raw,
    pack_bytes,
    raw_from_array,
)

quick = settings(max_examples=150, deadline=None)

SPECS = (TensorSpec("x", "FP32", (-1, 2)), TensorSpec("words", "BYTES", (-1,), optional=True))
CLOSED = Signature("forward", SPECS, (TensorSpec("y", "FP32", (-1,)), TensorSpec("z", "INT64", None)))
OTHER = Signature("count", (TensorSpec("n", "INT64", None),), (TensorSpec("y", "INT64", ()),))
OPEN = Signature("forward", (), (), open_inputs=True, open_outputs=True)


class FakeChannel:
    """What decode needs of a channel: an arena that is a bytearray."""

    def __init__(self) -> None:
        self.memory = bytearray()

    def place(self, raw: Buffer, regions: list[int]) -> Buffer | None:
        if len(raw) <= THRESHOLD:
            return None
        regions.append(len(self.memory))
        self.memory += raw
        return OFFSET.pack(regions[-1])


def target_of(*signatures: Signature, model: str = "m") -> Target:
    ready = Ready(
        pid=1,
        platform="pytorch_torchscript",
        signatures={signature.name: signature for signature in signatures},
        default_signature=signatures[0].name,
        batching=Batching(1, ""),
        notes=[],
        load_seconds=0.0,
    )
    route = VersionRoute(
        model=model,
        version=1,
        platform="pytorch_torchscript",
        framework="pytorch",
        state="READY",
        reason="",
        config=ModelConfig(),
        ready=ready,
    )
    return Target(route, [], VersionCounters(model, "1", "pytorch"))


def decoded(
    data: bytes, target: Target | None = None, json_size: int | None = None, region: int | None = None
) -> tuple[OipRequest, FakeChannel, list[int]]:
    channel, regions = FakeChannel(), list[int]()
    if region is not None:
        channel.memory = bytearray(region) + data
    request = decode(
        Body(data, json_size, region), target or target_of(CLOSED, OTHER), cast("Channel", channel), regions
    )
    return request, channel, regions


def arrays_of(request: OipRequest, channel: FakeChannel) -> dict[str, Array]:
    """What the instance makes of a request."""
    header = msgspec.msgpack.decode(request.header, type=RequestHeader)
    pieces = split_payload(header.inputs, b"".join(request.payload), memoryview(bytes(channel.memory)))
    return {
        tensor.name: array_from_raw(tensor.datatype, tensor.shape, piece)
        for tensor, piece in zip(header.inputs, pieces, strict=True)
    }


def outcome(data: bytes, target: Target, json_size: int | None = None) -> Any:
    """Everything of a decoded request, or the class of the error."""
    try:
        request, channel, _ = decoded(data, target, json_size)
    except RequestError as error:
        return type(error)
    arrays = {name: (str(a.dtype), a.shape, a.tolist()) for name, a in arrays_of(request, channel).items()}
    return request.header, arrays, request.id, request.binary_default, request.binary


def x_of(*rows: Any, **more: Any) -> dict[str, Any]:
    return {"name": "x", "shape": [len(rows), 2], "datatype": "FP32", "data": list(rows), **more}


GOOD: list[dict[str, Any]] = [
    {"inputs": [x_of([1, 2.5], [3, 4])]},
    {
        "id": "seven",
        "parameters": {"binary_data_output": True, "signature_name": "forward"},
        "inputs": [
            x_of([1, 2]),
            {"name": "words", "shape": [1], "datatype": "BYTES", "data": ["a ö"], "parameters": {}},
        ],
        "outputs": [{"name": "y", "parameters": {"binary_data": False}}, {"name": "z"}],
    },
    {
        "parameters": {"signature_name": "count"},
        "inputs": [{"name": "n", "shape": [], "datatype": "INT64", "data": [3]}],
    },
]
PADDING = b" " * (LARGE_JSON + 1)


@pytest.mark.parametrize("padding", [b"", PADDING], ids=["small", "large"])
def test_a_request_is_decoded_on_either_path(padding: bytes) -> None:
    request, channel, _ = decoded(orjson.dumps(GOOD[1]) + padding)
    arrays = arrays_of(request, channel)
    assert arrays["x"].tolist() == [[1.0, 2.0]]
    assert arrays["words"].tolist() == ["a ö".encode()]
    assert request.id == "seven"
    assert request.binary_default
    assert request.binary == {"y": False}
    assert msgspec.msgpack.decode(request.header, type=RequestHeader).outputs == ("y", "z")


@pytest.mark.parametrize("padding", [b"", PADDING], ids=["small", "large"])
def test_the_signature_asked_for_is_the_one_that_is_checked(padding: bytes) -> None:
    request, channel, _ = decoded(orjson.dumps(GOOD[2]) + padding)
    assert msgspec.msgpack.decode(request.header, type=RequestHeader).signature == "count"
    assert arrays_of(request, channel)["n"].tolist() == 3


def test_a_large_tensor_is_placed_in_the_arena() -> None:
    rows = np.arange(2 * THRESHOLD).reshape(-1, 2) * 0.5
    request, channel, regions = decoded(orjson.dumps({"inputs": [x_of(*rows.tolist())]}))
    assert regions == [0]
    assert np.array_equal(arrays_of(request, channel)["x"], rows.astype(np.float32))


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 5)
    | st.sampled_from([2**31, 2**63, 2**64, 2**70, -(2**63) - 1, 1.5, 1e300, "x", "FP32", "BYTES", "forward", ""]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["inputs", "outputs", "name", "shape", "datatype", "data", "parameters", "id", "more"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@quick
@given(json_values, st.booleans(), st.sampled_from([CLOSED, OPEN]))
def test_any_json_is_a_request_or_a_request_error(value: Any, large: bool, signature: Signature) -> None:
    assert outcome(json.dumps(value).encode() + (PADDING if large else b""), target_of(signature))


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    items = enumerate(value) if isinstance(value, list) else value.items() if isinstance(value, dict) else ()
    for key, item in items:
        found += places(item, (*path, key))
    return found


DELETE = object()


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(GOOD), st.lists(st.tuples(st.integers(0, 200), json_values | st.just(DELETE)), max_size=3))
@example(GOOD[0], [(0, None)])
def test_a_spoilt_request_is_judged_alike_on_both_paths(good: dict[str, Any], changes: list[tuple[int, Any]]) -> None:
    body = copy.deepcopy(good)
    for where, value in changes:
        paths = places(body)
        if not paths:
            break
        *parents, key = paths[where % len(paths)]
        at: Any = body
        for parent in parents:
            at = at[parent]
        if value is DELETE:
            del at[key]
        else:
            at[key] = copy.deepcopy(value)
    text = json.dumps(body).encode()
    assume(not any(str(number).encode() in text for number in (2**64, 2**70, -(2**63) - 1)))  # simdjson has 64 bits
    target = target_of(CLOSED, OTHER)
    small = outcome(text, target)
    assert outcome(text + PADDING, target) == small
    assert outcome(text, target_of(CLOSED, OTHER)) == small  # nor does it depend on what was asked before


@pytest.mark.parametrize("padding", [b"", PADDING])
def test_optional_fields_may_be_null(padding: bytes) -> None:
    tensor = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2], "parameters": None}
    output = {"name": "y", "parameters": None}
    parameters = {"binary_data_output": None, "timeout": None, "priority": None, "signature_name": None}
    request = {"id": None, "inputs": [tensor], "outputs": [output], "parameters": parameters}
    found, _, _ = decoded(json.dumps(request).encode() + padding)
    assert (found.id, found.binary_default) == ("", False)


@pytest.mark.parametrize(
    "text",
    [
        b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":null}]}',
        b'{"inputs":[{"name":"x","shape":[0,2],"datatype":"FP32","data":null,"parameters":{"binary_data_size":0}}]}',
        b'{"inputs":[{"name":"x","shape":[1.0,2.0],"datatype":"FP32","data":[1,2]}]}',
        b'{"inputs":[{"name":"x","shape":[true,2],"datatype":"FP32","data":[1,2]}]}',
        b'{"id":7,"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1,2]}]}',
        b'{"id":null,"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1,2]}]}',
        b'{"id":"\\ud800","inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1,2]}]}',
        b'{"id":"\xff","inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1,2]}]}',
        b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":["\xff"]}]}',
        b'{"inputs":[{"name":"words","shape":[1],"datatype":"BYTES","data":["\\ud800"]}]}',
        b'{"inputs":[{"name":"words","shape":[1],"datatype":"BYTES","data":["\\u0000"]}]}',
        b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1e999,2]}]}',
        b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[NaN,2]}]}',
        b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1,2]}],"outputs":null,"parameters":null}',
        b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1,2],}]}',
        b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1,2]}]} x',
        b"",
        b"null",
        b"[]",
        b'"inputs"',
        b"{",
    ],
)
def test_odd_texts_are_judged_alike_on_both_paths(text: bytes) -> None:
    assert outcome(text + PADDING, target_of(CLOSED)) == outcome(text, target_of(CLOSED))


@pytest.mark.parametrize("padding", [b"", PADDING], ids=["small", "large"])
@pytest.mark.parametrize("key", [b'"inputs"', b'"name"', b'"shape"', b'"data"', b'"parameters"', b'"id"'])
@pytest.mark.parametrize("value", [b"[]", b"[{}]", b"[1,2]", b"[1,2,3]", b"null", b'"x"', b'[{"name":"x"}]'])
@pytest.mark.parametrize("first", [True, False])
def test_a_key_that_stands_twice_is_a_request_or_a_request_error(
    key: bytes, value: bytes, first: bool, padding: bytes
) -> None:
    text = orjson.dumps({"id": "a", "parameters": {}, "inputs": [x_of([1, 2])]})
    at = text.index(key)
    whole = key in (b'"inputs"', b'"id"', b'"parameters"')  # else a key of the input
    end = at if first else len(text) - (1 if whole else 3)
    twice = key + b":" + value
    assert outcome(text[:end] + (twice + b"," if first else b"," + twice) + text[end:] + padding, target_of(CLOSED))


@quick
@given(st.sampled_from(GOOD), st.integers(0, 300), st.integers(0, 6), st.binary(max_size=6), st.booleans())
def test_a_request_with_bytes_changed_is_a_request_or_a_request_error(
    good: dict[str, Any], at: int, cut: int, put: bytes, large: bool
) -> None:
    text = orjson.dumps(good)
    assert outcome(text[:at] + put + text[at + cut :] + (PADDING if large else b""), target_of(CLOSED, OTHER))


@quick
@given(st.binary(max_size=80), st.none() | st.integers(0, 100), st.sampled_from([CLOSED, OTHER, OPEN]))
def test_any_bytes_with_any_header_length_are_a_request_or_a_request_error(
    body: bytes, json_size: int | None, signature: Signature
) -> None:
    assert outcome(body, target_of(signature), json_size)


sizes = st.integers(0, 40) | st.sampled_from([-1, 2**31, 2**63, 2**70, True, None, "8", 8.0])


@settings(max_examples=300, deadline=None)
@given(sizes, sizes, st.binary(max_size=48), st.integers(0, 3), st.booleans(), st.sampled_from([None, 0, 64]))
@example(8, None, bytes(8), 1, False, None)
@example(0, None, b"", 0, True, None)
def test_binary_parts_of_any_size_are_a_request_or_a_request_error(
    first: Any, second: Any, rest: bytes, rows: int, large: bool, region: int | None
) -> None:
    inputs: list[dict[str, Any]] = [
        {"name": "x", "shape": [rows, 2], "datatype": "FP32", "parameters": {"binary_data_size": first}}
    ]
    if second is not None:
        parameters = {"binary_data_size": second}
        inputs.append({"name": "words", "shape": [1], "datatype": "BYTES", "parameters": parameters})
    text = json.dumps({"inputs": inputs}).encode() + (PADDING if large else b"")
    try:
        request, channel, _ = decoded(text + rest, target_of(CLOSED), len(text), region)
    except RequestError:
        return
    arrays = arrays_of(request, channel)
    assert arrays["x"].tobytes() == rest[: 8 * rows]
    assert sum(len(raw_from_array(array)[1]) for array in arrays.values()) == len(rest)


def binary(*arrays: tuple[str, Array]) -> tuple[bytes, int]:
    """A body whose tensors are binary, and the length of its JSON."""
    raws = [(name, array.shape, *raw_from_array(array)) for name, array in arrays]
    text = orjson.dumps(
        {
            "inputs": [
                {"name": name, "shape": shape, "datatype": datatype, "parameters": {"binary_data_size": len(raw)}}
                for name, shape, datatype, raw in raws
            ]
        }
    )
    return b"".join([text, *(raw for *_, raw in raws)]), len(text)


@pytest.mark.parametrize("region", [None, 0, 128])
def test_binary_tensors_are_read_where_they_lie(region: int | None) -> None:
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    words = np.array([b"\xff", b"", b"abc"], object)
    data, size = binary(("words", words), ("x", x))
    request, channel, regions = decoded(data, json_size=size, region=region)
    arrays = arrays_of(request, channel)
    assert arrays["x"].tolist() == x.tolist()
    assert arrays["words"].tolist() == words.tolist()
    assert regions == []
    header = msgspec.msgpack.decode(request.header, type=RequestHeader)
    assert [tensor.in_arena for tensor in header.inputs] == [region is not None] * 2


def test_bytes_that_belong_to_no_input_are_refused() -> None:
    data, size = binary(("x", np.zeros((1, 2), np.float32)))
    for more in (b"x", bytes(8)):
        with pytest.raises(RequestError, match="belong to no input"):
            decoded(data + more, json_size=size)
    with pytest.raises(RequestError, match="Length"):
        decoded(data, json_size=len(data) + 1)


@pytest.mark.parametrize("inputs", [1, 2])
def test_strings_beyond_a_bound_are_refused_before_they_are_looked_at(inputs: int) -> None:
    words = binary(*((f"words{number}", np.full(MAX_STRINGS // inputs, b"", object)) for number in range(inputs)))
    decoded(words[0], target_of(OPEN), words[1])
    more = binary(*((f"words{number}", np.full(MAX_STRINGS // inputs + 1, b"", object)) for number in range(inputs)))
    with pytest.raises(RequestError, match="strings in its BYTES inputs"):
        decoded(more[0], target_of(OPEN), more[1])


def test_a_bracket_in_a_string_does_not_have_the_numbers_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    def looked(*_: Any) -> bool:
        raise AssertionError

    monkeypatch.setattr(oip_json, "_decode_request", looked)
    flat = {"inputs": [x_of([1, 2.5], [3, 4]) | {"data": [1, 2.5, 3, 4]}]}
    decoded(orjson.dumps({"id": 'a["[', **flat}) + PADDING)
    with pytest.raises(AssertionError):
        decoded(orjson.dumps({**flat, "parameters": {"more": []}}) + PADDING)


ONE = Signature("forward", (TensorSpec("x", "FP32", (-1, 2)),), ())


@pytest.mark.parametrize("region", [None, 64])
def test_a_raw_body_is_one_tensor(region: int | None) -> None:
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    request, channel, _ = decoded(x.tobytes(), target_of(ONE), 0, region)
    assert arrays_of(request, channel)["x"].tolist() == x.tolist()
    assert request.binary_default


def test_a_raw_body_for_a_model_of_strings_is_one_string() -> None:
    target = target_of(Signature("forward", (TensorSpec("s", "BYTES", (-1,)),), ()))
    request, channel, _ = decoded(b"\xff\x00", target, 0)
    assert arrays_of(request, channel)["s"].tolist() == [b"\xff\x00"]


@pytest.mark.parametrize("size", [1, 4, 7, 12])
def test_a_raw_body_that_does_not_fill_the_shape_is_refused(size: int) -> None:
    with pytest.raises(RequestError):
        decoded(bytes(size), target_of(ONE), 0)


def test_a_raw_body_needs_a_model_with_one_input() -> None:
    two = Signature("two", (TensorSpec("x", "FP32", (-1, 2)), TensorSpec("z", "FP32", (-1,))), ())
    for signature in (OPEN, two):
        with pytest.raises(RequestError, match="one input"):
            decoded(bytes(8), target_of(signature), 0)
    assert decoded(bytes(8), target_of(CLOSED), 0)[0].rows == 1  # of its inputs one may be left out


@quick
@given(
    st.none() | st.lists(st.integers(-1, 4), max_size=4).map(tuple),
    st.integers(0, 100),
)
def test_a_raw_shape_holds_exactly_its_elements(shape: tuple[int, ...] | None, count: int) -> None:
    try:
        found = raw_shape(TensorSpec("x", "FP32", shape), count)
    except RequestError:
        return
    assert math.prod(found) == count
    assert shape is None or all(want in (-1, have) for have, want in zip(found, shape, strict=True))


@pytest.mark.parametrize(
    ("shape", "count", "want"),
    [(None, 5, (5,)), ((-1, 3), 6, (2, 3)), ((-1, -1), 6, (1, 6)), ((-1, 3, -1), 6, (1, 3, 2)), ((2, 3), 6, (2, 3))],
)
def test_open_dimensions_of_a_raw_body_follow_from_its_size(shape: Any, count: int, want: tuple[int, ...]) -> None:
    assert raw_shape(TensorSpec("x", "FP32", shape), count) == want


# Forms


def body(**changes: Any) -> bytes:
    return orjson.dumps({"inputs": [x_of([1, 2]) | changes]})


@pytest.mark.parametrize(
    "bad",
    [
        {"shape": [1, 3], "data": [1, 2, 3]},
        {"shape": [2, 2], "data": [1, 2]},
        {"shape": [2], "data": [1, 2]},
        {"shape": [1, 2, 1], "data": [1, 2]},
        {"shape": [-1, 2], "data": [1, 2]},
        {"datatype": "FP64"},
        {"datatype": "fp32"},
        {"datatype": "BYTES", "data": ["1", "2"]},
        {"name": "X"},
        {"data": [1, "2"]},
    ],
)
@pytest.mark.parametrize("padding", [b"", PADDING], ids=["small", "large"])
def test_a_bad_request_after_a_good_one_is_still_refused(bad: dict[str, Any], padding: bytes) -> None:
    target = target_of(CLOSED)
    for _ in range(2):
        decoded(body() + padding, target)
        with pytest.raises(RequestError):
            decoded(body(**bad) + padding, target)


def test_a_form_that_fits_one_model_is_checked_again_for_another() -> None:
    target = target_of(CLOSED)
    decoded(body(), target)
    other = target_of(Signature("forward", (TensorSpec("x", "FP32", (-1, 3)),), ()), model="other")
    with pytest.raises(RequestError):
        decoded(body(), other)


def test_a_form_that_fits_one_signature_is_checked_again_for_another() -> None:
    target = target_of(CLOSED, OTHER)
    decoded(body(), target)
    text = orjson.dumps({"parameters": {"signature_name": "count"}, "inputs": [x_of([1, 2])]})
    with pytest.raises(RequestError, match="no input 'x'"):
        decoded(text, target)


def test_the_same_form_gives_the_same_header() -> None:
    target = target_of(CLOSED)
    first, _, _ = decoded(body(), target)
    second, _, _ = decoded(body(data=[7, 8]), target)
    assert first.header is second.header
    assert len(target.forms) == 1


def test_forms_are_remembered_only_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(form_module, "FORMS", 5)
    target = target_of(CLOSED)
    for rows in range(1, 30):
        decoded(orjson.dumps({"inputs": [x_of(*[[1, 2]] * rows)]}), target)
        assert len(target.forms) <= 5


def test_a_large_form_is_not_remembered() -> None:
    target = target_of(OPEN)
    item = {"name": "x" * REMEMBERED_BYTES, "shape": [1], "datatype": "FP32", "data": [1]}
    decoded(orjson.dumps({"inputs": [item]}), target)
    assert not target.forms


def test_the_json_of_a_large_result_header_is_not_kept() -> None:
    before = len(oip._fragments)  # noqa: SLF001 - their size is the point
    response(OipRequest(b"", []), ("y" * 3 * REMEMBERED_BYTES, Y[1]))
    assert len(oip._fragments) == before  # noqa: SLF001
    response(OipRequest(b"", []), Y)
    assert len(oip._fragments) == before + 1  # noqa: SLF001


def test_what_does_not_fit_is_not_remembered() -> None:
    target = target_of(CLOSED)
    for columns in range(3, 20):
        with pytest.raises(RequestError):
            decoded(body(shape=[1, columns]), target)
    assert not target.forms


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"inputs": []}, "'x' of model 'm' is missing"),
        ({"inputs": [x_of([1, 2]), x_of([1, 2])]}, "given twice"),
        ({"outputs": [{"name": "nothing"}]}, "no output 'nothing'"),
        ({"outputs": [{"name": "y"}, {"name": "y"}]}, "requested twice"),
        ({"parameters": {"signature_name": "nothing"}}, "no signature 'nothing'"),
        ({"parameters": {"signature_name": 7}}, "must be a string"),
        ({"parameters": {"binary_data_output": "yes"}}, "must be true or false"),
        ({"outputs": [{"name": "y", "parameters": {"binary_data": 1}}]}, "must be true or false"),
    ],
)
@pytest.mark.parametrize("padding", [b"", PADDING], ids=["small", "large"])
def test_what_is_wrong_with_a_request_is_said_in_a_sentence(
    change: dict[str, Any], sentence: str, padding: bytes
) -> None:
    with pytest.raises(RequestError, match=sentence):
        decoded(orjson.dumps({"inputs": [x_of([1, 2])]} | change) + padding)


@pytest.mark.parametrize("padding", [b"", PADDING], ids=["small", "large"])
@pytest.mark.parametrize("depth", [101, 5000, 100_000])
def test_json_nested_too_deep_is_refused(depth: int, padding: bytes) -> None:
    with pytest.raises(RequestError, match="nested"):
        decoded(b'{"inputs":' + b"[" * depth + b"]" * depth + b"}" + padding)


@pytest.mark.parametrize("data", [[1], [[1]]], ids=["flat", "nested"])
@pytest.mark.parametrize("signature", [CLOSED, OPEN], ids=["closed", "open"])
def test_a_shape_of_very_many_dimensions_is_refused_at_once(signature: Signature, data: list[Any]) -> None:
    text = body(shape=[1 << 62] * 20_000, data=data)
    started = time.perf_counter()
    with pytest.raises(RequestError) as caught:
        decoded(text, target_of(signature))
    assert time.perf_counter() - started < 0.2  # multiplied out it takes 0.7 s, ten times as many a minute
    assert len(caught.value.message) < 1000


def test_a_request_of_an_open_model_that_no_frame_can_carry_is_a_request_error() -> None:
    tensor = {"name": "n" * (MAX_HEADER + 1), "shape": [1], "datatype": "INT8", "data": [1]}
    try:
        request, _, _ = decoded(orjson.dumps({"inputs": [tensor]}), target_of(OPEN))
    except RequestError:
        return
    assert len(request.header) <= MAX_HEADER


def test_messages_do_not_repeat_a_whole_request() -> None:
    long = "n" * 10_000
    for change in (
        {"name": long},
        {"datatype": long},
        {"shape": [1] * 10_000},
        {"data": [long]},
        {"shape": [-1] * 999},
    ):
        with pytest.raises(RequestError) as caught:
            decoded(body(**change), target_of(CLOSED))
        assert len(caught.value.message) < 1000
    for extra in ({"outputs": [{"name": long}]}, {"parameters": {"signature_name": long}}):
        with pytest.raises(RequestError) as caught:
            decoded(orjson.dumps({"inputs": [x_of([1, 2])]} | extra))
        assert len(caught.value.message) < 1000


# The JSON alone


@quick
@given(st.binary(max_size=60), st.booleans())
def test_any_bytes_parse_or_are_a_request_error(text: bytes, large: bool) -> None:
    try:
        request, data = parse(text + (PADDING if large else b""))
    except RequestError:
        return
    assert len(request.inputs) == len(data)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
@pytest.mark.parametrize("padding", [b"", PADDING], ids=["small", "large"])
def test_every_kind_of_buffer_is_parsed(kind: Any, padding: bytes) -> None:
    request, _ = parse(kind(orjson.dumps(GOOD[0]) + padding))
    assert request.inputs[0].name == "x"


# The response


def response(request: OipRequest, *tensors: tuple[str, Array]) -> tuple[Any, list[Buffer]]:
    raws = [raw_from_array(array) for _, array in tensors]
    header = ResultHeader(
        tuple(
            TensorHeader(name, datatype, array.shape, len(raw))
            for (name, array), (datatype, raw) in zip(tensors, raws, strict=True)
        )
    )
    start = target_of(CLOSED).response_start
    text, binary_data = encode_response(request, start, header, [raw for _, raw in raws])
    return json.loads(text), binary_data


Y = ("y", np.array([[1.5, 2.5]], np.float32))


def test_a_response_is_json() -> None:
    value, binary_data = response(OipRequest(b"", [], 'an "id"'), Y, ("s", np.array(["a ö"], object)))
    assert value == {
        "model_name": "m",
        "model_version": "1",
        "id": 'an "id"',
        "outputs": [
            {"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [1.5, 2.5]},
            {"name": "s", "datatype": "BYTES", "shape": [1], "data": ["a ö"]},
        ],
    }
    assert binary_data == []


def test_a_response_without_outputs_is_json_too() -> None:
    value, _ = response(OipRequest(b"", []))
    assert value == {"model_name": "m", "model_version": "1", "outputs": []}


@pytest.mark.parametrize(
    ("default", "single", "want"), [(True, {}, 2), (False, {"y": True}, 1), (True, {"y": False}, 1)]
)
def test_outputs_are_binary_where_they_are_wanted_so(default: bool, single: dict[str, bool], want: int) -> None:
    request = OipRequest(b"", [], binary_default=default, binary=single)
    value, binary_data = response(request, Y, ("b", np.array([b"\xff"], object)) if default else ("z", Y[1]))
    assert len(binary_data) == want
    sizes = [item["parameters"]["binary_data_size"] for item in value["outputs"] if "parameters" in item]
    assert sizes == [len(raw) for raw in binary_data]
    assert all(("data" in item) != ("parameters" in item) for item in value["outputs"])


def test_text_that_is_no_unicode_asks_for_binary_data() -> None:
    with pytest.raises(RequestError, match="binary_data"):
        response(OipRequest(b"", []), ("s", np.array([b"\xff"], object)))


def test_strings_are_packed_as_the_extension_says() -> None:
    request, _, _ = decoded(
        orjson.dumps(
            {"inputs": [x_of([1, 2]), {"name": "words", "shape": [2], "datatype": "BYTES", "data": ["a", ""]}]}
        )
    )
    assert bytes(request.payload[1]) == pack_bytes([b"a", b""]) == b"\1\0\0\0a\0\0\0\0"


def test_a_model_with_one_state_for_everybody_takes_no_sequences() -> None:
    body = {"inputs": [x_of([1, 2])], "parameters": {"sequence_id": 7, "sequence_start": True}}
    target = target_of(Signature("forward", (TensorSpec("x", "FP32", (-1, 2)),), ()))
    decoded(json.dumps(body).encode(), target)
    target.route = msgspec.structs.replace(target.route, config=ModelConfig(stateful=True))
    with pytest.raises(RequestError, match="keeps no sequences apart"):
        decoded(json.dumps(body).encode(), target)
    decoded(json.dumps(body | {"parameters": {"sequence_id": 0}}).encode(), target)
