"""`gateway infer` against the shipped models and those that give back what they are given."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits


@pytest.fixture(scope="module")
def eight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An 8, ten times as large as the model wants it."""
    path = tmp_path_factory.mktemp("images") / "eight.png"
    Image.fromarray((load_digits().images[8] * 255 / 16).astype(np.uint8)).resize((80, 80)).save(path)
    return path


def answer(done: Any) -> dict[str, Any]:
    """What --json printed, which is one document and nothing else."""
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    return found | {"outputs": {each["name"]: each for each in found["outputs"]}}


def test_json_is_the_answer_of_the_protocol(gateway: Any) -> None:
    found = answer(gateway.command("infer", "collatz_torch", "--input", "n=[7, 27, 97]", "--json"))
    assert (found["model_name"], found["model_version"]) == ("collatz_torch", "1")
    assert found["outputs"]["steps"] == {"name": "steps", "datatype": "INT64", "shape": [3], "data": [16, 111, 118]}
    assert found["outputs"]["peak"]["data"] == [52, 9232, 9232]
    plain = {"inputs": [{"name": "n", "datatype": "INT64", "shape": [3], "data": [7, 27, 97]}]}
    assert [*found["outputs"].values()] == gateway.infer("collatz_torch", plain).json()["outputs"]


def test_people_are_shown_values_and_the_highest_of_scores(gateway: Any) -> None:
    done = gateway.command("infer", "text_tensorflow", "-i", "Où est la bibliothèque ?")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[:3] == ["language  BYTES [1]", "fr", "scores  FP32 [1, 6]"]
    assert lines[4].startswith("highest: 3 (0.99")
    assert lines[5].startswith("text_tensorflow/1 answered in ")


@pytest.mark.parametrize("model", ["digits_torch", "digits_tensorflow"])
def test_an_image_is_recognised(gateway: Any, eight: Path, model: str) -> None:
    done = gateway.command("infer", model, "--input", f"@{eight}")
    assert "\nhighest: 8 (0.99" in done.stdout


def test_only_some_outputs_and_some_signature_can_be_asked_for(gateway: Any) -> None:
    said = ("-i", "one two three")
    found = answer(gateway.command("infer", "text_tensorflow", *said, "--output", "language", "--json"))
    assert set(found["outputs"]) == {"language"}
    found = answer(gateway.command("infer", "text_tensorflow", *said, "--signature", "count", "--json"))
    assert found["outputs"]["words"]["data"] == [3]


def test_random_data_have_the_rows_that_are_asked_for_and_repeat(gateway: Any) -> None:
    random = ("infer", "digits_torch", "--random", "--batch", "3", "--json")
    first, again, other = (answer(gateway.command(*random, *more)) for more in ((), (), ("--seed", "1")))
    assert first["outputs"]["probabilities"]["shape"] == [3, 10]
    assert first == again != other
    found = answer(gateway.command("infer", "optional_input", "-i", "a=[[1,2,3,4]]", "-i", "b=[1,1,1,1]", "--json"))
    assert found["outputs"]["sum"]["data"] == [2, 3, 4, 5]


def test_arrays_go_through_files_as_they_are(gateway: Any, tmp_path: Path) -> None:
    array = np.random.default_rng(0).random((2, 16)).astype(np.float32)
    np.save(tmp_path / "x.npy", array.astype(np.float64))
    ours = ("infer", "mlp", "-i", f"x=@{tmp_path / 'x.npy'}", "--version", "3")
    done = gateway.command(*ours, "--json", "-o", tmp_path / "y.npy")
    found = answer(done)["outputs"]["y"]
    written = np.load(tmp_path / "y.npy")
    assert written.dtype == np.float32
    assert written.tolist() == np.array(found["data"], np.float32).reshape(found["shape"]).tolist()
    assert gateway.command(*ours, "-o", tmp_path / "y.json").returncode == 0
    assert json.loads((tmp_path / "y.json").read_bytes())["outputs"][0] == found
    assert gateway.command("infer", "collatz_torch", "-i", "27", "-o", tmp_path / "all").returncode == 0
    assert {path.name: np.load(path).tolist() for path in (tmp_path / "all").iterdir()} == {
        "steps.npy": [111],
        "peak.npy": [9232],
    }


def test_bytes_go_in_and_out_as_they_are(gateway: Any, tmp_path: Path) -> None:
    content = bytes(range(256)) * 20
    (tmp_path / "in.jpg").write_bytes(content)
    ours = ("infer", "identity_tensorflow", "--signature", "BYTES", "-i", f"@{tmp_path / 'in.jpg'}")
    assert gateway.command(*ours, "-o", tmp_path / "out").returncode == 0
    (written,) = (tmp_path / "out").iterdir()
    assert written.suffix == ".bin"
    assert written.read_bytes() == content
    shown = gateway.command(*ours).stdout
    assert "(5120 bytes)" in shown
    assert "\x1b" not in shown
    done = gateway.command(*ours, "--json")
    assert (done.returncode, done.stdout) == (1, "")
    assert "is not UTF-8 text" in done.stderr
    done = gateway.command(*ours, "-o", tmp_path / "out.npy")
    assert done.returncode == 2
    assert "-o out.json does" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["mlp"], 2, "input 'x' is missing; the model takes x (FP32 [-1, 16]); or let --random make one up"),
        (["mlp", "-i", "y=1"], 2, "the model has no input 'y'; it has x"),
        (["mlp", "-i", "3"], 1, "the model takes [-1, 16]"),
        (["mlp", "--random", "-i", "1"], 2, "--random makes up every input; leave it out or --input"),
        (["mlp", "-i", "1", "--batch", "2"], 2, "--batch is for --random"),
        (["mlp", "--random", "--version", "9"], 1, "version '9' is not found"),
        (["mlp", "--random", "--output", "nope"], 1, "nope"),
        (["mlp", "--random", "-o", "/proc/nowhere/y.npy"], 1, "/proc/nowhere/y.npy cannot be written: No such file"),
        (["collatz_torch", "-i", "3", "-o", "y.npy"], 2, "y.npy holds one output; --output chooses one of steps, peak"),
        (["text_tensorflow", "--random", "--signature", "counts"], 2, "no signature 'counts'; did you mean 'count'?"),
        (["identity_tensorflow", "--random", "--signature", "INT8"], 2, "nobody knows which shape input 'x' takes"),
        (["raises", "-i", "[-1]"], 1, "negative numbers make this model unhappy"),
        (["no_archive", "--random"], 1, "FAILED: the file is not a TorchScript archive"),
    ],
)
def test_what_is_wrong_is_one_line_and_a_code(gateway: Any, arguments: list[str], code: int, said: str) -> None:
    done = gateway.command("infer", *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("gateway: ")
    assert said in line
