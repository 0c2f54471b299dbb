"""Inference requests and responses of the Open Inference Protocol v2, with the binary tensor data extension.

Sources: kserve/open-inference-protocol specification/protocol/inference_rest.md, Triton's extension_binary_data.md.
"""

import re
from collections.abc import Sequence
from typing import Any

import msgspec
import orjson

from gateway.errors import RequestError
from gateway.http import classification, large_json
from gateway.http.classification import Classes, wanted_classes
from gateway.http.dialect import Body, Dialect, InferenceRequest
from gateway.http.form import FormInput, checked_form
from gateway.http.oip_json import Input, Output, parse
from gateway.http.tensor_json import Data, json_from_raw, raw_from_json
from gateway.http.wishes import NONE, OtherVersion, Wishes, wishes_of
from gateway.ipc.channel import Channel
from gateway.ipc.framing import OFFSET, REMEMBERED_BYTES, ResultHeader
from gateway.routing import Target
from gateway.tensors import ITEMSIZES, Buffer, TensorSpec, check_raw, element_count, pack_bytes

PATH = re.compile(rb"/v2/models/([^/]+)(?:/versions/([^/]+))?/infer")


class OipRequest(InferenceRequest):
    """What the response must know of its request."""

    binary_default: bool = False
    binary: dict[str, bool] = msgspec.field(default_factory=dict)
    """What single outputs ask for, over the default."""
    classes: dict[str, Classes] = msgspec.field(default_factory=dict)
    """The outputs that are to be classified."""


class Infer(Dialect):
    """POST /v2/models/{model}[/versions/{version or label}]/infer."""

    protocol = "oip"

    def decode(self, body: Body, target: Target, channel: Channel, regions: list[int]) -> InferenceRequest:
        """See Dialect."""
        return decode(body, target, channel, regions)

    def wishes(self, body: Body) -> Wishes:
        """See Dialect."""
        return wishes(body)

    def encode(
        self, request: InferenceRequest, target: Target, header: ResultHeader, tensors: Sequence[Buffer]
    ) -> tuple[bytes, list[Buffer]]:
        """See Dialect."""
        assert isinstance(request, OipRequest)
        if request.classes:
            header, tensors = classification.classify(header, tensors, request.classes, target.labels)
        return encode_response(request, target.response_start, header, tensors)

    def takes_long(self, request: InferenceRequest, header: ResultHeader) -> bool:
        """See Dialect."""
        assert isinstance(request, OipRequest)
        classes = request.classes
        wanted = [each for each in header.outputs if each.name not in classes and as_json(request, each.name)]
        large_json.check_sizes(wanted)
        return classification.takes_long(header, classes) if classes else bool(wanted)

    async def encode_in_turns(
        self, request: InferenceRequest, target: Target, header: ResultHeader, tensors: Sequence[bytes]
    ) -> tuple[bytes, list[Buffer]]:
        """See Dialect."""
        assert isinstance(request, OipRequest)
        plain: Sequence[Buffer] = tensors
        if request.classes:
            header, plain = await classification.classify_in_turns(header, tensors, request.classes, target.labels)
        wanted = [as_json(request, tensor.name) for tensor in header.outputs]
        encoded = await large_json.encode_in_turns(header, plain, wanted)
        return encode_response(request, target.response_start, header, encoded, encoded=True)


INFER = Infer()


