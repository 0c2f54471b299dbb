"""Plain JSON in, plain JSON out: Triton's generate extension."""

import json
from typing import Any, cast

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import RequestError
from gateway.http import tensor_json
from gateway.http.dialect import Body
from gateway.http.generate import GENERATE, filled, tensor_of
from gateway.http.json_codec import budget
from gateway.http.json_codec.budget import LARGE, Budget
from gateway.http.json_codec.numbers import Numbers
from gateway.http.tensor_json import data_of
from gateway.ipc.batching import Batching
from gateway.ipc.channel import Channel
from gateway.ipc.framing import RequestHeader, split_payload
from gateway.ipc.messages import Ready, VersionRoute
from gateway.metrics import VersionCounters
from gateway.routing import Target
from gateway.store.manifest import ModelConfig
from gateway.tensors import Signature, TensorSpec, array_from_raw


class FakeChannel:
    def place(self, raw: Any, regions: list[int]) -> None:
        """Everything travels inline."""


def target_of(*specs: TensorSpec) -> Target:
    ready = Ready(
        pid=1,
        platform="pytorch_torchscript",
        signatures={"forward": Signature("forward", specs, ())},
        default_signature="forward",
        batching=Batching(1, ""),
        notes=[],
        load_seconds=0.0,
    )
    route = VersionRoute("m", 1, "pytorch_torchscript", "pytorch", "READY", "", ModelConfig(), ready)
    return Target(route, [], VersionCounters("m", "1", "pytorch"))


GUESS = TensorSpec("x", "FP32", None, strict=False, guessed=True, integers=True)
X, WORDS = TensorSpec("x", "FP32", (-1, 2)), TensorSpec("words", "BYTES", (-1,), optional=True)
TARGET = target_of(X, WORDS)


def decoded(body: bytes, target: Target = TARGET) -> tuple[dict[str, Any], Any]:
    """What the instance makes of a request, and the request."""
    request = GENERATE.decode(Body(body, None), target, cast("Channel", FakeChannel()), [])
    header = msgspec.msgpack.decode(request.header, type=RequestHeader)
    pieces = split_payload(header.inputs, b"".join(request.payload), None)
    arrays = {
        each.name: array_from_raw(each.datatype, each.shape, piece)
        for each, piece in zip(header.inputs, pieces, strict=True)
    }
    return arrays, request


@pytest.mark.parametrize(
    ("shape", "count", "want"),
    [
        ((), 1, ()),
        ((-1,), 3, (3,)),
        ((1,), 1, (1,)),
        ((-1, -1), 3, (1, 3)),
        ((-1, 2), 6, (3, 2)),
        ((2, -1), 6, (2, 3)),
        ((-1, 2, -1), 8, (1, 2, 4)),
        ((2, 3), 6, (2, 3)),
        (None, 5, (5,)),
        ((-1,), 0, (0,)),
        ((0, 4), 0, (0, 4)),
        ((-1, 0), 0, (1, 0)),
    ],
)
def test_what_is_open_takes_what_is_left(shape: Any, count: int, want: Any) -> None:
    assert filled(TensorSpec("x", "FP32", shape), count) == want


@pytest.mark.parametrize(("shape", "count"), [((), 2), ((2,), 3), ((-1, 2), 3), ((0, 4), 1), ((2, 3), 12)])
def test_elements_that_fill_no_shape_are_refused(shape: Any, count: int) -> None:
    with pytest.raises(RequestError, match=rf"{count} elements do not fill input 'x'"):
        filled(TensorSpec("x", "FP32", shape), count)


def test_scalars_flat_and_nested_lists_are_tensors() -> None:
    arrays, request = decoded(b'{"x": [1, 2, 3, 4], "words": "hello", "id": "seven"}')
    assert arrays["x"].tolist() == [[1, 2], [3, 4]]
    assert arrays["words"].tolist() == [b"hello"]
    assert request.id == "seven"
    assert decoded(b'{"x": [[1, 2], [3, 4]]}')[0]["x"].tolist() == [[1, 2], [3, 4]]
    for text, value in ((b"2.5", 2.5), (b"[2.5]", 2.5), (b"2", 2.0)):
        scalar = target_of(TensorSpec("x", "FP32", (-1, -1)))
        assert decoded(b'{"x": %b}' % text, scalar)[0]["x"].tolist() == [[value]]


