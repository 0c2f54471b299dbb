"""Which tensor of one model stands for which of the other. Pure functions."""

from collections.abc import Sequence
from typing import Literal

import msgspec

from gateway.errors import RequestError
from gateway.tensors import TensorSpec

_FLOATS = frozenset({"FP16", "BF16", "FP32", "FP64"})
_LAYOUTS_FROM = 3
"""Dimensions from which frameworks disagree about where the channels stand."""


class Pair(msgspec.Struct, frozen=True):
    """One tensor of each model that mean the same."""

    a: str
    b: str
    by: Literal["name", "order"]
    axes: list[int] = []
    """How to transpose a's to have b's, where one has the channels first and the other last; empty: not at all."""
    unsure: bool = False
    """Whether other axes would fit as well, for the sizes that are known do not tell."""


def kind(datatype: str) -> str:
    """What a datatype's values are, whatever their size: float, integer, BOOL or BYTES."""
    if datatype in _FLOATS:
        return "float"
    return "integer" if "INT" in datatype else datatype


def paired(what: str, names: tuple[str, str], a: Sequence[TensorSpec], b: Sequence[TensorSpec]) -> list[Pair]:
    """A pair for each of a's tensors, in their order: those with equal names, and the others as they come.

    `what` is input or output, `names` are those of the models. RequestError says which tensors do not go together.
    """
    if len(a) != len(b):
        listed = " and ".join(
            f"{name} has {', '.join(map(described, specs)) or 'none'}"
            for name, specs in zip(names, (a, b), strict=True)
        )
        raise RequestError(f"the models cannot be compared: their {what}s differ in number: {listed}")
    theirs = {spec.name: spec for spec in b}
    ours = {spec.name for spec in a}
    rest = iter([spec for spec in b if spec.name not in ours])
    return [
        _pair(what, names, spec, theirs[spec.name], "name")
        if spec.name in theirs
        else _pair(what, names, spec, next(rest), "order")
        for spec in a
    ]


def _pair(what: str, names: tuple[str, str], a: TensorSpec, b: TensorSpec, by: Literal["name", "order"]) -> Pair:
    orders = layouts(a.shape, b.shape) if kind(a.datatype) == kind(b.datatype) else []
    if not orders:
        raise RequestError(
            f"the models cannot be compared: {what} {described(a)} of {names[0]} and {described(b)} of {names[1]} "
            "do not go together"
        )
    return Pair(a.name, b.name, by, orders[0], unsure=len(orders) > 1)


def described(spec: TensorSpec) -> str:
    """'x' FP32 [-1, 64], say."""
    return f"'{spec.name}' {spec.datatype} {'of any shape' if spec.shape is None else list(spec.shape)}"


def layouts(a: Sequence[int] | None, b: Sequence[int] | None) -> list[list[int]]:
    """The axes by which a tensor of one shape becomes one of the other, [] being those it has; nothing if none do.

    Several only where most of the known sizes, and as many with each, meet their equals: as it stands comes first then.
    """
    if a is None or b is None or tuple(a) == tuple(b):
        return [[]]
    if len(a) != len(b):
        return []
    orders: list[list[int]] = [[]]
    if len(a) >= _LAYOUTS_FROM:
        last = len(a) - 1
        to_last, to_first = [0, *range(2, last + 1), 1], [0, last, *range(1, last)]
        orders += [to_last] if to_last == to_first else [to_last, to_first]
    fitting = [(axes, turned) for axes in orders if _fits(turned := [a[axis] for axis in axes] if axes else a, b)]
    most = max((_equals(turned, b) for _, turned in fitting), default=0)
    return [axes for axes, turned in fitting if _equals(turned, b) == most]


def _fits(a: Sequence[int], b: Sequence[int]) -> bool:
    return len(a) == len(b) and all(x == y or x < 0 or y < 0 for x, y in zip(a, b, strict=True))


def _equals(a: Sequence[int], b: Sequence[int]) -> int:
    """In how many places both shapes say the same size."""
    return sum(x == y >= 0 for x, y in zip(a, b, strict=True))


def rows_at_once(shapes: Sequence[Sequence[int] | None]) -> int | None:
    """How many rows a request of inputs of these shapes, of both models, has; None if that is open.

    RequestError if they have no rows.
    """
    leading = {None if shape is None else shape[0] if shape else 0 for shape in shapes}
    fixed = {size for size in leading if size is not None and size >= 0}
    if len(fixed) > 1 or 0 in fixed:
        raise RequestError("the models cannot be compared: their inputs have no rows, a first dimension of all of them")
    return fixed.pop() if fixed else None
