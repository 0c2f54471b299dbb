"""Inference requests and responses of the Open Inference Protocol v2, with the binary tensor data extension.

https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol and Triton's extension_binary_data.md.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import orjson
import simdjson

from gateway.errors import RequestError
from gateway.http.json_depth import MAX_DEPTH, too_deep
from gateway.http.tensor_json import Data, json_from_raw, raw_from_json
from gateway.ipc.channel import Channel
from gateway.ipc.framing import OFFSET, RequestHeader, ResultHeader, TensorHeader, encode
from gateway.routing import Target
from gateway.tensors import DTYPES, ITEMSIZES, Buffer, Signature, TensorSpec, check_raw, element_count, pack_bytes

LARGE_JSON = 32 << 10
"""JSON of more bytes than this goes through simdjson, which is slower to start and faster per byte."""
NO_DATA = msgspec.Raw()


class _Input(msgspec.Struct):
    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] | None = None
    data: msgspec.Raw = NO_DATA


class _Output(msgspec.Struct):
    name: str
    parameters: dict[str, Any] | None = None


class _Request(msgspec.Struct):
    inputs: list[_Input]
    id: str = ""
    parameters: dict[str, Any] | None = None
    outputs: list[_Output] | None = None


class Body(NamedTuple):
    """A request body as received; `region` is where it lies in the channel's arena, if it does."""

    data: bytes | bytearray | memoryview
    json_size: int | None
    """From Inference-Header-Content-Length; None: all of it is JSON; 0: all of it is one raw tensor."""
    region: int | None = None


class InferenceRequest(NamedTuple):
    """A decoded request, ready to be sent to an instance."""

    header: bytes
    payload: list[Buffer]
    id: str
    binary_default: bool
    binary: dict[str, bool]
    """What single outputs ask for, over the default."""


_decode_request = msgspec.json.Decoder(_Request).decode


def decode(body: Body, target: Target, channel: Channel, regions: list[int]) -> InferenceRequest:
    """Check a request against the model's signature and make it ready to send.

    Regions of the channel's arena that the request takes are appended to `regions`. RequestError says what is wrong.
    """
    if body.json_size == 0:
        return _decode_raw(body, target, regions)
    size = body.json_size
    if size is not None and not 0 < size <= len(body.data):
        raise RequestError(f"Inference-Header-Content-Length is {size}, the body has {len(body.data)} bytes")
    view = memoryview(body.data)
    request, data = _parse(body.data if size is None else view[:size])
    parameters = request.parameters or {}
    signature = target.signature(_text(parameters, "signature_name"))
    tensors, payload = [], []
    at = len(view) if size is None else size
    for item, item_data in zip(request.inputs, data, strict=True):
        spec = _spec_for(item, target, signature, tensors)
        binary_size = (item.parameters or {}).get("binary_data_size")
        if binary_size is None:
            raw = _json_data(item, item_data)
            placed = channel.place(raw, regions)
        else:
            raw = _binary_data(item, binary_size, item_data, view, at)
            at += len(raw)
            placed = None if body.region is None else OFFSET.pack(body.region + at - len(raw))
            if body.region is None:
                placed = channel.place(raw, regions)
        if spec is not None and spec.strict:
            _check_shape(item, spec)
        tensors.append(TensorHeader(item.name, item.datatype, tuple(item.shape), len(raw), placed is not None))
        payload.append(raw if placed is None else placed)
    if at != len(view):
        raise RequestError(f"the body has {len(view) - at} bytes that belong to no input")
    _check_required(target, signature, tensors)
    return _request(request, signature, tensors, payload)


def _request(
    request: _Request, signature: Signature, tensors: list[TensorHeader], payload: list[Buffer]
) -> InferenceRequest:
    outputs = request.outputs or []
    binary: dict[str, bool] = {}
    for output in outputs:
        if output.parameters and (wanted := output.parameters.get("binary_data")) is not None:
            binary[output.name] = _flag("binary_data", wanted)
    names = tuple(output.name for output in outputs)
    if names:
        _check_outputs(signature, names)
    default = _flag("binary_data_output", (request.parameters or {}).get("binary_data_output", False))
    header = encode(RequestHeader(signature.name, tuple(tensors), names))
    return InferenceRequest(header, payload, request.id, default, binary)


