"""Where the rows of a batch are after a reshape, an expansion or a repetition."""

from collections.abc import Sequence
from typing import Any

from gateway.instance.row_rules import made, unsure
from gateway.instance.row_values import (
    ROWS,
    Dim,
    Dims,
    Factor,
    Number,
    Size,
    Symbol,
    Tensor,
    dim_of,
    doubt_of,
    fresh,
    product,
    quotient,
    unclear,
    worst,
)


def regrouped(op: str, tensor: Tensor, sizes: Any) -> Tensor:
    """A reshape: the entries in the same order under axes of other sizes; -1 is the one that is left."""
    doubt = tensor.doubt
    if isinstance(sizes, list | tuple):
        sizes = _with_one_left(sizes)
        doubt = worst(doubt, *map(doubt_of, sizes))
    if tensor.constant and doubt is None:
        if not isinstance(sizes, list | tuple):
            return Tensor(None)
        if not any(isinstance(size, Size) and size.counts_rows for size in sizes):
            found = None if tensor.dims is None else regroup(tensor.dims, sizes)
            return Tensor(found or tuple(map(_inner, sizes)))
    if tensor.dims is None or not isinstance(sizes, list | tuple):
        return unsure(op, tensor).doubted(doubt)
    dims = regroup(tensor.dims, sizes)
    if dims is None:
        reason = unclear(f"{op} regroups the axes in a way that cannot be followed")
        return Tensor(tuple(map(dim_of, sizes)) if -1 not in sizes else fresh(len(sizes)), worst(doubt, reason))
    return made(op, dims, doubt)


def _with_one_left(sizes: Sequence[Any]) -> list[Any]:
    """The sizes, with -1 also for a single one that is not known: the number of entries tells it."""
    found = [-1 if isinstance(size, int) and size < 0 else size for size in sizes]
    open_ones = [
        place for place, size in enumerate(found) if isinstance(size, Number) and not (size.doubt and size.doubt.mixed)
    ]
    if len(open_ones) == 1 and -1 not in found:
        found[open_ones[0]] = -1
    return found


def regroup(dims: Dims, sizes: Sequence[Any]) -> Dims | None:
    """The axes after a reshape, with the rows at their place; None where that cannot be told."""
    factors = [factor for dim in dims for factor in dim]
    wanted = list(sizes)
    if -1 in wanted:
        place = wanted.index(-1)
        known = product(size for index, size in enumerate(wanted) if index != place)
        found = quotient(product(factors), known)
        if found is not None:
            wanted[place] = found
    result: list[Dim] = []
    for place, size in enumerate(wanted):
        taken = _take(factors, size)
        if taken is None:
            return _rest(result, factors, wanted[place:])
        result.append(taken[0])
        factors = taken[1]
    return tuple(result) if product(factors) == 1 else None


def _take(factors: list[Factor], size: Any) -> tuple[Dim, list[Factor]] | None:
    """The leading factors that make up a size, and the others."""
    if isinstance(size, bool) or not isinstance(size, int | Size):
        return None
    number, symbols = (size, []) if isinstance(size, int) else (size.factor, list(size.symbols))
    taken: list[Factor] = []
    rest = list(factors)
    while number != 1 or symbols:
        if not rest or number < 1:
            return None
        factor = rest.pop(0)
        if isinstance(factor, Symbol):
            if factor not in symbols:
                return None
            symbols.remove(factor)
        elif factor and number % factor == 0:
            number //= factor
        elif not symbols and factor % number == 0:
            rest.insert(0, factor // number)
            factor, number = number, 1
        else:
            return None
        taken.append(factor)
    return tuple(taken), rest


def _rest(done: list[Dim], factors: list[Factor], sizes: Sequence[Any]) -> Dims | None:
    """The axes where rows come next or were taken: everything behind them belongs to one row, in whatever groups.

    As each request alone is accepted, its entries fill a whole number of the groups behind the axis of rows.
    """
    if ROWS not in factors:
        return (*done, *map(_inner, sizes)) if all(map(_of_one_row, sizes)) else None
    if factors[0] is not ROWS or ROWS in factors[1:]:
        return None
    first, others = sizes[0], list(sizes[1:])
    if not all(map(_of_one_row, others)):
        return None
    exact = isinstance(first, Size) and first.symbols.count(ROWS) == 1
    if not exact and (first != -1 or -1 in others):
        return None
    head: Dim = dim_of(first) if exact else (ROWS, Symbol(left=True))
    return (*done, head, *map(_inner, others))


def _of_one_row(size: Any) -> bool:
    return isinstance(size, int | Size) and not (isinstance(size, Size) and size.counts_rows)


def _inner(size: Any) -> Dim:
    return (Symbol(),) if size == -1 else dim_of(size)


def expanded(op: str, tensor: Tensor, sizes: Any) -> Tensor:
    """Axes of one entry repeated up to a size; -1 keeps an axis."""
    if tensor.dims is None or not isinstance(sizes, list | tuple) or len(sizes) < len(tensor.dims):
        return unsure(op, tensor, *(sizes if isinstance(sizes, list | tuple) else ()))
    dims = ((),) * (len(sizes) - len(tensor.dims)) + tensor.dims
    doubt = worst(tensor.doubt, *map(doubt_of, sizes))
    result: list[Dim] = []
    for dim, size in zip(dims, sizes, strict=True):
        if (isinstance(size, int) and size < 0) or (isinstance(size, int | Size) and product(dim) == size):
            result.append(dim)
        elif ROWS in dim:
            doubt = worst(doubt, unclear(f"{op} repeats the rows of the batch"))
            result.append(dim)
        else:
            new = dim_of(size)
            if dim != () and ROWS in new:
                doubt = worst(doubt, unclear(f"{op} lines up the rows of the batch with another axis"))
            result.append(new)
    return made(op, tuple(result), doubt, boolean=tensor.boolean)


def tiled(op: str, tensor: Tensor, repeats: Any) -> Tensor:
    """The whole tensor repeated along its axes."""
    if tensor.dims is None or not isinstance(repeats, list | tuple) or len(repeats) < len(tensor.dims):
        return unsure(op, tensor, *(repeats if isinstance(repeats, list | tuple) else ()))
    dims = ((),) * (len(repeats) - len(tensor.dims)) + tensor.dims
    doubt = worst(tensor.doubt, *map(doubt_of, repeats))
    result = tuple((*dim_of(count), *dim) for dim, count in zip(dims, repeats, strict=True))
    return made(op, result, doubt, boolean=tensor.boolean)
