"""`gateway profile` against a real gateway, with both frameworks, and TensorBoard on what it makes."""

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

MODELS = ("digits_torch", "digits_tensorflow")
IMAGE = np.linspace(0, 16, 64, dtype=np.float32).tolist()
BODY = {"inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 64], "data": IMAGE}]}
PRODUCT = re.compile(r"aten::(add)?mm|\w*MatMul")
"""What the frameworks call a layer of these models, depending on the processor."""
SECONDS = 1.0


def answer(gateway: Any, model: str) -> Any:
    response = gateway.http.post(f"/v2/models/{model}/infer", json=BODY)
    assert response.status_code == 200, response.text
    return response.json()["outputs"][0]["data"]


@pytest.fixture(scope="module")
def recorded(gateway: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Each model's recording as --json tells of it, made while requests were sent, with their answers."""
    out = tmp_path_factory.mktemp("profiles")
    found: dict[str, Any] = {"out": out}
    before = gateway.lasting_processes()
    for model in MODELS:
        usual, answers = answer(gateway, model), []
        with ThreadPoolExecutor(1) as pool:
            command = pool.submit(
                gateway.command, "profile", model, "--seconds", str(SECONDS), "--out", out, "--json", "--no-drive"
            )
            while not command.done():
                answers.append(answer(gateway, model))
        done = command.result()
        assert done.returncode == 0, done.stderr
        found[model] = json.loads(done.stdout) | {"usual": usual, "answers": answers}
    assert gateway.lasting_processes() == before, "no instance was replaced"
    return found


@pytest.mark.parametrize("model", MODELS)
def test_requests_are_answered_rightly_while_it_records(recorded: dict[str, Any], model: str) -> None:
    found = recorded[model]
    assert len(found["answers"]) > 5
    for each in found["answers"]:
        np.testing.assert_allclose(each, found["usual"], rtol=1e-5)


@pytest.mark.parametrize("model", MODELS)
def test_it_tells_which_operations_took_the_time(recorded: dict[str, Any], model: str) -> None:
    found = recorded[model]
    assert 0 < found["executions"] <= len(found["answers"])
    (layers,) = [each for each in found["operations"] if PRODUCT.fullmatch(each["name"])]
    assert layers["calls"] == 2 * found["executions"]
    assert layers["total_ms"] >= layers["self_ms"] > 0
    own = [each["self_ms"] for each in found["operations"]]
    assert own == sorted(own, reverse=True)
    trace = json.loads(Path(found["trace"]).read_bytes())
    assert sum(each.get("name") == layers["name"] for each in trace["traceEvents"]) == layers["calls"]


@contextlib.contextmanager
def tensorboard(folder: Path, helpers: Any) -> Iterator[httpx.Client]:
    log = folder.parent / "tensorboard.log"
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tensorboard.main", "--logdir", folder, "--host", "127.0.0.1",
             "--port", "0", "--load_fast", "false"],
            stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, env=environment,
        )  # fmt: skip
    try:
        found = helpers.until(
            lambda: process.poll() is not None or re.search(r"http://127\.0\.0\.1:\d+", log.read_text()), 60
        )
        assert process.poll() is None, log.read_text()
        with httpx.Client(base_url=found[0], timeout=20, trust_env=False) as client:
            yield client
    finally:
        process.terminate()
        process.wait(10)


def test_tensorboard_lists_the_runs_and_draws_their_graphs(recorded: dict[str, Any], helpers: Any) -> None:
    runs = {model: Path(recorded[model]["folder"]).name for model in MODELS}
    with tensorboard(recorded["out"], helpers) as client:
        helpers.until(lambda: set(client.get("/data/runs").json()) == set(runs.values()), 30)
        info = helpers.until(lambda: client.get("/data/plugin/graphs/info").json(), 30)
        assert all(info[run]["run_graph"] for run in runs.values())
        torch, tensorflow = (
            client.get("/data/plugin/graphs/graph", params={"run": runs[model]}).text for model in MODELS
        )
    assert re.search(r'name: "hidden/linear"\s+op: "aten::linear"\s+input: "image"', torch)
    assert {"MatMul", "Softmax", "VarHandleOp"} <= set(re.findall(r'op: "(\w+)"', tensorflow))


