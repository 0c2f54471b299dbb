"""One operator of a TorchScript graph with its arguments by name, as symbolic values, and the table of rules."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch

from gateway.instance.row_values import (
    Doubt,
    Number,
    Size,
    Symbol,
    Tensor,
    dim_of,
    doubt_of,
    join_tensors,
    unclear,
    worst,
)

MISSING = object()
_MOST_CONTENT = 16  # entries; shapes and their parts are shorter


class Items:
    """A list. `items` is None where its length is not known; then `each` stands for every element."""

    __slots__ = ("each", "items", "level")

    def __init__(self, items: list[Any] | None, each: Any = MISSING, level: int = 0) -> None:
        self.items = items
        self.each = each
        self.level = level

    def widen(self) -> None:
        """Forget the length."""
        for item in self.items or ():
            self.each = join(self.each, item)
        self.items = None

    def element(self, index: Any) -> Any:
        """The element at an index, or what may be there."""
        if self.items is not None and isinstance(index, int) and -len(self.items) <= index < len(self.items):
            return self.items[index]
        found = self.each
        for item in self.items or ():
            found = join(found, item)
        return Number(unclear("the model takes an element of an empty list")) if found is MISSING else found

    def append(self, item: Any, level: int) -> None:
        """Add an element; inside a branch or a loop that did not make the list, how often is not known."""
        if level > self.level and self.items is not None:
            self.widen()
        if self.items is None:
            self.each = join(self.each, item)
        else:
            self.items.append(item)


def join(left: Any, right: Any) -> Any:
    """A value that may be either."""
    if left is right or right is MISSING:
        return left
    if left is MISSING:
        return right
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return join_tensors(left.current(), right.current())
    if isinstance(left, tuple) and isinstance(right, tuple) and len(left) == len(right):
        return tuple(map(join, left, right))
    if isinstance(left, Items) and isinstance(right, Items):
        return _join_items(left, right)
    if type(left) is type(right) and same(left, right):
        return left
    if not isinstance(left, Tensor | tuple | Items | dict) and not isinstance(right, Tensor | tuple | Items | dict):
        return _join_numbers(left, right)
    return Tensor(None, worst(doubt_of(left), doubt_of(right)) or unclear("has branches of different kinds"))


def _join_items(left: Items, right: Items) -> Items:
    if left.items is not None and right.items is not None and len(left.items) == len(right.items):
        return Items([join(mine, other) for mine, other in zip(left.items, right.items, strict=True)], level=left.level)
    left.widen()
    right.widen()
    left.each = right.each = join(left.each, right.each)
    return left


def _join_numbers(left: Any, right: Any) -> Any:
    doubt = worst(doubt_of(left), doubt_of(right))
    if any(isinstance(value, Size) and value.counts_rows for value in (left, right)):
        doubt = worst(doubt, unclear("computes with the number of rows"))
    for value in (left, right):
        if isinstance(value, Size) and value.factor == 1 and len(value.symbols) == 1 and value.symbols[0].wide:
            return value if doubt is None else Number(doubt)
    whole = all(isinstance(value, int | Size) and not isinstance(value, bool) for value in (left, right))
    return Size(1, (Symbol(wide=True),)) if whole and doubt is None else Number(doubt)


def same(left: Any, right: Any) -> bool:
    """Whether two values cannot be told apart."""
    if left is right:
        return True
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return left.current().like(right.current())
    if isinstance(left, Items) and isinstance(right, Items):
        return same(left.items, right.items) and same(left.each, right.each)
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return type(left) is type(right) and not isinstance(left, Tensor | Items) and bool(left == right)


def from_constant(value: Any) -> Any:
    """The symbolic value of a constant of the graph or of an attribute."""
    if isinstance(value, torch.Tensor):
        content = None
        if value.ndim < 2 and value.numel() <= _MOST_CONTENT and not value.is_floating_point() and not value.is_meta:
            content = value.tolist() if value.dtype in _WHOLE else None
        return Tensor(tuple(dim_of(size) for size in value.shape), content=content, boolean=value.dtype == torch.bool)
    if isinstance(value, list):
        return Items([from_constant(item) for item in value])
    if isinstance(value, tuple):
        return tuple(from_constant(item) for item in value)
    if isinstance(value, dict):
        return {key: from_constant(item) for key, item in value.items()}
    return value if value is None or isinstance(value, int | float | str | Size) else Number()


_WHOLE = (torch.int64, torch.int32)


@functools.lru_cache(maxsize=4096)
def parsed(schema: str) -> tuple[dict[str, int], tuple[int, ...], tuple[int, ...] | None]:
    """The places of an operator's arguments by name, those it writes, and those its results may be views of."""
    if schema == "(no schema)":
        return {}, (), ()
    read = torch._C.parse_schema(schema)  # noqa: SLF001 - the only reader of schemas there is
    places = {argument.name: index for index, argument in enumerate(read.arguments)}
    writes = tuple(index for index, argument in enumerate(read.arguments) if argument.is_write)
    views = tuple(index for index, argument in enumerate(read.arguments) if argument.alias_info)
    return places, writes, views if any(result.alias_info for result in read.returns) else ()


