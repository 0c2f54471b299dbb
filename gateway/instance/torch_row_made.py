"""What PyTorch's operators that make tensors or collect entries do to the rows of a batch."""

from typing import Any

from gateway.instance import row_rules as rules
from gateway.instance.row_values import (
    ROWS,
    Size,
    Symbol,
    Tensor,
    counting,
    dim_of,
    doubt_of,
    fresh,
    mixed,
    quotient,
    unclear,
    worst,
)
from gateway.instance.torch_row_calls import Call, Items, rule
from gateway.instance.torch_row_rules import scalar_tensor


@rule("zeros", "ones", "empty", "new_zeros", "new_ones", "new_empty", "full", "new_full")
def filled(call: Call) -> Any:
    """One number everywhere; the rows of a batch may be counted for the shape."""
    sizes = call.numbers("size")
    value = counting(call.op, call["fill_value"]) if "fill_value" in call else None
    if sizes is None:
        return Tensor(None, worst(call.doubts(), value))
    return rules.made(call.op, tuple(map(dim_of, sizes)), value, *map(doubt_of, sizes))


@rule("zeros_like", "ones_like", "empty_like", "full_like")
def filled_like(call: Call) -> Any:
    """One number everywhere in the shape of another tensor, whose values do not matter."""
    source = call.args[0]
    value = counting(call.op, call["fill_value"]) if "fill_value" in call else None
    if source.dims is None or any(factor.doubt for dim in source.dims for factor in dim if isinstance(factor, Symbol)):
        return Tensor(source.dims, worst(source.doubt, value))
    return rules.made(call.op, source.dims, value)


@rule("arange", "linspace")
def arange(call: Call) -> Any:
    """Numbers in order; as many as there are rows are the numbers of the rows."""
    start, end, step = call["start"], call["end"], call["step"]
    doubts = [doubt_of(value) for value in (start, end, step)]
    if call.kind == "arange" and start in (None, 0) and step in (None, 1):
        if isinstance(end, Size) and end.symbols.count(ROWS) == 1:
            return Tensor((dim_of(end),), rules.POSITION, position=end == Size(1, (ROWS,)), boolean=False)
        if isinstance(end, int | Size):
            return rules.made(call.op, (dim_of(end),), *doubts, boolean=False)
    if call.kind == "arange" and start == 0 and quotient(end, step) == Size(1, (ROWS,)):
        return Tensor(((ROWS,),), rules.POSITION, content=(step,))  # where the stretch of each row begins
    counted = [counting(call.op, value) for value in (start, end, step)]
    return Tensor(((Symbol(worst(*counted)),),), worst(*counted), boolean=False)


@rule("eye", "scalar_tensor", "tensor", "as_tensor", "tril_indices", "triu_indices", "hann_window", "hamming_window")
def from_numbers(call: Call) -> Any:
    """Tensors made of numbers."""
    value = call.args[0] if call.args else None
    if call.kind in ("scalar_tensor", "tensor", "as_tensor") and not isinstance(value, Items | Tensor):
        return scalar_tensor(call.op, value)
    if isinstance(value, Tensor):
        return value
    return Tensor(fresh(2) if call.kind == "eye" else None, call.doubts())


@rule("one_hot")
def one_hot(call: Call) -> Any:
    """A new axis, as long as the largest number if no length is given."""
    source, classes = call.args[0], call["num_classes"]
    if source.constant:
        return Tensor(None)
    if not isinstance(classes, int) or source.dims is None:
        return rules.unsure(call.op, source)
    largest = mixed(f"{call.op} takes the largest number of the batch for the number of classes")
    return rules.made(call.op, (*source.dims, dim_of(abs(classes))), source.doubt, largest if classes < 0 else None)


@rule("bernoulli", "multinomial", "normal", "rand", "randn", "rand_like", "randn_like", "randint")
def drawn(call: Call) -> Any:
    """Random numbers, in the order in which rows come."""
    return Tensor(None, unclear(f"{call.op} draws random numbers"))
