"""Arrays of numbers in JSON text: to numpy arrays, a piece at a time, without an object for each number or list."""

import math
import re
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
import numpy as np
import simdjson

from gateway.tensors import DTYPES, MAX_RANK, Array, Buffer

Shape = tuple[int, ...]
Kind = Literal["bool", "int", "uint", "float"]

PIECE = 256 << 10
"""Bytes of text that are parsed, or compared, at a time."""
_PIECES_AT_ONCE = 8
"""A text of no more than so many is parsed at once, which is faster."""
_NARROWED = 1 << 20
"""Numbers that are converted at a time."""
FLOATS = frozenset({"FP16", "BF16", "FP32", "FP64"})
_STRUCTURE = b"[],"
_NOT_STRUCTURE = bytes(set(range(256)) - set(_STRUCTURE))
_BRACKETS_TO_SPACES = bytes.maketrans(b"[]", b"  ")
_BOOLEANS = b"truefals[], \t\r\n"
_OPENING = re.compile(rb"[\[ \t\r\n]*")
_WIDE: tuple[tuple[Literal["i", "u"], str], ...] = (("i", "<i8"), ("u", "<u8"))


class Numbers(msgspec.Struct, eq=False):
    """A JSON array of numbers, or of booleans, whose nested lists all have the lengths that `shape` says."""

    values: Array
    """One dimension; the smallest signed integers that hold them all, UINT64 if only that does, FP64 if one has a
    fraction or an exponent; booleans."""
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
    booleans = b"t" in text or b"f" in text
    if booleans and text.translate(None, _BOOLEANS):
        return None
    values = _values(text, math.prod(shape), booleans=booleans)
    return None if values is None else Numbers(values, shape, text)


def stacked(datatype: str, rows: Sequence[Any]) -> tuple[Shape, Buffer] | None:
    """The tensor of rows that are Numbers of one shape, whatever fits the datatype; None where one is not."""
    parts: list[Buffer] = []
    for row in rows:
        raw = tensor_of(datatype, row, infinite=True) if isinstance(row, Numbers) else None
        if raw is None or row.shape != rows[0].shape:
            return None
        parts.append(raw)
    return (len(rows), *rows[0].shape), b"".join(parts)


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
        size, rest = divmod(end - start - 1, len(unit) + 1)
        if rest or not size or not _repeats(skeleton, start + 1, unit + b",", size):
            return None
        sizes.append(size)
        unit = skeleton[start:end] if level + 1 < rank else b""
    return tuple(reversed(sizes)) if end == len(skeleton) else None


def _repeats(text: bytes, start: int, unit: bytes, times: int) -> bool:
    """Whether a text goes on with so many times the unit, but for the last byte of the last one."""
    some = max(PIECE // len(unit), 1)
    block = unit * min(some, times)
    end = start + len(unit) * times - 1
    for at in range(start, end, len(block)):
        size = min(len(block), end - at)
        if text[at : at + size] != block[:size]:
            return False
    return True


def _commas(text: bytes) -> int:
    return int(np.count_nonzero(np.frombuffer(text, np.uint8) == ord(",")))


def _values(text: bytes, count: int, *, booleans: bool = False) -> Array | None:
    """So many numbers in nested lists, in their order; None where a place is empty or holds no number."""
    if not count or (b"," not in text and not text.strip(b"[] \t\r\n")):
        return None if count else np.empty(0, np.int8)
    if len(text) <= _PIECES_AT_ONCE * PIECE:  # simdjson leaves out the brackets in the middle
        whole = _piece(text, booleans=booleans)
        return None if whole is None or len(whole) != count else whole.astype(bool) if booleans else whole
    found: Array = np.empty(count, np.int8)
    done = at = 0
    while at <= len(text):
        end = text.find(b",", at + PIECE)
        end = len(text) if end < 0 else end
        piece = _piece(b"[" + text[at:end].translate(_BRACKETS_TO_SPACES) + b"]", booleans=booleans)
        at = end + 1
        if piece is None or not len(piece) or done + len(piece) > count:  # an empty place
            return None
        common = _common(found[:done], piece)
        if common != found.dtype:
            found = _widened(found, done, common)
        found[done : done + len(piece)] = piece
        done += len(piece)
    return found.view(bool) if booleans and done == count else found if done == count else None


def _piece(text: bytes, *, booleans: bool) -> Array | None:
    if booleans:
        text = text.replace(b"true", b"1").replace(b"false", b"0")
    try:
        array = simdjson.Parser().parse(text)
        assert isinstance(array, simdjson.Array)
        for code, dtype in () if b"." in text else _WIDE:  # where one has a fraction, all are floats
            try:
                return _smallest(np.frombuffer(array.as_buffer(of_type=code), dtype))
            except (TypeError, ValueError):
                continue
        return np.frombuffer(array.as_buffer(of_type="d"), np.float64)
    except (TypeError, ValueError, RuntimeError):
        return None


def _smallest(integers: Array) -> Array:
    if integers.dtype.kind == "u" or not len(integers):
        return integers
    low, high = int(integers.min()), int(integers.max())
    return integers.astype(np.promote_types(np.min_scalar_type(min(low, -1)), np.min_scalar_type(-high - 1)))


def _common(one: Array, two: Array) -> np.dtype[Any]:
    """The type that holds the numbers of both.

    Integers of different signs beyond INT64 are not of one type: as floats they are what a float input gets, and an
    integer input refuses them.
    """
    if not len(one):
        return two.dtype
    kinds = {one.dtype.kind, two.dtype.kind}
    if kinds == {"i", "u"}:
        signed = one if one.dtype.kind == "i" else two
        return np.dtype(np.float64 if int(signed.min()) < 0 else np.uint64)
    return np.dtype(np.float64) if "f" in kinds else np.promote_types(one.dtype, two.dtype)


def _widened(found: Array, done: int, dtype: np.dtype[Any]) -> Array:
    wider: Array = np.empty(len(found), dtype)
    wider[:done] = found[:done]
    return wider


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
        narrow = np.empty(len(values), dtype)
        fits = True
        for at in range(0, len(values), _NARROWED):
            some = slice(at, at + _NARROWED)
            with np.errstate(over="ignore"):
                narrow[some] = values[some].astype(np.float64, copy=False)
            fits = fits and (infinite or bool(np.isfinite(narrow[some]).all()))
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
        return len(numbers.values) == math.prod(shape)
    return numbers.shape == tuple(shape)
