"""JSON of TensorFlow Serving's REST API to tensors: shapes come from the nesting, datatypes from the model.

Source of formats and wordings: tensorflow_serving/util/json_tensor.cc and docs api_rest.md.
"""

import base64
import binascii
import json
import re
import struct
from collections.abc import Sequence
from typing import Any, cast

import msgspec
import numpy as np

from gateway.errors import RequestError
from gateway.http.json_codec import document, numbers
from gateway.http.json_codec.budget import LARGE, check_strings
from gateway.http.json_codec.numbers import FLOATS, Numbers, Shape
from gateway.http.json_depth import MAX_DEPTH, too_deep
from gateway.http.tensor_json import packer
from gateway.tensors import DTYPES, Buffer, element_count, pack_bytes

MOST_TOKEN_BYTES = 4 << 20
"""Bodies with NaN or Infinity are read by a slow parser."""

TYPE_NAMES = {
    "BOOL": "bool", "UINT8": "uint8", "UINT16": "uint16", "UINT32": "uint32", "UINT64": "uint64", "INT8": "int8",
    "INT16": "int16", "INT32": "int32", "INT64": "int64", "FP16": "half", "BF16": "bfloat16", "FP32": "float",
    "FP64": "double", "BYTES": "string",
}  # fmt: skip
"""Datatypes as TensorFlow calls them."""
_JSON_TYPES = {
    type(None): "Null", bool: "Bool", dict: "Object", list: "Array", str: "String", int: "Number", float: "Number",
}  # fmt: skip
_STRING_OR_INF = re.compile(rb'("(?:[^"\\]+|\\.)*+(?:"|\\?\Z))|\bInf\b', re.DOTALL)
"""It takes an open string to the end of the text, and never goes back: time is linear in the length of the text."""
_TOKENS = re.compile(rb"\b(?:NaN|Inf(?:inity)?)\b")
_AT_BYTE = re.compile(r"\(byte (\d+)\)|byte (\d+)")
_DIFFERS = "a value is not of the type that the model takes, and there are too many to tell which"
_decode = msgspec.json.Decoder().decode


def parse(text: bytes | bytearray | memoryview) -> dict[str, Any]:
    """The body; values of a large one that are arrays of numbers stay unconverted (Numbers).

    RequestError for what is no JSON object.
    """
    text = bytes(text) if isinstance(text, memoryview) else text
    if not text or text.isspace():
        raise RequestError("JSON Parse error: The document is empty")
    found = decoded(text)
    if not isinstance(found, dict):
        raise RequestError(f"JSON Value: {shown(found)} Is not object")
    return found


def decoded(text: bytes | bytearray) -> Any:
    """Any JSON, read as above."""
    check_strings(text)
    if too_deep(text):
        raise RequestError(f"JSON Parse error: nested more than {MAX_DEPTH} deep")
    try:
        return document.read(text) if len(text) > LARGE else _decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        if _TOKENS.search(text):
            return _parse_tokens(text)
        if isinstance(error, msgspec.ValidationError):  # without a type to check, it can be nothing else
            raise RequestError("JSON Parse error: Number too big to be stored in double.") from None
        found = _AT_BYTE.search(str(error))
        at = f" at offset: {found[1] or found[2]}" if found else ""
        raise RequestError(f"JSON Parse error: Invalid value.{at}") from None


def _parse_tokens(text: bytes | bytearray) -> Any:
    """JSON with the tokens NaN, Infinity and -Infinity, also written Inf, which only TensorFlow Serving takes."""
    if len(text) > MOST_TOKEN_BYTES:
        raise RequestError(f"a body with NaN or Infinity is limited to {MOST_TOKEN_BYTES} bytes")
    # Inf outside of strings; in strings it may stand as it is, which the alternative takes care of.
    whole = _STRING_OR_INF.sub(lambda found: found[1] or b"Infinity", text)
    try:
        return json.loads(whole)
    except (ValueError, RecursionError) as error:
        at = error.pos if isinstance(error, json.JSONDecodeError) else 0
        raise RequestError(f"JSON Parse error: Invalid value. at offset: {at}") from None


def shown(value: Any) -> str:
    """A value for an error message, cut short."""
    try:
        text = json.dumps(value, default=document.beginning)
    except (TypeError, ValueError, RecursionError):
        text = "..."
    return text if len(text) <= 100 else f"{text[:100]}..."


