"""What PyTorch's operators that compute, reduce and make tensors do to the rows of a batch."""

from typing import Any

from gateway.instance import row_rules as rules
from gateway.instance.row_numbers import ARITHMETIC, COMPARISONS, arithmetic
from gateway.instance.row_values import (
    Number,
    Size,
    Symbol,
    Tensor,
    counting,
    dim_of,
    doubt_of,
    mixed,
    rows_axis,
    unclear,
    worst,
)
from gateway.instance.torch_row_calls import Call, Items, depends, rule

_LOGICAL = ("logical_and", "logical_or", "logical_xor", "logical_not", "isnan", "isinf", "isfinite", "signbit")
_UNARY = """
    relu relu6 gelu sigmoid tanh exp exp2 expm1 log log2 log10 log1p abs absolute neg negative sqrt rsqrt square
    reciprocal sin cos tan asin acos atan sinh cosh asinh acosh atanh erf erfc erfinv floor ceil round trunc
    frac sign sgn leaky_relu elu selu celu silu mish hardswish hardsigmoid hardtanh hardshrink softshrink
    softplus log_sigmoid logit threshold clamp clamp_min clamp_max clip nan_to_num bitwise_not deg2rad
    rad2deg sinc lgamma digamma i0 polygamma
""".split()  # noqa: SIM905 - a list of words would fill a page
_BINARY = """
    add sub rsub mul multiply div divide true_divide floor_divide floordiv pow remainder fmod atan2 minimum
    maximum fmax fmin lerp addcmul addcdiv where masked_fill eq ne lt le gt ge greater less greater_equal
    less_equal not_equal subtract bitwise_and bitwise_or bitwise_xor __and__ __or__ __xor__ xlogy hypot
    logaddexp copysign heaviside isclose
""".split()  # noqa: SIM905 - a list of words would fill a page
_COPIES = """
    clone contiguous detach to type_as cpu cuda alias lift_fresh lift_fresh_copy _cast_Float _cast_Long positive
""".split()  # noqa: SIM905 - a list of words would fill a page
_DROPOUTS = (
    "dropout",
    "feature_dropout",
    "alpha_dropout",
    "feature_alpha_dropout",
)


def number_of(tensor: Tensor) -> Any:
    """The number that a tensor without axes holds."""
    return tensor.content if tensor.dims == () and not isinstance(tensor.content, list) else None


def scalar_tensor(op: str, number: Any) -> Tensor:
    """A tensor without axes that holds a number."""
    return Tensor((), counting(op, number), content=number if isinstance(number, int | float | Size) else None)


@rule(*_UNARY, *_BINARY, *_LOGICAL)
def elementwise(call: Call) -> Any:
    """Entry by entry; numbers and lists have operators of the same names."""
    tensors = [value for value in call.args if isinstance(value, Tensor)]
    if not tensors:
        return _of_numbers(call)
    if call.kind == "where" and len(call.args) == 1:
        return Items(None, gathered_from_all(call))
    values = [number_of(value) if isinstance(value, Tensor) else value for value in call.args[:2]]
    if call.kind in ARITHMETIC and len(values) > 1 and None not in values and all(t.dims == () for t in tensors):
        name = call.kind
        if name == "div" and call["rounding_mode"] is not None:
            name = "floor_divide"
        # The factor of add and sub is a third argument, which is 1 wherever sizes are computed.
        if call["alpha"] in (None, 1):
            return scalar_tensor(call.op, arithmetic(name, *values, whole=True))
    numbers = [counting(call.op, value) for value in call.args if not isinstance(value, Tensor)]
    return rules.broadcast(call.op, tensors, *numbers, boolean=_is_boolean(call, tensors))


def _is_boolean(call: Call, tensors: list[Tensor]) -> bool | None:
    """Whether the result is a mask, which indexing takes in another way than numbers."""
    if call.kind in COMPARISONS or call.kind in _LOGICAL or call.kind in _COMPARE_ALIASES:
        return True
    if call.kind == "masked_fill":
        return tensors[0].boolean
    if call.kind == "where":
        tensors = tensors[1:]
    kinds = {tensor.boolean for tensor in tensors}
    if any(isinstance(value, float | int | Size) and not isinstance(value, bool) for value in call.args[:2]):
        kinds.add(False)
    return False if False in kinds else kinds.pop() if len(kinds) == 1 else None


_COMPARE_ALIASES = frozenset({"greater", "less", "greater_equal", "less_equal", "not_equal", "isclose"})


