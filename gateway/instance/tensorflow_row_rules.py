"""What TensorFlow's operators do to the rows of a batch."""

from collections.abc import Callable, Sequence
from typing import Any

from gateway.instance import row_rules as rules
from gateway.instance.row_numbers import arithmetic
from gateway.instance.row_values import (
    ROWS,
    Dim,
    Doubt,
    Number,
    Size,
    Symbol,
    Tensor,
    counting,
    dim_of,
    doubt_of,
    fresh,
    mixed,
    product,
    rows_axis,
    size_of,
    unclear,
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


_ARITHMETIC = {
    "Add": "add", "AddV2": "add", "Sub": "sub", "Mul": "mul", "FloorDiv": "floordiv", "RealDiv": "div", "Div": "div",
    "Maximum": "max", "Minimum": "min", "FloorMod": "remainder", "Equal": "eq", "NotEqual": "ne", "Less": "lt",
    "LessEqual": "le", "Greater": "gt", "GreaterEqual": "ge",
}  # fmt: skip


@rule(
    "Add AddV2 Sub Mul Div RealDiv FloorDiv FloorMod Mod Maximum Minimum Pow SquaredDifference Relu Relu6 Elu Selu"
    " LeakyRelu Sigmoid Tanh Exp Log Log1p Expm1 Sqrt Rsqrt Square Abs Neg Sign Floor Ceil Round Rint Erf Erfc Softplus"
    " Softsign Sin Cos Tan Asin Acos Atan Atan2 Sinh Cosh Equal NotEqual Less LessEqual Greater GreaterEqual LogicalAnd"
    " LogicalOr LogicalNot SelectV2 IsNan IsInf IsFinite ClipByValue Reciprocal Inv DivNoNan MulNoNan Xdivy Xlogy"
    " TruncateDiv TruncateMod BitwiseAnd BitwiseOr BitwiseXor Invert LeftShift RightShift StringLower StringUpper"
    " StaticRegexReplace StaticRegexFullMatch StringStrip StringJoin StringLength AsString StringToNumber"
    " StringToHashBucket StringToHashBucketFast StringToHashBucketStrong Bucketize EncodeBase64 DecodeBase64 AddN"
    " Lgamma Digamma Real Imag Conj ComplexAbs Complex"
)
def elementwise(step: Step) -> Any:
    """Entry by entry."""
    tensors = [step[place] for place in range(len(step.inputs))]
    numbers = [tensor.content for tensor in tensors]
    if step.op in ("Maximum", "Minimum") and len(tensors) == 2 and all(tensor.dims == () for tensor in tensors):
        if (bounded := _bounded(step.op, *tensors)) is not None:
            return bounded
    if step.op in _ARITHMETIC and len(tensors) == 2 and None not in numbers:
        found = _of_contents(_ARITHMETIC[step.op], *numbers)
        if found is not None:
            return of_numbers(step.op, found)
    return rules.broadcast(step.op, tensors)


class AtLeast(Number):
    """A number that is not known, but not below `least`."""

    __slots__ = ("least",)

    def __init__(self, doubt: Doubt | None, least: int) -> None:
        super().__init__(doubt)
        self.least = least


def _bounded(op: str, left: Tensor, right: Tensor) -> Tensor | None:
    """The larger of a limit and a number of the batch; the smaller of that and the same limit is the limit."""
    limit, other = (left, right) if isinstance(left.content, int) else (right, left)
    if not isinstance(limit.content, int):
        return None
    if op == "Maximum" and other.content is None:
        return Tensor((), other.doubt, content=AtLeast(other.doubt, limit.content))
    if op == "Minimum" and isinstance(other.content, AtLeast) and other.content.least >= limit.content:
        return of_numbers(op, limit.content)
    return None


def _of_contents(name: str, left: Any, right: Any) -> Any:
    if isinstance(left, list) and isinstance(right, list):
        return [arithmetic(name, a, b) for a, b in zip(left, right, strict=False)] if len(left) == len(right) else None
    if isinstance(left, list):
        return [arithmetic(name, one, right) for one in left]
    if isinstance(right, list):
        return [arithmetic(name, left, one) for one in right]
    return arithmetic(name, left, right)


@rule(
    "Identity Cast StopGradient PreventGradient CheckNumerics Snapshot EnsureShape PlaceholderWithDefault DebugIdentity"
)
def copied(step: Step) -> Any:
    """The same entries."""
    value = step.inputs[0]
    if not isinstance(value, Tensor):
        return value
    return Tensor(value.dims, value.doubt, value.content, value.position)


@rule("IdentityN")
def all_copied(step: Step) -> Any:
    """The same values."""
    return tuple(step.inputs[: step.count])


@rule("Select")
def select(step: Step) -> Any:
    """One of two tensors for each entry, or for each row."""
    chosen, left, right = (step[place] for place in range(3))
    if chosen.rank == 1 and left.rank is not None and left.rank > 1:
        chosen = Tensor((*(chosen.dims or ()), *((),) * (left.rank - 1)), chosen.doubt)
    return rules.broadcast(step.op, [chosen, left, right])


@rule("ZerosLike OnesLike")
def filled_like(step: Step) -> Any:
    """One number everywhere in a shape."""
    source = step[0]
    plain = source.dims is not None and not any(doubt_of(size_of(dim)) for dim in source.dims)
    return Tensor(source.dims, None if plain else source.doubt)


@rule("BiasAdd BiasAddV1")
def bias_add(step: Step) -> Any:
    """A number for each channel added."""
    source = step[0]
    return rules.unsure(step.op, source, step[1]) if step[1].varies else Tensor(source.dims, source.doubt)


# --- Reductions, and what looks along axes --------------------------------------------------------


@rule("Sum Mean Max Min Prod All Any EuclideanNorm")
def reduction(step: Step) -> Any:
    """One entry for each place on the axes that are left."""
    source, axes = step[0], step.content(1)
    if (
        step.op == "Prod"
        and isinstance(source.content, list)
        and axes in (0, [0], -1, [-1])
        and not step.flag("keep_dims")
    ):
        return of_numbers(step.op, product(source.content))
    if axes is None:
        return rules.unsure(step.op, source, step[1])
    return rules.reduced(step.op, source, axes, keep=step.flag("keep_dims"))


@rule("ArgMax ArgMin")
def places(step: Step) -> Any:
    """Where the largest or smallest entry of an axis is."""
    axis = step.content(1)
    return rules.unsure(step.op, step[0]) if axis is None else rules.reduced(step.op, step[0], axis)


@rule("Softmax LogSoftmax")
def softmax(step: Step) -> Any:
    """Normalised along the last axis."""
    return rules.along(step.op, step[0], -1, "normalises")


@rule("Cumsum Cumprod ReverseV2")
def along(step: Step) -> Any:
    """Entries of an axis computed from each other."""
    return rules.along(
        step.op, step[0], step.content(1), "reverses entries" if step.op == "ReverseV2" else "accumulates"
    )


@rule("Roll")
def roll(step: Step) -> Any:
    """Entries moved along some axes."""
    return rules.along(step.op, step[0], step.content(2), "moves entries").doubted(step[1].doubt)


@rule("TopKV2 TopK")
def top(step: Step) -> Any:
    """The largest entries of the last axis and their places."""
    size = dim_of(step.content(1)) if isinstance(step.content(1), int) else (Symbol(),)
    result = rules.last_axes(step.op, step[0], 1, (size,), "picks the largest entries")
    result = result.doubted(step[1].doubt)
    return result, Tensor(result.dims, result.doubt)


@rule("L2Loss")
def loss(step: Step) -> Any:
    """Half the sum of all squares."""
    return rules.reduced(step.op, step[0], None)


# --- Products, convolutions, pools ----------------------------------------------------------------


def _turned(tensor: Tensor, turn: bool) -> Tensor:
    if not turn or tensor.rank is None or tensor.rank < 2:
        return tensor
    order = list(range(tensor.rank))
    return rules.moved("MatMul", tensor, [*order[:-2], order[-1], order[-2]])


@rule("MatMul BatchMatMul BatchMatMulV2 BatchMatMulV3")
def matmul(step: Step) -> Any:
    """A product of matrices."""
    turns = ("transpose_a", "transpose_b") if step.op == "MatMul" else ("adj_x", "adj_y")
    left, right = (_turned(step[place], step.flag(name)) for place, name in enumerate(turns))
    return rules.matrix_product(step.op, left, right)


@rule("Einsum")
def einsum(step: Step) -> Any:
    """A sum of products by letters."""
    return rules.einsum(step.op, step.node.attr["equation"].s.decode(), [step[i] for i in range(len(step.inputs))])


def _channels_first(step: Step) -> bool:
    return bool(step.node.attr["data_format"].s.startswith(b"NC"))


def _images(step: Step, source: Tensor, channels: Dim | None, verb: str) -> Tensor:
    """Images of which each row is computed for itself; `channels` None keeps them apart, too."""
    if source.dims is None or len(source.dims) < 3:
        return rules.unsure(step.op, source)
    over = None if rows_axis(source.dims) in (None, 0) else mixed(f"{step.op} {verb} {rules.OVER_ROWS}")
    places_ = fresh(len(source.dims) - 2)
    first = _channels_first(step)
    kept = channels if channels is not None else source.dims[1 if first else -1]
    dims = (source.dims[0], kept, *places_) if first else (source.dims[0], *places_, kept)
    return rules.made(step.op, dims, source.doubt, over)


@rule("Conv2D Conv3D DepthwiseConv2dNative Conv2DBackpropInput Conv3DBackpropInputV2 Conv")
def convolution(step: Step) -> Any:
    """Each row of axis 0 for itself."""
    backwards = "Backprop" in step.op
    source, weight = step[2 if backwards else 0], step[1]
    if weight.varies or weight.dims is None or len(weight.dims) < 3:
        return rules.unsure(step.op, source, weight)
    plain = not backwards and step.op != "DepthwiseConv2dNative"
    channels: Dim = weight.dims[-1] if plain else weight.dims[-2] if backwards else (Symbol(),)
    return _images(step, source, channels, "convolves")


@rule("MaxPool AvgPool MaxPool3D AvgPool3D MaxPoolV2")
def pool(step: Step) -> Any:
    """Places of an image pooled; the window is one row high."""
    sizes = step.numbers("ksize") or [0]
    return _images(step, step[0], None, "pools") if sizes[0] == 1 else rules.unsure(step.op, step[0])


@rule("ResizeBilinear ResizeNearestNeighbor ResizeBicubic ResizeArea")
def resize(step: Step) -> Any:
    """Images of another size."""
    return _images(step, step[0], None, "resizes").doubted(step[1].doubt)


@rule("FusedBatchNorm FusedBatchNormV2 FusedBatchNormV3")
def batch_norm(step: Step) -> Any:
    """Each channel shifted and scaled, by stored figures or by those of the batch."""
    source = step[0]
    if any(step[place].varies for place in range(1, 5)):
        result = rules.unsure(step.op, *(step[place] for place in range(5)))
    else:
        training = step.flag("is_training") if "is_training" in step.node.attr else True
        rows = rows_axis(source.dims) is not None
        over = mixed(f"{step.op} normalises {rules.OVER_ROWS}") if training and rows else None
        result = Tensor(source.dims, worst(source.doubt, over))
    return (result, *(Tensor(None, result.doubt) for _ in range(step.count - 1)))


# --- Shapes ---------------------------------------------------------------------------------------


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
    return rules.regrouped(step.op, source, sizes)


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
    return rules.tiled(step.op, step[0], step.content(1))


@rule("BroadcastTo")
def broadcast_to(step: Step) -> Any:
    """Axes of one entry repeated."""
    return rules.expanded(step.op, step[0], step.content(1))


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


# --- Slices and tables ----------------------------------------------------------------------------


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
