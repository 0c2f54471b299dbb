"""Arrays of numbers in large bodies of TensorFlow Serving's JSON: to tensors without an object for each number."""

import math
from collections.abc import Sequence
from typing import Any, cast

import msgspec
import numpy as np
import simdjson

from gateway.http.json_codec import numbers as codec
from gateway.http.json_codec.numbers import FLOATS
from gateway.tensors import DTYPES, Array, Buffer

MOST_ROW_ARRAYS = 4096
"""Arrays of numbers in rows that are objects; more of them, which are smaller, are read number by number."""
SATURATED = 0xFFFFFF
"""The largest length that simdjson tells; the array may have more elements."""
_NUMERIC = b"0123456789+-.eE \t\r\n"

Shape = tuple[int, ...]


class Numbers(msgspec.Struct):
    """An array of a large body whose first element is a number, not yet converted."""

    array: simdjson.Array
    text: bytes
    """The whole body."""
    alone: bool = False
    """Whether nothing else in the body is an array."""


def parse_large(text: bytes) -> dict[str, Any] | None:
    """The same with arrays of numbers unconverted; None where another parser must look at it."""
    try:
        document = simdjson.Parser().parse(text)
    except (ValueError, RuntimeError, UnicodeDecodeError):
        return None
    if not isinstance(document, simdjson.Object):
        return None
    found: dict[str, Any] = {}
    for key in document:
        value = document[key]
        if key == "inputs" and isinstance(value, simdjson.Object) and "b64" not in value:
            found[key] = {name: _unconverted(value[name], text) for name in value}
        elif key == "instances" and isinstance(value, simdjson.Array) and isinstance(_first(value), simdjson.Object):
            found[key] = _rows(value, text)
        else:
            found[key] = _unconverted(value, text)
    inputs = found.get("inputs")
    values = [*found.values(), *(inputs.values() if isinstance(inputs, dict) else ())]
    if None in values:
        return None
    arrays = [value for value in values if isinstance(value, Numbers)]
    for each in arrays:
        each.alone = len(arrays) == 1
    return found


def _first(value: simdjson.Array) -> Any:
    return value[0] if len(value) else None


def _rows(value: simdjson.Array, text: bytes) -> list[dict[str, Any]] | None:
    """Rows that are objects, their arrays of numbers unconverted; None where they must be looked at one by one."""
    rows, arrays = [], 0
    for item in value:
        if not isinstance(item, simdjson.Object):
            return None
        row = {name: _unconverted(item[name], text) for name in item}
        arrays += sum(isinstance(each, Numbers) for each in row.values())
        if arrays > MOST_ROW_ARRAYS or any(each is None for each in row.values()):
            return None
        rows.append(row)
    return rows


def _unconverted(value: Any, text: bytes) -> Any:
    """A value as Python has it, or an array of numbers; None for what must be looked at one by one."""
    if not isinstance(value, simdjson.Array | simdjson.Object):
        return value
    if isinstance(value, simdjson.Object):
        return None
    leaf: Any = value
    while isinstance(leaf, simdjson.Array) and len(leaf):
        leaf = leaf[0]
    return Numbers(value, text) if isinstance(leaf, int | float) and not isinstance(leaf, bool) else None


def stacked(datatype: str, rows: Sequence[Any]) -> tuple[Shape, Buffer] | None:
    """As tensor_of, for a column of arrays that are unconverted; None where something is not as it should be."""
    parts: list[Buffer] = []
    shape: Shape = ()
    for row in rows:
        found = large_tensor(datatype, row) if isinstance(row, Numbers) else None
        if found is None or (parts and found[0] != shape):
            return None
        shape = found[0]
        parts.append(found[1])
    return (len(rows), *shape), b"".join(parts)


def _nesting(shape: Shape) -> bytes:
    """What is left of the JSON of a tensor when its numbers are taken out."""
    text = b""
    for size in reversed(shape):
        text = b"[" + b",".join([text] * size) + b"]"
    return text


def large_tensor(datatype: str, numbers: Numbers) -> tuple[Shape, Buffer] | None:
    """As tensor_of, without a Python object for each number; None where something is not as it should be."""
    if datatype in {"BYTES", "BOOL"}:
        return None
    array = numbers.array
    shape: list[int] = []
    level: Any = array
    while isinstance(level, simdjson.Array):
        shape.append(len(level))
        level = level[0] if len(level) else None
    if max(shape, default=0) >= SATURATED:
        found = codec.read(cast("bytes", array.mini))
        raw = None if found is None else codec.tensor_of(datatype, found, infinite=True)
        return None if found is None or raw is None else (found.shape, raw)
    try:
        if datatype in FLOATS:
            wide: Array = np.frombuffer(array.as_buffer(of_type="d"), np.float64)
        elif datatype == "UINT64":
            wide = np.frombuffer(array.as_buffer(of_type="u"), np.uint64)
        else:
            wide = np.frombuffer(array.as_buffer(of_type="i"), np.int64)
    except (TypeError, ValueError):
        return None
    if math.prod(shape) != len(wide):
        return None
    text = numbers.text
    text = text[text.index(b"[") : text.rindex(b"]") + 1] if numbers.alone else cast("bytes", array.mini)
    if text.translate(None, _NUMERIC) != _nesting(tuple(shape)):
        return None
    with np.errstate(over="ignore"):
        narrow = wide.astype(DTYPES[datatype])
    if datatype not in FLOATS and not (narrow == wide).all():
        return None
    return tuple(shape), narrow.view(np.uint8).data
