"""What reading a TorchScript graph says about the rows of a batch, on models as people make them."""

from pathlib import Path

import pytest
import torch
from sound_torch import SOUND, archive
from torch import nn
from unsound_torch import FUNCTIONS, NOT_CERTAIN, SCRIPTED, Called

from gateway.instance.proof import AUTO_BATCH_SIZE, decide_batching
from gateway.instance.torch_backend import TorchBackend, TorchScriptModel
from gateway.store.manifest import ModelConfig, TensorConfig

pytestmark = pytest.mark.filterwarnings("ignore")

Tensor = torch.Tensor
KINDS = {torch.float32: "FP32", torch.int64: "INT64", torch.bool: "BOOL"}


def load(module: nn.Module, inputs: tuple[Tensor, ...], path: Path, *, traced: bool) -> TorchScriptModel:
    """The module through the real loader, its inputs declared with any number of rows."""
    made = archive(module, inputs, traced=traced)
    made.save(str(path / "model.pt"))
    names = [argument.name for argument in made._c._get_method("forward").schema.arguments[1:]]  # noqa: SLF001
    declared = [
        TensorConfig(name, KINDS[tensor.dtype], [-1, *tensor.shape[1:]])
        for name, tensor in zip(names, inputs, strict=True)
    ]
    return TorchBackend().load(path / "model.pt", ModelConfig(threads=1, inputs=declared), "cpu")


UNFOLLOWED = {("attention_steps_first", False), ("encoder_steps_first", False)}
"""Scripted attention with steps first holds a branch for rows first that is never taken."""


@pytest.mark.parametrize("traced", [False, True], ids=["scripted", "traced"])
@pytest.mark.parametrize("name", SOUND)
def test_ordinary_models_keep_rows_apart_and_are_batched(name: str, tmp_path: Path, traced: bool) -> None:
    torch.manual_seed(0)
    make, inputs = SOUND[name]
    model = load(make(), inputs(), tmp_path, traced=traced)
    found = model.row_separation("forward")
    assert found.verdict == ("unknown" if (name, traced) in UNFOLLOWED else "separate"), found.reason
    assert model.batching_obstacle("forward") is None
    assert decide_batching(model, ModelConfig()).max_batch_size == AUTO_BATCH_SIZE


@pytest.mark.parametrize("name", SCRIPTED)
def test_models_that_mix_rows_are_refused_by_name(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    make, inputs = SCRIPTED[name]
    model = load(make(), inputs(), tmp_path, traced=False)
    found = model.row_separation("forward")
    assert found.verdict == "mixed", found.reason
    assert model.batching_obstacle("forward") is not None


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_function_that_mixes_rows_is_called_separate(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = load(Called(FUNCTIONS[name]), (torch.randn(1, 4),), tmp_path, traced=True)
    found = model.row_separation("forward")
    assert found.verdict == ("unknown" if name in NOT_CERTAIN else "mixed"), found.reason
