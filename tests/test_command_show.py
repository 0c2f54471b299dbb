"""`gateway show`, whose examples work as they are printed."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest


def shown(gateway: Any, *arguments: str) -> dict[str, Any]:
    done = gateway.command("show", "--json", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    "model", ["collatz_torch", "digits_torch", "digits_tensorflow", "text_tensorflow", "mlp", "slow"]
)
def test_the_examples_work_as_they_are_printed(gateway: Any, helpers: Any, tmp_path: Path, model: str) -> None:
    found = shown(gateway, model)
    examples = found["examples"]
    assert set(examples) == ({"curl", "gateway"} if shutil.which("curl") else {"gateway"})
    printed = gateway.command("show", model).stdout.splitlines()
    for example in examples.values():
        assert example in printed
        done = subprocess.run(
            ["sh", "-c", f"cd {tmp_path}; {example}"],
            env={name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")}
            | {"PATH": f"{helpers.program.parent}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == 0, example
        answer = json.loads(done.stdout)["outputs"] if example.startswith("curl") else done.stdout
        assert answer
        assert found["metadata"]["outputs"][0]["name"] in str(answer)


def test_an_answer_that_is_no_text_is_written_to_a_file(gateway: Any, tmp_path: Path) -> None:
    line = shown(gateway, "pictures")["examples"]["curl"]
    command = f"cd {tmp_path}; {line} -s -w '%{{http_code}}'"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "200"
    assert b"PNG" in (tmp_path / "answer.bin").read_bytes()


def test_a_version_that_never_worked_is_shown_with_the_reason_and_no_example(gateway: Any) -> None:
    found = shown(gateway, "on_another_device")
    assert (found["state"], found["examples"]) == ("READY", {})
    assert "CUDA" in found["reason"]
    assert found["reason"] in gateway.command("show", "on_another_device").stdout
    assert "CUDA" in gateway.command("ls").stdout


def test_all_there_is_to_know_of_a_model_is_shown(gateway: Any) -> None:
    assert gateway.command("infer", "digits_torch", "--random").returncode == 0
    found = shown(gateway, "digits_torch")
    assert (found["name"], found["version"], found["state"]) == ("digits_torch", "1", "READY")
    assert found["metadata"]["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [-1, 64]}]
    assert found["statistics"]["answered"] >= 1
    assert set(found["statistics"]["mean_ms"]) == {"total", "queue", "decode", "compute", "encode"}
    text = gateway.command("show", "digits_torch").stdout
    for piece in (
        "digits_torch/1 READY\n",
        "platform   pytorch_torchscript\n",
        "devices    cpu\n",
        " MB\n",
        "pairs gave the same answers together as alone",
        "; at most 32 rows\n",
        " ms each on average (queue ",
        "sandbox    reads its own version",
        "signature forward (default)\n  input   image  FP32 [-1, 64]\n  output  probabilities  FP32 [-1, 10]\n",
    ):
        assert piece in text


def test_a_model_that_failed_is_shown_with_its_reason_and_no_example(gateway: Any) -> None:
    found = shown(gateway, "no_archive")
    assert (found["state"], found["metadata"], found["examples"]) == ("FAILED", None, {})
    assert "the file is not a TorchScript archive" in gateway.command("show", "no_archive").stdout


def test_every_signature_is_shown(gateway: Any) -> None:
    text = gateway.command("show", "identity_tensorflow").stdout
    assert "\nsignature INT8\n  input   x  INT8 of any shape\n" in text
    assert text.count(" (default)\n") == 1


def test_versions_are_chosen_by_number(gateway: Any) -> None:
    assert shown(gateway, "mlp", "--version", "3")["version"] == "3"
    assert "--version 3" in shown(gateway, "mlp", "--version", "3")["examples"]["gateway"]
    done = gateway.command("show", "mlp", "--version", "canary")
    assert (done.returncode, done.stderr) == (
        1,
        "gateway: model 'mlp' has no version or label 'canary'; it has 3\n",
    )
