"""Arrays of numbers in JSON text: to numpy arrays, a piece at a time, without an object for each number or list."""

import re
from collections.abc import Sequence
from typing import Literal

import msgspec
import numpy as np
import simdjson

from gateway.tensors import DTYPES, MAX_RANK, Array, Buffer

Shape = tuple[int, ...]
Kind = Literal["bool", "int", "uint", "float"]

PIECE = 256 << 10
"""Bytes of text that are parsed at a time."""
FLOATS = frozenset({"FP16", "BF16", "FP32", "FP64"})
_STRUCTURE = b"[],"
_NOT_STRUCTURE = bytes(set(range(256)) - set(_STRUCTURE))
_BRACKETS_TO_SPACES = bytes.maketrans(b"[]", b"  ")
_BOOLEANS = b"truefals[], \t\r\n"
_OPENING = re.compile(rb"[\[ \t\r\n]*")
_WIDE: tuple[tuple[Literal["i", "u", "d"], Kind, str], ...] = (("i", "int", "<i8"), ("u", "uint", "<u8"))


class Numbers(msgspec.Struct):
    """A JSON array of numbers, or of booleans, whose nested lists all have the lengths that `shape` says."""

    values: Array
    """One dimension; INT64, UINT64 if only that holds them, FP64 if one has a fraction or an exponent; booleans."""
    shape: Shape
    text: bytes
    """The JSON array itself."""

    @property
    def kind(self) -> Kind:
        """What the numbers are: int if all fit INT64, uint if only UINT64 holds all, float if one is no integer."""
        kinds: dict[str, Kind] = {"i": "int", "u": "uint", "b": "bool"}
        return kinds.get(self.values.dtype.kind, "float")


def read(text: bytes) -> Numbers | None:
    """The numbers of a JSON array.

    None where it holds anything but numbers, or anything but booleans; where lists differ in length, or an integer is
    beyond 64 bits. Then each value has to be looked at. The text must be valid JSON as far as brackets go.
    """
    if b'"' in text or b"{" in text:
        return None
    shape = shape_of(text)
    if shape is None:
        return None
    if b"t" in text or b"f" in text:
        if text.translate(None, _BOOLEANS):
            return None
        values = _values(text.replace(b"true", b"1").replace(b"false", b"0"), booleans=True)
    else:
        values = _values(text)
    if values is None or len(values) != _product(shape):
        return None
    return Numbers(values, shape, text)


def _product(shape: Shape) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def shape_of(text: bytes) -> Shape | None:
    """The shape of nested lists without strings and objects; None if lists differ in length or in depth.

    An empty innermost list of nested ones counts as one of length 1: only the number of values tells them apart.
    """
    opening = _OPENING.match(text)
    rank = opening[0].count(b"[") if opening else 0
    if not 0 < rank <= MAX_RANK:
        return None
    if rank == 1:
        if text.find(b"[", text.index(b"[") + 1) >= 0:
            return None
        inner = text.strip()[1:-1]
        return (0,) if not inner or inner.isspace() else (_commas(inner) + 1,)
    skeleton = text.translate(None, _NOT_STRUCTURE)
    sizes: list[int] = []
    unit = b""
    for level in range(rank):
        start = rank - 1 - level
        end = skeleton.find(b"]" * (level + 1), start) + level + 1
        if end <= level:
            return None
        inside = end - start - 2
        size, rest = divmod(inside + 1, len(unit) + 1)
        if rest or not size:
            return None
        expected = b"[" + (unit + b",") * (size - 1) + unit + b"]"
        if skeleton[start:end] != expected:
            return None
        sizes.append(size)
        unit = expected
    if len(skeleton) != len(unit):
        return None
    return tuple(reversed(sizes))


def _commas(text: bytes) -> int:
    return int(np.count_nonzero(np.frombuffer(text, np.uint8) == ord(",")))


def _values(text: bytes, *, booleans: bool = False) -> Array | None:
    """The numbers in nested lists, in their order; None where a place is empty or holds no number."""
    flat = text.translate(_BRACKETS_TO_SPACES)
    if flat.isspace() or not flat:
        return np.empty(0, bool if booleans else np.int64) if b"," not in flat else None
    parts: list[Array] = []
    at = 0
    while at <= len(flat):
        end = flat.find(b",", at + PIECE)
        end = len(flat) if end < 0 else end
        piece = _piece(b"[" + flat[at:end] + b"]")
        if piece is None or not len(piece):  # an empty place
            return None
        parts.append(piece.astype(bool) if booleans else piece)
        at = end + 1
    return _joined(parts)


def _piece(text: bytes) -> Array | None:
    try:
        array = simdjson.Parser().parse(text)
        assert isinstance(array, simdjson.Array)
        for code, _, dtype in _WIDE:
            try:
                return np.frombuffer(array.as_buffer(of_type=code), dtype)
            except (TypeError, ValueError):
                continue
        return np.frombuffer(array.as_buffer(of_type="d"), np.float64)
    except (TypeError, ValueError, RuntimeError):
        return None


def _joined(parts: list[Array]) -> Array:
    kinds = {part.dtype for part in parts}
    if len(kinds) == 1:
        return parts[0] if len(parts) == 1 else np.concatenate(parts)
    if np.dtype(np.float64) not in kinds and all(part.dtype.kind == "u" or int(part.min()) >= 0 for part in parts):
        return np.concatenate([part.astype(np.uint64) for part in parts])
    # Integers of different signs beyond INT64 are not of one type: as floats they are what a float input gets, and an
    # integer input refuses them.
    return np.concatenate([part.astype(np.float64) for part in parts])


def tensor_of(datatype: str, numbers: Numbers, *, infinite: bool) -> Buffer | None:
    """Raw bytes of the numbers in a tensor's own datatype; None where it cannot hold one of them.

    With `infinite` a float that is too large becomes infinite. Booleans fit BOOL only, and integers do not.
    """
    values = numbers.values
    dtype = DTYPES[datatype]
    if datatype == "BYTES" or (datatype == "BOOL") != (values.dtype.kind == "b"):
        return None
    if dtype == values.dtype:
        return values.view(np.uint8).data
    if datatype in FLOATS:
        with np.errstate(over="ignore"):
            narrow = values.astype(np.float64, copy=False).astype(dtype)
        fits = infinite or bool(np.isfinite(narrow).all())
    else:
        if values.dtype.kind == "f":
            return None
        narrow = values.astype(dtype)
        limits = np.iinfo(dtype)  # type: ignore[type-var] # an integer's, here
        fits = not len(values) or (int(values.min()) >= limits.min and int(values.max()) <= limits.max)
    return narrow.view(np.uint8).data if fits else None


def fits_shape(numbers: Numbers, shape: Sequence[int]) -> bool:
    """Whether the lists are nested as a tensor's shape says, or flat with as many numbers."""
    if len(numbers.shape) == 1:
        return len(numbers.values) == _product(tuple(shape))
    return numbers.shape == tuple(shape)
