"""What PyTorch's recurrent layers and attention do to the rows of a batch."""

from typing import Any

from gateway.instance import row_rules as rules
from gateway.instance.row_values import (
    ROWS,
    Dim,
    Dims,
    Doubt,
    Symbol,
    Tensor,
    fresh,
    mixed,
    rows_axis,
    unclear,
    worst,
)
from gateway.instance.torch_row_calls import Call, Items, rule


@rule("lstm", "gru", "rnn_tanh", "rnn_relu")
def recurrent(call: Call) -> Any:
    """A layer that goes along the axis of steps; the other one holds the rows."""
    if "batch_sizes" in call:
        doubt = worst(call.doubts(), unclear(f"{call.op} takes packed sequences"))
        return tuple(Tensor(None, doubt) for _ in range(call.outputs))
    source, first = call["input"], call["batch_first"]
    hidden = call["hx"]
    states = (
        (call.tensors("hx") or [Tensor(None, unclear(f"{call.op} takes unknown states"))])
        if isinstance(hidden, Items)
        else [hidden]
    )
    dims = source.dims
    if dims is None or len(dims) != 3 or not isinstance(first, bool) or any(state.rank != 3 for state in states):
        doubt = rules.unsure(call.op, source, *states).doubt
        return tuple(Tensor(None, doubt) for _ in range(call.outputs))
    batch, steps = (0, 1) if first else (1, 0)
    doubt = worst(source.doubt, *(state.doubt for state in states))
    if ROWS in dims[steps]:
        doubt = worst(doubt, mixed(f"{call.op} takes the rows of the batch for the steps of one sequence"))
    elif ROWS in dims[2]:
        doubt = worst(doubt, mixed(f"{call.op} sums {rules.OVER_ROWS}"))
    place = dims[batch]
    last: list[Dims] = [state.dims or () for state in states]
    if any(state[1] != place for state in last):
        doubt = worst(doubt, unclear(f"{call.op} takes states whose rows are not those of the input"))
    width: Dim = (Symbol(),)
    output = (place, dims[1], width) if first else (dims[0], place, width)
    return (Tensor(output, doubt), *(Tensor((state[0], place, state[2]), doubt) for state in last[: call.outputs - 1]))


@rule("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
def cell(call: Call) -> Any:
    """One step of a recurrent layer for rows of features."""
    source, hidden = call["input"], call["hx"]
    states = call.tensors("hx") if isinstance(hidden, Items) else [hidden]
    weights = [value for value in call.args[2:] if isinstance(value, Tensor)]
    dims = source.dims
    if dims is None or len(dims) != 2 or not states or any(state.rank != 2 for state in states):
        alike = False
    else:
        alike = all((state.dims or ())[:1] == dims[:1] for state in states)
    if dims is None or not alike or not states or any(weight.varies for weight in weights):
        doubt = rules.unsure(call.op, source, *(states or ())).doubt
        found = [Tensor(None, doubt) for _ in range(call.outputs)]
    else:
        over = mixed(f"{call.op} sums {rules.OVER_ROWS}") if ROWS in dims[1] else None
        doubt = worst(source.doubt, over, *(state.doubt for state in states))
        found = [Tensor(state.dims, doubt) for state in states]
    return tuple(found) if call.outputs > 1 else found[0]


@rule("scaled_dot_product_attention")
def attention(call: Call) -> Any:
    """Each query of a row looks at the keys of the same row."""
    tensors = [value for value in call.args[:4] if isinstance(value, Tensor)]
    known = [tensor.dims for tensor in tensors if tensor.dims is not None]
    if len(known) < len(tensors) or any(len(dims) < 2 for dims in known):
        return rules.unsure(call.op, *tensors)
    (query, key, value), masks = known[:3], known[3:]
    over = unclear(f"{call.op} takes rows for queries") if ROWS in query[-2] else None
    if rows_axis(key[-2:]) is not None or rows_axis(value[-2:]) is not None or ROWS in query[-1]:
        over = mixed(f"{call.op} looks {rules.OVER_ROWS}")
    elif any(rows_axis(dims[-2:]) is not None for dims in masks):
        over = over or unclear(f"{call.op} takes a mask whose rows are not those of the queries")
    before, problem = rules.lined_up(call.op, [dims[:-2] for dims in known])
    return rules.made(call.op, (*before, query[-2], value[-1]), over, problem, *(t.doubt for t in tensors))


@rule("_transformer_encoder_layer_fwd")
def encoder_layer(call: Call) -> Any:
    """A whole layer of an encoder over (rows, steps, features)."""
    source, mask = call["src"], call["mask"]
    weights = [value for value in call.args[1:] if isinstance(value, Tensor) and value is not mask]
    over: Doubt | None = (
        mixed(f"{call.op} looks {rules.OVER_ROWS}") if rows_axis((source.dims or ())[1:]) is not None else None
    )
    if source.rank != 3 or any(weight.varies for weight in weights):
        return rules.unsure(call.op, *call.args[:1], *weights)
    if isinstance(mask, Tensor) and mask.varies and rows_axis(mask.dims) != 0:
        over = over or unclear(f"{call.op} takes a mask whose rows are not those of its input")
    return Tensor(source.dims, worst(source.doubt, over, mask.doubt if isinstance(mask, Tensor) else None))


@rule("_native_multi_head_attention")
def native_attention(call: Call) -> Any:
    """Attention over (rows, steps, features) in one operator."""
    several, mask = call.args[:3], call["mask"]
    weights = [value for value in call.args[3:] if isinstance(value, Tensor) and value is not mask]
    placed = all(tensor.rank == 3 and rows_axis(tensor.dims) == 0 for tensor in several)
    masked = not isinstance(mask, Tensor) or mask.constant or rows_axis(mask.dims) == 0
    doubt = worst(*(tensor.doubt for tensor in several), mask.doubt if isinstance(mask, Tensor) else None)
    if not placed or not masked or any(weight.varies for weight in weights):
        doubt = worst(doubt, unclear(f"{call.op} takes rows that are arranged in another way"))
    head: Dims = (several[0].dims or ((), (), ()))[:3]
    steps = (several[1].dims or ((), ()))[1]
    pairs: Dims = (
        (head[0], head[1], steps) if call["average_attn_weights"] is True else (head[0], *fresh(1), head[1], steps)
    )
    return Tensor(head, doubt), Tensor(pairs, doubt)


@rule("_pack_padded_sequence")
def packed(call: Call) -> Any:
    """The steps of all rows in the order of time, which a recurrent layer takes."""
    doubt = worst(call.doubts(), unclear(f"{call.op} packs the steps of all rows of the batch"))
    return tuple(Tensor(None, doubt) for _ in range(call.outputs))


@rule("_pad_packed_sequence")
def padded(call: Call) -> Any:
    """Sequences of a length for each row, filled up to the longest or to a length that is given."""
    doubt: Doubt | None
    if isinstance(call["total_length"], int) and call["total_length"] > 0:
        doubt = worst(call.doubts(), unclear(f"{call.op} takes packed sequences"))
    else:
        doubt = mixed(f"{call.op} pads to the longest sequence of the batch")
    return tuple(Tensor(None, doubt) for _ in range(call.outputs))
