"""The JSON of an Open Inference Protocol request, parsed and typed; its tensor data are left unconverted."""

from collections.abc import Sequence
from typing import Any

import msgspec
import simdjson

from gateway.errors import RequestError
from gateway.http.json_depth import MAX_DEPTH, too_deep
from gateway.http.tensor_json import Data

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
    id: str = ""
    parameters: dict[str, Any] | None = None
    outputs: list[Output] | None = None


_decode_request = msgspec.json.Decoder(Request).decode


def parse(text: bytes | bytearray | memoryview) -> tuple[Request, Sequence[Data | None]]:
    """The request and, for each of its inputs, the data not yet converted (None: it has none).

    RequestError in one sentence for anything that is not such a request.
    """
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
    for key, value in document.items():
        if key == "inputs" and isinstance(value, simdjson.Array):
            data = []
            plain[key] = [_without_data(item, data) for item in value]
        else:
            plain[key] = _plain(value)
    try:
        return msgspec.convert(plain, Request), data
    except msgspec.ValidationError as error:
        raise RequestError(_sentence(error)) from None


def _without_data(item: Any, data: list[Data | None]) -> Any:
    """One of `inputs` as a plain dict but for its data, which are appended to `data`."""
    if not isinstance(item, simdjson.Object):
        return item  # of the wrong type, which the conversion will say
    found = item.get("data")
    if found is not None and not isinstance(found, simdjson.Array):
        raise RequestError("Expected `array` - at `$.inputs[...].data`")
    data.append(found)
    return {key: _plain(value) for key, value in item.items() if key != "data"}


def _plain(value: Any) -> Any:
    if isinstance(value, simdjson.Object):
        return value.as_dict()
    return value.as_list() if isinstance(value, simdjson.Array) else value


def _sentence(error: Exception) -> str:
    return str(error) if isinstance(error, msgspec.ValidationError) else f"the body is not valid JSON: {error}"