def _parse(text: bytes | bytearray | memoryview) -> tuple[_Request, Sequence[Data]]:
    """The request and, for each of its inputs, the data not yet converted."""
    if too_deep(text):
        raise RequestError(f"the JSON is nested more than {MAX_DEPTH} deep")
    if len(text) > LARGE_JSON:
        return _parse_large(text)
    try:
        request = _decode_request(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(_sentence(error)) from None
    return request, [item.data for item in request.inputs]


def _parse_large(text: bytes | bytearray | memoryview) -> tuple[_Request, Sequence[Data]]:
    try:
        document = simdjson.Parser().parse(text)
    except (ValueError, RuntimeError, UnicodeDecodeError):
        raise RequestError("the body is not valid JSON") from None
    if not isinstance(document, simdjson.Object):
        raise RequestError("Expected `object` as the whole body")
    data: list[Data] = []
    inputs: list[Any] = []
    plain = {key: value for key, value in document.items() if key != "inputs"}
    raw_inputs = document.get("inputs")
    for item in raw_inputs if isinstance(raw_inputs, simdjson.Array) else ():
        if not isinstance(item, simdjson.Object):
            raise RequestError("Expected `object` - at `$.inputs[...]`")
        inputs.append({key: _plain(value) for key, value in item.items() if key != "data"})
        tensor_data = item.get("data")
        if tensor_data is not None and not isinstance(tensor_data, simdjson.Array):
            raise RequestError("Expected `array` - at `$.inputs[...].data`")
        data.append(NO_DATA if tensor_data is None else tensor_data)
    converted = {key: _plain(value) for key, value in plain.items()}
    if isinstance(raw_inputs, simdjson.Array):
        converted["inputs"] = inputs
    try:
        return msgspec.convert(converted, _Request), data
    except msgspec.ValidationError as error:
        raise RequestError(_sentence(error)) from None


def _plain(value: Any) -> Any:
    if isinstance(value, simdjson.Object):
        return value.as_dict()
    return value.as_list() if isinstance(value, simdjson.Array) else value


def _sentence(error: Exception) -> str:
    return str(error) if isinstance(error, msgspec.ValidationError) else f"the body is not valid JSON: {error}"


def _text(parameters: dict[str, Any], key: str) -> str | None:
    value = parameters.get(key)
    if value is not None and not isinstance(value, str):
        raise RequestError(f"parameter {key} must be a string")
    return value


def _flag(key: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise RequestError(f"parameter {key} must be true or false")
    return value


def _spec_for(item: _Input, target: Target, signature: Signature, before: list[TensorHeader]) -> TensorSpec | None:
    """What the signature says of this input; None where it takes names it does not list."""
    if item.datatype not in DTYPES:
        raise RequestError(f"input '{item.name}' has datatype '{item.datatype[:40]}'; known are {', '.join(DTYPES)}")
    if any(tensor.name == item.name for tensor in before):
        raise RequestError(f"input '{item.name}' is given twice")
    spec = target.specs[signature.name].get(item.name)
    if spec is None:
        if not signature.open_inputs:
            known = ", ".join(f"'{known.name}'" for known in signature.inputs) or "none"
            raise RequestError(f"model '{target.model}' has no input '{item.name[:100]}'; its inputs are {known}")
        return None
    if spec.strict and spec.datatype != item.datatype:
        raise RequestError(f"input '{item.name}' is {spec.datatype}, the request says {item.datatype}")
    return spec


def _check_shape(item: _Input, spec: TensorSpec) -> None:
    want = spec.shape
    if want is None:
        return
    have = item.shape
    if len(have) != len(want) or any(w not in (-1, h) for h, w in zip(have, want, strict=True)):
        raise RequestError(f"input '{item.name}' has shape {have[:8]}, the model takes {list(want)}")


def _check_required(target: Target, signature: Signature, tensors: list[TensorHeader]) -> None:
    required = target.required[signature.name]
    if len(tensors) != len(required) or required:
        missing = required.difference([tensor.name for tensor in tensors])
        if missing:
            raise RequestError(f"input '{min(missing)}' of model '{target.model}' is missing")


def _check_outputs(signature: Signature, names: tuple[str, ...]) -> None:
    if len(set(names)) != len(names):
        raise RequestError("an output is requested twice")
    if not signature.open_outputs:
        known = [spec.name for spec in signature.outputs]
        for name in names:
            if name not in known:
                raise RequestError(f"the model has no output '{name[:100]}'; it has {', '.join(map(repr, known))}")


def _json_data(item: _Input, data: Data) -> Buffer:
    if isinstance(data, msgspec.Raw) and not len(memoryview(data)):
        raise RequestError(f"input '{item.name}' has neither data nor binary_data_size")
    return raw_from_json(item.name, item.datatype, item.shape, data)


def _binary_data(item: _Input, size: object, data: Data, view: memoryview, at: int) -> memoryview:
    if not isinstance(data, msgspec.Raw) or len(memoryview(data)):
        raise RequestError(f"input '{item.name}' has both data and binary_data_size")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise RequestError(f"binary_data_size of input '{item.name}' must be a number of bytes")
    if at + size > len(view):
        raise RequestError(f"the body ends before the {size} bytes of input '{item.name}'")
    raw = view[at : at + size]
    check_raw(item.name, item.datatype, item.shape, raw)
    return raw


def _decode_raw(body: Body, target: Target, regions: list[int]) -> InferenceRequest:
    """A body that is one tensor and nothing else; its shape follows from its size."""
    signature = target.signature(None)
    if len(signature.inputs) != 1 or signature.open_inputs:
        raise RequestError(f"a raw request needs a model with one input, '{target.model}' has {len(signature.inputs)}")
    spec = signature.inputs[0]
    if spec.datatype == "BYTES":
        raw: Buffer = pack_bytes([bytes(body.data)])
        shape = raw_shape(spec, 1)
    else:
        raw = body.data
        count, rest = divmod(len(raw), ITEMSIZES[spec.datatype])
        if rest:
            raise RequestError(f"{len(raw)} bytes are no whole number of {spec.datatype} elements")
        shape = raw_shape(spec, count)
    in_arena = body.region is not None and spec.datatype != "BYTES"
    payload: Buffer = OFFSET.pack(body.region) if in_arena and body.region is not None else raw
    tensor = TensorHeader(spec.name, spec.datatype, shape, len(raw), in_arena)
    return InferenceRequest(encode(RequestHeader(signature.name, (tensor,))), [payload], "", True, {})


def raw_shape(spec: TensorSpec, count: int) -> tuple[int, ...]:
    """The shape of `count` elements given without one: a leading -1 is 1 unless it is the only -1.

    RequestError if more than one dimension is left open or the elements do not fill the shape.
    """
    if spec.shape is None:
        return (count,)
    shape = list(spec.shape)
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


def _heads(header: ResultHeader) -> list[bytes]:
    """For each output the JSON before its data; kept, for responses repeat themselves."""
    heads = _fragments.get(header)
    if heads is None:
        if len(_fragments) >= 1024:
            _fragments.clear()
        heads = _fragments[header] = [
            orjson.dumps({"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape})[:-1]
            for tensor in header.outputs
        ]
    return heads


def encode_response(
    request: InferenceRequest, start: bytes, header: ResultHeader, tensors: Sequence[Buffer]
) -> tuple[bytes, list[Buffer]]:
    """The JSON of a response and the binary data that follow it, if any.

    `start` is `{"model_name":…,"model_version":…` without its end. RequestError if an output cannot be JSON.
    """
    parts, binary = [start], []
    if request.id:
        parts.append(b',"id":' + orjson.dumps(request.id))
    separator = b',"outputs":['
    for tensor, head, raw in zip(header.outputs, _heads(header), tensors, strict=True):
        if request.binary.get(tensor.name, request.binary_default):
            parts += (separator, head, b',"parameters":{"binary_data_size":%d}}' % tensor.size)
            binary.append(raw)
        else:
            data = json_from_raw(tensor.name, tensor.datatype, tensor.shape, raw)
            parts += (separator, head, b',"data":', data, b"}")
        separator = b","
    parts.append(b"]}" if header.outputs else b',"outputs":[]}')
    return b"".join(parts), binary
