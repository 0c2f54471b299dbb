"""The JSON of an Open Inference Protocol request, parsed and typed; its tensor data are left unconverted."""

from collections.abc import Sequence
from typing import Any

import msgspec
import simdjson

from gateway.errors import RequestError
from gateway.http.json_depth import MAX_DEPTH, count_up_to, lists_in, too_deep
from gateway.http.tensor_json import ELEMENT_WISE, Data, has_list_element, lists_of
from gateway.tensors import element_count

LARGE_JSON = 32 << 10
"""JSON of more bytes than this goes through simdjson, which is slower to start and faster per byte."""
NO_DATA = msgspec.Raw()


class Input(msgspec.Struct):
    """One of `inputs`; `data` is empty where the request has none."""

    name: str
    shape: tuple[int, ...]
    datatype: str
    parameters: dict[str, Any] | None = None
    data: msgspec.Raw = NO_DATA


class Output(msgspec.Struct):
    """One of `outputs`."""

    name: str
    parameters: dict[str, Any] | None = None


class Request(msgspec.Struct):
    """The whole request."""

    inputs: list[Input]
    id: str | None = ""
    parameters: dict[str, Any] | None = None
    outputs: list[Output] | None = None


_KEYS = frozenset(Request.__struct_fields__)
_INPUT_KEYS = frozenset(Input.__struct_fields__) - {"data"}
_decode_request = msgspec.json.Decoder(Request).decode


def parse(text: bytes | bytearray | memoryview) -> tuple[Request, Sequence[Data | None]]:
    """The request and, for each of its inputs, the data not yet converted (None: it has none).

    RequestError in one sentence for anything that is not such a request.
    """
    if text[:3] == b"\xef\xbb\xbf":  # a byte order mark, which some clients write
        text = text[3:]
    if too_deep(text):
        raise RequestError(f"the JSON is nested more than {MAX_DEPTH} deep")
    if len(text) > LARGE_JSON:
        return _parse_large(text)
    try:
        request = _decode_request(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(_sentence(error)) from None
    return request, [item.data or None for item in request.inputs]


def _parse_large(text: bytes | bytearray | memoryview) -> tuple[Request, Sequence[Data | None]]:
    try:
        document = simdjson.Parser().parse(text)
    except (ValueError, RuntimeError, UnicodeDecodeError):
        raise RequestError("the body is not valid JSON") from None
    if not isinstance(document, simdjson.Object):
        raise RequestError("Expected `object` as the whole body")
    data: list[Data | None] = []
    plain: dict[str, Any] = {}
    if len(set(document)) != len(document):
        raise RequestError("a key stands twice in the body")
    # Known keys only: each look-up walks the whole object. And items() would make Python lists of all numbers.
    for key in _KEYS.intersection(document):
        value = document[key]
        if key == "inputs" and isinstance(value, simdjson.Array):
            plain[key] = [_without_data(item, data) for item in value]
        else:
            plain[key] = _plain(value)
    try:
        request = msgspec.convert(plain, Request)
    except msgspec.ValidationError as error:
        raise RequestError(_sentence(error)) from None
    _check_elements(text, request, data)
    return request, data


def _check_elements(text: bytes | bytearray | memoryview, request: Request, data: Sequence[Data | None]) -> None:
    """RequestError if a list stands in place of an element, which simdjson's buffers would flatten away.

    Looking at the data costs more than parsing it. A body with just as many brackets as its shapes account for has no
    such list, so only others are looked at.
    """
    for item in request.inputs:
        element_count(item.shape)  # no arithmetic with absurd shapes
    arrays = [(item, each) for item, each in zip(request.inputs, data, strict=True) if isinstance(each, simdjson.Array)]
    accounted = 1 + len(request.inputs) + (request.outputs is not None)
    accounted += sum(lists_of(each, item.shape) for item, each in arrays)
    text = bytes(text) if isinstance(text, memoryview) else text
    if count_up_to(text, b"[", accounted) == accounted or lists_in(text) == accounted:
        return
    for item, each in arrays:
        if item.datatype not in ELEMENT_WISE and has_list_element(each, item.shape):
            raise RequestError(
                f"the nested data of input '{item.name[:100]}' do not have its shape {list(item.shape[:8])}"
            )


def _without_data(item: Any, data: list[Data | None]) -> Any:
    """One of `inputs` as a plain dict but for its data, which are appended to `data`."""
    if not isinstance(item, simdjson.Object):
        return item  # of the wrong type, which the conversion will say
    keys = set(item)
    if len(keys) != len(item):
        raise RequestError("a key stands twice - at `$.inputs[...]`")
    if "data" in keys:
        found = item["data"]
        if not isinstance(found, simdjson.Array):
            raise RequestError("Expected `array` - at `$.inputs[...].data`")
        data.append(found)
    else:
        data.append(None)
    return {key: _plain(item[key]) for key in _INPUT_KEYS & keys}


def _plain(value: Any) -> Any:
    if isinstance(value, simdjson.Object):
        return value.as_dict()
    return value.as_list() if isinstance(value, simdjson.Array) else value


def _sentence(error: Exception) -> str:
    return str(error) if isinstance(error, msgspec.ValidationError) else f"the body is not valid JSON: {error}"