def _of_numbers(call: Call) -> Any:
    if len(call.args) > 1 and all(isinstance(value, Items) for value in call.args[:2]):
        left, right = call.args[:2]
        if call.kind == "add" and left.items is not None and right.items is not None:
            return Items(left.items + right.items, level=call.level)
        if call.kind in COMPARISONS:
            return Number(call.doubts())
        return Items(None, Number(call.doubts() or (unclear(_OF_LISTS) if depends(tuple(call.args)) else None)))
    if call.kind == "mul" and isinstance(call.args[0], Items) and isinstance(call.args[1], int):
        items = call.args[0].items
        if items is not None:
            return Items(items * call.args[1], level=call.level)
    if any(isinstance(value, Items | tuple | dict) for value in call.args):
        return Items(None, Number(call.doubts() or (unclear(_OF_LISTS) if depends(tuple(call.args)) else None)))
    if len(call.args) < 2 or call.kind in ("neg", "floor", "ceil", "round", "abs", "sqrt"):
        return _of_one_number(call)
    return arithmetic(call.kind, call.args[0], call.args[1], whole=call.kind != "div")


def _of_one_number(call: Call) -> Any:
    value = call.args[0]
    if call.kind == "neg" and isinstance(value, int | float):
        return -value
    return value if isinstance(value, int | Size) and call.kind in ("floor", "ceil", "round") else Number(call.doubts())


_OF_LISTS = "the model computes with the number of rows"


@rule(*_COPIES)
def copied(call: Call) -> Any:
    """The same entries, perhaps of another type; other arguments say which."""
    if not isinstance(call.args[0], Tensor):
        return call.args[0] if isinstance(call.args[0], int | Size) else Number(call.doubts())
    source = call.args[0]
    boolean = source.boolean if call.kind in ("clone", "contiguous", "detach", "alias", "lift_fresh", "cpu") else None
    return Tensor(source.dims, source.doubt, source.content, source.position, boolean)


@rule("copy", "fill", "zero")
def overwritten(call: Call) -> Any:
    """Other entries in the shape of the first tensor."""
    target, source = call.args[0], call.args[1] if len(call.args) > 1 else 0
    if not isinstance(source, Tensor):
        return Tensor(target.dims, worst(target.doubt, counting(call.op, source)))
    return rules.broadcast(call.op, [target, source])


@rule(*_DROPOUTS)
def dropout(call: Call) -> Any:
    """Nothing, unless the model trains; what it draws is noticed elsewhere."""
    source = call.tensor("input")
    training = call["train"]
    return Tensor(source.dims, worst(source.doubt, None if training is False else unclear(f"{call.op} draws numbers")))


@rule("rrelu")
def rrelu(call: Call) -> Any:
    """Entry by entry unless it trains."""
    source = call.args[0]
    return Tensor(source.dims, worst(source.doubt, None if call["training"] is False else unclear("draws numbers")))


@rule("prelu")
def prelu(call: Call) -> Any:
    """Entry by entry, with a weight for each channel on axis 1."""
    source, weight = call.args[:2]
    if weight.varies or (rows_axis(source.dims) == 1 and weight.dims not in ((), ((),))):
        return rules.unsure(call.op, source, weight)
    return Tensor(source.dims, source.doubt)


# --- Reductions and what keeps the shape but looks along axes -------------------------------------


@rule("sum", "mean", "prod", "std", "var", "amax", "amin", "logsumexp", "nansum", "nanmean", "count_nonzero")
def reduction(call: Call) -> Any:
    """One entry for each place on the axes that are left."""
    return _reduced(call, call.args[0])


@rule("all", "any", "argmax", "argmin")
def reduction_of_items(call: Call) -> Any:
    """As above; lists of booleans have all and any too."""
    if isinstance(call.args[0], Items):
        return Number(call.doubts())
    return _reduced(call, call.args[0])


def _reduced(call: Call, tensor: Tensor) -> Tensor:
    axes: Any = None
    if "dim" in call:
        given = call["dim"]
        axes = given if given is None else call.numbers("dim")
        if given is not None and axes is None:
            return rules.unsure(call.op, tensor)
        axes = axes or None  # an empty list means all
    keep = call["keepdim"]
    result = rules.reduced(call.op, tensor, axes, keep=False if keep is None else keep)
    result.boolean = True if call.kind in ("all", "any") else False if call.kind.startswith("arg") else tensor.boolean
    return result


