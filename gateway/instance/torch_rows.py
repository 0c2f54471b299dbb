"""Follows the rows of a batch through a TorchScript graph: does an operator compute with several of them?"""

from collections.abc import Mapping, Sequence
from typing import Any

from gateway.instance import (
    torch_row_indexing,  # noqa: F401 - registers its rules, as the next ones do
    torch_row_layers,  # noqa: F401
    torch_row_made,  # noqa: F401
    torch_row_sequences,  # noqa: F401
    torch_row_shapes,  # noqa: F401
)
from gateway.instance.row_separation import SEPARATE, RowSeparation
from gateway.instance.row_values import (
    ROWS,
    Number,
    Tensor,
    fresh,
    one_entry_a_row,
    rows_axis,
    unclear,
    worst,
)
from gateway.instance.torch_row_calls import (
    Items,
    deep_doubt,
    from_constant,
    leaves,
)
from gateway.instance.torch_row_reader import Reader
from gateway.instance.torch_types import Argument
from gateway.tensors import Array


def row_separation(
    graph: Any, arguments: Sequence[Argument], example: Mapping[str, Array] | None, module: Any = None
) -> RowSeparation:
    """Whether the graph of forward keeps rows apart for requests like the example (same inputs, datatypes and ranks).

    `graph` is best frozen and must be inlined; `module` has the attributes of one that could not be frozen. Never
    raises: what cannot be followed is `unknown`.
    """
    if example is None:
        return RowSeparation("unknown", "no example request is known, so the inputs' axes are not either")
    if any(not array.ndim for array in example.values()):
        return RowSeparation("unknown", "an input has no batch dimension")
    try:
        reader = Reader(module)
        values = [_argument(argument, example) for argument in arguments]
        return verdict(reader.read(graph, values))
    except Exception as error:  # noqa: BLE001 - a graph may hold anything, and this must not fail a load
        return RowSeparation("unknown", f"the graph cannot be followed ({type(error).__name__})")


def _argument(argument: Argument, example: Mapping[str, Array]) -> Any:
    if argument.kind == "tensor":
        return _rows_of(example[argument.name]) if argument.name in example else None
    if argument.kind == "entries":
        return {name: _rows_of(array) for name, array in example.items()}
    if argument.kind in ("tuple", "tensors"):
        names = argument.elements or tuple(name for name in example if name.startswith(f"{argument.name}_"))
        found = [_rows_of(example[name]) for name in names if name in example]
        return tuple(found) if argument.kind == "tuple" else Items(list(found))
    if argument.name in example:
        return Number(unclear(f"input '{argument.name}' is no tensor"))
    return from_constant(argument.default)


def _rows_of(array: Array) -> Tensor:
    return Tensor(((ROWS,), *fresh(array.ndim - 1)), boolean=array.dtype.kind == "b")


def verdict(outputs: Any) -> RowSeparation:
    """What the values of all outputs together say."""
    doubt = None
    for leaf in leaves(outputs):
        found = deep_doubt(leaf)
        if found is None and not isinstance(leaf, Tensor):
            found = unclear("an output is no tensor")
        elif found is None and rows_axis(leaf.dims) != 0:
            found = unclear("an output does not have the rows of the batch on its first axis")
        elif found is None and not one_entry_a_row(leaf.dims[0]):
            found = unclear("an output has several entries for each row")
        doubt = worst(doubt, found)
    if doubt is None:
        return SEPARATE
    return RowSeparation("mixed" if doubt.mixed else "unknown", doubt.reason)
