"""`gateway load` and `gateway unload`, and what the others say of models that are not in memory or have labels."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


def prepare(store: Path) -> None:
    mlp = store / "mlp" / "model.yaml"
    mlp.write_text(f"{mlp.read_text()}version_policy: all\nversion_labels: {{stable: 2, canary: 3}}\n")
    picture = "inputs: [{name: x, datatype: FP32, shape: [-1, 3, 20, 20]}]\n"
    (store / "identity_torch" / "model.yaml").write_text(picture)


@pytest.fixture(scope="module")
def own(start_gateway: Any) -> Iterator[Any]:
    with start_gateway(["mlp", "identity_torch", "no_archive"], "--watch", "off", prepare=prepare) as started:
        yield started


def test_a_model_is_unloaded_and_loaded(own: Any) -> None:
    done = own.command("unload", "identity_torch")
    assert (done.returncode, done.stdout, done.stderr) == (0, "identity_torch/1 UNLOADED: unloaded\n", "")
    shown = own.command("show", "identity_torch")
    assert "`gateway load identity_torch` loads it" in shown.stdout
    assert own.versions()["identity_torch"] == "UNLOADED"  # showing it did not load it
    done = own.command("infer", "identity_torch", "--random")
    assert (done.returncode, done.stdout) == (1, "")
    assert "UNLOADED" in done.stderr
    done = own.command("unload", "identity_torch", "--json")  # once more is no mistake
    assert (done.returncode, done.stderr) == (0, "")
    assert [each["state"] for each in json.loads(done.stdout)] == ["UNLOADED"]
    done = own.command("load", "identity_torch", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == [{"name": "identity_torch", "version": "1", "state": "READY", "reason": ""}]
    assert own.command("infer", "identity_torch", "--random").returncode == 0


def test_a_model_that_fails_says_why(own: Any) -> None:
    done = own.command("load", "no_archive")
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert "the file is not a TorchScript archive" in line


def test_labels_are_listed_shown_and_asked_for(own: Any) -> None:
    listed = {(each["name"], each["version"]): each for each in json.loads(own.command("ls", "--json").stdout)}
    assert listed["mlp", "2"]["labels"] == ["stable"]
    assert listed["mlp", "3"]["labels"] == ["canary"]
    assert "labels     stable" in own.command("show", "mlp", "--version", "stable").stdout
    done = own.command("infer", "mlp", "--random", "--version", "stable", "--json")
    assert json.loads(done.stdout)["model_version"] == "2"


def test_what_is_large_has_an_example_of_zeros(own: Any, tmp_path: Path) -> None:
    examples = json.loads(own.command("show", "identity_torch", "--json").stdout)["examples"]
    assert examples["curl"].startswith("head -c 4800 /dev/zero | curl http")
    import subprocess  # noqa: PLC0415 - here only

    subprocess.run(["sh", "-c", examples["curl"]], cwd=tmp_path, check=True, capture_output=True, timeout=20)
    assert len((tmp_path / "answer.bin").read_bytes()) > 4800
