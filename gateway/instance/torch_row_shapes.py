"""What PyTorch's operators that move, cut, join and index axes do to the rows of a batch."""

from typing import Any

from gateway.instance import row_reshape
from gateway.instance import row_rules as rules
from gateway.instance.row_values import (
    ROWS,
    Dim,
    Number,
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
from gateway.instance.torch_row_calls import Call, Items, counted, rule


@rule("size", "sym_size")
def size(call: Call) -> Any:
    """The sizes of all axes, or of one."""
    source = call.args[0]
    if source.dims is None:
        number = Number(source.doubt)
        return number if len(call.args) > 1 else Items(None, number)
    if len(call.args) < 2:
        return Items([size_of(dim) for dim in source.dims], level=call.level)
    axes = rules.axes_of(source, call.args[1])
    return size_of(source.dims[axes[0]]) if axes else Number(source.doubt)


@rule("numel")
def numel(call: Call) -> Any:
    """The number of entries."""
    dims = call.args[0].dims
    return Number(call.args[0].doubt) if dims is None else product(size_of(dim) for dim in dims)


@rule("dim")
def dim(call: Call) -> Any:
    """The number of axes."""
    rank = call.args[0].rank
    return Number(call.args[0].doubt) if rank is None else rank


@rule("view", "reshape", "_unsafe_view", "_reshape_alias", "view_as", "reshape_as")
def view(call: Call) -> Any:
    """Other axes for the same entries in the same order."""
    source = call.args[0]
    if call.kind.endswith("_as"):
        other = call.args[1]
        return row_reshape.regrouped(
            call.op, source, None if other.dims is None else [size_of(each) for each in other.dims]
        )
    if "dtype" in call:
        return rules.unsure(call.op, source)
    sizes = call.numbers("size") if "size" in call else call.numbers("shape")
    result = row_reshape.regrouped(call.op, source, sizes)
    moves = source.position and [each for each in result.dims or () if each] == [(ROWS,)]
    return Tensor(result.dims, result.doubt, position=moves, boolean=source.boolean)


@rule("flatten")
def flatten(call: Call) -> Any:
    """Neighbouring axes made one."""
    source = call.args[0]
    ends = rules.axes_of(source, [call["start_dim"], call["end_dim"]])
    if source.dims is None or (ends is None or len(ends) < 2):
        return rules.unsure(call.op, source)
    merged = tuple(factor for each in source.dims[ends[0] : ends[1] + 1] for factor in each)
    dims = (*source.dims[: ends[0]], merged, *source.dims[ends[1] + 1 :])
    return rules.made(call.op, dims, source.doubt, boolean=source.boolean)


@rule("unflatten")
def unflatten(call: Call) -> Any:
    """One axis made several."""
    source, sizes = call.args[0], call.numbers("sizes")
    axes = rules.axes_of(source, call["dim"])
    if source.dims is None or not axes or sizes is None:
        return rules.unsure(call.op, source)
    around = [size_of(each) for each in source.dims]
    return row_reshape.regrouped(call.op, source, [*around[: axes[0]], *sizes, *around[axes[0] + 1 :]])


@rule("transpose", "swapaxes", "swapdims")
def transpose(call: Call) -> Any:
    """Two axes exchanged."""
    source = call.args[0]
    axes = rules.axes_of(source, list(call.args[1:3]))
    if axes is None or source.rank is None:
        return rules.unsure(call.op, source)
    order = list(range(source.rank))
    if len(axes) == 2:
        order[axes[0]], order[axes[1]] = order[axes[1]], order[axes[0]]
    return rules.moved(call.op, source, order)


@rule("t", "numpy_T", "mT")
def transposed(call: Call) -> Any:
    """The axes in reverse order, of matrices or of all."""
    source = call.args[0]
    if source.rank is None or (call.kind == "mT" and source.rank < 2):
        return rules.unsure(call.op, source)
    order = list(range(source.rank))
    order = [*order[:-2], order[-1], order[-2]] if call.kind == "mT" else order[::-1]
    return rules.moved(call.op, source, order)


@rule("permute")
def permute(call: Call) -> Any:
    """Axes in another order."""
    return rules.moved(call.op, call.args[0], call.numbers("dims"))


@rule("movedim", "moveaxis")
def movedim(call: Call) -> Any:
    """Some axes put at other places, the others kept in order."""
    tensor = call.args[0]
    source = rules.axes_of(tensor, call.numbers("source"))
    target = rules.axes_of(tensor, call.numbers("destination"))
    if source is None or target is None or tensor.rank is None or len(source) != len(target):
        return rules.unsure(call.op, tensor)
    places = dict(zip(target, source, strict=True))
    others = iter(axis for axis in range(tensor.rank) if axis not in source)
    order = [places[axis] if axis in places else next(others) for axis in range(tensor.rank)]
    return rules.moved(call.op, tensor, order)


@rule("unsqueeze")
def unsqueeze(call: Call) -> Any:
    """A new axis of one entry."""
    source, axis = call.args[0], call["dim"]
    if source.dims is None or not isinstance(axis, int) or not -len(source.dims) - 1 <= axis <= len(source.dims):
        return rules.unsure(call.op, source)
    axis %= len(source.dims) + 1
    dims = (*source.dims[:axis], (), *source.dims[axis:])
    return Tensor(dims, source.doubt, position=source.position, boolean=source.boolean)


@rule("squeeze")
def squeeze(call: Call) -> Any:
    """Axes of one entry removed; one that holds the rows has one entry in a request of one row."""
    source = call.args[0]
    if source.dims is None:
        return rules.unsure(call.op, source)
    chosen = rules.axes_of(source, call.numbers("dim")) if "dim" in call else list(range(len(source.dims)))
    if chosen is None:
        return rules.unsure(call.op, source)
    doubt, kept = source.doubt, []
    for axis, each in enumerate(source.dims):
        if axis in chosen and each == ():
            continue
        if axis in chosen and not all(isinstance(factor, int) for factor in each):
            if source.constant:
                return Tensor(None)
            doubt = worst(doubt, unclear(f"{call.op} removes an axis that may have one entry or more"))
        kept.append(each)
    return rules.made(call.op, tuple(kept), doubt, boolean=source.boolean)


@rule("expand", "broadcast_to")
def expand(call: Call) -> Any:
    """Axes of one entry repeated."""
    source = call.args[0]
    result = row_reshape.expanded(call.op, source, call.numbers("size"))
    return Tensor(result.dims, result.doubt, position=source.position, boolean=source.boolean)


@rule("expand_as")
def expand_as(call: Call) -> Any:
    """Axes of one entry repeated up to the sizes of another tensor."""
    source, other = call.args[:2]
    sizes = None if other.dims is None else [size_of(each) for each in other.dims]
    return row_reshape.expanded(call.op, source, sizes)


@rule("repeat", "tile")
def repeat(call: Call) -> Any:
    """The whole tensor several times."""
    source, counts = call.args[0], call.numbers("repeats" if "repeats" in call else "dims")
    if counts is not None and source.rank is not None and call.kind == "tile":
        counts = [1] * (source.rank - len(counts)) + counts
    return row_reshape.tiled(call.op, source, counts)


@rule("repeat_interleave")
def repeat_interleave(call: Call) -> Any:
    """Each entry of an axis several times."""
    source, count = call.args[0], call["repeats"]
    if source.dims is None or not isinstance(count, int | Size) or call["dim"] is None:
        return rules.unsure(call.op, *call.args)
    axes = rules.axes_of(source, call["dim"])
    if not axes:
        return rules.unsure(call.op, source)
    axis = axes[0]
    dims = (*source.dims[:axis], (*source.dims[axis], *dim_of(count)), *source.dims[axis + 1 :])
    return rules.made(call.op, dims, source.doubt, doubt_of(count))


@rule("select")
def select(call: Call) -> Any:
    """One place of an axis."""
    return rules.picked(call.op, call.args[0], call["dim"]).doubted(counted(call["index"]))


@rule("slice", "narrow")
def slice_(call: Call) -> Any:
    """A range of an axis; lists are sliced too."""
    source = call.args[0]
    if isinstance(source, Items):
        return _slice_of_list(call, source)
    names = ("start", "length") if call.kind == "narrow" else ("start", "end", "step")
    start, end, step = (*(call[name] for name in names), 1)[:3]
    axes = rules.axes_of(source, call["dim"])
    if source.dims is None or not axes:
        return rules.unsure(call.op, source, start, end)
    axis = axes[0]
    length = size_of(source.dims[axis])
    everything = start in (None, 0) and step in (None, 1) and (end is None or end == length or end == 2**63 - 1)
    if everything:
        return Tensor(source.dims, source.doubt, source.content, source.position, source.boolean)
    whole = isinstance(start, int | None) and isinstance(end, int) and (start or 0) >= 0 <= end and step in (None, 1)
    known = call.kind == "slice" and whole and isinstance(length, int)
    dim: Dim = dim_of(max(0, min(end, length) - (start or 0))) if known else (Symbol(),)
    doubts = [_bound(call.op, value) for value in (start, end, step)]
    # Cutting to so many places as there are rows leaves one for a row that comes alone.
    return rules.cut(call.op, source, axis, [dim]).doubted(worst(*doubts))


def _bound(op: str, value: Any) -> Any:
    if isinstance(value, Size) and value.counts_rows:
        return unclear(f"{op} cuts an axis by the number of rows")
    return doubt_of(value)


def _slice_of_list(call: Call, source: Items) -> Any:
    bounds = [call[name] for name in ("start", "end", "step")]
    if source.items is not None and all(isinstance(bound, int | None) for bound in bounds):
        return Items(source.items[slice(*bounds)], level=call.level)
    return Items(None, source.element(None), level=call.level)


@rule("split", "split_with_sizes", "chunk", "unsafe_chunk", "unsafe_split", "tensor_split")
def split(call: Call) -> Any:
    """An axis cut into pieces."""
    source = call.args[0]
    result = rules.cut(call.op, source, call["dim"]).doubted(call.doubts())
    axes = rules.axes_of(source, call["dim"])
    number = call["chunks"]
    if source.dims is not None and axes and isinstance(number, int) and result.dims is not None:
        whole = size_of(source.dims[axes[0]])
        if isinstance(whole, int) and number > 0 and whole % number == 0:
            dims = list(result.dims)
            dims[axes[0]] = dim_of(whole // number)
            return Items([Tensor(tuple(dims), result.doubt) for _ in range(number)], level=call.level)
    sizes = call.numbers("split_sizes") or call.numbers("split_size") or ()
    if source.dims is not None and axes and len(sizes) > 1 and result.dims is not None:
        pieces = [(*result.dims[: axes[0]], dim_of(size), *result.dims[axes[0] + 1 :]) for size in sizes]
        return Items([Tensor(piece, result.doubt) for piece in pieces], level=call.level)
    return Items(None, result, level=call.level)


@rule("unbind")
def unbind(call: Call) -> Any:
    """Each place of an axis for itself."""
    source = call.args[0]
    result = rules.picked(call.op, source, call["dim"])
    axes = rules.axes_of(source, call["dim"])
    length = size_of(source.dims[axes[0]]) if source.dims is not None and axes else None
    if isinstance(length, int) and length < 1000:
        return Items([Tensor(result.dims, result.doubt) for _ in range(length)], level=call.level)
    return Items(None, result, level=call.level)


@rule("cat", "concat", "concatenate", "stack")
def cat(call: Call) -> Any:
    """Tensors one behind the other, along an axis or along a new one."""
    tensors, axis = call.tensors("tensors"), call["dim"]
    if not tensors:
        return rules.unsure(call.op, Number(call.doubts() or unclear(f"{call.op} joins what cannot be followed")))
    many = call["tensors"].items is None
    if call.kind != "stack":
        result = rules.joined(call.op, tensors * 2 if many else tensors, axis)
        booleans = {tensor.boolean for tensor in tensors}
        result.boolean = booleans.pop() if len(booleans) == 1 else None
        return result
    ranks = {tensor.rank for tensor in tensors}
    rank = ranks.pop() if len(ranks) == 1 else None
    if rank is None or not isinstance(axis, int) or not -rank - 1 <= axis <= rank:
        return rules.unsure(call.op, *tensors)
    axis %= rank + 1
    taller = [Tensor((*(t.dims or ())[:axis], (), *(t.dims or ())[axis:]), t.doubt) for t in tensors]
    result = rules.joined(call.op, taller, axis)
    dims = list(result.dims or ())
    dims[axis] = (Symbol(),) if many else dim_of(len(tensors))
    return Tensor(tuple(dims), result.doubt)
