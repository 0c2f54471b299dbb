"""Arithmetic with sizes: what a graph computes from shapes before it reshapes, slices or counts."""

import functools
import operator
from collections.abc import Callable
from typing import Any

from gateway.instance.row_values import Number, Size, Symbol, doubt_of, product, quotient, unclear, worst

_PLAIN: dict[str, Callable[[Any, Any], Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "rsub": lambda left, right: right - left,
    "mul": operator.mul,
    "div": operator.truediv,
    "floordiv": operator.floordiv,
    "floor_divide": operator.floordiv,
    "remainder": operator.mod,
    "max": max,
    "min": min,
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "__and__": lambda left, right: left and right,
    "__or__": lambda left, right: left or right,
}
COMPARISONS = frozenset({"eq", "ne", "lt", "le", "gt", "ge"})
ARITHMETIC = frozenset(_PLAIN)
_COUNTED = unclear("the model computes with the number of rows")


@functools.lru_cache(maxsize=4096)
def _unknown_size(name: str, left: Any, right: Any) -> Size:  # noqa: ARG001 - the key: equal sums are equal sizes
    return Size(1, (Symbol(),))


def arithmetic(name: str, left: Any, right: Any, *, whole: bool = True) -> Any:
    """The result of an operation on two numbers as far as it is known; `whole` where it is an integer."""
    known = isinstance(left, int | float | str) and isinstance(right, int | float | str)
    if known and name in _PLAIN:
        try:
            return _PLAIN[name](left, right)
        except (ArithmeticError, TypeError, ValueError):
            return Number()
    doubt = worst(doubt_of(left), doubt_of(right))
    sizes = all(isinstance(value, int | Size) and not isinstance(value, bool) for value in (left, right))
    if not sizes:
        counted = any(isinstance(value, Size) and value.counts_rows for value in (left, right))
        return Number(worst(doubt, _COUNTED if counted else None))
    return _of_sizes(name, left, right, whole=whole)


def _of_sizes(name: str, left: Any, right: Any, *, whole: bool) -> Any:
    if name == "mul":
        return product((left, right))
    if name in ("add", "sub") and right == 0:
        return left
    if name == "add" and left == 0:
        return right
    if name in ("div", "floordiv", "floor_divide"):
        found = quotient(left, right)
        if found is not None:
            return found
    if left == right and (name in COMPARISONS or name in ("max", "min")):
        return left if name in ("max", "min") else name in ("eq", "le", "ge")
    if any(isinstance(value, Size) and value.counts_rows for value in (left, right)):
        return Number(_COUNTED)
    if name in COMPARISONS or not whole:
        return Number()
    return _unknown_size(name, left, right)
