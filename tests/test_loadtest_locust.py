"""Locust on the digit twins: what it sends is understood, and no wrong answer goes unseen."""

import csv
import importlib.util
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).parents[1]


def load(directory: str, name: str) -> Any:
    """A module of a folder that is no package."""
    spec = importlib.util.spec_from_file_location(f"loadtests_{name}", ROOT / directory / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # named tuples look themselves up there
    spec.loader.exec_module(module)
    return module


calls, shapes, timeline = (load("loadtests", name) for name in ("digit_calls", "load_shapes", "timeline"))
DIALECTS = calls.DIALECTS
ONE_HOT = [0.0, 0.0, 1.0] + [0.0] * 7


def answer(dialect: str, probabilities: list[float]) -> tuple[dict[str, str], bytes]:
    """The answer of a server in its words."""
    if dialect == "TF Serving":
        return {}, json.dumps({"predictions": [probabilities]}).encode()
    if dialect == "TorchServe":
        return {}, json.dumps(probabilities).encode()
    if dialect == "OIP JSON":
        return {}, json.dumps({"outputs": [{"data": probabilities}]}).encode()
    return {"Inference-Header-Content-Length": "2"}, b"{}" + np.array(probabilities, "<f4").tobytes()


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_digit_is_found_in_an_answer_and_in_nothing_else(dialect: str) -> None:
    assert calls.digit(dialect, *answer(dialect, ONE_HOT)) == 2
    for headers, body in (answer(dialect, ONE_HOT[:9]), ({}, b"{}"), ({}, b"\xff"), ({}, b"")):
        if dialect != "OIP binary" or headers:
            with pytest.raises(ValueError):  # noqa: PT011 - JSON's own is one
                calls.digit(dialect, headers, body)


@given(st.sampled_from(shapes.SHAPES), st.floats(0, 100), st.integers(1, 500))
def test_a_shape_has_users_until_its_time_is_over(shape: str, second: float, most: int) -> None:
    assert 1 <= shapes.users_at(shape, second, 100.5, most) <= most
    assert shapes.users_at(shape, 100.5, 100.5, most) is None
    assert 1 <= shapes.users_at(shape, second, None, most) <= most


def test_shapes_are_what_they_are_called() -> None:
    assert [shapes.users_at("ramp", second, 100, 90) for second in (0, 45, 90, 99)] == [1, 45, 90, 90]
    assert [shapes.users_at("spike", second, 100, 90) for second in (0, 39, 40, 59, 60)] == [18, 18, 90, 90, 18]
    assert [shapes.users_at("soak", second, 100, 90) for second in (0, 99)] == [90, 90]


def test_a_timeline_has_all_whole_seconds_and_tells_failures_from_answers(tmp_path: Path) -> None:
    seen = timeline.Timeline()
    for second, milliseconds in ((0.1, 10.0), (0.9, 30.0), (2.5, 5.0), (3.1, 1.0)):
        seen.add("PyTorch", second, milliseconds, right=True)
    seen.add("TensorFlow", 1.5, 1.0, right=False)
    torch, tensorflow = seen.points()["PyTorch"], seen.points()["TensorFlow"]
    assert [(point.second, point.requests, point.failures) for point in torch] == [(0, 2, 0), (1, 0, 0), (2, 1, 0)]
    assert torch[0].p50 == 20.0
    assert [(point.requests, point.failures) for point in tensorflow] == [(0, 0), (0, 1), (0, 0)]
    timeline.draw(seen, "a test", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def run(out: Path, url: str, *options: str) -> tuple[int, dict[str, dict[str, str]]]:
    """The exit code of a short load test, and its figures by name."""
    command = [sys.executable, str(ROOT / "loadtests" / "load.py"), "--url", url, "--out", str(out), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (out / "load_stats.csv").is_file(), done.stderr
    with (out / "load_stats.csv").open() as file:
        return done.returncode, {row["Name"]: row for row in csv.DictReader(file)}


def test_every_api_gives_right_answers_at_a_constant_rate(gateway: Any, tmp_path: Path) -> None:
    code, found = run(tmp_path, gateway.url, "--seconds", "3", "--users", "4", "--shape", "open", "--rate", "60")
    assert code == 0
    assert 90 <= int(found["Aggregated"]["Request Count"]) <= 190
    assert found.keys() == {f"{name} · {dialect}" for name in calls.MODELS for dialect in DIALECTS} | {"Aggregated"}
    assert all(int(row["Request Count"]) > 0 and row["Failure Count"] == "0" for row in found.values())
    assert b"PyTorch" in (tmp_path / "report.html").read_bytes()
    assert (tmp_path / "load.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def liar() -> Iterator[str]:
    """A server that finds the right digit for binary tensors, and the next one for everybody else."""
    digits = load("model_store/digits_torch", "data").split()[1]
    labels = {image.tobytes(): int(label) for image, label in zip(digits.images, digits.labels, strict=True)}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # head and body in one piece

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if size := self.headers.get("Inference-Header-Content-Length"):
                images = np.frombuffer(body[int(size) :], np.float32).reshape(-1, 64)
                headers = {"Inference-Header-Content-Length": "2"}
                found = [labels[image.tobytes()] for image in images]
                content = b"{}" + np.eye(10, dtype=np.float32)[found].tobytes()
            else:
                dialect = {"v1": "TF Serving", "v2": "OIP JSON"}.get(self.path[1:3], "TorchServe")
                sent = json.loads(body)
                values = {"TF Serving": lambda: sent["instances"][0], "OIP JSON": lambda: sent["inputs"][0]["data"]}
                raw = np.array(values.get(dialect, lambda: sent)(), np.float32).tobytes()
                headers, content = answer(dialect, np.eye(10)[(labels[raw] + 1) % 10].tolist())
            self.send_response(200)
            for name, value in (headers | {"Content-Length": str(len(content))}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_a_wrong_digit_is_a_failure_though_the_answer_is_200(liar: str, tmp_path: Path) -> None:
    code, found = run(tmp_path, liar, "--seconds", "2", "--users", "4", "--shape", "soak")
    assert code == 1
    for name, row in found.items():
        wrong = 0 if name.endswith("binary") else int(row["Request Count"])
        assert int(row["Failure Count"]) == wrong or name == "Aggregated"
    assert int(found["Aggregated"]["Failure Count"]) > 0
