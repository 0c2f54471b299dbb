"""One node of a TensorFlow graph with its inputs as symbolic values, and the table of rules."""

from collections.abc import Callable
from typing import Any

from gateway.instance.row_values import (
    Tensor,
    counting,
    dim_of,
    doubt_of,
    worst,
)


class Resource:
    """A variable or a table; `dims` are those of the variable."""

    def __init__(self, dims: Any) -> None:
        self.dims = dims
        self.doubt = None


class TensorList:
    """A list of tensors, of which each is like `each`; None where nothing was put in yet."""

    def __init__(self, each: Tensor | None) -> None:
        self.each = each


class Step:
    """A node with the values of its inputs."""

    __slots__ = ("count", "inputs", "node", "op")

    def __init__(self, node: Any, inputs: list[Any], count: int) -> None:
        self.node, self.inputs, self.count = node, inputs, count
        self.op: str = node.op

    def __getitem__(self, place: int) -> Tensor:
        value = self.inputs[place]
        return value if isinstance(value, Tensor) else Tensor(None, doubt_of(value))

    def content(self, place: int) -> Any:
        """The numbers of a small tensor: a number, a list, or None where they are not known."""
        return self[place].content if place < len(self.inputs) else None

    def flag(self, name: str) -> bool:
        """A boolean attribute."""
        return bool(self.node.attr[name].b)

    def number(self, name: str, default: int = 0) -> int:
        """A whole attribute; SavedModels leave out those that have their default."""
        return int(self.node.attr[name].i) if name in self.node.attr else default

    def numbers(self, name: str) -> list[int]:
        """An attribute that is a list of whole numbers."""
        return list(self.node.attr[name].list.i)


Rule = Callable[[Step], Any]
RULES: dict[str, Rule] = {}


def rule(names: str) -> Callable[[Rule], Rule]:
    """Say what the operators of these names do to rows."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names.split(), function))
        return function

    return register


def of_numbers(op: str, numbers: Any) -> Tensor:
    """A tensor that holds these numbers: one, or a list of them."""
    if isinstance(numbers, list):
        return Tensor((dim_of(len(numbers)),), worst(*(counting(op, one) for one in numbers)), content=numbers)
    return Tensor((), counting(op, numbers), content=numbers)
