"""What writes, branches and doubtful arguments do to symbolic values of a TorchScript graph."""

from collections.abc import Sequence
from typing import Any

from gateway.instance.row_values import (
    ROWS,
    Doubt,
    Number,
    Tensor,
    doubt_of,
    worst,
)
from gateway.instance.torch_row_calls import (
    MISSING,
    Items,
    deep_doubt,
    join,
)

READ_SHAPES = frozenset(
    f"aten::{name}"
    for name in """
        size numel dim zeros_like ones_like empty_like full_like new_zeros new_ones new_empty new_full
        view_as reshape_as expand_as type_as view reshape index index_select embedding_bag
    """.split()  # noqa: SIM905 - a list of words would fill a page
)
"""Operators that may look at no more than the shape of an argument, or whose rules know better."""


def doubted_where_lost(result: Any, args: list[Any]) -> Any:
    """A result of doubtful arguments is doubtful, whatever its rule says."""
    lost = None
    for value in args:
        if isinstance(value, Tensor):
            lost = worst(lost, value.doubt if value.content is None and not value.position else None)
        elif isinstance(value, Number):
            lost = worst(lost, value.doubt)
    return result if lost is None or deep_doubt(result) is not None else doubted(result, lost)


def either(values: Sequence[Any]) -> Any:
    """A value that may be any of these."""
    found = values[0]
    for value in values[1:]:
        found = join(found, value)
    return found


def made_tensors(result: Any) -> Any:
    """The tensors of a result, to be changed in place."""
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, Items):
        for item in (*(result.items or ()), result.each):
            yield from made_tensors(item)
    elif isinstance(result, tuple):
        for item in result:
            yield from made_tensors(item)


def places_of_rows(tensor: Tensor) -> list[tuple[int, Any]] | None:
    """Where the rows are, counted from the last axis."""
    if tensor.dims is None:
        return None
    rank = len(tensor.dims)
    return [(axis - rank, dim) for axis, dim in enumerate(tensor.dims) if ROWS in dim]


def spoil(value: Any, doubt: Doubt | None) -> None:
    """Note the doubt for all that a value holds."""
    for leaf in made_tensors(value):
        leaf.store.write(doubt)
    if isinstance(value, Items):
        value.widen()
        value.each = Number(doubt)


def doubted(value: Any, doubt: Doubt | None) -> Any:
    """The value with a further doubt on all that it holds."""
    if doubt is None:
        return value
    if isinstance(value, Tensor):
        return value.doubted(doubt)
    if isinstance(value, tuple):
        return tuple(doubted(item, doubt) for item in value)
    if isinstance(value, Items):
        each = MISSING if value.each is MISSING else doubted(value.each, doubt)
        items = None if value.items is None else [doubted(item, doubt) for item in value.items]
        return Items(items, each, value.level)
    if isinstance(value, dict):
        return {key: doubted(item, doubt) for key, item in value.items()}
    return value if value is MISSING or value is None else Number(worst(doubt_of(value), doubt))


SINGLE_VALUES = (
    "aten::Int",
    "aten::Float",
    "aten::Bool",
    "aten::item",
    "aten::ScalarImplicit",
    "aten::IntImplicit",
    "aten::FloatImplicit",
    "aten::is_nonzero",
    "aten::equal",
    "aten::allclose",
    "aten::str",
    "aten::format",
)
"""Operators that make a number of a tensor."""


TYPE_QUESTIONS = (
    "prim::dtype",
    "prim::device",
    "prim::layout",
    "prim::is_cuda",
    "prim::is_cpu",
    "prim::is_mps",
    "prim::requires_grad",
    "prim::is_quantized",
    "prim::is_sparse",
    "prim::type",
    "prim::itemsize",
    "aten::is_floating_point",
    "aten::is_complex",
    "aten::is_grad_enabled",
    "aten::is_contiguous",
    "aten::is_autocast_enabled",
    "aten::is_autocast_cpu_enabled",
    "aten::get_device",
    "prim::CreateObject",
)
"""Operators that ask for no more than the kind of a tensor or the state of the program."""
