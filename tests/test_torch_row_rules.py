"""Each rule for an operator against what the operator does to rows together and alone."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from gateway.instance.torch_row_calls import RULES
from gateway.instance.torch_rows import row_separation
from gateway.instance.torch_types import Argument

pytestmark = pytest.mark.filterwarnings("ignore")

Tensor = torch.Tensor
ROWS = 3

UNARY = """
    relu relu6 gelu sigmoid tanh exp exp2 expm1 log1p abs neg square sin cos atan sinh asinh erf floor ceil
    round trunc frac sign leaky_relu elu selu celu silu mish hardswish hardsigmoid hardtanh softplus log_sigmoid
    nan_to_num logical_not isnan isinf isfinite clone contiguous detach t real sinc
""".split()  # noqa: SIM905 - a list of words would fill a page
AXES = """
    sum mean prod std var amax amin logsumexp all any argmax argmin softmax log_softmax cumsum cumprod
    logcumsumexp argsort sort max min median mode cummax flip unbind unsqueeze squeeze norm count_nonzero
    std_mean
""".split()  # noqa: SIM905 - a list of words would fill a page


def shifted(x: Tensor, axis: int) -> Tensor:
    return torch.roll(x, 1, axis)


def _index() -> Tensor:
    return torch.tensor([1, 0])


CALLS: dict[str, Callable[..., Any]] = {
    "roll": shifted,
    "roll_all": lambda x, _: torch.roll(x, 1),
    "topk": lambda x, axis: x.topk(1, axis)[0],
    "kthvalue": lambda x, axis: x.kthvalue(1, axis)[0],
    "select": lambda x, axis: x.select(axis, 0),
    "slice": lambda x, axis: x.narrow(axis, 0, 1),
    "chunk": lambda x, axis: x.chunk(2, axis)[0],
    "split": lambda x, axis: x.split(2, axis)[0],
    "index_select": lambda x, axis: x.index_select(axis, torch.tensor([0])),
    "gather": lambda x, axis: x.gather(axis, torch.zeros_like(x).long()),
    "transpose": lambda x, axis: x.transpose(0, axis),
    "transposed_back": lambda x, axis: (x.transpose(0, axis) + 1).transpose(0, axis),
    "flatten": lambda x, axis: x.flatten(min(axis, 1)),
    "view_rows": lambda x, _: x.reshape(x.size(0), -1),
    "view_last": lambda x, _: x.reshape(-1, x.size(-1)),
    "view_folded": lambda x, _: x.reshape(x.size(1), -1),
    "view_moved": lambda x, _: x.transpose(0, 1).reshape(x.size(0), -1),
    "view_and_back": lambda x, _: (x.transpose(0, 1).reshape(-1, 4) * 2).view(x.size(1), x.size(0), 4).transpose(0, 1),
    "expand": lambda x, _: x[:, :1].expand(-1, 5, -1),
    "repeat": lambda x, _: x.repeat(1, 2, 1),
    "repeat_rows": lambda x, _: x.repeat(2, 1, 1),
    "repeat_interleave": lambda x, axis: x.repeat_interleave(2, axis),
    "tile": lambda x, _: torch.tile(x, (2,)),
    "pad": lambda x, _: functional.pad(x, (1, 1, 0, 2)),
    "pad_rows": lambda x, _: functional.pad(x, (0, 0, 0, 0, 1, 0)),
    "cat": lambda x, axis: torch.cat([x, x * 2], axis),
    "stack": lambda x, axis: torch.stack([x, x * 2], axis),
    "matmul": lambda x, _: x @ torch.ones(4, 2),
    "matmul_rows": lambda x, _: x @ x.transpose(1, 2),
    "matmul_vector": lambda x, _: x @ torch.arange(4.0),
    "matmul_over": lambda x, _: x.permute(1, 2, 0) @ x.permute(1, 0, 2),
    "matmul_wide": lambda x, _: x[:, 0] @ x.transpose(1, 2),
    "einsum": lambda x, _: torch.einsum("bij,bkj->bik", x, x),
    "einsum_pairs": lambda x, _: torch.einsum("bij,ckj->bcik", x, x).sum(1),
    "broadcast_late": lambda x, _: x[:, :, 0] + x[:, 0, 0],
    "broadcast_pairs": lambda x, _: x[:, None] - x[None],
    "conv": lambda x, _: functional.conv1d(x, torch.ones(2, 2, 3), padding=1),
    "conv_unbatched": lambda x, _: functional.conv1d(x[:, 0][None], torch.ones(1, 1, 3), padding=1)[0],
    "conv_over": lambda x, _: functional.conv1d(x.permute(1, 2, 0), torch.ones(4, 4, 3), padding=1).permute(2, 1, 0),
    "pool": lambda x, _: functional.max_pool1d(x, 2),
    "pool_over": lambda x, _: functional.avg_pool1d(x.permute(1, 2, 0), 3, 1, 1).permute(2, 0, 1),
    "interpolate": lambda x, _: functional.interpolate(x, scale_factor=2.0),
    "group_norm": lambda x, _: functional.group_norm(x, 2),
    "instance_norm": lambda x, _: functional.instance_norm(x),
    "batch_norm": lambda x, _: functional.batch_norm(x, torch.zeros(2), torch.ones(2)),
    "batch_norm_training": lambda x, _: functional.batch_norm(x, None, None, training=True),
    "layer_norm": lambda x, _: functional.layer_norm(x, (2, 4)),
    "layer_norm_moved": lambda x, _: functional.layer_norm(x.transpose(0, 2), (2,)).transpose(0, 2),
    "attention": lambda x, _: functional.scaled_dot_product_attention(x, x, x),
    "attention_over": lambda x, _: functional.scaled_dot_product_attention(*[x.transpose(0, 1)] * 3).transpose(0, 1),
    "cdist": lambda x, _: torch.cdist(x, x),
    "cdist_pairs": lambda x, _: torch.cdist(x[:, 0], x[:, 1]),
    "cosine": lambda x, _: functional.cosine_similarity(x, x + 1, dim=1),
    "cosine_pairs": lambda x, _: functional.cosine_similarity(x[:, None], x[None], dim=-1),
    "glu": functional.glu,
    "tril": lambda x, _: x.tril(),
    "tril_over": lambda x, _: x.transpose(0, 1).tril().transpose(0, 1),
    "fft": lambda x, axis: torch.fft.fft(x, dim=axis).abs(),
    "where": lambda x, _: torch.where(x > 0, x, x.mean(1, keepdim=True)),
    "masked_fill": lambda x, _: x.masked_fill(x > 0, 0.5),
    "scatter": lambda x, axis: torch.zeros_like(x).scatter(axis, torch.zeros_like(x).long(), x),
    "index_of_rows": lambda x, _: x[torch.arange(x.size(0)), x[:, 0].argmax(1) % 2],
    "index_inner": lambda x, _: x[:, _index()],
    "index_outer": lambda x, _: x[torch.tensor([0])],
    "lookup": lambda x, _: torch.arange(8.0).view(4, 2)[x[:, 0].argmax(1)],
    "embedding": lambda x, _: functional.embedding(x.argmax(-1), torch.arange(8.0).view(4, 2)),
    "one_hot": lambda x, _: functional.one_hot(x.argmax(-1), 4),
    "swap_in_place": lambda x, _: x.clone().copy_(x.flip(0)),
    "view_in_place": lambda x, _: _written(x),
    "numbers": lambda x, _: x / x.size(1),
    "row_numbers": lambda x, _: x / x.size(0),
    "dropout": lambda x, _: functional.dropout(x, 0.5, training=False),
    "linear": lambda x, _: functional.linear(x, torch.ones(3, 4)),
    "prelu": lambda x, _: functional.prelu(x, torch.tensor([0.1, 0.2])),
    "bucketize": lambda x, _: torch.bucketize(x, torch.tensor([0.0, 1.0])),
    "movedim": lambda x, axis: torch.movedim(x, 0, axis),
    "outer": lambda x, _: torch.outer(x[:, 0, 0], torch.arange(3.0)),
}


def _written(x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    view = out.transpose(0, 1)
    view.copy_(x.transpose(0, 1).cumsum(1))
    return out


def _cases() -> list[Any]:
    found = [
        pytest.param(lambda x, _, n=name: getattr(torch.ops.aten, n)(x), 0, id=name) for name in UNARY if name != "t"
    ]
    for axis in range(3):
        found += [pytest.param(lambda x, axis, n=name: _along(n, x, axis), axis, id=f"{name}-{axis}") for name in AXES]
        found += [pytest.param(function, axis, id=f"{name}-{axis}") for name, function in CALLS.items()]
    return found


def _along(name: str, x: Tensor, axis: int) -> Any:
    if name in ("all", "any"):
        x = x > 0
    found = torch.flip(x, [axis]) if name == "flip" else getattr(torch, name)(x, dim=axis)
    return found if isinstance(found, Tensor) else next(iter(found))


class Of(nn.Module):
    def __init__(self, function: Callable[..., Any], axis: int) -> None:
        super().__init__()
        self.function, self.axis = function, axis

    def forward(self, x: Tensor) -> Any:
        return self.function(x, self.axis)


@pytest.mark.parametrize(("function", "axis"), _cases())
def test_an_operator_is_called_separate_only_if_rows_alone_get_the_same(
    function: Callable[..., Any], axis: int
) -> None:
    rows = torch.randn(ROWS, 2, 4, generator=torch.Generator().manual_seed(1)) * torch.tensor([1.0, 5, 30]).view(
        3, 1, 1
    )
    module = Of(function, axis).eval()
    try:
        traced = torch.jit.trace(module, (rows,), check_trace=False)
        together, alone = module(rows), [module(rows[index : index + 1]) for index in range(ROWS)]
    except (RuntimeError, IndexError):
        pytest.skip("the operator does not take a row alone")
    graph = torch.jit.freeze(traced).graph
    found = row_separation(graph, [Argument("x", "tensor")], {"x": np.zeros((1, 2, 4), np.float32)})
    apart = (
        len(together.shape) > 0
        and len(together) == ROWS
        and all(
            answer.shape == together[:1].shape
            and torch.allclose(answer, together[index : index + 1], atol=1e-5, equal_nan=True)
            for index, answer in enumerate(alone)
        )
    )
    if not apart:
        assert found.verdict != "separate"
    else:
        assert found.verdict != "mixed", found.reason


def test_rules_are_for_operators_that_exist() -> None:
    known = {name.partition(".")[0] for name in torch._C._dispatch_get_all_op_names()}  # noqa: SLF001 - no public list
    schemas = {schema.name for schema in torch._C._jit_get_all_schemas()}  # noqa: SLF001 - as above
    assert RULES.keys() - known - schemas <= set()
