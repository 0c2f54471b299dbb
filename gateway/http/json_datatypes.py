"""Which datatype a JSON value is sent as where the model's own is a guess, and whether floats hold its integers."""

import re
from collections.abc import Iterator
from itertools import chain
from typing import Any

import msgspec
import numpy as np

from gateway.errors import RequestError
from gateway.http.json_codec.numbers import FLOATS, Numbers
from gateway.http.tfserving_json import TYPE_NAMES
from gateway.tensors import DTYPES, TensorSpec

_EXACT_BITS = {"BF16": 8, "FP16": 11, "FP32": 24, "FP64": 53}
"""Whole numbers of so many bits a float holds exactly, whatever they are."""
_LONG_INTEGERS = {
    datatype: re.compile(rb"(?<=[\[,\s])-?\d{%d,}(?=[\],\s])" % len(str(1 << bits)))
    for datatype, bits in _EXACT_BITS.items()
}
"""In an array: integers of so many digits that the float may not hold them."""
_INTEGERS, _FLOATS, _LISTS = frozenset({int}), frozenset({float}), frozenset({list})
_KINDS = {"int": _INTEGERS, "uint": _INTEGERS, "float": _FLOATS, "bool": frozenset({bool})}


def datatype_of(spec: TensorSpec, value: Any) -> str:
    """The datatype to send the value of an input as: the model's own, unless that is a guess and the value is another.

    `value` may hold arrays of large bodies that are not converted yet.
    """
    if not spec.guessed:
        return spec.datatype
    kinds = _kinds(value)
    if kinds == _INTEGERS and spec.integers and spec.datatype in FLOATS:
        return "INT64"
    return "BOOL" if kinds == {bool} else spec.datatype


def datatype_of_unknown(value: Any) -> str:
    """The datatype to send a value as of whose input nothing is known."""
    kinds = _kinds(value)
    if kinds & {str, dict}:
        return "BYTES"
    return "INT64" if kinds == _INTEGERS else "BOOL" if kinds == {bool} else "FP32"


def check_exact(spec: TensorSpec, datatype: str, value: Any) -> None:
    """RequestError if an integer of the value would change in a datatype of floats."""
    if datatype not in _EXACT_BITS or _only_floats(value):
        return
    wrong = next((each for each in _long_integers(value, datatype) if not _holds(datatype, each)), None)
    if wrong is not None:
        shown = str(wrong) if abs(wrong) < 10**40 else "of that size"
        raise RequestError(
            f"Cannot convert JSON value: {shown} to {TYPE_NAMES[datatype]} without loss of precision; "
            f"input '{spec.name[:100]}' takes {datatype}"
        )


def _only_floats(value: Any) -> bool:
    """Whether nested lists hold floats and nothing else, as most do: found out without looking at them one by one."""
    level = value
    while type(level) is list:
        types = set(map(type, level))
        if types == _FLOATS:
            return True
        if types != _LISTS:
            return False
        level = list(chain.from_iterable(level))
    return type(level) is float


def _holds(datatype: str, integer: int) -> bool:
    try:
        with np.errstate(over="ignore"):
            made = float(np.float64(float(integer)).astype(DTYPES[datatype]))
    except OverflowError:
        return False
    return made == integer  # which Python compares exactly


def _levels(value: Any) -> Iterator[tuple[list[Any], set[type]]]:
    """The values in nested lists and their types, all that lie equally deep at a time."""
    level = [msgspec.json.decode(value) if isinstance(value, msgspec.Raw) else value]
    while level:
        types = set(map(type, level))
        if list not in types:
            yield level, types
            return
        if len(types) > 1:
            yield [each for each in level if type(each) is not list], types - {list}
        level = list(chain.from_iterable([each for each in level if type(each) is list]))


def _kinds(value: Any) -> frozenset[type]:
    """The types of all values in nested lists; of numbers that are not all integers, float."""
    found: set[type] = set()
    for level, types in _levels(value):
        found |= types
        if Numbers in types:
            found.discard(Numbers)
            for each in level:
                if type(each) is Numbers and len(each.values):
                    found |= _KINDS[each.kind]
    return frozenset(found)


def _long_integers(value: Any, datatype: str) -> Iterator[int]:
    """The integers in a value that a float of this datatype may not hold."""
    limit = 1 << _EXACT_BITS[datatype]
    for level, types in _levels(value):
        if int in types:
            integers = level if len(types) == 1 else [each for each in level if type(each) is int]
            if max(integers) > limit or min(integers) < -limit:
                yield from integers
        if Numbers in types:
            for each in level:
                if type(each) is Numbers:
                    yield from _long_numbers(each, datatype, limit)


def _long_numbers(numbers: Numbers, datatype: str, limit: int) -> Iterator[int]:
    values: Any = numbers.values
    if numbers.kind == "bool" or not len(values) or -limit <= values.min().item() <= values.max().item() <= limit:
        return
    if numbers.kind == "float":  # which of them are written as integers
        yield from map(int, _LONG_INTEGERS[datatype].findall(numbers.text))
        return
    long = values[(values > limit) | (values < -limit)]
    with np.errstate(over="ignore", invalid="ignore"):
        made = long.astype(np.float64).astype(DTYPES[datatype]).astype(np.float64)
        changed = (made.astype(long.dtype) != long) | (made > np.iinfo(np.int64).max)  # where a cast back is undefined
    yield from map(int, long[changed])