def is_base64(value: Any) -> bool:
    """Whether a value is {"b64": "..."}, which stands for a string's bytes."""
    return isinstance(value, dict) and len(value) == 1 and isinstance(value.get("b64"), str)


def bytes_of(value: Any) -> bytes:
    """The bytes of a string or of {"b64": "..."}; RequestError."""
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass")
    if not is_base64(value):
        raise RequestError(f"JSON Value: {shown(value)} not formatted correctly for base64 data")
    text: str = value["b64"]
    try:
        raw = text.encode("ascii").translate(bytes.maketrans(b"-_", b"+/")).rstrip(b"=")
        return base64.b64decode(raw + b"=" * (-len(raw) % 4), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise RequestError("Unable to base64 decode") from None


def tensor_of(datatype: str, value: Any) -> tuple[Shape, Buffer]:
    """Shape and raw bytes of a dense tensor; RequestError where its lists differ in length or a value does not fit."""
    if isinstance(value, Numbers):
        raw = numbers.tensor_of(datatype, value, infinite=True)
        if raw is not None:
            element_count(value.shape)
            return value.shape, raw
        value = listed(value)
    shape, level = shape_of(value), [value]
    for axis, size in enumerate(shape):
        level = _one_level_down(level, axis, size)
    element_count(shape)
    return shape, _raw(datatype, level, len(shape))


def listed(value: Any) -> Any:
    """The value, or Numbers as Python has them, to look at one by one; RequestError if they are too many."""
    return document.listed([value], _DIFFERS)[0] if isinstance(value, Numbers) else value


def all_listed(values: Sequence[Any]) -> list[Any]:
    """The same of several values, which together must not be too many."""
    return document.listed(values, _DIFFERS)


def shape_of(value: Any) -> Shape:
    """The shape that the first elements of nested lists tell; () of a value that is no list."""
    shape = []
    while isinstance(value, list):
        shape.append(len(value))
        if not value:
            break
        value = value[0]
    return tuple(shape)


def _one_level_down(level: list[Any], axis: int, size: int) -> list[Any]:
    below: list[Any] = []
    for item in level:
        if not isinstance(item, list):
            raise RequestError(
                f"JSON Value: {shown(item)} found at incorrect level: {axis + 1} in the JSON DOM. "
                f"Expected at level: {axis + 1}"
            )
        if len(item) != size:
            raise RequestError(
                f"Encountered list at unexpected size: {len(item)} at level: {axis} expected size: {size}"
            )
        below += item
    return below


def _type_error(value: Any, datatype: str) -> RequestError:
    kind = _JSON_TYPES.get(type(value), "Unknown")
    if isinstance(value, bool):
        kind = "True" if value else "False"
    return RequestError(
        f"JSON Value: {shown(value)} Type: {kind} is not of expected type: {TYPE_NAMES.get(datatype, datatype)}"
    )


_NUMBERS, _INTEGERS = frozenset({int, float}), frozenset({int})
_ALLOWED: dict[str, frozenset[type]] = {name: _NUMBERS if name in FLOATS else _INTEGERS for name in TYPE_NAMES} | {
    "BOOL": frozenset({bool}),
    "BYTES": frozenset({str, dict}),
}


def _raw(datatype: str, values: list[Any], level: int) -> Buffer:
    allowed = _ALLOWED[datatype]
    if not allowed.issuperset(map(type, values)):
        wrong = next(value for value in values if type(value) not in allowed)
        if isinstance(wrong, list):
            raise RequestError(f"Encountered list at unexpected level: {level} expected < {level}")
        raise _type_error(wrong, datatype)
    if datatype == "BYTES":
        return pack_bytes(map(bytes_of, values))
    if datatype != "BF16":
        try:
            return packer(datatype, len(values)).pack(*values)
        except (struct.error, OverflowError):
            if datatype not in FLOATS:
                raise _out_of_range(values, datatype) from None
    # A number too large for the datatype becomes infinite, as TensorFlow Serving has it.
    try:
        with np.errstate(over="ignore"):
            return np.array(values, np.float64).astype(DTYPES[datatype]).tobytes()
    except OverflowError:
        raise _type_error(max(values, key=abs), datatype) from None


def _out_of_range(values: list[int], datatype: str) -> RequestError:
    limits = np.iinfo(cast("np.dtype[np.int64]", DTYPES[datatype]))
    return _type_error(next(value for value in values if not limits.min <= value <= limits.max), datatype)
