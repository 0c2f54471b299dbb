"""What reading a SavedModel's graph says about the rows of a batch, on models as people export them."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
TensorFlowBackend = pytest.importorskip("gateway.instance.tensorflow_backend").TensorFlowBackend

from gateway.instance.proof import AUTO_BATCH_SIZE, decide_batching  # noqa: E402 - after the test for TensorFlow
from gateway.store.manifest import ModelConfig  # noqa: E402 - as above

HERE = Path(__file__).parent / "fixtures"
SOUND = [
    "mlp",
    "cnn",
    "residual",
    "batch_norm",
    "lstm",
    "gru",
    "bidirectional",
    "embedding",
    "masked",
    "transformer",
    "autoencoder",
    "columns",
    "conv1d",
    "images",
    "categories",
    "hashed",
    "attends",
]
MIXED = [
    "text_padding",
    "split",
    "softmax_over_rows",
    "minus_mean_of_rows",
    "over_largest",
    "sorted_rows",
    "running_sum",
    "reversed",
    "rolled",
    "pairwise",
    "differences",
    "first_row_off",
    "first_row_sliced_off",
    "times_number_of_rows",
    "longest",
    "moments",
    "fused_batch_norm",
    "branches",
    "norm_of_all",
    "einsum_over_rows",
    "gathered",
    "top_of_all",
]
NOT_CERTAIN = ("unique_values", "folded", "numbered")
"""Where reading the graph does not show for certain that rows are mixed; the rest is left to tests with rows."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All models, built in a process of its own: Keras warns, and what it builds stays in memory."""
    path = tmp_path_factory.mktemp("rows")
    for name in ("sound_tensorflow", "unsound_tensorflow"):
        subprocess.run([sys.executable, "-W", "ignore", HERE / f"{name}.py", path], check=True, timeout=110)
    return path


def load(path: Path) -> Any:
    return TensorFlowBackend().load(path, ModelConfig(threads=1), "cpu")


@pytest.mark.parametrize("name", [*SOUND, "vectorized"])
def test_ordinary_models_keep_rows_apart_and_are_batched(store: Path, name: str) -> None:
    model = load(store / name)
    signature = model.default_signature
    found = model.row_separation(signature)
    assert found.verdict == ("separate" if name in SOUND else "unknown"), found.reason
    assert model.batching_obstacle(signature) is None
    assert decide_batching(model, ModelConfig()).max_batch_size == AUTO_BATCH_SIZE


@pytest.mark.parametrize("name", [*MIXED, *NOT_CERTAIN])
def test_models_that_mix_rows_are_never_called_separate(store: Path, name: str) -> None:
    model = load(store / name)
    found = model.row_separation(model.default_signature)
    assert found.verdict == ("unknown" if name in NOT_CERTAIN else "mixed"), found.reason
    assert (model.batching_obstacle(model.default_signature) is None) == (name in NOT_CERTAIN)
