"""What operators of every framework do to the axis of rows: broadcasting, reducing, multiplying, regrouping."""

from collections.abc import Iterable, Sequence
from typing import Any

from gateway.instance.row_values import (
    ROWS,
    Dim,
    Dims,
    Doubt,
    Symbol,
    Tensor,
    doubt_of,
    mixed,
    rows_axis,
    unclear,
    worst,
)

OVER_ROWS = "over the rows of the batch"
POSITION = unclear("the model computes with the places of rows in the batch")


def made(op: str, dims: Dims | None, *doubts: Doubt | None, boolean: bool | None = None) -> Tensor:
    """A result; one with two axes of rows holds a value for each pair of them."""
    doubt = worst(*doubts)
    if dims is not None and sum(dim.count(ROWS) for dim in dims) > 1:
        doubt = worst(doubt, mixed(f"{op} combines each row of the batch with each other"))
    return Tensor(dims, doubt, boolean=boolean)


def unsure(op: str, *values: Any) -> Tensor:
    """The result of an operator that is used in a way the analysis does not follow."""
    doubt = worst(*map(doubt_of, values))
    if doubt is None and any(isinstance(value, Tensor) and value.varies for value in values):
        doubt = unclear(f"{op} is used in a way that cannot be followed")
    return Tensor(None, doubt)


def broadcast(op: str, tensors: Sequence[Tensor], *doubts: Doubt | None, boolean: bool | None = None) -> Tensor:
    """Entry by entry, after axes were lined up from the last one."""
    doubt = worst(*(tensor.doubt for tensor in tensors), *doubts)
    if len(tensors) == 1:
        return Tensor(tensors[0].dims, doubt, boolean=boolean)
    if any(tensor.dims is None for tensor in tensors):
        if doubt is None and any(tensor.varies for tensor in tensors):
            doubt = unclear(f"{op} takes a tensor whose number of axes is not known")
        return Tensor(None, doubt, boolean=boolean)
    known = [tensor.dims for tensor in tensors if tensor.dims is not None]
    dims, problem = lined_up(op, known)
    return made(op, dims, doubt, problem, boolean=boolean)


def lined_up(op: str, several: Sequence[Dims]) -> tuple[Dims, Doubt | None]:
    """The axes that these have in common after broadcasting, and what speaks against it."""
    if all(dims == several[0] for dims in several[1:]):
        return several[0], None
    rank = max(map(len, several))
    result: list[Dim] = []
    doubt = None
    for place in range(-rank, 0):
        met = {dims[place] for dims in several if len(dims) >= -place}
        dim, problem = _one_of(op, met - {()})
        result.append(dim)
        doubt = worst(doubt, problem)
    return tuple(result), doubt


def _one_of(op: str, met: set[Dim]) -> tuple[Dim, Doubt | None]:
    if len(met) < 2:
        return next(iter(met), ()), None
    rows = [dim for dim in met if ROWS in dim]
    if not rows:
        numbers = [dim for dim in met if len(dim) == 1 and isinstance(dim[0], int)]
        return (numbers[0] if numbers else (Symbol(),)), None
    if len(rows) > 1:
        return rows[0], unclear(f"{op} lines up rows that are arranged in different ways")
    return rows[0], unclear(f"{op} lines up the rows of the batch with another axis")


def axes_of(tensor: Tensor, axes: Any) -> list[int] | None:
    """Axes as indices from the front; None where they are not known. An integer is one axis."""
    found = [axes] if isinstance(axes, int) else axes
    if tensor.dims is None or not isinstance(found, list | tuple):
        return None
    rank = len(tensor.dims)
    if any(not isinstance(axis, int) or isinstance(axis, bool) or not -rank <= axis < max(rank, 1) for axis in found):
        return None
    return [axis % rank for axis in found if rank]


