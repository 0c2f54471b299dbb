import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from gateway.errors import InferenceFailed, ModelNotReady, RequestError
from gateway.instance import torch_forms
from gateway.instance.torch_backend import TorchBackend, TorchScriptModel
from gateway.instance.torch_forms import agree
from gateway.store.manifest import ModelConfig

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


class Block(nn.Module):
    """Convolutions with batch norms and a shortcut, as residual networks have them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(8, 8, 3, 1, 1, bias=False), nn.Conv2d(8, 8, 3, 1, 1, bias=False)
        self.norm, self.other = nn.BatchNorm2d(8), nn.BatchNorm2d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.other(self.second(torch.relu(self.norm(self.first(x)))))
        y += x
        return torch.relu(y)


def network() -> Any:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1), Block()]
    return torch.jit.script(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    network().save(str(tmp_path / "model.pt"))
    return tmp_path / "model.pt"


def load(file: Path, **how: Any) -> TorchScriptModel:
    model = TorchBackend().load(file, ModelConfig(threads=1), "cpu", **how)
    model.rest()
    return model


def ask(model: TorchScriptModel, x: Any) -> Any:
    return model.execute("forward", {"input": x})["output_0"]


def images(*shape: int) -> Any:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def usual(model: TorchScriptModel, rows: int) -> Any:
    """What the optimised form was proved with."""
    example = model.example("forward")
    assert example is not None
    return images(rows, *example["input"].shape[1:])


def held(model: TorchScriptModel) -> bool:
    return model.plain.held


UNUSUAL = [
    images(0, 3, 64, 64),
    images(1, 3, 0, 64),
    images(1, 3, 1, 1),
    images(2, 3, 33, 17),
    images(1, 4, 64, 64),
    images(1, 0, 64, 64),
    images(3, 64, 64),
    images(64, 64),
    images(1, 1, 3, 64, 64),
    images(1, 3, 64, 64).astype(np.float64),
    images(1, 3, 64, 64).astype(np.int64),
    np.array(1.0, np.float32),
]


@pytest.mark.parametrize("x", UNUSUAL, ids=lambda x: f"{x.dtype}{list(x.shape)}")
def test_what_was_not_proved_is_answered_or_refused_as_the_file_s_own_module_does(file: Path, x: Any) -> None:
    model, plain = load(file), torch.jit.load(str(file))
    assert model.notes == ["optimize_for_inference: same answers, used"]
    for _ in range(2):
        try:
            with torch.inference_mode():
                right = plain(torch.from_numpy(x)).numpy()
        except RuntimeError:
            with pytest.raises((InferenceFailed, RequestError)):
                ask(model, x)
        else:
            have = ask(model, x)
            assert have.shape == right.shape
            np.testing.assert_allclose(have, right, rtol=1e-4, atol=1e-5)


def test_the_weights_are_in_memory_once_and_twice_only_while_the_plain_form_is_used(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(file)
    assert not held(model)
    ask(model, usual(model, 7))
    assert not held(model)
    assert model.rest() == -1.0
    ask(model, images(0, 3, 64, 64))
    assert held(model)
    left = model.rest()
    assert left > 0.0
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + left)
    assert model.rest() == -1.0
    assert not held(model)
    assert ask(model, images(0, 3, 64, 64)).shape == (0, 4)


def test_sizes_on_which_both_forms_agreed_are_left_to_the_optimised_one(file: Path) -> None:
    model = load(file)
    forms: Any = model.forms
    calls: list[str] = []
    optimised = forms.optimised
    model._call = forms.optimised = lambda *values: calls.append("optimised") or optimised(*values)  # noqa: SLF001
    for rows in (1, 4):
        ask(model, images(rows, 3, 40, 48))
    assert calls == ["optimised"] * 2  # compared, then alone
    ask(model, images(1, 3, 48, 40))
    assert calls == ["optimised"] * 3


def test_sizes_on_which_the_forms_disagree_are_left_to_the_plain_one(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, x = load(file), images(1, 3, 40, 48)
    forms: Any = model.forms
    right = torch.jit.load(str(file))(torch.from_numpy(x)).detach().numpy()
    forms.optimised = lambda *_: torch.zeros(1, 4)
    for _ in range(3):
        np.testing.assert_allclose(ask(model, x), right, rtol=1e-5)
    assert "changes the answer to [1, 3, 40, 48]" in capsys.readouterr().err


def test_where_only_the_optimised_form_raises_the_plain_one_answers_from_then_on(file: Path) -> None:
    model = load(file)
    x = usual(model, 1)
    right = ask(model, x)

    def raise_error(*_: Any) -> None:
        raise RuntimeError("could not create a primitive")

    model._call = model.forms.optimised = raise_error  # type: ignore[union-attr]  # noqa: SLF001
    np.testing.assert_allclose(ask(model, x), right, rtol=1e-4, atol=1e-5)
    assert not model.forms.proved  # type: ignore[union-attr]


def test_only_so_many_sizes_are_remembered(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_forms, "MAX_CLASSES", 3)
    monkeypatch.setattr(torch_forms, "MAX_SHAPES", 4)
    model = load(file)
    for size in range(30, 40):
        for rows in range(1, 6):
            assert ask(model, images(rows, 3, size, size)).shape == (rows, 4)
    assert len(model.forms._classes) <= 3  # type: ignore[union-attr]  # noqa: SLF001
    assert len(model.forms.proved) <= 4  # type: ignore[union-attr]


def test_a_file_that_was_replaced_is_not_read_in_place_of_the_one_that_was_loaded(file: Path) -> None:
    model = load(file)
    file.with_name("other").write_bytes(b"other contents")
    file.with_name("other").rename(file)
    assert ask(model, images(0, 3, 64, 64)).shape == (0, 4)


def test_a_file_that_was_overwritten_is_not_read_at_all(file: Path) -> None:
    model = load(file)
    with file.open("r+b") as overwritten:
        overwritten.write(b"other")
    os.utime(file, (1, 1))
    with pytest.raises(ModelNotReady, match="has changed since it was loaded"):
        ask(model, images(0, 3, 64, 64))
    assert ask(model, usual(model, 1)).shape == (1, 4)


def test_a_reason_against_the_optimised_form_is_heeded_and_told(file: Path) -> None:
    model = load(file, plain="its process ended with signal 11")
    assert not model.optimised
    assert model.notes == ["optimize_for_inference: not tried, its process ended with signal 11; plain module used"]
    assert ask(model, images(0, 3, 64, 64)).shape == (0, 4)


class Counted(nn.Module):
    def forward(self, x: torch.Tensor, n: int) -> torch.Tensor:
        return x[:n]


def test_a_model_whose_numbers_may_be_sizes_is_not_optimised(tmp_path: Path) -> None:
    torch.jit.script(Counted()).save(str(tmp_path / "model.pt"))
    model = load(tmp_path / "model.pt")
    assert model.notes == ["optimize_for_inference: not tried, an input is not a tensor; plain module used"]


def test_comparing_large_answers_takes_little_memory() -> None:
    """Not several times their size in FP64."""
    tracemalloc = pytest.importorskip("tracemalloc")
    want = np.random.default_rng(0).normal(size=(1 << 21, 2)).astype(np.float32).T  # not contiguous either
    have = want.copy()
    tracemalloc.start()
    try:
        assert agree({"y": want}, {"y": have})
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < want.nbytes
    have[1, -1] += 1.0
    assert not agree({"y": want}, {"y": have})


@pytest.mark.parametrize(
    ("want", "have", "same"),
    [
        (np.float32([1.0, np.nan, np.inf]), np.float32([1.00001, np.nan, np.inf]), True),
        (np.float32([1.0, np.nan]), np.float32([1.0, 0.0]), False),
        (np.float32([np.inf]), np.float32([-np.inf]), False),
        (np.float32([1.0, 1e-9]), np.float32([1.0, 0.0]), True),
        (np.float32([1.0]), np.float64([1.0]), False),
        (np.float32([[1.0]]), np.float32([1.0]), False),
        (np.int64([1, 2]), np.int64([1, 3]), False),
        (np.float32([]), np.float32([]), True),
        (np.array(1.0), np.array(2.0), False),
    ],
)
def test_answers_agree_to_rounding(want: Any, have: Any, same: bool) -> None:
    assert agree({"y": want}, {"y": have}) is same
