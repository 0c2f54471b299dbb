"""The rounds of a comparison where something goes wrong: it is told, and what was unloaded is loaded again."""

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from gateway.commands.bench import Bar
from gateway.commands.client import Client
from gateway.commands.compare_data import Data
from gateway.commands.compare_rounds import Plan, Results, Scrape, Side, figures, measure, measured
from gateway.commands.load_generator import Shot, any_200, request
from gateway.commands.model import Model
from gateway.errors import CallFailed

PLAN = Plan([1], [1], 2, 0.05, 0.0, reload=True)
SIDES = tuple(Side(Model(name, "1", "", {}, "default", {})) for name in ("one", "other"))
INPUTS = {"x": ("FP32", np.zeros((2, 1), np.float32))}
DATA = Data(INPUTS, INPUTS, None, "", 2)
SHOTS = [Shot(request("POST", "/v2/models/one/versions/1/infer", b"{}"), any_200)]


@contextmanager
def asking(url: str, timeout: float = 5.0) -> Iterator[Client]:
    with Client(url, None, None, insecure=False, timeout=timeout) as client:
        yield client


@pytest.fixture
def server() -> Iterator[Any]:
    """It answers 200 and {}, but for what `status` of it says, and keeps in mind what it was told about models."""

    class Server(ThreadingHTTPServer):
        status: Callable[[str], int]
        told: list[str]
        asked: list[str]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # head and body in one piece

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            path = self.path.removeprefix("/v2/repository/models/")
            (server.told if path != self.path else server.asked).append(path)
            self.send_response(server.status(path))
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        do_GET = do_POST  # noqa: N815 - http.server wants the name

        def log_message(self, *_: Any) -> None:
            pass

    with Server(("127.0.0.1", 0), Handler) as server:
        server.status, server.told, server.asked = lambda _: 200, [], []
        server.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_model_that_answers_with_errors_only_is_told_with_them(server: Any) -> None:
    server.status = lambda _: 503
    with asking(server.url) as client, pytest.raises(CallFailed) as caught:
        measured(client, SIDES[0], SHOTS, 1, PLAN, Bar(1))
    assert "one/1 answered no request on 1 connections with 200: " in caught.value.message
    assert caught.value.message.endswith(" x status 503")


def test_a_model_that_answers_nothing_is_waited_for_as_long_as_was_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with asking(url, 0.2) as client, pytest.raises(CallFailed) as caught:
            measured(client, SIDES[0], SHOTS, 1, PLAN, Bar(1))
    assert caught.value.message == "one/1 answered nothing on 1 connections within 0.2 s"


def test_a_load_that_fails_leaves_no_model_unloaded(server: Any, capfd: pytest.CaptureFixture[str]) -> None:
    server.status = lambda path: 500 if path == "one/load" else 200
    with asking(server.url) as client, pytest.raises(CallFailed, match="500"):
        measure(client, SIDES, DATA, PLAN, Bar(1))
    assert server.told == ["one/unload", "other/unload", "one/load", "one/load", "other/load"]
    assert capfd.readouterr().err.startswith("gateway: one was unloaded for this and may still be: ")


def test_an_end_by_a_signal_leaves_no_model_unloaded(server: Any) -> None:
    def status(_: str) -> int:
        if server.told == ["one/unload", "other/unload"]:
            os.kill(os.getpid(), signal.SIGTERM)
        return 200

    server.status = status
    with asking(server.url) as client, pytest.raises(SystemExit, match="143"):
        measure(client, SIDES, DATA, PLAN, Bar(1))
    assert server.told[:2] == ["one/unload", "other/unload"]
    assert server.told[-2:] == ["one/load", "other/load"]


def test_who_fails_under_load_was_loaded_before_and_is_not_again(server: Any) -> None:
    server.status = lambda path: 503 if path.endswith("/infer") else 200
    with asking(server.url) as client, pytest.raises(CallFailed, match="503"):
        measure(client, SIDES, DATA, PLAN, Bar(1))
    assert server.told == ["one/unload", "other/unload", "one/load", "other/load"]


def test_only_the_version_that_was_described_is_asked(server: Any) -> None:
    with asking(server.url) as client:
        results = measure(client, SIDES, DATA, PLAN._replace(reload=False), Bar(1))
    assert set(server.asked) == {f"/v2/models/{name}/versions/1/infer" for name in ("one", "other")} | {"/metrics"}
    assert server.told == []
    assert server.asked.count("/metrics") == len(results.scrapes) * 2 == 2
    assert [len(each) for each in results.cells[0]] == [2, 2]


def test_figures_are_paired_by_round_and_a_model_on_no_gpu_has_nothing_there() -> None:
    results = Results([])
    rounds: list[tuple[Scrape, Scrape]] = [
        ({"memory_bytes": 1.0}, {"memory_bytes": 2.0, "gpu_memory_bytes": 3.0}),
        ({}, {"memory_bytes": 4.0, "gpu_memory_bytes": 5.0}),
        ({"memory_bytes": 6.0}, {"memory_bytes": 7.0, "gpu_memory_bytes": 8.0}),
    ]
    results.scrapes += rounds
    found = {each.name: (each.contrast.a.rounds, each.contrast.b.rounds) for each in figures(results, None)}
    assert found == {"memory_bytes": ([1, 6], [2, 7]), "gpu_memory_bytes": ([0, 0], [3, 8])}