def reduced(op: str, tensor: Tensor, axes: Any, *, keep: bool | Any = False, verb: str = "reduces") -> Tensor:
    """Axes reduced to one entry each; `axes` None means all of them."""
    if tensor.constant and tensor.dims is None:
        return Tensor(None)
    chosen = list(range(tensor.rank)) if axes is None and tensor.rank is not None else axes_of(tensor, axes)
    if chosen is None or tensor.dims is None or not isinstance(keep, bool):
        whole = axes is None and rows_axis(tensor.dims) is not None
        return Tensor(None, mixed(f"{op} {verb} {OVER_ROWS}")) if whole else unsure(op, tensor)
    doubt = tensor.doubt
    if any(ROWS in tensor.dims[axis] for axis in chosen):
        doubt = worst(doubt, mixed(f"{op} {verb} {OVER_ROWS}"))
    if keep:
        return made(op, tuple(() if axis in chosen else dim for axis, dim in enumerate(tensor.dims)), doubt)
    return made(op, tuple(dim for axis, dim in enumerate(tensor.dims) if axis not in chosen), doubt)


def along(op: str, tensor: Tensor, axes: Any, verb: str) -> Tensor:
    """Entries of some axes computed from each other, without a change of shape."""
    if tensor.constant:
        return Tensor(tensor.dims)
    chosen = axes_of(tensor, axes)
    if chosen is None or tensor.dims is None:
        return unsure(op, tensor)
    over = any(ROWS in tensor.dims[axis] for axis in chosen)
    return made(op, tensor.dims, tensor.doubt, mixed(f"{op} {verb} {OVER_ROWS}") if over else None)


def resized(op: str, tensor: Tensor, sizes: dict[int, Dim], verb: str) -> Tensor:
    """Axes that get another size, each entry computed from others of the same axes."""
    result = along(op, tensor, list(sizes), verb)
    if result.dims is None:
        return result
    rank = len(result.dims)
    new = {axis % rank: dim for axis, dim in sizes.items()}
    return made(op, tuple(new.get(axis, dim) for axis, dim in enumerate(result.dims)), result.doubt)


def last_axes(op: str, tensor: Tensor, count: int, new: Dims, verb: str) -> Tensor:
    """The last axes computed from each other and replaced; all before them are kept."""
    if tensor.dims is None or len(tensor.dims) < count:
        return unsure(op, tensor)
    over = rows_axis(tensor.dims[len(tensor.dims) - count :]) is not None
    kept = tensor.dims[: len(tensor.dims) - count]
    return made(op, kept + new, tensor.doubt, mixed(f"{op} {verb} {OVER_ROWS}") if over else None)


def moved(op: str, tensor: Tensor, order: Any) -> Tensor:
    """Axes in another order."""
    chosen = axes_of(tensor, order)
    if tensor.dims is None or chosen is None or sorted(chosen) != list(range(len(tensor.dims))):
        return unsure(op, tensor)
    return made(op, tuple(tensor.dims[axis] for axis in chosen), tensor.doubt, boolean=tensor.boolean)


def matrix_product(op: str, left: Tensor, right: Tensor, *doubts: Doubt | None) -> Tensor:
    """As numpy's matmul: the last axis of one with the last but one of the other, broadcast over all before."""
    doubt = worst(left.doubt, right.doubt, *doubts)
    if left.dims is None or right.dims is None or not left.dims or not right.dims:
        return unsure(op, left, right).doubted(doubt)
    a, b = left.dims, right.dims
    inner_b = b[-2] if len(b) > 1 else b[-1]
    if ROWS in a[-1] or ROWS in inner_b:
        doubt = worst(doubt, mixed(f"{op} sums {OVER_ROWS}"))
    before, problem = lined_up(op, [a[:-2], b[:-2]])
    dims = before + (a[-2:-1] if len(a) > 1 else ()) + (b[-1:] if len(b) > 1 else ())
    return made(op, dims, doubt, problem)


