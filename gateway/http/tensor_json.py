"""The `data` of a tensor in JSON: numbers and strings to raw bytes, and back."""

import functools
import math
import struct
from collections.abc import Iterable, Sequence
from typing import Any, cast

import msgspec
import numpy as np
import orjson
import simdjson

from gateway.errors import RequestError
from gateway.http.json_codec import numbers
from gateway.http.json_codec.budget import LARGE, Budget, check
from gateway.http.json_codec.numbers import FLOATS, Numbers, fits_shape, tensor_of
from gateway.tensors import DTYPES, Array, Buffer, pack_bytes, unpack_bytes

Data = msgspec.Raw | simdjson.Array | Numbers
"""JSON text; the same as simdjson has parsed it, or as its numbers have been read: three ways to the same tensor."""

_FORMATS = {
    "BOOL": "?",
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "FP16": "e",
    "FP32": "f",
    "FP64": "d",
}
ELEMENT_WISE = frozenset({"BOOL", "BYTES"})
"""Datatypes whose JSON is looked at element by element, however large it is."""
_decode_floats = msgspec.json.Decoder(list[float]).decode
_decode_ints = msgspec.json.Decoder(list[int]).decode
_decode_any = msgspec.json.Decoder(list[Any]).decode


def raw_from_json(name: str, datatype: str, shape: Sequence[int], count: int, data: Data) -> Buffer:
    """Raw bytes of input `name` from its JSON data, flat or nested as its shape of `count` elements says.

    simdjson's must have as many lists as `lists_of` says: one in place of an element would be flattened away. They have
    fewer than 2**24 elements: the length that simdjson tells is no larger.
    Raises RequestError for a wrong number of elements, a wrong nesting, an element of another type or out of range.
    """
    if isinstance(data, msgspec.Raw):
        return _raw_from_text(name, datatype, shape, data, count)
    if isinstance(data, Numbers):
        raw = _raw_from_numbers(name, datatype, shape, data, count)
        text = data.text
    else:
        raw = None if datatype in ELEMENT_WISE else _raw_from_array(datatype, shape, data, count)
        text = cast("bytes", data.mini) if raw is None else b""  # which its stub calls a str
    if raw is not None:
        return raw
    # What is not as it should be is looked at one by one: so every size of body gets the same answer.
    check(text, f"the data of input '{name}' are too many to look at each, and not just numbers that {datatype} holds")
    return _raw_from_text(name, datatype, shape, msgspec.Raw(text), count)


def data_of(text: msgspec.Raw, budget: Budget) -> Data:
    """The data of one input of a large body: its numbers if that is what they are, and many; else as they are.

    RequestError if that is too much to look at each value.
    """
    whole = bytes(text)
    if len(whole) > LARGE and (found := numbers.read(whole)) is not None:
        return found
    budget.take(whole)
    return text


def _raw_from_numbers(name: str, datatype: str, shape: Sequence[int], found: Numbers, count: int) -> Buffer | None:
    """None where each number has to be looked at, to tell which of them does not fit."""
    values = found.values
    if not fits_shape(found, shape):
        if len(found.shape) > 1:
            if found.shape[: len(shape)] != tuple(shape):
                raise _badly_nested(name, shape)
            return None
        kinds = "" if datatype in ELEMENT_WISE else "iuf" if datatype in FLOATS else "iu"
        if values.dtype.kind in kinds:
            _check_count(name, shape, len(values), count)
        return None
    if datatype == "BOOL" and values.dtype.kind == "i" and not ((values != 0) & (values != 1)).any():
        return values.astype(bool).view(np.uint8).data
    raw = tensor_of(datatype, found, infinite=False)
    if raw is None and datatype not in ELEMENT_WISE and values.dtype.kind in ("iuf" if datatype in FLOATS else "iu"):
        raise _out_of_range(name, datatype)
    return raw


def _raw_from_text(name: str, datatype: str, shape: Sequence[int], data: msgspec.Raw, count: int) -> Buffer:
    try:
        if datatype in ("FP32", "FP64"):
            values: Sequence[Any] = _decode_floats(data)
        elif datatype in ELEMENT_WISE or datatype in FLOATS:
            return _raw_from_list(name, datatype, shape, _any_list(name, data), count)
        else:
            values = _decode_ints(data)
    except UnicodeDecodeError:
        raise RequestError(f"the data of input '{name}' are not UTF-8 text") from None
    except msgspec.ValidationError:
        # Nested, or not what the datatype says: the slow way finds out which.
        return _raw_from_list(name, datatype, shape, _any_list(name, data), count)
    return _pack(name, datatype, shape, values, count)


def _any_list(name: str, data: msgspec.Raw) -> list[Any]:
    try:
        return _decode_any(data)
    except UnicodeDecodeError:
        raise RequestError(f"the data of input '{name}' are not UTF-8 text") from None
    except msgspec.ValidationError as error:
        if str(error).startswith("Number out of range"):
            raise RequestError(f"input '{name}' has a number that is too large") from None
        raise RequestError(f"the data of input '{name}' are not an array") from None


