"""Triton's generate extension: plain JSON in, plain JSON out, for models that are asked about one thing at a time.

Source: Triton's extension_generate.md, and for what it leaves open the way in which Triton maps keys to tensors.
"""

import math
import re
from collections.abc import Sequence
from typing import Any, cast

import msgspec
import orjson

from gateway.errors import RequestError
from gateway.http import large_json
from gateway.http.dialect import Body, Dialect, InferenceRequest
from gateway.http.form import checked_form
from gateway.http.json_codec.budget import LARGE, Budget, check_strings
from gateway.http.json_codec.numbers import Numbers
from gateway.http.json_datatypes import check_exact, datatype_of
from gateway.http.json_depth import MAX_DEPTH, too_deep
from gateway.http.tensor_json import Data, data_of, json_from_raw, raw_from_json
from gateway.http.tfserving_json import shape_of
from gateway.http.wishes import KEYS, OtherVersion, Wishes, wishes_of
from gateway.ipc.channel import Channel
from gateway.ipc.framing import ResultHeader
from gateway.routing import Target
from gateway.tensors import Buffer, TensorSpec

PATH = re.compile(rb"/v2/models/([^/]+)(?:/versions/([^/]+))?/generate")
STREAM_PATH = re.compile(rb"/v2/models/([^/]+)(?:/versions/([^/]+))?/generate_stream")
_NESTED = "parameters"
_decode_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode

Members = dict[str, Data]
"""Name → value: its JSON, or its Numbers where it is a long array of them."""


class Generate(Dialect):
    """POST /v2/models/{model}[/versions/{version or label}]/generate, and generate_stream with its one event."""

    protocol = "generate"

    def __init__(self, *, stream: bool) -> None:
        self._stream = stream

    def decode(self, body: Body, target: Target, channel: Channel, regions: list[int]) -> InferenceRequest:
        """See Dialect."""
        members = flattened(_parsed(body.data), target)
        wishes = wishes_of(_plain(members, KEYS))
        if wishes.label is not None and wishes.label not in target.route.labels:
            raise OtherVersion(wishes.label)
        signature_name = _plain(members, {"signature_name"}).get("signature_name")
        if not isinstance(signature_name, str | None):
            raise RequestError("parameter signature_name must be a string")
        specs = target.specs[target.signature(signature_name).name]
        request_id = "" if "id" in specs else _plain(members, {"id"}).get("id", "")
        if not isinstance(request_id, str):
            raise RequestError("id must be a string")
        given = {name: tensor_of(specs[name], value) for name, value in members.items() if name in specs}
        _check_parameters(members, specs)
        inputs = tuple([(name, _datatype(specs[name], data), shape) for name, (shape, data) in given.items()])
        form = checked_form(target, signature_name, inputs, ())
        payload: list[Buffer] = []
        tensors: list[tuple[int, bool]] = []
        for each in form.inputs:
            raw = raw_from_json(each.name, each.datatype, each.shape, each.count, given[each.name][1])
            placed = channel.place(raw, regions)
            tensors.append((len(raw), placed is not None))
            payload.append(raw if placed is None else placed)
        request = InferenceRequest(form.header_for(tensors), payload, request_id, form.rows, wishes)
        if self._stream:
            request.content_type = b"text/event-stream; charset=utf-8"
        return request

    def wishes(self, body: Body) -> Wishes:
        """See Dialect."""
        return wishes_of(_plain(flattened(_parsed(body.data)), KEYS))

    def encode(
        self, request: InferenceRequest, target: Target, header: ResultHeader, tensors: Sequence[Buffer]
    ) -> tuple[bytes, list[Buffer]]:
        """See Dialect."""
        encoded = [
            json_from_raw(tensor.name, tensor.datatype, tensor.shape, raw)
            for tensor, raw in zip(header.outputs, tensors, strict=True)
        ]
        return self._text(request, target, header, encoded), []

    def takes_long(self, request: InferenceRequest, header: ResultHeader) -> bool:  # noqa: ARG002 - all alike
        """See Dialect."""
        large_json.check_sizes(header.outputs)
        return True

    async def encode_in_turns(
        self, request: InferenceRequest, target: Target, header: ResultHeader, tensors: Sequence[bytes]
    ) -> tuple[bytes, list[Buffer]]:
        """See Dialect."""
        encoded = await large_json.encode_in_turns(header, tensors, [True] * len(header.outputs))
        return self._text(request, target, header, encoded), []

    def _text(
        self, request: InferenceRequest, target: Target, header: ResultHeader, encoded: Sequence[Buffer]
    ) -> bytes:
        """The response; of an output with one element it is that, without a list around it."""
        parts: list[Buffer] = [b"data: "] if self._stream else []
        parts.append(target.response_start)
        taken = {"model_name", "model_version"}
        if request.id:
            parts.append(b',"id":' + orjson.dumps(request.id))
            taken.add("id")
        for tensor, text in zip(header.outputs, encoded, strict=True):
            if tensor.name not in taken:
                single = math.prod(tensor.shape) == 1
                parts += (b",", orjson.dumps(tensor.name), b":", text[1:-1] if single else text)
        parts.append(b"}\n\n" if self._stream else b"}")
        return b"".join(parts)