def test_inputs_and_parameters_may_stand_together_under_parameters() -> None:
    body = b'{"words": ["a"], "parameters": {"x": [1, 2], "temperature": 0.5, "stream": false, "timeout": 2000000}}'
    arrays, request = decoded(body)
    assert arrays["x"].tolist() == [[1, 2]]
    assert request.wishes.timeout == 2.0
    assert GENERATE.wishes(Body(body, None)).timeout == 2.0
    assert GENERATE.wishes(Body(b'{"x": [1, 2], "priority": 3}', None)).priority == 3


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('{"x": [1, 2], "z": [1]}', "'z' is no input of the model, which has 'x', 'words'"),
        ('{"x": [1, 2], "z": null}', "'z' is no input"),
        ('{"x": [1, 2], "z": {"a": 1}}', "'z' is no input"),
        ('{"x": {"a": 1}}', "input 'x' must be a string, a number"),
        ('{"x": null}', "input 'x' must be a string, a number"),
        ('{"x": ["a", "b"]}', "x"),
        ('{"x": [1, 2, 3]}', "3 elements do not fill"),
        ('{"x": [[1, 2], [3]]}', "do not have its shape"),
        ('{"x": [[1, 2, 3]]}', "has shape"),
        ('{"x": [1, [2]]}', "x"),
        ('{"x": []}', ""),
        ('{"words": ["a"]}', "input 'x' of model 'm' is missing"),
        ('{"x": [1, 2], "parameters": {"x": [1, 2]}}', "'x' stands in the body and in its parameters"),
        ('{"x": [1, 2], "parameters": [1]}', "parameters must be an object"),
        ('{"x": [1, 2], "parameters": 5}', "parameters must be an object"),
        ('{"x": [1, 2], "id": 5}', "id must be a string"),
        ('{"x": [1, 2], "signature_name": 5}', "signature_name must be a string"),
        ('{"x": [1, 2], "signature_name": "other"}', "no signature 'other'"),
        ('{"x": [1, 2], "timeout": -1}', "timeout"),
        ('{"x": [1, 2], "version_label": "canary"}', "canary"),
        ("[1, 2]", ""),
        ("5", ""),
        ("", ""),
        ('{"x": [1, 2]', "JSON"),
        ('{"x": ' + "[" * 200 + "]" * 200 + "}", "nested more than"),
    ],
)
def test_what_is_wrong_is_one_sentence(body: str, message: str, large: bool) -> None:
    text = body.encode() + (b" " * LARGE if large else b"")
    if body == '{"x": []}':
        assert decoded(text)[0]["x"].shape == (0, 2)
        return
    with pytest.raises(RequestError) as caught:
        decoded(text)
    assert message in caught.value.message
    assert "\n" not in caught.value.message


def test_more_members_than_can_be_looked_at_are_refused() -> None:
    members = ",".join(f'"k{number}":1' for number in range(budget.MOST_PIECES + 1))
    with pytest.raises(RequestError, match="too many objects, keys"):
        decoded(f"{{{members}}}".encode())


@pytest.mark.parametrize("padding", [0, LARGE])
def test_the_last_of_two_members_of_the_same_name_counts(padding: int) -> None:
    arrays, _ = decoded(b'{"x": [1, 2], "x": [3, 4]}' + b" " * padding)
    assert arrays["x"].tolist() == [[3, 4]]


@pytest.mark.parametrize("padding", [0, LARGE])
def test_a_number_too_large_is_called_so(padding: int) -> None:
    with pytest.raises(RequestError, match="number that is too large"):
        decoded(b'{"x": [1, 1e400]}' + b" " * padding)


def test_an_input_called_parameters_is_an_input() -> None:
    target = target_of(TensorSpec("parameters", "FP32", (-1,)))
    assert decoded(b'{"parameters": [1, 2]}', target)[0]["parameters"].tolist() == [1, 2]
    for body in (b'{"parameters": {"a": 1}}', b'{"parameters": {"a": 1}}' + b" " * LARGE):
        with pytest.raises(RequestError, match="input 'parameters' must be"):
            decoded(body, target)


NUMBERS = st.integers(-5, 5) | st.floats(-5, 5) | st.sampled_from([2**24 + 1, 2**63, 2**64, 2**70, 1e300, 1.0])
json_values = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["x", "id"]), inner, max_size=2),
    max_leaves=12,
) | st.lists(NUMBERS, max_size=4)