def _raw_from_list(name: str, datatype: str, shape: Sequence[int], values: list[Any], count: int) -> Buffer:
    if values and isinstance(values[0], list):
        values = _flatten(name, shape, values)
    if datatype == "BYTES":
        if not all(isinstance(value, str) for value in values):
            raise RequestError(f"input '{name}' is BYTES: its JSON data must be strings")
        _check_count(name, shape, len(values), count)
        return pack_bytes(value.encode("utf-8", "surrogatepass") for value in values)
    allowed: tuple[type, ...] = (int, float) if datatype in FLOATS else (int,)
    for value in values:
        right = isinstance(value, allowed) and not isinstance(value, bool)
        if datatype == "BOOL":
            right = value is True or value is False or (isinstance(value, int) and value in (0, 1))
        if not right:
            raise RequestError(f"input '{name}' is {datatype} and cannot hold {_shown(value)}")
    return _pack(name, datatype, shape, values, count)


def _shown(value: object) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= 40 else text[:40] + "…"


def _flatten(name: str, shape: Sequence[int], values: list[Any]) -> list[Any]:
    """The elements of nested lists that are nested exactly as the shape says."""
    level = values
    for axis, size in enumerate(shape):
        if axis:
            if not all(isinstance(item, list) for item in level):
                raise _badly_nested(name, shape)
            lists, level = level, [element for item in level for element in item]
            if any(len(item) != size for item in lists):
                raise _badly_nested(name, shape)
        elif len(level) != size:
            raise _badly_nested(name, shape)
    return level


def _badly_nested(name: str, shape: Sequence[int]) -> RequestError:
    return RequestError(f"the nested data of input '{name}' do not have its shape {list(shape)}")


def _out_of_range(name: str, datatype: str) -> RequestError:
    return RequestError(f"input '{name}' has a value out of the range of {datatype}")


def _check_count(name: str, shape: Sequence[int], have: int, want: int) -> None:
    if have != want:
        raise RequestError(f"input '{name}' has {have} elements of data, its shape {list(shape)} needs {want}")


@functools.lru_cache(maxsize=256)
def packer(datatype: str, count: int) -> struct.Struct:
    """What packs so many numbers into raw bytes; struct.error or OverflowError for one out of range."""
    return struct.Struct(f"<{count}{_FORMATS[datatype]}")


def _pack(name: str, datatype: str, shape: Sequence[int], values: Sequence[Any], count: int) -> Buffer:
    _check_count(name, shape, len(values), count)
    try:
        if datatype == "BF16":
            narrow = _narrow(datatype, np.array(values, np.float64))
            if narrow is None:
                raise _out_of_range(name, datatype)
            return narrow.view(np.uint8).data
        return packer(datatype, count).pack(*values)
    except (struct.error, OverflowError):
        raise _out_of_range(name, datatype) from None


def _raw_from_array(datatype: str, shape: Sequence[int], data: simdjson.Array, count: int) -> Buffer | None:
    """None where anything is not as it should be."""
    try:
        if datatype in FLOATS:
            wide: Array = np.frombuffer(data.as_buffer(of_type="d"), np.float64)
        elif datatype == "UINT64":
            wide = np.frombuffer(data.as_buffer(of_type="u"), np.uint64)
        else:
            wide = np.frombuffer(data.as_buffer(of_type="i"), np.int64)
    except (TypeError, ValueError):
        return None
    well_nested = _nested_as(shape, data) if isinstance(_first(data), simdjson.Array) else len(data) == len(wide)
    if not well_nested or len(wide) != count:
        return None
    narrow = _narrow(datatype, wide)
    return None if narrow is None else narrow.view(np.uint8).data


def _narrow(datatype: str, wide: Array) -> Array | None:
    """The same numbers in the tensor's own datatype; None if one does not fit."""
    dtype = DTYPES[datatype]
    if dtype == wide.dtype:
        return wide
    with np.errstate(over="ignore"):
        narrow = wide.astype(dtype)
    # JSON has no infinities: one that is there now comes from a number too large. An integer that wrapped differs.
    fits = np.isfinite(narrow) if datatype in FLOATS else narrow == wide
    return narrow if fits.all() else None


def lists_of(data: simdjson.Array, shape: Sequence[int]) -> int:
    """How many lists the data of a tensor are made of: one if flat, else what the shape says."""
    total = level = 1
    if isinstance(_first(data), simdjson.Array):
        for size in shape[:-1]:
            level *= size
            total += level
    return total


def _first(data: simdjson.Array) -> Any:
    return data[0] if len(data) else None


def _nested_as(shape: Sequence[int], data: simdjson.Array) -> bool:
    """Whether every list but the elements themselves has the length its axis says."""
    level: list[Any] = [data]
    for axis, size in enumerate(shape):
        if any(not isinstance(item, simdjson.Array) or len(item) != size for item in level):
            return False
        if axis + 1 < len(shape):
            level = [element for item in level for element in item]
    return True


def json_from_raw(name: str, datatype: str, shape: Sequence[int], raw: Buffer) -> bytes:
    """The flat JSON array of an output; NaN and infinities become null, which is all that JSON has for them.

    RequestError if a BYTES output is no UTF-8: then only binary data can carry it.
    """
    if datatype == "BYTES":
        return json_from_strings(name, unpack_bytes(raw, math.prod(shape)))
    array = np.frombuffer(raw, DTYPES[datatype])
    if datatype == "BF16":
        array = array.astype(np.float32)
    return orjson.dumps(array, option=orjson.OPT_SERIALIZE_NUMPY)


def json_from_strings(name: str, elements: Iterable[bytes]) -> bytes:
    """The same for elements of a BYTES output."""
    try:
        return orjson.dumps([element.decode() for element in elements])
    except UnicodeDecodeError:
        raise RequestError(f"output '{name}' is not UTF-8 text; ask for it with binary_data") from None
