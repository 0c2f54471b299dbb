"""What TensorFlow's slices, tables, texts and lists do to the rows of a batch."""

from collections.abc import Sequence
from typing import Any

from gateway.instance import row_rules as rules
from gateway.instance.row_values import (
    ROWS,
    Dim,
    Number,
    Symbol,
    Tensor,
    counting,
    dim_of,
    doubt_of,
    mixed,
    rows_axis,
    size_of,
    unclear,
    worst,
)
from gateway.instance.tensorflow_row_calls import Resource, Step, TensorList, of_numbers, rule


@rule("Slice")
def slice_(step: Step) -> Any:
    """A box of places."""
    source, begin, length = step[0], step.content(1), step.content(2)
    if isinstance(source.content, list) and _whole(begin) and _whole(length):
        end = None if length[0] == -1 else begin[0] + length[0]
        return of_numbers(step.op, source.content[begin[0] : end])
    if source.dims is None or not isinstance(begin, list) or not isinstance(length, list):
        return rules.unsure(step.op, source, step[1], step[2])
    result = source
    for axis, (first, count) in enumerate(zip(begin, length, strict=True)):
        if first == 0 and (count == -1 or count == size_of(source.dims[axis])):
            continue
        new: Dim = dim_of(count) if isinstance(count, int) and count >= 0 else (Symbol(),)
        result = rules.cut(step.op, result, axis, [new]).doubted(
            worst(counting(step.op, first), counting(step.op, count))
        )
    return Tensor(result.dims, result.doubt)


def _whole(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, int) for one in value)


@rule("StridedSlice")
def strided_slice(step: Step) -> Any:
    """What x[...] means in Python."""
    source, begin, end, by = step[0], step.content(1), step.content(2), step.content(3)
    masks = {name: step.number(f"{name}_mask") for name in ("begin", "end", "ellipsis", "new_axis", "shrink_axis")}
    if isinstance(source.content, list) and _whole(begin) and _whole(end) and _whole(by):
        first = None if masks["begin"] & 1 else begin[0]
        last = None if masks["end"] & 1 else end[0]
        if masks["shrink_axis"] & 1:
            return of_numbers(step.op, source.content[begin[0]])
        return of_numbers(step.op, source.content[first : last : by[0]])
    count = step[1].dims
    if source.dims is None or not _whole(by) or count is None:
        return rules.unsure(step.op, source, *(step[place] for place in (1, 2, 3)))
    begins, ends = (given if isinstance(given, list) else [Number(tensor.doubt)] * len(by)
                    for given, tensor in ((begin, step[1]), (end, step[2])))  # fmt: skip
    return _sliced(step, source, list(zip(begins, ends, by, strict=True)), masks)


def _sliced(step: Step, source: Tensor, bounds: Sequence[Any], masks: dict[str, int]) -> Tensor:
    dims: list[Dim] = []
    doubt, axis = source.doubt, 0
    had = source.dims or ()
    real = [place for place in range(len(bounds)) if not (masks["ellipsis"] | masks["new_axis"]) >> place & 1]
    for place, (first, last, by) in enumerate(bounds):
        if masks["ellipsis"] >> place & 1:
            skipped = len(had) - axis - sum(1 for other in real if other > place)
            dims += had[axis : axis + skipped]
            axis += skipped
            continue
        if masks["new_axis"] >> place & 1:
            dims.append(())
            continue
        if axis >= len(had):
            return rules.unsure(step.op, source)
        open_first = masks["begin"] >> place & 1 or first == 0
        open_last = masks["end"] >> place & 1 or last == size_of(had[axis])
        shrinks = masks["shrink_axis"] >> place & 1
        if open_first and open_last and by == 1 and not shrinks:
            dims.append(had[axis])
        else:
            if ROWS in had[axis]:
                doubt = worst(doubt, mixed(f"{step.op} picks rows of the batch by their number"))
            used = [each for each, is_open in ((first, open_first), (last, open_last or shrinks)) if not is_open]
            doubt = worst(doubt, *(counting(step.op, each) for each in used))
            if not shrinks:
                dims.append((Symbol(worst(*map(doubt_of, used))),))
        axis += 1
    return rules.made(step.op, (*dims, *had[axis:]), doubt)


@rule("GatherV2 Gather ResourceGather")
def gather(step: Step) -> Any:
    """Places of an axis by their numbers."""
    if step.op == "ResourceGather":
        owner = step.inputs[0]
        source = Tensor(owner.dims if isinstance(owner, Resource) else None)
    else:
        source = step[0]
    index, axis = step[1], step.content(2) if step.op == "GatherV2" else 0
    if isinstance(source.content, list) and index.content is not None and axis == 0:
        return _of_places(step, source.content, index.content)
    axes = rules.axes_of(source, axis)
    batched = step.number("batch_dims") if step.op != "Gather" else 0
    if source.dims is None or index.dims is None or not axes:
        return rules.unsure(step.op, source, index)
    at = axes[0]
    doubt = worst(source.doubt, index.doubt)
    if batched:
        if source.dims[:batched] != index.dims[:batched] or at < batched:
            doubt = worst(doubt, unclear(f"{step.op} looks into a tensor whose rows are arranged in another way"))
    elif ROWS in source.dims[at]:
        doubt = worst(doubt, mixed(f"{step.op} picks rows of the batch by their number"))
    over = unclear(f"{step.op} looks up rows by their number") if batched and ROWS in source.dims[at] else None
    return rules.made(step.op, (*source.dims[:at], *index.dims[batched:], *source.dims[at + 1 :]), doubt, over)


