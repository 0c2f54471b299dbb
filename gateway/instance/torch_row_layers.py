"""What PyTorch's layers do to the rows of a batch: products, convolutions, pools, norms, recurrences, attention."""

import re
from typing import Any

from gateway.instance import row_rules as rules
from gateway.instance.row_values import (
    ROWS,
    Dim,
    Dims,
    Symbol,
    Tensor,
    counting,
    dim_of,
    fresh,
    mixed,
    product,
    rows_axis,
    unclear,
    worst,
)
from gateway.instance.torch_row_calls import Call, rule


@rule("linear")
def linear(call: Call) -> Any:
    """The last axis multiplied with a weight."""
    source, weight, bias = call.args[:3]
    if weight.varies or (isinstance(bias, Tensor) and bias.varies) or weight.dims is None:
        return rules.unsure(call.op, source, weight)
    return rules.last_axes(call.op, source, 1, weight.dims[:-1], "sums")


@rule("matmul", "bmm", "mm", "mv", "dot")
def matmul(call: Call) -> Any:
    """A product of matrices."""
    return rules.matrix_product(call.op, *call.args[:2])


@rule("addmm", "baddbmm", "addbmm", "addmv")
def addmm(call: Call) -> Any:
    """A product of matrices added to a third."""
    added, left, right = call.args[:3]
    if call.kind == "addbmm":
        return rules.unsure(call.op, *call.args)
    factors = [counting(call.op, call[name]) for name in ("beta", "alpha")]
    return rules.broadcast(call.op, [added, rules.matrix_product(call.op, left, right, *factors)])


@rule("einsum")
def einsum(call: Call) -> Any:
    """A sum of products by letters."""
    tensors = call.tensors("tensors")
    return rules.einsum(call.op, call["equation"], tensors) if tensors else rules.unsure(call.op, *call.args)


@rule("outer", "ger")
def outer(call: Call) -> Any:
    """Every pair of entries."""
    left, right = call.args[:2]
    if left.rank != 1 or right.rank != 1:
        return rules.unsure(call.op, left, right)
    return rules.made(call.op, left.dims + right.dims, left.doubt, right.doubt)


@rule("bilinear")
def bilinear(call: Call) -> Any:
    """The last axes of two tensors multiplied through a weight."""
    left, right, weight = call.args[:3]
    if weight.varies or weight.dims is None:
        return rules.unsure(call.op, *call.args)
    first = rules.last_axes(call.op, left, 1, weight.dims[:1], "sums")
    return rules.broadcast(call.op, [first, rules.last_axes(call.op, right, 1, weight.dims[:1], "sums")])


# --- Convolutions, pools, images ------------------------------------------------------------------


@rule(
    "conv1d", "conv2d", "conv3d", "_convolution", "convolution", "conv_transpose1d", "conv_transpose2d",
    "conv_transpose3d", "_convolution_mode", "thnn_conv2d", "mkldnn_convolution",
)  # fmt: skip
def convolution(call: Call) -> Any:
    """Each row of axis 0 for itself; without that axis what comes first are channels."""
    source, weight = call.args[:2]
    if weight.varies or weight.dims is None or source.dims is None:
        return rules.unsure(call.op, source, weight)
    spatial = len(weight.dims) - 2
    transposed = "transpose" in call.kind or call["transposed"] not in (None, False)
    channels: Dim = (Symbol(),) if transposed else weight.dims[0]
    if len(source.dims) == spatial + 2:
        return rules.last_axes(call.op, source, spatial + 1, (channels, *fresh(spatial)), "convolves")
    return rules.last_axes(call.op, source, len(source.dims), (channels, *fresh(spatial)), "convolves")


@rule("channel_shuffle", "pixel_shuffle", "pixel_unshuffle")
def shuffle(call: Call) -> Any:
    """Channels and places of an image rearranged."""
    return rules.last_axes(call.op, call.args[0], 3, fresh(3), "rearranges")


_DIGIT = re.compile(r"([123])d")