def decode(body: Body, target: Target, channel: Channel, regions: list[int]) -> OipRequest:
    """Check a request against the model's signature and make it ready to send.

    Regions of the channel's arena that the request takes are appended to `regions`. RequestError says what is wrong;
    OtherVersion that the request is for another one of the model.
    """
    size = body.json_size
    if size == 0:
        return _decode_raw(body, target)
    request, data = parse(body.data if size is None else _json_of(body))
    parameters = request.parameters
    wishes = _wishes(parameters, target) if parameters else NONE
    outputs = tuple([output.name for output in request.outputs]) if request.outputs else ()
    form = checked_form(
        target,
        _text(parameters, "signature_name") if parameters else None,
        tuple([(item.name, item.datatype, item.shape) for item in request.inputs]),
        outputs,
    )
    payload: list[Buffer] = []
    tensors: list[tuple[int, bool]] = []
    at = len(body.data) if size is None else size
    for item, expected, values in zip(request.inputs, form.inputs, data, strict=True):
        binary_size = item.parameters.get("binary_data_size") if item.parameters else None
        if binary_size is None:
            if values is None:
                raise _no_data(item)
            raw = raw_from_json(expected.name, expected.datatype, expected.shape, expected.count, values)
            placed = channel.place(raw, regions)
        else:
            raw = _binary_data(item, expected, binary_size, values, memoryview(body.data), at)
            placed = channel.place(raw, regions) if body.region is None else OFFSET.pack(body.region + at)
            at += len(raw)
        tensors.append((len(raw), placed is not None))
        payload.append(raw if placed is None else placed)
    if at != len(body.data):
        raise RequestError(f"the body has {len(body.data) - at} bytes that belong to no input")
    decoded = OipRequest(form.header_for(tensors), payload, request.id or "", form.rows, wishes)
    if parameters or outputs:
        decoded.binary_default = _flag("binary_data_output", (parameters or {}).get("binary_data_output", False))
        for output in request.outputs or ():
            if output.parameters:
                _read_wishes(decoded, output, target, form.signature)
    return decoded


def _wishes(parameters: dict[str, Any], target: Target) -> Wishes:
    """What the parameters wish for; OtherVersion if that is another version, RequestError if nobody can do it."""
    found = wishes_of(parameters)
    if found.label is not None and found.label not in target.route.labels:
        raise OtherVersion(found.label)
    if target.route.config.stateful and parameters.get("sequence_id"):
        raise RequestError(f"model '{target.model}' has one state for everybody; it keeps no sequences apart")
    return found


def _json_of(body: Body) -> Buffer:
    """The JSON of a body that has some."""
    size = body.json_size
    if size is None:
        return body.data
    if size > len(body.data):
        raise RequestError(f"Inference-Header-Content-Length is {size}, the body has {len(body.data)} bytes")
    return memoryview(body.data)[:size]


def wishes(body: Body) -> Wishes:
    """What a request says of itself, when the model that would check the rest is not there yet."""
    if body.json_size == 0:
        return NONE
    request, _ = parse(_json_of(body))
    return wishes_of(request.parameters or {})


def _read_wishes(decoded: OipRequest, output: Output, target: Target, signature: str) -> None:
    """How one output is wanted: as binary data or not, as its values or as classes."""
    parameters = output.parameters or {}
    if (binary := parameters.get("binary_data")) is not None:
        decoded.binary[output.name] = _flag("binary_data", binary)
    if "shared_memory_region" in parameters:
        raise RequestError(f"output '{output.name}' is wanted in shared memory, which this server does not use")
    if (classes := parameters.get("classification")) is not None:
        spec = next((spec for spec in target.signature(signature).outputs if spec.name == output.name), None)
        wanted = wanted_classes(output.name, classes, spec, batched=target.batched)
        if wanted is not None:
            decoded.classes[output.name] = wanted
            decoded.long_from = 0


def _no_data(item: Input) -> RequestError:
    if "shared_memory_region" in (item.parameters or {}):
        return RequestError(f"input '{item.name}' lies in shared memory, which this server does not use")
    return RequestError(f"input '{item.name}' has neither data nor binary_data_size")


def _text(parameters: dict[str, Any], key: str) -> str | None:
    value = parameters.get(key)
    if value is not None and not isinstance(value, str):
        raise RequestError(f"parameter {key} must be a string")
    return value


def _flag(key: str, value: object) -> bool:
    if not isinstance(value, bool | None):
        raise RequestError(f"parameter {key} must be true or false")
    return value is True


def _binary_data(
    item: Input, expected: FormInput, size: object, values: Data | None, body: memoryview, at: int
) -> memoryview:
    if values is not None:
        raise RequestError(f"input '{item.name}' has both data and binary_data_size")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise RequestError(f"binary_data_size of input '{item.name}' must be a number of bytes")
    if at + size > len(body):
        raise RequestError(f"the body ends before the {size} bytes of input '{item.name}'")
    raw = body[at : at + size]
    check_raw(expected.name, expected.datatype, expected.shape, raw)
    return raw