class Call:
    """One operator with the symbolic values of its arguments."""

    __slots__ = ("args", "kind", "level", "op", "outputs", "places")

    def __init__(self, op: str, args: list[Any], places: dict[str, int], outputs: int, level: int) -> None:
        self.op = op
        self.kind = op.partition("::")[2]
        self.args = args
        self.places = places
        self.outputs = outputs
        self.level = level

    def __contains__(self, name: str) -> bool:
        return name in self.places

    def __getitem__(self, name: str) -> Any:
        """The argument of this name, None where the operator has none."""
        place = self.places.get(name)
        return None if place is None or place >= len(self.args) else self.args[place]

    def tensor(self, name: str) -> Tensor:
        """A tensor argument."""
        value = self[name]
        return value if isinstance(value, Tensor) else Tensor((), doubt_of(value))

    def numbers(self, name: str) -> list[Any] | None:
        """A list of numbers (one number stands for a list of it); None where its length is not known."""
        value = self[name]
        if isinstance(value, Items):
            return None if value.items is None else list(value.items)
        return [value] if isinstance(value, int | Size | Number) else None

    def tensors(self, name: str) -> list[Tensor] | None:
        """A list of tensors; one that stands for all where the length is not known."""
        value = self[name]
        if isinstance(value, Items):
            found = value.items if value.items is not None else [value.each]
            if all(isinstance(item, Tensor) for item in found):
                return [item.current() for item in found]
        return None

    def doubts(self) -> Doubt | None:
        """The worst doubt of all arguments."""
        return worst(*map(deep_doubt, self.args))


def leaves(value: Any) -> Iterator[Any]:
    """The tensors and numbers in a value."""
    if isinstance(value, Items):
        for item in value.items or ():
            yield from leaves(item)
        if value.each is not MISSING:
            yield from leaves(value.each)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from leaves(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from leaves(item)
    else:
        yield value.current() if isinstance(value, Tensor) else value


def deep_doubt(value: Any) -> Doubt | None:
    """The worst doubt of a value and of all that it holds."""
    return worst(*(counted(leaf) for leaf in leaves(value)))


def counted(leaf: Any) -> Doubt | None:
    """The doubt of a number or a tensor where the number of rows is one."""
    return _COUNTED if isinstance(leaf, Size) and leaf.counts_rows else doubt_of(leaf)


_COUNTED = unclear("the model computes with the number of rows")


def depends(value: Any) -> bool:
    """Whether a value depends on the batch in any way."""
    return any(
        leaf.varies
        if isinstance(leaf, Tensor)
        else bool(doubt_of(leaf)) or (isinstance(leaf, Size) and leaf.counts_rows)
        for leaf in leaves(value)
    )


Rule = Callable[[Call], Any]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Say what the operators of these names (in the namespace aten, where none is given) do to rows."""

    def register(function: Rule) -> Rule:
        for name in names:
            RULES[name if "::" in name else f"aten::{name}"] = function
        return function

    return register
