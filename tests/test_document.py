import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import RequestError
from gateway.http import torchserve_inputs
from gateway.http.dialect import Body
from gateway.http.json_codec import document, numbers
from gateway.http.json_codec.budget import LARGE
from gateway.http.json_codec.numbers import Numbers
from gateway.http.tfserving_inputs import Tensor, from_inputs, from_instances
from gateway.http.tfserving_json import parse
from gateway.tensors import Signature, TensorSpec

PADDING = b" " * (LARGE + 1)
SIGNATURE = Signature("", (TensorSpec("x", "FP32", None), TensorSpec("n", "INT64", None, optional=True)), ())
X = Signature("", (TensorSpec("x", "FP32", None),), ())
NUMBERS = st.integers(-5, 5) | st.sampled_from([2**31, 2**53 + 1, 2**63, 2**64, 2**70, -(2**63), -0.0, 1e300, 1.0, 0.1])
LEAVES = NUMBERS | st.booleans() | st.sampled_from(["a", None, {"b64": "YQ=="}, {}])
VALUES: st.SearchStrategy[Any] = (
    st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3), max_leaves=6)
    | st.lists(NUMBERS, max_size=3)
    | st.lists(st.lists(NUMBERS, min_size=2, max_size=2), max_size=3)
    | st.lists(st.booleans(), max_size=3)
)


def large(text: bytes) -> Iterator[bytes]:
    """A text as it is read in large bodies, whatever the size of its parts."""
    yield text + PADDING
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(document, "_BYTES_A_NAME", 1)
        yield text + PADDING
        patch.setattr(numbers, "PIECE", 1)
        yield text + PADDING


def outcome(text: bytes) -> list[tuple[str, tuple[int, ...], bytes]] | str:
    try:
        found: list[Tensor] = from_instances(parse(text)["instances"], SIGNATURE)
    except RequestError as error:
        return error.message
    return [(tensor.name, tensor.shape, bytes(tensor.raw)) for tensor in found]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.fixed_dictionaries({"x": VALUES}, optional={"n": VALUES}), min_size=1, max_size=4))
def test_rows_mean_the_same_in_small_and_large_bodies(rows: list[dict[str, Any]]) -> None:
    text = json.dumps({"instances": rows}).encode()
    small = outcome(text)
    assert all(outcome(each) == small for each in large(text))


def test_images_in_rows_stay_unconverted() -> None:
    image = np.arange(256 * 256 * 3, dtype=np.float32).reshape(256, 256, 3) % 251
    text = json.dumps({"instances": [{"x": image.tolist()}, {"x": (image + 1).tolist()}]}).encode()
    assert isinstance(parse(text)["instances"][0]["x"], Numbers)
    ((_, shape, raw),) = outcome(text)
    assert shape == (2, 256, 256, 3)  # type: ignore[comparison-overlap] # it is no message
    assert raw == np.stack([image, image + 1]).tobytes()  # type: ignore[comparison-overlap] # as above


@pytest.mark.parametrize(
    "rows",
    [
        [{f"f{number}": number for number in range(20)}] * 4000,
        ["text"] * 60_000,
        [[True, False]] * 60_000,
        [{"x": [1.5, 2.5]}] * 4097,
        [[[[float("nan"), 1, 2]] * 256] * 256],
    ],
    ids=["features", "strings", "booleans", "small arrays", "an image with a NaN"],
)
def test_what_is_sent_in_earnest_is_read(rows: list[Any]) -> None:
    read = parse(json.dumps({"instances": rows}).encode())["instances"]
    assert (read.shape[0] if isinstance(read, Numbers) else len(read)) == len(rows)


def asked_of_torchserve(text: bytes) -> Any:
    body = Body(text, None, headers=((b"content-type", b"application/json"),))
    try:
        found = torchserve_inputs.read(body, SIGNATURE)
    except RequestError as error:
        return error.message
    return [(*each[:3], bytes(each.raw)) for each in found.tensors], found.row


@settings(max_examples=200, deadline=None)
@given(VALUES, st.sampled_from(["%s", '{"data":%s}', '[{"data":%s}]', '{"x":%s,"n":1}', '[{"x":%s},{"x":[1,2]}]']))
def test_torchserves_values_mean_the_same_in_small_and_large_bodies(value: Any, form: str) -> None:
    text = (form % json.dumps(value)).encode()
    small = asked_of_torchserve(text)
    assert all(asked_of_torchserve(each) == small for each in large(text))


@pytest.mark.parametrize("padding", [b"", PADDING], ids=["small", "large"])
@pytest.mark.parametrize(
    "text",
    [
        b'{"instances":[[1]],"instances":[[2]]}',
        b'{"instances":[{"x":[1],"x":[2]}]}',
        b'{"inputs":{"x":[[1]],"x":[[2]]}}',
    ],
)
def test_the_last_of_two_equal_keys_counts(text: bytes, padding: bytes) -> None:
    found = parse(text + padding)
    tensors = from_inputs(found["inputs"], X) if "inputs" in found else from_instances(found["instances"], X)
    assert np.frombuffer(tensors[0].raw, np.float32).tolist() == [2]


@pytest.mark.parametrize(
    "text", [b"[1e400]", b'[1,"\\x"]', b"[tru]", b'["\xff"]', b"[01]", b"[[1],[2]", b"[NaN]", b"[1,]"]
)
def test_what_is_no_json_is_told_in_the_same_words_whatever_the_size(text: bytes) -> None:
    for form in (b'{"instances":%b}', b'{"instances":[{"x":%b}]}', b'{"inputs":{"x":%b}}'):
        small = outcome_or_sentence(form % text)
        assert all(outcome_or_sentence(each) == small for each in large(form % text))


def outcome_or_sentence(text: bytes) -> str:
    try:
        return str(parse(text))
    except RequestError as error:
        return error.message


@pytest.mark.parametrize("padding", [b"", PADDING], ids=["small", "large"])
def test_a_number_too_large_is_called_so(padding: bytes) -> None:
    assert "Number too big" in outcome_or_sentence(b'{"instances":[1e400]}' + padding)
    assert "Number too big" in asked_of_torchserve(b"[1e400]" + padding)