def _decode_raw(body: Body, target: Target) -> OipRequest:
    """A body that is one tensor and nothing else; its shape follows from its size."""
    signature = target.signature(None)
    needed = [spec for spec in signature.inputs if not spec.optional] or list(signature.inputs)
    if len(needed) != 1 or signature.open_inputs:
        raise RequestError(f"a raw request needs a model with one input, '{target.model}' has {len(signature.inputs)}")
    spec = needed[0]
    if spec.datatype == "BYTES":
        raw: Buffer = pack_bytes([bytes(body.data)])  # the body is one element, without the length before it
        shape = raw_shape(spec, 1)
    else:
        raw = body.data
        count, rest = divmod(len(raw), ITEMSIZES[spec.datatype])
        if rest:
            raise RequestError(f"{len(raw)} bytes are no whole number of {spec.datatype} elements")
        shape = raw_shape(spec, count)
        check_raw(spec.name, spec.datatype, shape, raw)
    form = checked_form(target, None, ((spec.name, spec.datatype, shape),), ())
    placed = OFFSET.pack(body.region) if body.region is not None and spec.datatype != "BYTES" else None
    header = form.header_for([(len(raw), placed is not None)])
    payload = [raw if placed is None else placed]
    return OipRequest(header, payload, binary_default=True, rows=form.rows)


def raw_shape(spec: TensorSpec, count: int) -> tuple[int, ...]:
    """The shape of `count` elements given without one: a leading -1 is 1 unless it is the only -1.

    RequestError if more than one dimension is left open or the elements do not fill the shape.
    """
    if spec.shape is None:
        return (count,)
    shape = list(spec.shape)
    if spec.datatype == "BYTES":
        shape = [1 if size == -1 else size for size in shape]  # for the one element that a raw request has
    if shape.count(-1) > 1 and shape[0] == -1:
        shape[0] = 1
    if shape.count(-1) > 1:
        raise RequestError(
            f"the shape of input '{spec.name}' has several open dimensions; a raw request cannot fill them"
        )
    if -1 in shape:
        known = element_count([size for size in shape if size != -1])
        shape[shape.index(-1)] = count // known if known else 0
    if element_count(shape) != count:
        raise RequestError(f"{count} elements do not fill input '{spec.name}' of shape {list(spec.shape)}")
    return tuple(shape)


_fragments: dict[ResultHeader, list[bytes]] = {}
_FRAGMENT_BYTES = 2 * REMEMBERED_BYTES  # the same in JSON is longer


def _heads(header: ResultHeader) -> list[bytes]:
    """For each output the JSON before its data; kept, for responses repeat themselves."""
    heads = _fragments.get(header)
    if heads is None:
        heads = _new_heads(header)
        if sum(map(len, heads)) <= _FRAGMENT_BYTES:
            if len(_fragments) >= 1024:
                _fragments.clear()
            _fragments[header] = heads
    return heads


def _new_heads(header: ResultHeader) -> list[bytes]:
    return [
        orjson.dumps({"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape})[:-1]
        for tensor in header.outputs
    ]


def as_json(request: OipRequest, name: str) -> bool:
    """Whether a request wants this output as JSON."""
    return not request.binary.get(name, request.binary_default)


def encode_response(
    request: OipRequest,
    start: bytes,
    header: ResultHeader,
    tensors: Sequence[Buffer],
    *,
    encoded: bool = False,
) -> tuple[bytes, list[Buffer]]:
    """The JSON of a response and the binary data that follow it, if any.

    `start` is `{"model_name":…,"model_version":…` without its end; `encoded` if those of the tensors that are wanted as
    JSON are JSON already. RequestError if an output cannot be.
    """
    parts: list[Buffer] = [start]
    binary: list[Buffer] = []
    if request.id:
        parts.append(b',"id":' + orjson.dumps(request.id))
    separator = b',"outputs":['
    heads = _new_heads(header) if request.classes else _heads(header)  # a header of classes never comes again
    for tensor, head, raw in zip(header.outputs, heads, tensors, strict=True):
        if request.binary.get(tensor.name, request.binary_default):
            parts += (separator, head, b',"parameters":{"binary_data_size":%d}}' % tensor.size)
            binary.append(raw)
        else:
            data = raw if encoded else json_from_raw(tensor.name, tensor.datatype, tensor.shape, raw)
            parts += (separator, head, b',"data":', data, b"}")
        separator = b","
    parts.append(b"]}" if header.outputs else b',"outputs":[]}')
    return b"".join(parts), binary
