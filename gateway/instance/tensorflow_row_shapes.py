"""What TensorFlow's operators that move, join and make axes do to the rows of a batch."""

from typing import Any

from gateway.instance import row_reshape
from gateway.instance import row_rules as rules
from gateway.instance.row_values import (
    ROWS,
    Dim,
    Size,
    Symbol,
    Tensor,
    dim_of,
    doubt_of,
    product,
    size_of,
    unclear,
    worst,
)
from gateway.instance.tensorflow_row_calls import Step, of_numbers, rule


@rule("Shape")
def shape(step: Step) -> Any:
    """The sizes of all axes."""
    source = step[0]
    return Tensor(None, source.doubt) if source.dims is None else of_numbers(step.op, list(map(size_of, source.dims)))


@rule("Size")
def size(step: Step) -> Any:
    """The number of entries."""
    dims = step[0].dims
    return Tensor((), step[0].doubt) if dims is None else of_numbers(step.op, product(map(size_of, dims)))


@rule("Rank")
def rank(step: Step) -> Any:
    """The number of axes."""
    return Tensor((), step[0].doubt) if step[0].rank is None else of_numbers(step.op, step[0].rank)


@rule("Reshape")
def reshape(step: Step) -> Any:
    """Other axes for the same entries in the same order."""
    source, sizes = step[0], step.content(1)
    if source.content is not None and sizes in ([-1], [], [1]):
        numbers = source.content if isinstance(source.content, list) else [source.content]
        return of_numbers(step.op, numbers[0] if sizes == [] else numbers)
    if not isinstance(sizes, list):
        return rules.unsure(step.op, source, step[1])
    return row_reshape.regrouped(step.op, source, sizes)


@rule("ExpandDims")
def expand_dims(step: Step) -> Any:
    """A new axis of one entry."""
    source, axis = step[0], step.content(1)
    axis = axis[0] if isinstance(axis, list) and len(axis) == 1 else axis
    if source.content is not None and source.dims == () and axis in (0, -1):
        return of_numbers(step.op, [source.content])
    if source.dims is None or not isinstance(axis, int) or not -len(source.dims) - 1 <= axis <= len(source.dims):
        return rules.unsure(step.op, source)
    axis %= len(source.dims) + 1
    return Tensor((*source.dims[:axis], (), *source.dims[axis:]), source.doubt, position=source.position)


@rule("Squeeze")
def squeeze(step: Step) -> Any:
    """Axes removed, which have one entry: those that are named, or all such."""
    source, named = step[0], step.numbers("squeeze_dims")
    if source.dims is None:
        return rules.unsure(step.op, source)
    chosen = rules.axes_of(source, named) if named else list(range(len(source.dims)))
    if chosen is None:
        return rules.unsure(step.op, source)
    doubt, kept = source.doubt, []
    for axis, dim in enumerate(source.dims):
        sure = dim == () or (bool(named) and ROWS not in dim)  # TensorFlow refuses to remove an axis of more entries
        if axis in chosen and sure:
            continue
        if axis in chosen and not all(isinstance(factor, int) for factor in dim):
            doubt = worst(doubt, unclear(f"{step.op} removes an axis that may have one entry or more"))
        kept.append(dim)
    return rules.made(step.op, tuple(kept), doubt)


@rule("Transpose")
def transpose(step: Step) -> Any:
    """Axes in another order."""
    return rules.moved(step.op, step[0], step.content(1))


@rule("ConcatV2 Concat")
def concat(step: Step) -> Any:
    """Tensors one behind the other."""
    last = len(step.inputs) - 1
    axis, several = (
        (step.content(last), range(last)) if step.op == "ConcatV2" else (step.content(0), range(1, last + 1))
    )
    tensors = [step[place] for place in several]
    if axis in (0, -1) and all(isinstance(tensor.content, list) for tensor in tensors):
        return of_numbers(step.op, [number for tensor in tensors for number in tensor.content])
    return rules.joined(step.op, tensors, axis)