def outcome(text: bytes, target: Target) -> Any:
    try:
        arrays, request = decoded(text, target)
    except RequestError as error:
        return error.message
    found = {name: (str(array.dtype), array.tolist()) for name, array in arrays.items()}
    return found, request.header, request.id, request.wishes


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(st.sampled_from(["x", "words", "id", "parameters", "timeout", "other"]), json_values),
    st.sampled_from([X, GUESS]),
)
def test_small_and_large_bodies_mean_the_same(body: dict[str, Any], x: TensorSpec) -> None:
    text = json.dumps(body).encode()
    target = target_of(x, TensorSpec("words", "BYTES", (-1,), optional=True))
    small = outcome(text, target)
    assert outcome(text + b" " * LARGE, target) == small
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensor_json, "LARGE", 0)
        assert outcome(text + b" " * LARGE, target) == small


def test_large_lists_are_not_made_into_python_objects() -> None:
    text = json.dumps(list(range(20_000))).encode()
    value = data_of(msgspec.Raw(text), Budget())
    assert isinstance(value, Numbers)
    shape, data = tensor_of(X, value)
    assert shape == (10_000, 2)
    assert data is value


# --- Through the whole gateway


def asked(gateway: Any, model: str, body: Any, call: str = "generate") -> Any:
    return gateway.http.post(f"/v2/models/{model}/{call}", json=body)


def test_the_answer_has_the_outputs_by_their_names(gateway: Any) -> None:
    answer = asked(gateway, "collatz_torch", {"n": 27, "id": "seven"})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {
        "model_name": "collatz_torch",
        "model_version": "1",
        "id": "seven",
        "steps": 111,
        "peak": 9232,
    }
    assert asked(gateway, "collatz_torch", {"n": [7, 27]}).json()["steps"] == [16, 111]
    words = asked(gateway, "echo_strings", {"words": ["grüße", ""]})
    assert words.json()["output_0"] == ["grüße", ""]


def test_a_stream_is_one_event_with_the_same_content(gateway: Any) -> None:
    answer = asked(gateway, "collatz_torch", {"n": 27}, "generate_stream")
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.text.startswith("data: {")
    assert answer.text.endswith("}\n\n")
    assert json.loads(answer.text.removeprefix("data: ")) == asked(gateway, "collatz_torch", {"n": 27}).json()
    refused = asked(gateway, "collatz_torch", {"m": 27}, "generate_stream")
    assert (refused.status_code, refused.headers["content-type"]) == (400, "application/json")


def test_a_version_and_a_signature_can_be_named(gateway: Any) -> None:
    assert gateway.http.post("/v2/models/mlp/versions/3/generate", json={"x": [0.5] * 16}).status_code == 200
    assert gateway.http.post("/v2/models/mlp/versions/9/generate", json={"x": [0.5] * 16}).status_code == 404
    asked_for = {"x": [1, 2], "parameters": {"signature_name": "centred"}}
    assert asked(gateway, "mixes_rows", asked_for).json()["y"] == [0.0, 0.0]


def test_large_inputs_and_outputs_pass(gateway: Any) -> None:
    numbers = np.arange(200_000).tolist()
    answer = asked(gateway, "identity_tensorflow", {"x": numbers})
    assert answer.status_code == 200
    assert answer.json()["y"] == numbers


def test_errors_of_the_model_and_of_the_request_are_told(gateway: Any) -> None:
    assert asked(gateway, "raises", {"x": -1}).status_code == 500
    assert asked(gateway, "raises", {"y": 1}).status_code == 400
    assert asked(gateway, "nobody", {"x": 1}).status_code == 404
    assert gateway.http.get("/v2/models/raises/generate").status_code == 405


def test_integers_for_a_guessed_datatype_stay_integers(gateway: Any) -> None:
    for value in (1764543210, [1764543210], [[1764543210]]):
        answer = asked(gateway, "seconds_of_the_day", {"ts": value})
        assert answer.json()["output_0"] == 1764543210 % 86400
    answer = asked(gateway, "seconds_of_the_day", {"ts": [1764543210, 0.5]})
    assert answer.status_code == 400
    assert "without loss of precision" in answer.json()["error"]
