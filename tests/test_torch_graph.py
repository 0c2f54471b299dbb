from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from gateway.instance.torch_backend import TorchBackend, TorchScriptModel
from gateway.instance.torch_graph import Facts, examine
from gateway.store.manifest import ModelConfig

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

Tensor = torch.Tensor


def facts(module: nn.Module) -> Facts:
    return examine(
        torch.jit.freeze(
            torch.jit.script(nn.Sequential(module) if isinstance(module, nn.RNNBase) else module).eval(),
            optimize_numerics=False,
        ).graph
    )


def load(module: nn.Module, path: Path, **config: Any) -> TorchScriptModel:
    torch.jit.script(module).save(str(path / "model.pt"))
    return TorchBackend().load(path / "model.pt", ModelConfig(threads=1, **config), "cpu")


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return x + self.count


class Memory(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("hidden", torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        part = self.hidden.view(1, 2)[:, :1]
        if x.dim() == 2:
            part.add_(1)
        return x + part


class Wrapped(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


@pytest.mark.parametrize("module", [Counter(), Memory(), Wrapped(Counter()), Wrapped(Memory())])
def test_a_model_that_changes_itself_is_found_and_never_run_at_load(tmp_path: Path, module: nn.Module) -> None:
    model = load(module, tmp_path)
    assert model.stateful
    assert model.batching_obstacle("forward") == "the model keeps state between calls"
    assert model.example("forward") is None
    first = model.execute("forward", {"x": torch.zeros(1, 1).numpy()})["output_0"]
    assert first.ravel().tolist() == [1.0], "a run at load would have counted"


def test_results_of_a_model_with_state_are_not_overwritten_by_later_calls(tmp_path: Path) -> None:
    class Returned(Memory):
        def forward(self, x: Tensor) -> Tensor:
            self.hidden.add_(x)
            return self.hidden

    model, one = load(Returned(), tmp_path), {"x": torch.ones(2).numpy()}
    first = model.execute("forward", one)["output_0"]
    assert model.execute("forward", one)["output_0"].tolist() == [2.0, 2.0]
    assert first.tolist() == [1.0, 1.0]


def test_a_model_declared_stateful_is_treated_so(tmp_path: Path) -> None:
    model = load(nn.Linear(2, 2), tmp_path, stateful=True)
    assert model.example("forward") is None
    assert model.batching_obstacle("forward") == "model.yaml says that the model keeps state"


def test_batch_statistics_that_are_updated_are_state() -> None:
    class Norm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.zeros(3))
            self.register_buffer("variance", torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            return functional.batch_norm(x, self.mean, self.variance, training=True)

    assert facts(Norm()).state
    assert not facts(nn.BatchNorm1d(3)).state


def test_writing_into_tensors_and_lists_of_its_own_is_no_state() -> None:
    class Local(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            kept = [self.weight, x]
            kept.append(x)
            y = x * self.weight
            y.add_(1).relu_()
            out = torch.zeros(3)
            out[0] = 1
            return y + out + kept[0]

    assert facts(Local()) == Facts()


def test_writing_into_a_view_of_an_input_is_found() -> None:
    class Writes(nn.Module):
        def forward(self, xs: list[Tensor]) -> Tensor:
            y = xs[0][0]
            y += 1
            return y

    found = facts(Writes())
    assert found.mutates_inputs
    assert not found.state


class ValueBranch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if bool(x.sum() > 0) else x


class ValueLoop(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        while float(x.max()) > 1:
            x = x / 2
        return x


class EarlyExit(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        for step in range(3):
            y = x * step
            if y.mean().item() > 2.0:
                return y
        return x


class ListBranch(nn.Module):
    def forward(self, xs: list[Tensor], n: Tensor) -> Tensor:
        y = xs[0]
        for _ in range(int(n)):
            y = y + 1
        return y


@pytest.mark.parametrize("module", [ValueBranch(), ValueLoop(), EarlyExit(), ListBranch()])
def test_control_flow_on_values_is_found(module: nn.Module) -> None:
    assert facts(module).obstacle() == "control flow depends on the values of a tensor"


def test_a_loop_that_ends_when_the_values_please_it_is_never_tried_with_made_up_values(tmp_path: Path) -> None:
    assert load(ValueLoop(), tmp_path).example("forward") is None


class RowBranch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - 1 if x.shape[0] > 3 else x


class RowLoop(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x[0]
        for row in range(x.size(0)):
            y = y + x[row]
        return y


@pytest.mark.parametrize("module", [RowBranch(), RowLoop()])
def test_control_flow_on_the_number_of_rows_is_found(module: nn.Module) -> None:
    assert facts(module).obstacle() == "control flow depends on the number of rows"


class Shapes(nn.Module):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is not None:
            x = x * mask
        if x.dim() == 2 and x.size(1) > 3 and x.is_floating_point():
            x = x[:, :3]
        if x.size(0) == 0:
            raise ValueError("no rows")
        for _ in range(x.size(-1)):
            x = x + 1
        return x


@pytest.mark.parametrize(
    "module",
    [Shapes(), nn.LSTM(4, 4, batch_first=True), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.GRU(4, 4)],
)
def test_conditions_on_shapes_and_on_none_are_no_obstacle(module: nn.Module) -> None:
    assert facts(module.eval()).obstacle() is None


class Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


class InPlaceNoise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.empty(1).uniform_(0.0, 1.0)


class AlwaysDropout(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return functional.dropout(x, 0.5, training=True)


@pytest.mark.parametrize("module", [Noise(), InPlaceNoise(), AlwaysDropout()])
def test_random_numbers_are_found(module: nn.Module) -> None:
    assert facts(module).obstacle() == "the model draws random numbers"


def test_dropout_that_evaluation_turns_off_is_not_random() -> None:
    assert facts(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))).obstacle() is None


def test_results_sized_by_values_are_found() -> None:
    class Found(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.nonzero(x)

    assert facts(Found()).obstacle() == "the size of a result depends on the values of a tensor"


def test_arguments_without_rows_say_why_requests_are_not_joined(tmp_path: Path) -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
            return x * scale

    class Words(nn.Module):
        def forward(self, words: list[str]) -> list[str]:
            return words

    class Many(nn.Module):
        def forward(self, xs: list[Tensor]) -> Tensor:
            return xs[0]

    why = [load(module, tmp_path).batching_obstacle("forward") for module in (Scaled(), Words(), Many())]
    assert why == [
        "input 'scale' is a single value, which is not a tensor with rows",
        "input 'words' is a list of values, which is not a tensor with rows",
        "input 'xs' is a list of any number of tensors",
    ]


def test_parallel_branches_are_looked_into(tmp_path: Path) -> None:
    def part(x: Tensor) -> Tensor:
        return x + torch.rand(1)

    class Forked(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            future = torch.jit.fork(part, x)
            return torch.jit.wait(future)

    assert load(Forked(), tmp_path).batching_obstacle("forward") == "the model draws random numbers"
