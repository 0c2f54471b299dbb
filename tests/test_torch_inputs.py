from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from gateway.instance.torch_backend import TorchBackend, TorchScriptModel
from gateway.store.manifest import ModelConfig, TensorConfig

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

Tensor = torch.Tensor


def load(module: nn.Module, path: Path, **config: Any) -> TorchScriptModel:
    file = path / "model.pt"
    (module if isinstance(module, torch.jit.ScriptModule) else torch.jit.script(module)).save(str(file))
    return TorchBackend().load(file, ModelConfig(threads=1, **config), "cpu")


def shapes(model: TorchScriptModel) -> dict[str, tuple[str, tuple[int, ...]]] | None:
    example = model.example("forward")
    return None if example is None else {name: (str(array.dtype), array.shape) for name, array in example.items()}


def cnn(side: int = 32) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(side**2, 5),
    )


class Permuted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.to(torch.float32).permute(1, 0).contiguous().view(-1, 12))


class Bert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(11, 8), nn.Embedding(32, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        places = torch.arange(input_ids.size(1))
        hidden = self.words(input_ids) + self.places(places)
        return self.layer(hidden) * attention_mask.unsqueeze(-1)


@pytest.mark.parametrize(
    ("module", "want"),
    [
        (nn.Sequential(nn.Linear(16, 4)), {"input": ("float32", (1, 16))}),
        (nn.Sequential(nn.Linear(16, 4)).double(), {"input": ("float64", (1, 16))}),
        (nn.Sequential(nn.Flatten(), nn.Linear(784, 4)), {"input": ("float32", (1, 784))}),
        (cnn(), {"input": ("float32", (1, 3, 32, 32))}),
        (cnn(28), {"input": ("float32", (1, 3, 28, 28))}),
        (nn.Sequential(nn.Conv1d(2, 4, 3)), {"input": ("float32", (1, 2, 64))}),
        (nn.Sequential(nn.Conv2d(4, 4, 3, groups=4)), {"input": ("float32", (1, 4, 32, 32))}),
        (nn.Sequential(nn.ConvTranspose2d(6, 3, 3)), {"input": ("float32", (1, 6, 32, 32))}),
        (nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 2)), {"input": ("int64", (1, 8))}),
        (nn.Sequential(nn.BatchNorm1d(5)), {"input": ("float32", (1, 5))}),
        (nn.Sequential(nn.LayerNorm([3, 4])), {"input": ("float32", (1, 3, 4))}),
        (nn.Sequential(nn.LSTM(6, 4, batch_first=True)), {"input": ("float32", (1, 8, 6))}),
        (Permuted(), {"x": ("float32", (1, 12))}),
        (Bert(), {"input_ids": ("int64", (1, 8)), "attention_mask": ("int64", (1, 8))}),
    ],
)
def test_what_a_bare_file_wants_is_found_in_its_weights(
    tmp_path: Path, module: nn.Module, want: dict[str, Any]
) -> None:
    model = load(module.eval(), tmp_path)
    assert shapes(model) == want
    model.execute("forward", model.example("forward"))


def test_examples_hold_small_values_and_are_the_caller_s_own(tmp_path: Path) -> None:
    model = load(nn.Linear(16, 4), tmp_path)
    first = model.example("forward")["input"]
    assert np.abs(first).max() <= 1
    first[:] = 7
    assert np.abs(model.example("forward")["input"]).max() <= 1


def test_a_model_that_accepts_nothing_plausible_has_no_example(tmp_path: Path) -> None:
    class Refuses(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.dim() != 7:
                raise ValueError("seven dimensions, please")
            return x

    model = load(Refuses(), tmp_path)
    assert model.example("forward") is None
    assert model.notes == [
        "optimize_for_inference: not tried, no example input is known, declare inputs in model.yaml; plain module used"
    ]
    assert model.signatures["forward"].inputs[0].shape is None


def test_the_shapes_a_model_was_traced_with_are_found_in_its_archive(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor, ids: Tensor) -> Tensor:
            return x.reshape(x.size(0), 7, 11, 13).sum(-1) + ids.view(-1, 1, 1)

    x, ids = torch.randn(2, 1001), torch.tensor([5, 6])
    model = load(torch.jit.trace(Odd(), (x, ids)), tmp_path)
    assert shapes(model) == {"x": ("float32", (1, 1001)), "ids": ("int64", (1,))}
    assert model.signatures["forward"].inputs[0].shape == (-1, 1001)


def test_a_traced_model_keeps_taking_other_shapes_than_the_traced_ones(tmp_path: Path) -> None:
    class Sizes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.view(x.size(0), -1).sum(1) * x.size(1)

    model = load(torch.jit.trace(Sizes(), torch.ones(2, 3)), tmp_path)
    assert model.execute("forward", {"x": np.ones((4, 5), np.float32)})["output_0"].tolist() == [25.0] * 4


def test_declared_inputs_are_tried_with_sizes_for_the_open_dimensions(tmp_path: Path) -> None:
    inputs = [TensorConfig("input", "FP32", [-1, 3, -1, -1])]
    assert shapes(load(cnn(), tmp_path, inputs=inputs)) == {"input": ("float32", (1, 3, 32, 32))}
    assert shapes(load(cnn(128), tmp_path, inputs=inputs)) == {"input": ("float32", (1, 3, 128, 128))}


def test_whole_numbers_stay_within_what_an_embedding_has(tmp_path: Path) -> None:
    model = load(nn.Sequential(nn.Embedding(3, 4)), tmp_path, inputs=[TensorConfig("input", "INT64", [-1, 20])])
    assert model.example("forward")["input"].max() < 3


def test_scalars_strings_lists_and_keys_are_made_up_too(tmp_path: Path) -> None:
    class Mixed(nn.Module):
        def forward(self, x: dict[str, Tensor], n: int, words: list[str], scale: float = 1.0) -> Tensor:
            return x["left"] * n * scale + x["right"] + len(words)

    model = load(Mixed(), tmp_path)
    assert set(shapes(model) or ()) == {"left", "right", "n", "words"}
    assert [spec.name for spec in model.signatures["forward"].inputs] == ["left", "right", "n", "words", "scale"]


def test_specs_open_the_dimension_that_a_second_row_changes(tmp_path: Path) -> None:
    signature = load(cnn(), tmp_path).signatures["forward"]
    assert signature.inputs[0].shape == (-1, 3, 32, 32)
    assert signature.outputs[0].shape == (-1, 5)
    assert not signature.outputs[0].strict
