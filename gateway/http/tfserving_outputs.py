"""Tensors to the JSON of TensorFlow Serving's REST API, nested as their shapes say.

Source: tensorflow_serving/util/json_tensor.cc.
"""

import base64
import math
from collections.abc import Iterator

import numpy as np
import orjson

from gateway.errors import RequestError
from gateway.tensors import Array, Buffer, array_from_raw

PIECE = 16 << 10
"""Numbers that are written at a time: about a millisecond."""


def array_of(name: str, datatype: str, shape: tuple[int, ...], raw: Buffer) -> Array:
    """An output as an array that `pieces` writes; strings are text, or {"b64": …} where the name ends in _bytes."""
    array = array_from_raw(datatype, shape, raw)
    if datatype == "BF16":
        return array.astype(np.float32)
    if datatype != "BYTES":
        return array
    flat = np.empty(array.size, dtype=object)
    if name.endswith("_bytes"):
        flat[:] = [{"b64": base64.b64encode(item).decode()} for item in array.ravel().tolist()]
        return flat.reshape(shape)
    try:
        flat[:] = [item.decode() for item in array.ravel().tolist()]
    except UnicodeDecodeError:
        raise RequestError(
            f"output '{name}' is no UTF-8 text; bytes are sent as base64 only of outputs whose names end in _bytes"
        ) from None
    return flat.reshape(shape)


def text_of(array: Array) -> bytes:
    """A small array as nested JSON, a single value if it has no dimension; NaN and infinities as bare tokens."""
    if array.dtype == object or not array.size:
        return orjson.dumps(array.tolist())
    text = orjson.dumps(np.ascontiguousarray(array).reshape(array.shape or 1), option=orjson.OPT_SERIALIZE_NUMPY)
    if b"null" in text:
        odd = array[~np.isfinite(array)].tolist() if array.ndim else [array.item()]
        parts = text.split(b"null")
        tokens = [b"NaN" if math.isnan(each) else b"Infinity" if each > 0 else b"-Infinity" for each in odd]
        text = parts[0] + b"".join(token + part for token, part in zip(tokens, parts[1:], strict=True))
    return text if array.ndim else text[1:-1]


def pieces(array: Array) -> Iterator[bytes]:
    """The nested JSON of an array, so much at a time as takes about a millisecond."""
    if array.size <= PIECE or not array.ndim:
        yield text_of(array)
        return
    each = array.size // len(array)
    yield b"["
    step = max(1, PIECE // each)
    for at in range(0, len(array), step):
        if at:
            yield b","
        if each > PIECE:
            yield from pieces(array[at])
        else:
            yield text_of(array[at : at + step])[1:-1]
    yield b"]"