@rule(
    *(f"{kind}{n}d" for kind in ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool") for n in (1, 2, 3)),
    *(f"{kind}{n}d" for kind in ("reflection_pad", "replication_pad") for n in (1, 2, 3)),
    *(f"max_pool{n}d_with_indices" for n in (1, 2, 3)), "upsample_linear1d", "upsample_nearest1d",
    "upsample_nearest2d", "upsample_nearest3d",
    "upsample_bilinear2d", "upsample_bicubic2d", "upsample_trilinear3d", "_adaptive_avg_pool2d",
    "_adaptive_avg_pool3d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa",
)  # fmt: skip
def spatial(call: Call) -> Any:
    """The last axes, which are places, computed from each other; channels and rows are kept."""
    match = _DIGIT.search(call.kind)
    count = int(match[1]) if match else 0
    sizes = call.numbers("output_size") if "adaptive" in call.kind else None
    verb = "pads" if "pad" in call.kind else "resizes" if "upsample" in call.kind else "pools"
    new: Dims = fresh(count)
    if sizes is not None and len(sizes) == count and all(isinstance(size, int) for size in sizes):
        new = tuple(map(dim_of, sizes))
    result = rules.last_axes(call.op, call.args[0], count, new, verb).doubted(call.doubts())
    return (
        (result, *(Tensor(result.dims, result.doubt) for _ in range(call.outputs - 1))) if call.outputs > 1 else result
    )


@rule("constant_pad_nd", "pad")
def pad(call: Call) -> Any:
    """Entries put around the last axes."""
    source, amounts = call.args[0], call.numbers("pad")
    if amounts is None or source.dims is None:
        return rules.unsure(call.op, source, *call.args[1:2])
    pairs = [amounts[index : index + 2] for index in range(0, len(amounts) - 1, 2)]
    sizes: dict[int, Dim] = {-1 - place: (Symbol(),) for place, pair in enumerate(pairs) if pair != [0, 0]}
    if any(-axis > len(source.dims) for axis in sizes):
        return rules.unsure(call.op, source)
    if any(ROWS in source.dims[axis] for axis in sizes):
        return rules.resized(call.op, source, sizes, "pads").doubted(call.doubts())
    return rules.resized(call.op, source, sizes, "pads").doubted(call.doubts()) if sizes else source


@rule("grid_sampler", "grid_sampler_2d", "grid_sampler_3d")
def grid_sampler(call: Call) -> Any:
    """Places of an image picked by a grid of the same row."""
    source, grid = call.args[:2]
    if source.dims is None or grid.dims is None or source.rank != grid.rank or source.dims[:1] != grid.dims[:1]:
        return rules.unsure(call.op, source, grid)
    over = rows_axis(source.dims[2:]) is not None or rows_axis(grid.dims[1:]) is not None
    dims = (*source.dims[:2], *grid.dims[1:-1])
    return rules.made(
        call.op, dims, source.doubt, grid.doubt, unclear(f"{call.op} samples over rows") if over else None
    )


# --- Normalisation --------------------------------------------------------------------------------


@rule("batch_norm", "native_batch_norm", "instance_norm", "cudnn_batch_norm")
def batch_norm(call: Call) -> Any:
    """Each channel (axis 1) shifted and scaled: by stored figures, by those of the batch, or by those of each row."""
    source, stored = call.args[0], call["running_mean"]
    own = call["training"] if "training" in call else call["use_input_stats"]
    if source.dims is None or any(isinstance(value, Tensor) and value.varies for value in call.args[1:5]):
        return rules.unsure(call.op, *call.args[:5])
    result = Tensor(source.dims, source.doubt)
    place = rows_axis(source.dims)
    if own is False and stored is not None:
        over = unclear(f"{call.op} takes the rows for channels") if place == 1 else None
    elif call.kind == "instance_norm":
        over = mixed(f"{call.op} normalises {rules.OVER_ROWS}") if place not in (None, 0, 1) else None
        over = over or (unclear(f"{call.op} takes the rows for channels") if place == 1 else None)
    elif own is True or stored is None:
        over = mixed(f"{call.op} normalises {rules.OVER_ROWS}") if place not in (None, 1) else None
        over = over or (unclear(f"{call.op} takes the rows for channels") if place == 1 else None)
    else:
        over = unclear(f"{call.op} may normalise {rules.OVER_ROWS}")
    result = result.doubted(over)
    return (result, *(Tensor(None, result.doubt) for _ in range(call.outputs - 1))) if call.outputs > 1 else result


@rule("layer_norm", "rms_norm", "native_layer_norm")
def layer_norm(call: Call) -> Any:
    """The last axes normalised."""
    source, shape = call.args[0], call.numbers("normalized_shape")
    if source.dims is None or shape is None or any(isinstance(v, Tensor) and v.varies for v in call.args[2:]):
        return rules.unsure(call.op, *call.args)
    count = len(shape)
    result = rules.last_axes(call.op, source, count, source.dims[len(source.dims) - count :], "normalises")
    return (result, *(Tensor(None, result.doubt) for _ in range(call.outputs - 1))) if call.outputs > 1 else result


@rule("group_norm")
def group_norm(call: Call) -> Any:
    """All axes but the first normalised in groups."""
    source = call.args[0]
    if not source.dims or any(isinstance(value, Tensor) and value.varies for value in call.args[1:]):
        return rules.unsure(call.op, *call.args)
    return rules.last_axes(call.op, source, len(source.dims) - 1, source.dims[1:], "normalises")


@rule("glu")
def glu(call: Call) -> Any:
    """One half of an axis gated by the other."""
    source, axis = call.args[0], call["dim"]
    if not isinstance(axis, int):
        return rules.unsure(call.op, source)
    axes = rules.axes_of(source, axis)
    if not axes or source.dims is None:
        return rules.unsure(call.op, source)
    whole = source.dims[axes[0]]
    half: Dim = (whole[0] // 2,) if len(whole) == 1 and isinstance(whole[0], int) else (Symbol(),)
    return rules.resized(call.op, source, {axes[0]: half}, "gates")


# --- Tables ---------------------------------------------------------------------------------------


@rule("embedding")
def embedding(call: Call) -> Any:
    """A row of a table for each index."""
    weight, indices = call["weight"], call["indices"]
    if weight.varies or weight.dims is None or indices.dims is None:
        return rules.unsure(call.op, weight, indices)
    return rules.made(call.op, (*indices.dims, *weight.dims[1:]), indices.doubt, boolean=False)


@rule("embedding_bag")
def embedding_bag(call: Call) -> Any:
    """Rows of a table summed over the stretches of a list; the stretches must be those of whole rows."""
    weight, indices, offsets = call["weight"], call["indices"], call["offsets"]
    found = rules.unsure(call.op, weight, indices, offsets)
    stretch = offsets.content if isinstance(offsets, Tensor) else None
    dims: Dims = indices.dims or ()
    samples = call["per_sample_weights"]
    alike = not isinstance(samples, Tensor) or samples.dims == indices.dims
    if (
        weight.dims is not None
        and not weight.varies
        and alike
        and len(dims) == 1
        and isinstance(stretch, tuple)
        and stretch
    ):
        whole = dims[0][:1] == (ROWS,) and product(dims[0]) == product((ROWS, stretch[0]))
        if whole and call["include_last_offset"] is False:
            weights = samples.doubt if isinstance(samples, Tensor) else None
            found = Tensor(((ROWS,), *weight.dims[1:]), worst(indices.doubt, weights))
    return (found, *(Tensor(None, found.doubt or unclear("not followed")) for _ in range(call.outputs - 1)))


# --- Reduced precision ----------------------------------------------------------------------------


@rule("quantized::linear_dynamic", "quantized::linear_relu_dynamic", "quantize_per_tensor_dynamic")
def scaled_by_batch(call: Call) -> Any:
    """Numbers rounded in steps that are chosen by the smallest and the largest of all."""
    source = call.args[0]
    over = (
        mixed(f"{call.op} chooses its scale by all rows of the batch") if rows_axis(source.dims) is not None else None
    )
    return Tensor(None, worst(over, call.doubts()))


@rule("quantize_per_tensor", "dequantize")
def rounded(call: Call) -> Any:
    """Entry by entry in steps that are constant."""
    source = call.args[0]
    if not isinstance(source, Tensor):
        return rules.unsure(call.op, *call.args)
    return Tensor(source.dims, call.doubts())


@rule("stft", "fft_rfft", "fft_fft", "fft_irfft", "fft_ifft")
def spectrum(call: Call) -> Any:
    """The frequencies along one axis, or over windows of the last one."""
    source = call.args[0]
    if call.kind == "stft":
        if call["return_complex"] is not True:
            return rules.unsure(call.op, source)
        return rules.last_axes(call.op, source, 1, fresh(2), "transforms").doubted(call.doubts())
    if not isinstance(call["dim"], int):
        return rules.unsure(call.op, source)
    return rules.resized(call.op, source, {call["dim"]: (Symbol(),)}, "transforms").doubted(call.doubts())


@rule("tril", "triu")
def triangle(call: Call) -> Any:
    """The part of matrices above or below their diagonal."""
    source = call.args[0]
    return rules.along(call.op, source, [-2, -1], "cuts a triangle").doubted(call.doubts())


@rule("real", "imag", "view_as_real", "view_as_complex", "angle", "conj", "resolve_conj")
def complex_parts(call: Call) -> Any:
    """Entry by entry; the parts of complex numbers make a last axis."""
    source = call.args[0]
    if call.kind == "view_as_real":
        return Tensor(None if source.dims is None else (*source.dims, (2,)), source.doubt)
    if call.kind == "view_as_complex":
        return rules.last_axes(call.op, source, 1, (), "combines")
    return Tensor(source.dims, source.doubt)


@rule("bucketize")
def bucketize(call: Call) -> Any:
    """Entry by entry against constant limits."""
    source, limits = call.args[:2]
    if not isinstance(source, Tensor) or limits.varies:
        return rules.unsure(call.op, *call.args)
    return Tensor(source.dims, source.doubt, boolean=False)
