"""What TensorFlow's operators that compute and reduce, and its layers, do to the rows of a batch."""

from typing import Any

from gateway.instance import row_rules as rules
from gateway.instance.row_numbers import arithmetic
from gateway.instance.row_values import (
    Dim,
    Doubt,
    Number,
    Symbol,
    Tensor,
    dim_of,
    doubt_of,
    fresh,
    mixed,
    product,
    rows_axis,
    size_of,
    worst,
)
from gateway.instance.tensorflow_row_calls import Step, of_numbers, rule

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
    if len(tensors) == 2 and (bounded := _bounded(step.op, *tensors)) is not None:
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
    if not isinstance(limit.content, int) or left.dims != () or right.dims != ():
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