def test_what_the_profile_plugin_reads_lies_where_it_looks(recorded: dict[str, Any]) -> None:
    folder = Path(recorded["digits_tensorflow"]["folder"])
    (found,) = folder.glob("plugins/profile/*/*.xplane.pb")
    assert found.stat().st_size > 100
    assert [path.name for path in Path(recorded["digits_torch"]["folder"]).glob("*.pt.trace.json")]


def test_by_itself_the_command_sends_requests_and_shows_a_table(gateway: Any, tmp_path: Path) -> None:
    done = gateway.command("profile", "collatz_torch", "--seconds", "0.3", "--out", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.match(r"collatz_torch/1, recorded for 0\.\d s: [1-9]\d* executions", done.stdout)
    assert re.search(r"^aten::where +\d+", done.stdout, re.MULTILINE)
    assert f"tensorboard --logdir {tmp_path}\n" in done.stdout
    (trace,) = tmp_path.glob("collatz_torch-1-*/*.pt.trace.json")
    assert f"open {trace} at" in done.stdout


def test_of_several_instances_one_is_recorded_and_made_busy(start_gateway: Any, tmp_path: Path) -> None:
    def twice(store: Path) -> None:
        (store / "mlp" / "model.yaml").write_text("instance_group: {count: 2}\n")

    with start_gateway(["mlp"], prepare=twice) as own:
        arguments = ("mlp", "--instance", "1", "--seconds", "0.5", "--out", tmp_path, "--json")
        found = json.loads(own.command("profile", *arguments).stdout)
        assert (found["instance"], found["instances"]) == (1, [0, 1])
        assert found["executions"] > 0
        assert own.command("infer", "mlp", "--random").returncode == 0


def test_if_nothing_was_executed_it_says_so(gateway: Any, tmp_path: Path) -> None:
    done = gateway.command("profile", "mlp", "--seconds", "0.1", "--out", tmp_path, "--no-drive")
    assert done.returncode == 0
    assert "nothing was executed meanwhile" in done.stderr


def test_what_the_profilers_leave_behind_is_taken_away(recorded: dict[str, Any], gateway: Any) -> None:
    folders = [path / "cwd" for path in Path("/proc").glob("[0-9]*") if int(path.name) in gateway.pids("instance")]
    assert len(folders) > len(recorded) - 1
    assert not [entry for folder in folders for entry in folder.iterdir() if entry.name.startswith("recording-")]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("digits_torhc",), 1, "no model 'digits_torhc'; did you mean 'digits_torch'?"),
        (("digits_torch", "--version", "7"), 1, "version '7' is not found"),
        (("no_archive",), 1, "FAILED"),
        (("digits_torch", "--instance", "3"), 1, "has no instance 3; it has 0"),
        (("digits_torch", "--seconds", "61"), 2, "less than or equal to 60"),
    ],
)
def test_mistakes_are_one_line(gateway: Any, tmp_path: Path, arguments: tuple[str, ...], code: int, words: str) -> None:
    done = gateway.command("profile", *arguments, "--out", tmp_path)
    assert (done.returncode, done.stdout) == (code, "")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


# The call itself


def call(gateway: Any, model: str, body: Any, **how: Any) -> httpx.Response:
    return gateway.http.post(f"/v2/repository/models/{model}/profile", json=body, **how)


@pytest.mark.parametrize(
    "body", [{"seconds": 0}, {"seconds": 60.5}, {"seconds": -1}, {"seconds": "1"}, {"second": 1}, []]
)
def test_a_wrong_body_is_refused(gateway: Any, body: Any) -> None:
    assert call(gateway, "mlp", body).status_code == 400


def test_web_pages_of_others_may_not_make_it(gateway: Any) -> None:
    for headers in ({"origin": "https://page.example"}, {"host": "page.example"}, {"sec-fetch-site": "cross-site"}):
        assert call(gateway, "mlp", {"seconds": 0.1}, headers=headers).status_code == 403


def test_a_second_recording_of_an_instance_is_refused(gateway: Any) -> None:
    statuses: list[int] = []
    with httpx.Client(base_url=gateway.url, timeout=30) as client:
        path = "/v2/repository/models/mlp/profile"
        thread = threading.Thread(target=lambda: statuses.append(client.post(path, json={"seconds": 0.5}).status_code))
        thread.start()
        while thread.is_alive():
            refused = call(gateway, "mlp", {"seconds": 0.01})
            statuses.append(refused.status_code)
            if refused.status_code == 409:
                assert "instance 0 is being recorded already" in refused.json()["error"]
        thread.join()
    assert set(statuses) == {200, 409}
