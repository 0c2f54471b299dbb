"""What PyTorch's operators that index by tensors do to the rows of a batch."""

from typing import Any

from gateway.instance import row_rules as rules
from gateway.instance.row_values import (
    ROWS,
    Number,
    Symbol,
    Tensor,
    counting,
    mixed,
    rows_axis,
    unclear,
    worst,
)
from gateway.instance.torch_row_calls import Call, Items, rule

_BY_NUMBER = "picks rows of the batch by their number"


@rule("index_select")
def index_select(call: Call) -> Any:
    """Places of an axis in the order of an index."""
    source, index = call.args[0], call["index"]
    if index.varies:
        axes = rules.axes_of(source, call["dim"])
        if source.dims is None or not axes:
            return rules.unsure(call.op, source, index)
        over = ROWS in source.dims[axes[0]]
        reason = "puts the rows of the batch into another order" if over else "picks places that a row names"
        return Tensor(source.dims, worst(source.doubt, unclear(f"{call.op} {reason}"), _unless_order(index, over)))
    return rules.cut(call.op, source, call["dim"], index.dims if index.rank == 1 else ())


def _unless_order(index: Tensor, over: bool) -> Any:
    return None if over else index.doubt  # an order that is undone later mixes nothing


@rule("gather", "take_along_dim")
def gather(call: Call) -> Any:
    """Places of one axis, chosen for each place of the others."""
    return _by_index(call, call.args[0], call["index"] if "index" in call else call["indices"], call["dim"])


def _by_index(call: Call, source: Tensor, index: Tensor, axis: Any) -> Tensor:
    axes = rules.axes_of(source, axis)
    doubt = worst(source.doubt, index.doubt)
    if source.constant and index.constant:
        return Tensor(index.dims)
    if source.dims is None or index.dims is None or not axes or len(source.dims) != len(index.dims):
        return rules.unsure(call.op, source, index)
    place = rows_axis(source.dims)
    if place is not None and place == axes[0]:
        return Tensor(index.dims, worst(doubt, mixed(f"{call.op} {_BY_NUMBER}")))
    if place is None or rows_axis(index.dims) != place or source.dims[place] != index.dims[place]:
        doubt = worst(doubt, unclear(f"{call.op} looks into a tensor whose rows are arranged in another way"))
    return rules.made(call.op, index.dims, doubt)


@rule("scatter", "scatter_add", "scatter_reduce")
def scatter(call: Call) -> Any:
    """Entries put at places of one axis, chosen for each place of the others."""
    source, index, put = call.args[0], call["index"], call["src"] if "src" in call else call["value"]
    found = _by_index(call, source, index, call["dim"])
    doubt = worst(found.doubt, source.doubt, counting(call.op, put) if not isinstance(put, Tensor) else put.doubt)
    if isinstance(put, Tensor) and put.dims != () and rows_axis(put.dims) != rows_axis(source.dims):
        doubt = worst(doubt, unclear(f"{call.op} puts values into rows that are arranged in another way"))
    return Tensor(source.dims, doubt)


@rule("index")
def index(call: Call) -> Any:
    """Entries picked by one index tensor for each of some axes."""
    source, items = call.args[0], call["indices"]
    if source.dims is None or not isinstance(items, Items) or items.items is None:
        return rules.unsure(call.op, source, Number(call.doubts()))
    indices = [None if item is None else item.current() for item in items.items]
    given = [each for each in indices if each is not None]
    place = rows_axis(source.dims)
    if any(each.boolean and each.varies for each in given):
        return Tensor(None, worst(mixed(f"{call.op} collects entries of all rows of the batch"), call.doubts()))
    if any(each.boolean is None for each in given) or len(indices) > len(source.dims):
        return rules.unsure(call.op, source, *given)
    if any(each.boolean for each in given):
        return _by_mask(call, source, indices)
    picks = place is not None and place < len(indices) and indices[place] is not None
    doubts = [source.doubt, *(each.doubt for each in given if not each.position)]
    if picks and place is not None:
        chooser = indices[place]
        if chooser is None or not chooser.position or source.dims[place] != (ROWS,):
            doubts.append(mixed(f"{call.op} {_BY_NUMBER}"))
    elif any(each.position for each in given):
        doubts.append(rules.POSITION)
    if not picks and place is not None and any(rows_axis(each.dims) is not None for each in given):
        doubts.append(mixed(f"{call.op} looks up in each row of the batch what each other names"))
    return _indexed(call, source, indices, doubts)


def _indexed(call: Call, source: Tensor, indices: list[Any], doubts: list[Any]) -> Tensor:
    dims = source.dims or ()
    places = [axis for axis, each in enumerate(indices) if each is not None]
    given = [indices[axis] for axis in places]
    if any(each.dims is None for each in given):
        return rules.unsure(call.op, source, *given).doubted(worst(*doubts))
    common, problem = rules.lined_up(call.op, [each.dims for each in given])
    others = [each for axis, each in enumerate(dims) if axis not in places]
    together = places == list(range(places[0], places[-1] + 1)) if places else True
    first = places[0] if places and together else 0
    return rules.made(call.op, (*others[:first], *common, *others[first:]), *doubts, problem)


def _by_mask(call: Call, source: Tensor, indices: list[Any]) -> Tensor:
    """A constant mask over axes that hold no rows leaves some of their places."""
    dims, place = source.dims or (), rows_axis(source.dims)
    axes = [axis for axis, each in enumerate(indices) if each is not None]
    mask = indices[axes[0]]
    if len(axes) != 1 or mask.rank is None or (place is not None and axes[0] <= place < axes[0] + mask.rank):
        return rules.unsure(call.op, source, *[each for each in indices if each is not None])
    return rules.made(call.op, (*dims[: axes[0]], (Symbol(),), *dims[axes[0] + mask.rank :]), source.doubt)


@rule("index_put", "index_add", "index_copy", "index_fill", "masked_scatter", "select_scatter", "slice_scatter")
def index_put(call: Call) -> Any:
    """Entries put at places that an index names."""
    source = call.args[0]
    doubt = call.doubts()
    if call.kind != "index_put" or doubt or not isinstance(call["indices"], Items) or source.dims is None:
        return rules.unsure(call.op, source, Number(doubt or unclear(f"{call.op} cannot be followed")))
    indices = call["indices"].items
    values = call["values"]
    given = [each for each in indices or () if each is not None]
    place = rows_axis(source.dims)
    plain = len(given) == 1 and given[0].rank == 1 and not given[0].current().varies
    if plain and indices is not None and place is not None and (place >= len(indices) or indices[place] is None):
        mine = len(source.dims) - place
        theirs = rows_axis(values.dims)
        if values.constant or (theirs is not None and values.rank - theirs == mine):
            return Tensor(source.dims, source.doubt)
    if all(each.current().boolean for each in given) and len(given) == len(indices or ()) == 1 and values.dims == ():
        mask = given[0].current()  # one number wherever the mask says so, as masked_fill
        if mask.rank == source.rank:
            return rules.broadcast(call.op, [source, mask, values])
    return rules.unsure(call.op, source, Number(unclear(f"{call.op} puts values where an index names rows")))