@rule("Pack")
def pack(step: Step) -> Any:
    """Tensors along a new axis."""
    tensors, axis = [step[place] for place in range(len(step.inputs))], step.number("axis")
    if axis == 0 and tensors and all(t.dims == () and t.content is not None for t in tensors):
        return of_numbers(step.op, [tensor.content for tensor in tensors])
    ranks = {tensor.rank for tensor in tensors}
    height = ranks.pop() if len(ranks) == 1 else None
    if height is None:
        return rules.unsure(step.op, *tensors)
    axis %= height + 1
    taller = [Tensor((*(t.dims or ())[:axis], (), *(t.dims or ())[axis:]), t.doubt) for t in tensors]
    result = rules.joined(step.op, taller, axis)
    dims = list(result.dims or ())
    dims[axis] = dim_of(len(tensors))
    return Tensor(tuple(dims), result.doubt)


@rule("Unpack")
def unpack(step: Step) -> Any:
    """Each place of an axis for itself."""
    source = step[0]
    if isinstance(source.content, list) and len(source.content) == step.count:
        return tuple(of_numbers(step.op, number) for number in source.content)
    return tuple(rules.picked(step.op, source, step.number("axis")) for _ in range(step.count))


@rule("Split SplitV")
def split(step: Step) -> Any:
    """An axis cut into pieces."""
    source, axis = (step[1], step.content(0)) if step.op == "Split" else (step[0], step.content(2))
    result = rules.cut(step.op, source, axis)
    axes = rules.axes_of(source, axis)
    dims = source.dims
    if dims is not None and axes and result.dims is not None and step.op == "Split":
        whole = size_of(dims[axes[0]])
        if isinstance(whole, int) and whole % step.count == 0:
            result = rules.cut(step.op, source, axis, [dim_of(whole // step.count)])
    return tuple(Tensor(result.dims, result.doubt) for _ in range(step.count))


@rule("Pad PadV2 MirrorPad")
def pad(step: Step) -> Any:
    """Entries put around axes."""
    source, amounts = step[0], step.content(1)
    if not isinstance(amounts, list) or source.dims is None or len(amounts) != len(source.dims):
        return rules.unsure(step.op, source, step[1])
    sizes: dict[int, Dim] = {axis: (Symbol(),) for axis, pair in enumerate(amounts) if pair != [0, 0]}
    return rules.resized(step.op, source, sizes, "pads").doubted(doubt_of(amounts))


@rule("Tile")
def tile(step: Step) -> Any:
    """The whole tensor several times."""
    return row_reshape.tiled(step.op, step[0], step.content(1))


@rule("BroadcastTo")
def broadcast_to(step: Step) -> Any:
    """Axes of one entry repeated."""
    return row_reshape.expanded(step.op, step[0], step.content(1))


@rule("Fill")
def fill(step: Step) -> Any:
    """One number everywhere."""
    sizes = step.content(0)
    value = step[1]
    if not isinstance(sizes, list) or value.doubt is not None:
        return rules.unsure(step.op, step[0], value)
    return rules.made(step.op, tuple(map(dim_of, sizes)), *map(doubt_of, sizes))


_MOST_PLACES = 64


@rule("Range")
def range_(step: Step) -> Any:
    """Numbers in order; as many as there are rows are the numbers of the rows."""
    start, end, by = (step.content(place) for place in range(3))
    if all(isinstance(one, int) for one in (start, end, by)) and by and abs((end - start) // by) <= _MOST_PLACES:
        return of_numbers(step.op, list(range(start, end, by)))
    if start == 0 and by == 1 and isinstance(end, Size) and end.counts_rows:
        return Tensor((dim_of(end),), rules.POSITION, position=end == Size(1, (ROWS,)))
    if start == 0 and by == 1 and isinstance(end, int | Size):
        return Tensor((dim_of(end),))
    doubt = worst(*(step[place].doubt for place in range(3)))
    return Tensor(((Symbol(doubt),),), doubt)


@rule("OneHot")
def one_hot(step: Step) -> Any:
    """A new axis for each of the numbers that are possible."""
    source, depth, axis = step[0], step.content(1), step.number("axis", -1)
    if source.dims is None or any(step[place].varies for place in (1, 2, 3)):
        return rules.unsure(step.op, *(step[place] for place in range(4)))
    axis = len(source.dims) if axis < 0 else axis
    new: Dim = dim_of(depth) if isinstance(depth, int) else (Symbol(),)
    return rules.made(step.op, (*source.dims[:axis], new, *source.dims[axis:]), source.doubt)
