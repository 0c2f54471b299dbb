"""tf.Example messages from JSON, as TensorFlow Serving's classify and regress calls take them.

Source: tensorflow/core/example/example.proto and feature.proto; the conversion is json_tensor.cc's.
"""

import struct
from collections.abc import Mapping
from typing import Any

from gateway.errors import RequestError
from gateway.http.tfserving_json import bytes_of, is_base64, shown

BYTES, FLOATS, INTS = 1, 2, 3
"""Kinds of a feature, by their field numbers."""
_KINDS = {BYTES: "bytes", FLOATS: "float", INTS: "int64"}
_LENGTH_DELIMITED = 2


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1  # negative numbers as two's complement
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def _field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | _LENGTH_DELIMITED]) + _varint(len(content)) + content


def _kind(name: str, value: Any) -> int:
    if isinstance(value, str) or is_base64(value):
        return BYTES
    if isinstance(value, bool | int):
        return INTS
    if isinstance(value, float):
        return FLOATS
    kind = "Null" if value is None else "Array" if isinstance(value, list) else "Object"
    raise RequestError(f"Feature: {name[:100]} has element with unexpected JSON type: {kind}")


def feature(name: str, value: Any) -> bytes:
    """A Feature of one value or a list of them; RequestError if they are of several types, or of none there is."""
    values = value if isinstance(value, list) else [value]
    if not values:
        return b""
    kind = _kind(name, values[0])
    for each in values:
        if _kind(name, each) != kind:
            raise RequestError(f"Unexpected element type in feature: {name[:100]} expecting type: {_KINDS[kind]}")
    if kind == BYTES:
        return _field(BYTES, b"".join(_field(1, bytes_of(each)) for each in values))
    if kind == FLOATS:
        try:
            return _field(FLOATS, _field(1, struct.pack(f"<{len(values)}f", *values)))
        except OverflowError:
            raise RequestError(f"Feature: {name[:100]} has a value that is too large for float") from None
    for each in values:
        if not -(1 << 63) <= each < 1 << 63:
            raise RequestError(f"Feature: {name[:100]} has uint64 element. Only int64 is supported.")
    return _field(INTS, _field(1, b"".join(map(_varint, values))))


def features(value: Any) -> dict[str, bytes]:
    """The features of a JSON object, each as a serialized Feature."""
    if not isinstance(value, dict):
        raise RequestError(f"Example must be JSON object but got JSON {shown(value)}")
    return {name: feature(name, each) for name, each in value.items()}


def example(found: Mapping[str, bytes]) -> bytes:
    """A serialized Example of these features."""
    entries = (_field(1, _field(1, name.encode("utf-8", "replace")) + _field(2, raw)) for name, raw in found.items())
    return _field(1, b"".join(entries))
