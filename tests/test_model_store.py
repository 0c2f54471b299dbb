"""The shipped example models, run by their own frameworks; each framework has a process to itself."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gateway.store import manifest

STORE = Path(__file__).parents[1] / "model_store"
MODELS = ["collatz_torch", "digits_tensorflow", "digits_torch", "text_tensorflow"]
Answers = dict[str, np.ndarray]

RUN_TORCH = """
import sys, numpy, torch
from data import split
digits, collatz, out = sys.argv[1:]
held_out = split()[1]
probabilities = torch.jit.load(digits)(torch.from_numpy(held_out.images))
counted = torch.jit.load(collatz)(torch.tensor([1, 7, 27, 0, -5, 2**63 - 1]))
numpy.savez(out, **held_out._asdict(), probabilities=probabilities.detach(), **counted)
"""

RUN_TENSORFLOW = """
import sys, numpy, tensorflow
digits, text, images, out = sys.argv[1:]
digits, text = (tensorflow.saved_model.load(path).signatures for path in (digits, text))
answers = digits["serving_default"](image=tensorflow.constant(numpy.load(images)["images"]))
lines = [b"Where does your brother live?", "Où est la bibliothèque ?".encode(), "日本語".encode(), b"1 \\xff!", b""]
for signature in ("serving_default", "normalize", "count"):
    answers |= text[signature](text=tensorflow.constant(lines))
    for row, line in enumerate(lines):
        for name, alone in text[signature](text=tensorflow.constant([line])).items():
            assert numpy.all(alone[0].numpy() == answers[name][row].numpy()), (signature, line)
numpy.savez(out, **{name: numpy.asarray(tensor.numpy().tolist()) for name, tensor in answers.items()})
"""


def run(*arguments: object) -> None:
    environment = {
        "PYTHONPATH": str(STORE / "digits_torch"),
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [sys.executable, "-W", "ignore", *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def run_torch(digits: Path, out: Path) -> Answers:
    run("-c", RUN_TORCH, digits, STORE / "collatz_torch/1/model.pt", out)
    return dict(np.load(out))


@pytest.fixture(scope="module")
def torch_answers(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    return run_torch(STORE / "digits_torch/1/model.pt", tmp_path_factory.mktemp("torch") / "answers.npz")


@pytest.fixture(scope="module")
def tensorflow_answers(torch_answers: Answers, tmp_path_factory: pytest.TempPathFactory) -> Answers:
    folder = tmp_path_factory.mktemp("tensorflow")
    images, out = folder / "images.npz", folder / "answers.npz"
    np.savez(images, images=torch_answers["images"])
    run("-c", RUN_TENSORFLOW, STORE / "digits_tensorflow/1", STORE / "text_tensorflow/1", images, out)
    return dict(np.load(out))


def test_the_twins_agree_on_every_held_out_digit(torch_answers: Answers, tensorflow_answers: Answers) -> None:
    torch_part, tensorflow_part = torch_answers["probabilities"], tensorflow_answers["probabilities"]
    assert torch_part.shape == tensorflow_part.shape == (450, 10)
    assert np.abs(torch_part - tensorflow_part).max() <= 1e-5


@pytest.mark.parametrize("framework", ["torch", "tensorflow"])
def test_a_twin_reads_97_of_100_held_out_digits(
    framework: str, torch_answers: Answers, request: pytest.FixtureRequest
) -> None:
    guesses = request.getfixturevalue(f"{framework}_answers")["probabilities"].argmax(1)
    assert (guesses == torch_answers["labels"]).mean() >= 0.97


def test_building_again_gives_the_shipped_digits_model(torch_answers: Answers, tmp_path: Path) -> None:
    run(STORE / "digits_torch/build.py", "--out", tmp_path / "1")
    rebuilt = run_torch(tmp_path / "1" / "model.pt", tmp_path / "answers.npz")
    assert np.abs(rebuilt["probabilities"] - torch_answers["probabilities"]).max() <= 1e-5


def test_collatz_counts_and_gives_up(torch_answers: Answers) -> None:
    assert torch_answers["steps"].tolist() == [0, 16, 111, -1, -1, -1]
    assert torch_answers["peak"].tolist() == [1, 52, 9232, 0, -5, 2**63 - 1]


def test_text_answers_in_three_signatures_each_row_by_itself(tensorflow_answers: Answers) -> None:
    assert tensorflow_answers["language"].tolist() == [b"en", b"fr", b"und", b"und", b"und"]
    assert np.allclose(tensorflow_answers["scores"].sum(1), 1)
    normalized = [text.decode() for text in tensorflow_answers["normalized"].tolist()]
    assert normalized == ["where does your brother live", "où est la bibliothèque", "日本語", "", ""]
    assert tensorflow_answers["words"].tolist() == [5, 4, 1, 0, 0]


@pytest.mark.parametrize("model", MODELS)
def test_a_model_yaml_is_valid_and_declares_what_torchscript_forgets(model: str) -> None:
    config = manifest.read(STORE / model)
    assert bool(config.inputs) == bool(config.outputs) == model.endswith("_torch")


def test_the_store_is_small_enough_to_ship() -> None:
    folders = [entry for entry in STORE.iterdir() if entry.is_dir() and entry.name != "__pycache__"]
    assert sorted(folder.name for folder in folders) == MODELS
    assert sum(file.stat().st_size for file in STORE.rglob("*") if file.is_file()) < 2_000_000
