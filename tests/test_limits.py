"""What a client may make the gateway do: bounds on heads, memory and time, and routes that change under way."""

import json
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

MLP = json.dumps({"inputs": [{"name": "x", "shape": [1, 16], "datatype": "FP32", "data": [0.5] * 16}]}).encode()


def resident(pid: int) -> int:
    """Memory of a process in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"no VmRSS of process {pid}")


def large_binary(rows: int) -> tuple[bytes, list[str]]:
    raw = struct.pack("<16f", *range(16)) * rows
    tensor = {"name": "x", "shape": [rows, 16], "datatype": "FP32", "parameters": {"binary_data_size": len(raw)}}
    head = json.dumps({"inputs": [tensor]}).encode()
    return head + raw, [f"Inference-Header-Content-Length: {len(head)}"]


@pytest.mark.parametrize("kind", ["json", "binary"])
def test_a_body_that_arrives_while_its_model_is_loaded_anew_is_answered(
    start_gateway: Callable[..., Any], kind: str
) -> None:
    body, headers = large_binary(10_000) if kind == "binary" else (MLP, [])
    with start_gateway(["mlp"]) as gateway, gateway.connect() as connection:
        request = gateway.request("POST", "/v2/models/mlp/infer", body, *headers)
        connection.send(request[:-50])
        assert gateway.http.post("/v2/repository/models/mlp/load").status_code == 200
        connection.send(request[-50:])
        assert connection.response().status == 200


@pytest.mark.parametrize("offer", ["Upgrade: h2c", "upgrade: h2c"])
def test_an_offer_to_upgrade_is_ignored(gateway: Any, offer: str) -> None:
    with gateway.connect() as connection:
        for _ in range(2):
            settings = "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA"
            headers = (offer, settings, "Connection: Upgrade, HTTP2-Settings")
            connection.send(gateway.request("POST", "/v2/models/mlp/infer", MLP, *headers))
            assert connection.response().status == 200


@pytest.mark.parametrize("head", [b"X: " + b"y" * 200_000, b"X: y\r\n" * 50_000])
def test_a_head_without_end_is_refused(gateway: Any, head: bytes) -> None:
    with gateway.connect() as connection:
        connection.send(b"GET /v2 HTTP/1.1\r\nHost: x\r\n" + head)
        assert connection.response().status in (400, 431)
        assert connection.closed_by_peer()


def test_a_head_alone_takes_no_memory_for_its_body_and_an_aborted_body_gives_it_back(
    start_gateway: Callable[..., Any], helpers: Any
) -> None:
    with start_gateway(["mlp"]) as gateway:
        worker = gateway.pid("http worker")
        before = resident(worker)
        connections = [gateway.connect() for _ in range(6)]
        for connection in connections:
            head = f"POST /v2/models/mlp/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {60 << 20}\r\n\r\n"
            connection.send(head.encode() + b"{")
        assert gateway.http.get("/v2/health/live").status_code == 200
        assert resident(worker) - before < 60 << 20
        for connection in connections:
            connection.send(b" " * (20 << 20))
            connection.__exit__(None, None, None)
        helpers.until(lambda: resident(worker) - before < 60 << 20, 10)


def test_time_to_refuse_grows_with_the_size_of_a_body_and_no_faster(gateway: Any) -> None:
    def seconds(keys: int) -> float:
        body = json.dumps({f"k{number}": 1 for number in range(keys)}).encode()
        started = time.perf_counter()
        assert gateway.http.post("/v2/models/mlp/infer", content=body).status_code == 400
        return time.perf_counter() - started

    assert min(seconds(80_000) for _ in range(3)) < 40 * min(seconds(8_000) for _ in range(3))


def test_a_model_yaml_that_is_too_large_fails_its_model_only(start_gateway: Callable[..., Any]) -> None:
    def enlarge(store: Path) -> None:
        inputs = [{"name": f"input_number_{number}", "datatype": "FP32", "shape": [-1, 4]} for number in range(4000)]
        (store / "wide" / "1").mkdir(parents=True)
        (store / "wide" / "model.yaml").write_text(json.dumps({"inputs": inputs}))
        shutil.copy(store / "mlp" / "3" / "model.pt", store / "wide" / "1")

    with start_gateway(["mlp"], prepare=enlarge) as gateway:
        assert gateway.versions() == {"mlp": "READY", "wide": "FAILED"}