def einsum(op: str, equation: Any, tensors: Sequence[Tensor]) -> Tensor:
    """A sum of products by letters."""
    if not isinstance(equation, str) or any(tensor.dims is None for tensor in tensors):
        return unsure(op, *tensors)
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow or len(terms) != len(tensors):
        return unsure(op, *tensors)
    sizes: dict[str, set[Dim]] = {}
    dots = 0
    for term, tensor in zip(terms, tensors, strict=True):
        dims = tensor.dims or ()
        head, ellipsis, tail = term.partition("...")
        middle = len(dims) - len(head) - len(tail)
        if middle < 0 or (middle and not ellipsis):
            return unsure(op, *tensors)
        dots = max(dots, middle)
        letters = [*head, *(f".{-place}" for place in range(middle, 0, -1)), *tail]
        for letter, dim in zip(letters, dims, strict=True):
            sizes.setdefault(letter, set()).add(dim)
    head, _, tail = right.partition("...")
    wanted = [*head, *([f".{-place}" for place in range(dots, 0, -1)] if "..." in right else []), *tail]
    doubt = worst(*(tensor.doubt for tensor in tensors))
    found = {letter: _one_of(op, met - {()}) for letter, met in sizes.items()}
    for letter, (dim, problem) in found.items():
        doubt = worst(doubt, problem)
        if ROWS in dim and letter not in wanted:
            doubt = worst(doubt, mixed(f"{op} sums {OVER_ROWS}"))
    return made(op, tuple(found[letter][0] if letter in found else () for letter in wanted), doubt)


def joined(op: str, tensors: Sequence[Tensor], axis: Any, *doubts: Doubt | None) -> Tensor:
    """Tensors one behind the other along an axis."""
    doubt = worst(*(tensor.doubt for tensor in tensors), *doubts)
    several = [tensor.dims for tensor in tensors if tensor.dims is not None]
    ranks = {len(dims) for dims in several}
    if len(several) < len(tensors) or len(ranks) != 1 or not isinstance(axis, int):
        return unsure(op, *tensors).doubted(doubt)
    rank = ranks.pop()
    if not -rank <= axis < rank:
        return unsure(op, *tensors).doubted(doubt)
    axis %= rank
    if len(several) > 1 and any(ROWS in dims[axis] for dims in several):
        doubt = worst(doubt, unclear(f"{op} puts rows of the batch behind one another"))
    result: list[Dim] = []
    for place in range(rank):
        met = {dims[place] for dims in several}
        if place == axis:
            result.append((Symbol(),) if len(several) > 1 else several[0][place])
            continue
        rows = {dim for dim in met if ROWS in dim}
        if rows and len(met) > 1:  # an axis of one entry is not repeated for each row
            doubt = worst(doubt, unclear(f"{op} joins rows of the batch with what has none"))
        result.append(next(iter(rows or met)))
    return made(op, tuple(result), doubt)


def picked(op: str, tensor: Tensor, axis: Any, verb: str = "picks rows of the batch by their number") -> Tensor:
    """One place of an axis."""
    chosen = axes_of(tensor, axis)
    if chosen is None or tensor.dims is None or len(chosen) != 1:
        return unsure(op, tensor)
    dims = tensor.dims[: chosen[0]] + tensor.dims[chosen[0] + 1 :]
    over = mixed(f"{op} {verb}") if ROWS in tensor.dims[chosen[0]] else None
    return made(op, dims, tensor.doubt, over, boolean=tensor.boolean)


def cut(op: str, tensor: Tensor, axis: Any, new: Iterable[Dim] = ()) -> Tensor:
    """Some places of an axis."""
    chosen = axes_of(tensor, axis)
    if chosen is None or tensor.dims is None or len(chosen) != 1:
        return unsure(op, tensor)
    dim = next(iter(new), (Symbol(),))
    dims = (*tensor.dims[: chosen[0]], dim, *tensor.dims[chosen[0] + 1 :])
    over = mixed(f"{op} picks rows of the batch by their number") if ROWS in tensor.dims[chosen[0]] else None
    return made(op, dims, tensor.doubt, over, boolean=tensor.boolean)
