"""The JSON of an Open Inference Protocol request, parsed and typed; its tensor data are left unconverted."""

from collections.abc import Sequence
from typing import Any

import msgspec
import simdjson

from gateway.errors import RequestError
from gateway.http.json_codec.budget import LARGE, Budget, check_strings
from gateway.http.json_depth import MAX_DEPTH, count_up_to, lists_in, too_deep
from gateway.http.tensor_json import Data, data_of, lists_of
from gateway.tensors import element_count

LARGE_JSON = LARGE
"""JSON of more bytes than this goes through simdjson, which is slower to start and faster per byte."""
VERY_LARGE_JSON = 4 << 20
"""JSON of more bytes than this is read in pieces: what simdjson keeps of it is many times as large."""
_FEW_LISTS = 4096
"""Data nested in more lists than this are read faster as text."""
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
    large = len(text) > LARGE_JSON
    if large:
        text = bytes(text) if isinstance(text, memoryview) else text
        check_strings(text)
        regular = len(text) <= VERY_LARGE_JSON and count_up_to(text, b"[", _FEW_LISTS) <= _FEW_LISTS
        if regular and (found := _parse_regular(text)) is not None:
            return found
    try:
        request = _decode_request(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(_sentence(error)) from None
    if large:
        budget = Budget()
        return request, [data_of(item.data, budget) if item.data else None for item in request.inputs]
    return request, [item.data or None for item in request.inputs]


def _parse_regular(text: bytes | bytearray) -> tuple[Request, Sequence[Data | None]] | None:
    """The same with simdjson, for a request as clients write it; None if anything is wrong or unusual."""
    try:
        document = simdjson.Parser().parse(text)
    except (ValueError, RuntimeError, UnicodeDecodeError):
        return None
    if not isinstance(document, simdjson.Object):
        return None
    data: list[Data | None] = []
    plain: dict[str, Any] = {}
    if len(set(document)) != len(document):
        return None
    # Known keys only: each look-up walks the whole object. And items() would make Python lists of all numbers.
    for key in _KEYS.intersection(document):
        value = document[key]
        if key == "inputs" and isinstance(value, simdjson.Array):
            inputs = [_without_data(item, data) for item in value]
            if None in inputs:
                return None
            plain[key] = inputs
        else:
            plain[key] = _plain(value)
    try:
        request = msgspec.convert(plain, Request)
        for item in request.inputs:
            element_count(item.shape)  # no arithmetic with absurd shapes
    except (msgspec.ValidationError, RequestError):
        return None
    return (request, data) if _holds_elements(text, request, data) else None


def _holds_elements(text: bytes | bytearray, request: Request, data: Sequence[Data | None]) -> bool:
    """Whether no list stands in place of an element, which simdjson's buffers would flatten away.

    Looking at the data costs more than parsing it. A body with just as many brackets as its shapes account for has no
    such list.
    """
    arrays = [(item, each) for item, each in zip(request.inputs, data, strict=True) if isinstance(each, simdjson.Array)]
    accounted = 1 + len(request.inputs) + (request.outputs is not None)
    accounted += sum(lists_of(each, item.shape) for item, each in arrays)
    return count_up_to(text, b"[", accounted) == accounted or lists_in(text) == accounted


def _without_data(item: Any, data: list[Data | None]) -> dict[str, Any] | None:
    """One of `inputs` as a plain dict but for its data, which are appended to `data`; None if it is none."""
    if not isinstance(item, simdjson.Object):
        return None
    keys = set(item)
    if len(keys) != len(item):
        return None
    if "data" in keys:
        found = item["data"]
        if not isinstance(found, simdjson.Array):
            return None
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