def _of_places(step: Step, numbers: list[Any], index: Any) -> Tensor:
    wanted = index if isinstance(index, list) else [index]
    if not all(isinstance(one, int) and -len(numbers) <= one < len(numbers) for one in wanted):
        return rules.unsure(step.op, step[0], step[1])
    found = [numbers[one] for one in wanted]
    return of_numbers(step.op, found if isinstance(index, list) else found[0])


@rule("LookupTableFindV2 LookupTableFind")
def look_up(step: Step) -> Any:
    """Entry by entry through a table."""
    return rules.unsure(step.op, step[1], step[2]) if step[2].varies else Tensor(step[1].dims, step[1].doubt)


@rule("LookupTableSizeV2")
def table_size(step: Step) -> Any:  # noqa: ARG001 - as all rules
    """A number of the table."""
    return Tensor(())


@rule("ReadVariableOp")
def read(step: Step) -> Any:
    """The value of a variable."""
    owner = step.inputs[0]
    return Tensor(owner.dims if isinstance(owner, Resource) else None)


# --- Texts, counts, ragged tensors ----------------------------------------------------------------


@rule("StringSplitV2 StringSplit StringNGrams UnicodeDecodeWithOffsets UnicodeDecode UnsortedSegmentJoin")
def split_strings(step: Step) -> Any:
    """The parts of all texts in one list; the shape tells how many the longest has."""
    found = worst(*(step[place].doubt for place in range(len(step.inputs))))
    if not any(step[place].varies for place in range(len(step.inputs))):
        return tuple(Tensor(None) for _ in range(step.count)) if step.count > 1 else Tensor(None)
    doubt = worst(found, unclear(f"{step.op} puts the parts of all rows of the batch into one list"))
    results = [Tensor(None, doubt) for _ in range(step.count)]
    if step.op.startswith("StringSplit"):
        longest = mixed(f"{step.op} counts the parts of the longest row of the batch")
        results[2] = Tensor(((2,),), longest, content=[Number(unclear("a count of rows")), Number(longest)])
    return tuple(results) if step.count > 1 else results[0]


@rule("RaggedTensorToTensor")
def ragged(step: Step) -> Any:
    """Rows of different lengths filled up, to a length that is given or to the longest."""
    sizes, values = step.content(0), step[1]
    rest = worst(*(step[place].doubt for place in range(1, len(step.inputs))))
    if rest is None and not any(step[place].varies for place in range(1, len(step.inputs))):
        return Tensor(None)
    open_ones = [one for one in sizes[1:] if not isinstance(one, int) or one < 0] if isinstance(sizes, list) else [-1]
    if open_ones or sizes in ([], None):
        return Tensor(None, mixed(f"{step.op} pads to the longest row of the batch"))
    return Tensor(None, worst(rest, values.doubt, unclear(f"{step.op} takes ragged rows")))


@rule("DenseBincount")
def bincount(step: Step) -> Any:
    """How often each number occurs in each row."""
    source, length, weights = step[0], step.content(1), step[2]
    if source.rank != 2 or step[1].varies or weights.doubt is not None or rows_axis(source.dims) != 0:
        over = (
            mixed(f"{step.op} counts {rules.OVER_ROWS}") if source.rank == 1 and rows_axis(source.dims) == 0 else None
        )
        return rules.unsure(step.op, source, step[1], weights).doubted(over)
    new: Dim = dim_of(length) if isinstance(length, int) else (Symbol(),)
    if rows_axis(weights.dims) not in (None, 0):
        return rules.unsure(step.op, source, weights)
    return rules.made(step.op, ((source.dims or ())[0], new), source.doubt)


# --- Lists of tensors, which loops use ------------------------------------------------------------


@rule("TensorListReserve EmptyTensorList")
def list_reserve(step: Step) -> Any:  # noqa: ARG001 - as all rules
    """A list without elements."""
    return TensorList(None)


@rule("TensorListFromTensor")
def list_from_tensor(step: Step) -> Any:
    """The places of the first axis."""
    source = step[0]
    if rows_axis(source.dims) == 0:
        return TensorList(Tensor(None, worst(source.doubt, unclear(f"{step.op} takes the rows of the batch apart"))))
    return TensorList(rules.picked(step.op, source, 0))


@rule("TensorListGetItem")
def list_get(step: Step) -> Any:
    """An element."""
    found = _each(step)
    return found.doubted(step[1].doubt)


def _each(step: Step) -> Tensor:
    owner = step.inputs[0]
    each = owner.each if isinstance(owner, TensorList) else None
    return Tensor(None, unclear(f"{step.op} takes from a list that cannot be followed")) if each is None else each


@rule("TensorListStack")
def list_stack(step: Step) -> Any:
    """All elements along a new first axis."""
    each = _each(step)
    return Tensor(None if each.dims is None else ((Symbol(),), *each.dims), each.doubt)


@rule("TensorListLength")
def list_length(step: Step) -> Any:  # noqa: ARG001 - as all rules
    """How many elements there are: never as many as rows, see TensorListFromTensor."""
    return Tensor((), unclear("the model counts the elements of a list"))