@rule("max", "min", "median", "nanmedian", "mode", "kthvalue", "cummax", "cummin", "sort", "topk", "aminmax")
def reduction_with_places(call: Call) -> Any:
    """Values and where they were found; of two tensors max and min are entry by entry."""
    if not isinstance(call.args[0], Tensor):
        return arithmetic(call.kind, *call.args[:2]) if len(call.args) > 1 else Number(call.doubts())
    if "other" in call:
        return elementwise(call)
    tensor = call.args[0]
    if call.outputs == 1:
        return _reduced(call, tensor)
    axis = call["dim"] if "dim" in call and call["dim"] is not None else None
    if call.kind in ("sort", "cummax", "cummin"):
        result = rules.along(call.op, tensor, axis, "sorts" if call.kind == "sort" else "accumulates")
    elif call.kind == "topk":
        size = dim_of(call["k"]) if isinstance(call["k"], int | Size) else (Symbol(doubt_of(call["k"])),)
        result = rules.along(call.op, tensor, axis, "picks the largest entries")
        if result.dims is not None and isinstance(axis, int) and isinstance(tensor.dims, tuple):
            result = rules.resized(call.op, tensor, {axis: size}, "picks the largest entries")
        result = result.doubted(counting(call.op, call["k"]))
    else:
        result = _reduced(call, tensor)
    return result, Tensor(result.dims, result.doubt, boolean=False)


@rule("std_mean", "var_mean")
def two_reductions(call: Call) -> Any:
    """Two of the reductions at once."""
    result = _reduced(call, call.args[0])
    return result, Tensor(result.dims, result.doubt)


@rule("softmax", "log_softmax", "_softmax", "_log_softmax")
def softmax(call: Call) -> Any:
    """Normalised along one axis."""
    return rules.along(call.op, call.args[0], call["dim"], "normalises")


@rule("cumsum", "cumprod", "logcumsumexp", "flip", "argsort", "roll", "renorm")
def looks_along(call: Call) -> Any:
    """Entries of an axis computed from, or put in the place of, each other."""
    verbs = {"flip": "reverses entries", "argsort": "sorts", "roll": "moves entries", "renorm": "normalises"}
    axes = call.numbers("dims") if "dims" in call else call["dim"]
    if call.kind == "roll" and not axes:  # all entries one behind the other
        axes = list(range(call.args[0].rank)) if call.args[0].rank is not None else None
    if call.kind == "renorm":
        return rules.unsure(call.op, *call.args)
    verb = verbs.get(call.kind, "accumulates")
    return rules.along(call.op, call.args[0], axes, verb).doubted(call.doubts())


@rule("flipud", "fliplr")
def flipped(call: Call) -> Any:
    """Reversed along the first or second axis."""
    return rules.along(call.op, call.args[0], [0 if call.kind == "flipud" else 1], "reverses entries")


@rule("norm", "linalg_vector_norm", "frobenius_norm")
def norm(call: Call) -> Any:
    """The length of vectors along some axes."""
    result = _reduced(call, call.args[0])
    power = call["p"] if "p" in call else call["ord"]
    return result.doubted(counting(call.op, power) if power is not None else None)


@rule("cosine_similarity")
def similarity(call: Call) -> Any:
    """Two tensors lined up, one axis reduced."""
    both = rules.broadcast(call.op, [call.args[0], call.args[1]])
    return rules.reduced(call.op, both, call["dim"])


@rule("pairwise_distance")
def distance(call: Call) -> Any:
    """Two tensors lined up, the last axis reduced."""
    both = rules.broadcast(call.op, [call.args[0], call.args[1]])
    return rules.reduced(call.op, both, -1, keep=call["keepdim"])


@rule("cdist")
def distances(call: Call) -> Any:
    """The distance of each vector of one to each of the other, as a matrix product."""
    left, right = call.args[:2]
    if right.dims is None or len(right.dims) < 2:
        return rules.unsure(call.op, left, right)
    return rules.matrix_product(call.op, left, rules.moved(call.op, right, _swapped(len(right.dims))))


def _swapped(rank: int) -> list[int]:
    return [*range(rank - 2), rank - 1, rank - 2]


@rule("nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount", "histc")
def gathered_from_all(call: Call) -> Any:
    """Entries of all rows put into one list."""
    source = call.args[0]
    where = any(isinstance(value, Tensor) and rows_axis(value.dims) is not None for value in call.args)
    whole = mixed(f"{call.op} collects entries of all rows of the batch") if where else None
    result = Tensor(None, worst(whole, call.doubts(), source.doubt))
    return tuple(Tensor(None, result.doubt) for _ in range(call.outputs)) if call.outputs > 1 else result
