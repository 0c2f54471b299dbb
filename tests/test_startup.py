import io
import json
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest
from rich.console import Console

from gateway.ipc.batching import Batching
from gateway.ipc.messages import ExampleInput, Ready
from gateway.lifecycle.residency import Account
from gateway.lifecycle.state import State
from gateway.lifecycle.version import Version
from gateway.startup import first_request, show_models
from gateway.store.manifest import ModelConfig, parse
from gateway.store.source import Artifact
from gateway.tensors import DTYPES, Signature, TensorSpec, raw_from_array

URL = "http://127.0.0.1:8000"


def signature(*inputs: TensorSpec) -> Signature:
    return Signature("forward", inputs, ())


def answered(spec: TensorSpec) -> ExampleInput:
    """A request of one row of halves that a model has answered."""
    shape = tuple(abs(size) for size in spec.shape or ())
    array = np.full(shape, b"hello" if spec.datatype == "BYTES" else 0.5, DTYPES[spec.datatype])
    return ExampleInput(spec.name, spec.datatype, shape, bytes(raw_from_array(array)[1]) if array.size < 4096 else b"")


def version_of(model: str, *inputs: TensorSpec, state: State = State.READY, reason: str = "") -> Version:
    version = Version(Artifact(model, 1, "pytorch_torchscript", Path("model.pt"), ModelConfig()))
    version.state, version.reason = state, reason
    if state is State.READY:
        version.ready = Ready(
            pid=1,
            platform="pytorch_torchscript",
            signatures={"forward": signature(*inputs)},
            default_signature="forward",
            batching=Batching(8, "on"),
            notes=[],
            load_seconds=0.25,
            example=[answered(spec) for spec in inputs if spec.shape is not None],
        )
    return version


SMALL = TensorSpec("x", "FP32", (-1, 2))
LARGE = TensorSpec("x", "FP32", (-1, 50))
HUGE = TensorSpec("x", "FP32", (-1, 3, 224, 224))


def test_the_shortest_request_is_shown() -> None:
    line = first_request([version_of("large", LARGE), version_of("small", SMALL), version_of("huge", HUGE)], URL)
    assert line is not None
    command, url, option, body = shlex.split(line)
    assert (command, url, option) == ("curl", f"{URL}/v2/models/small/infer", "-d")
    assert json.loads(body)["inputs"] == [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [0.5, 0.5]}]


def test_a_model_of_images_is_shown_with_a_file_if_there_is_no_other() -> None:
    images = version_of("images", TensorSpec("x", "BYTES", (-1,)))
    images.artifact = replace(images.artifact, config=parse("preprocessing: {image: {crop: 8}}"))
    line = first_request([images], URL)
    assert line is not None
    assert shlex.split(line)[1:] == [
        f"{URL}/v2/models/images/infer", "-H", "Inference-Header-Content-Length: 0", "--data-binary", "@image.jpg",
    ]  # fmt: skip
    assert first_request([images, version_of("large", LARGE)], URL) == first_request([version_of("large", LARGE)], URL)


def test_only_a_ready_model_is_shown() -> None:
    failed = version_of("a", SMALL)
    failed.state = State.FAILED
    assert first_request([failed, version_of("b", state=State.LOADING)], URL) is None
    assert first_request([], URL) is None


def test_what_no_model_has_answered_is_not_shown() -> None:
    unanswered = version_of("m", TensorSpec("x", "FP32", None))
    assert first_request([unanswered], URL) is None
    assert first_request([version_of("huge", HUGE)], URL) is None


def test_an_answer_that_is_no_text_is_written_to_a_file() -> None:
    version = version_of("pictures", SMALL)
    assert version.ready is not None
    version.ready = msgspec.structs.replace(version.ready, example_in_binary=True)
    line = first_request([version], URL)
    assert line is not None
    words = shlex.split(line)
    assert words[2:4] == ["-o", "answer.bin"]
    assert json.loads(words[-1])["parameters"] == {"binary_data_output": True}


def test_the_line_can_be_pasted_whatever_the_inputs_are_called() -> None:
    line = first_request([version_of("m", TensorSpec('it\'s "x"', "FP32", (1,)))], URL)
    assert line is not None
    assert json.loads(shlex.split(line)[-1])["inputs"][0]["name"] == 'it\'s "x"'


def shown(*versions: Version) -> str:
    console = Console(file=io.StringIO(), width=200)
    show_models(
        console, versions, Account({"cpu": 4 * 10**8}, {version: {"cpu": 7_700_000} for version in versions}), URL
    )
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_every_version_is_listed_and_a_request_to_try() -> None:
    text = shown(version_of("good", SMALL), version_of("bad", state=State.FAILED, reason="no layer fits"))
    assert "250 ms" in text
    assert "7.7 MB" in text
    assert "bad/1 FAILED: no layer fits" in text
    assert f"curl {URL}/v2/models/good/infer" in text
    assert f"{URL}/docs" in text


@pytest.mark.parametrize("reason", ["shape [batch] is odd", "closing [/tag] in it", "[red]x", "tail \\"])
def test_a_reason_is_shown_as_it_is(reason: str) -> None:
    assert f"bad/1 FAILED: {reason}" in shown(version_of("bad", state=State.FAILED, reason=reason))


def test_without_a_ready_model_that_is_said() -> None:
    assert "No model is ready" in shown(version_of("bad", state=State.FAILED, reason="no"))
    assert "NAME/1/model.pt" in shown()


def test_cold_models_are_counted_and_not_listed() -> None:
    text = shown(version_of("good", SMALL), *(version_of(f"cold{number}", state=State.COLD) for number in range(3)))
    assert "3 COLD" in text
    assert "400.0 MB" in text
    assert "cold0" not in text


def test_programs_read_one_line_of_json_with_addresses_and_models(helpers: Any, tmp_path: Path) -> None:
    (tmp_path / "store" / "broken" / "1").mkdir(parents=True)
    (tmp_path / "store" / "broken" / "1" / "readme.txt").touch()
    options = ("--json", "--port", "0", "--management-address", "off", "--metrics-address", "127.0.0.1:0")
    command = [helpers.program, "serve", "--model-store", tmp_path / "store", *options]
    command += ["--state-directory", tmp_path / "state"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as server:
        assert server.stdout is not None
        try:
            found = json.loads(server.stdout.readline())
            assert list(found["listeners"]) == ["http", "metrics"]
            assert httpx.get(f"{found['listeners']['http']}/v2/health/ready").status_code == 503
        finally:
            server.terminate()
        assert server.communicate(timeout=20)[0] == b""
    (model,) = found["models"]
    assert (model["name"], model["version"], model["state"], model["devices"]) == ("broken", "1", "FAILED", [])
    assert "no artifact" in model["reason"]
