"""What users are told of PyTorch's errors: the last line, whose mistake it is, and what a file is."""

import pickle
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import InferenceFailed, InputRefused, OutOfMemory

torch = pytest.importorskip("torch")
torch_errors = pytest.importorskip("gateway.instance.torch_errors")


class Layer(torch.nn.Module):  # type: ignore[misc, name-defined]
    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Any) -> Any:
        return self.inner(x) * 1.0


def raised(call: Any, *values: Any) -> Any:
    """What is told of the error of a call."""
    try:
        call(*values)
    except Exception as error:  # noqa: BLE001 - whatever the model raises
        return torch_errors.failure(error)
    raise AssertionError("nothing was raised")


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_the_error_of_a_deep_traced_model_is_its_last_line() -> None:
    model: Any = torch.nn.Embedding(10, 4)
    for _ in range(8):
        model = Layer(model)
    traced = torch.jit.trace(model.eval(), torch.tensor([[1, 2, 3]]))
    failure = raised(traced, torch.tensor([[1, 2, 99]]))
    assert isinstance(failure, InputRefused)
    assert failure.message == "index out of range in self"


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_the_error_of_a_scripted_model_is_its_last_line() -> None:
    scripted = torch.jit.script(torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU()))
    failure = raised(scripted, torch.ones(1, 4))
    assert isinstance(failure, InputRefused)
    assert failure.message == "mat1 and mat2 shapes cannot be multiplied (1x4 and 3x2)"


@pytest.mark.parametrize(
    "said",
    [
        "The size of tensor a (2) must match the size of tensor b (3) at non-singleton dimension 1",
        "expected scalar type Float but found Long",
        "index 99 is out of bounds for dimension 0 with size 10",
        "Given groups=1, weight of size [8, 3, 3, 3], expected input[1, 1, 32, 32] to have 3 channels, but got 1",
        "mean(): could not infer output dtype. Input dtype must be either a floating point or complex dtype",
        "Dimension out of range (expected to be in range of [-2, 1], but got 2)",
        "shape '[2, 3]' is invalid for input of size 5",
    ],
)
def test_what_operators_say_of_their_input_is_the_caller_s_mistake(said: str) -> None:
    assert isinstance(torch_errors.failure(RuntimeError(said)), InputRefused)


@pytest.mark.parametrize(
    "said",
    [
        "Could not run 'aten::empty.memory_format' with arguments from the 'CUDA' backend.",
        "Torch not compiled with CUDA enabled",
        "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!",
        "the model gave up",
        "Found no NVIDIA driver on your system.",
    ],
)
def test_all_else_is_not(said: str) -> None:
    failure = torch_errors.failure(RuntimeError(said))
    assert isinstance(failure, InferenceFailed)
    assert not isinstance(failure, InputRefused)


def test_memory_that_is_not_there_is_told_apart() -> None:
    said = "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: 9 bytes"
    assert isinstance(torch_errors.failure(RuntimeError(said)), OutOfMemory)


def test_a_device_that_is_not_there_is_named_with_what_to_do() -> None:
    said = "Could not run 'aten::empty.memory_format' with arguments from the 'CUDA' backend."
    message = torch_errors.failure(RuntimeError(said)).message
    assert message.startswith("the model computes on a CUDA device, which its process does not have; export it")


@pytest.mark.parametrize("legacy", [False, True])
def test_what_torch_save_wrote_is_called_a_pickle(tmp_path: Path, legacy: bool) -> None:
    path = tmp_path / "model.pt"
    module = torch.nn.Linear(2, 2)
    torch.save(module.state_dict(), path, _use_new_zipfile_serialization=not legacy)
    assert "pickle" in (torch_errors.refusal(path) or "")
    torch.save(module, path, _use_new_zipfile_serialization=not legacy)
    assert "torch.jit" in (torch_errors.refusal(path) or "")
    assert "pickle" in (torch_errors.refusal(path) or "")


def test_any_other_pickle_is_called_one(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(pickle.dumps({"weights": [1.0, 2.0]}))
    assert "is a Python pickle" in (torch_errors.refusal(path) or "")
    path.write_bytes(b"no model")
    assert "is not a TorchScript archive" in (torch_errors.refusal(path) or "")