GENERATE = Generate(stream=False)
GENERATE_STREAM = Generate(stream=True)


def _parsed(text: bytes | bytearray | memoryview) -> Members:
    """The members of the body; RequestError if it is no JSON object."""
    if text[:3] == b"\xef\xbb\xbf":  # a byte order mark, which some clients write
        text = text[3:]
    if too_deep(text):
        raise RequestError(f"the JSON is nested more than {MAX_DEPTH} deep")
    text = bytes(text) if isinstance(text, memoryview) else text
    check_strings(text)
    try:
        return _members(text)
    except msgspec.ValidationError as error:
        raise RequestError(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(f"the body is not valid JSON: {error}") from None


def _members(text: Buffer | msgspec.Raw) -> Members:
    members: dict[str, msgspec.Raw] = _decode_object(text)
    if len(memoryview(text)) <= LARGE:
        return cast("Members", members)
    budget = Budget()
    return {name: data_of(value, budget) for name, value in members.items()}


def flattened(members: Members, target: Target | None = None) -> Members:
    """The members with those of `parameters` among them, which stand for inputs as well as for parameters."""
    if _NESTED not in members or (target and any(_NESTED in specs for specs in target.specs.values())):
        return members
    nested = members[_NESTED]
    try:
        members_of_nested = _members(_raw(nested))
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise RequestError("parameters must be an object") from None
    found = {name: value for name, value in members.items() if name != _NESTED}
    for name, value in members_of_nested.items():
        if name in found:
            raise RequestError(f"'{name[:100]}' stands in the body and in its parameters")
        found[name] = value
    return found


def _raw(value: Data) -> bytes | msgspec.Raw:
    """A member as JSON text; of numbers no more than that they are a list."""
    return value if isinstance(value, msgspec.Raw) else b"[]"


def _plain(members: Members, names: frozenset[str] | set[str]) -> dict[str, Any]:
    """Those of the members that have one of these names, as Python objects."""
    return {name: _decoded(members[name]) for name in names.intersection(members)}


def _decoded(value: Any) -> Any:
    try:
        return msgspec.json.decode(_raw(value))
    except msgspec.ValidationError:
        raise RequestError("the body has a number that is too large") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise RequestError("the body is not valid JSON") from None


def _check_parameters(members: Members, specs: dict[str, TensorSpec]) -> None:
    """RequestError if what is no input cannot be a parameter either; unknown ones are ignored."""
    for name, value in members.items():
        if name not in specs and not isinstance(_decoded(value), str | int | float):
            known = ", ".join(f"'{known}'" for known in specs) or "none"
            raise RequestError(
                f"'{name[:100]}' is no input of the model, which has {known}, "
                "and a parameter must be a string, a number, true or false"
            )


def tensor_of(spec: TensorSpec, value: Any) -> tuple[tuple[int, ...], Data]:
    """Shape and data of an input given as a scalar, a flat list or lists nested as its shape is."""
    if isinstance(value, Numbers):
        return (filled(spec, value.shape[0]) if len(value.shape) == 1 else value.shape), value
    plain = _decoded(value)
    if isinstance(plain, list):
        sizes = shape_of(plain)
        return (filled(spec, sizes[0]) if len(sizes) == 1 else sizes), value
    if plain is None or isinstance(plain, dict):
        raise RequestError(f"input '{spec.name}' must be a string, a number, true or false, or a list of them")
    return filled(spec, 1), msgspec.Raw(b"[%b]" % bytes(value))


def _datatype(spec: TensorSpec, data: Data) -> str:
    """The datatype to send an input as; RequestError if its floats do not hold an integer that a guess made floats."""
    datatype = datatype_of(spec, data)
    if spec.guessed:
        check_exact(spec, datatype, data)
    return datatype


def filled(spec: TensorSpec, count: int) -> tuple[int, ...]:
    """The shape of so many elements given without one: the last open dimension takes what the fixed ones leave.

    RequestError if the elements do not fill the shape.
    """
    if spec.shape is None:
        return (count,)
    known = math.prod(size for size in spec.shape if size != -1)
    left, over = divmod(count, known) if known else (1, count)
    shape = list(spec.shape)
    for axis in reversed(range(len(shape))):
        if shape[axis] == -1:
            shape[axis], left = left, 1
    if (over or left != 1) and spec.guessed:
        return (count,)
    if over or left != 1:
        raise RequestError(f"{count} elements do not fill input '{spec.name}' of shape {list(spec.shape)}")
    return tuple(shape)
