"""TorchServe's management API over a gateway of its own: what is changed by hand, while clients go on."""

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

ROW = [0.5] * 16
OWN = ("--management-address", "127.0.0.1:0", "--workers", "2")


@pytest.fixture(scope="module")
def server(start_gateway: Callable[..., Any]) -> Iterator[Any]:
    with start_gateway(["mlp", "identity_torch"], *OWN, prepare=_add_archive) as started:
        yield started


def _add_archive(store: Path) -> None:
    (store / "old").write_bytes(b"PK")


@pytest.fixture(scope="module")
def manage(server: Any) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.listener("management"), timeout=60.0) as client:
        yield client


@pytest.fixture(autouse=True)
def _as_in_the_store(server: Any) -> Iterator[None]:
    """Every test leaves behind what model.yaml says."""
    yield
    assert server.http.post("/v2/repository/models/mlp/load").status_code == 200


def done(answer: httpx.Response, code: int = 200) -> str:
    assert answer.status_code == code, answer.text
    status: str = answer.json()["status"]
    return status


def refused(answer: httpx.Response, code: int, kind: str) -> str:
    assert answer.status_code == code, answer.text
    body = answer.json()
    assert (body["code"], body["type"]) == (code, kind)
    message: str = body["message"]
    return message


def one(manage: httpx.Client, path: str = "mlp") -> dict[str, Any]:
    (found,) = manage.get(f"/models/{path}").json()
    version: dict[str, Any] = found
    return version


def test_models_are_listed_page_by_page(manage: httpx.Client) -> None:
    first = manage.get("/models", params={"limit": 1}).json()
    assert first == {"nextPageToken": "1", "models": [{"modelName": "identity_torch", "modelUrl": "identity_torch"}]}
    assert len(manage.get("/models?limit=&next_page_token=").json()["models"]) == 2
    second = manage.get("/models", params={"limit": 1, "next_page_token": 1}).json()
    assert second == {"models": [{"modelName": "mlp", "modelUrl": "mlp"}]}


def test_a_description_names_real_processes_and_their_memory(server: Any, manage: httpx.Client) -> None:
    found = one(manage)
    assert (found["modelVersion"], found["minWorkers"], found["maxWorkers"]) == ("3", 1, 1)
    assert found["loadedAtStartup"]
    (worker,) = found["workers"]
    assert server.processes()[worker["pid"]].startswith("gateway: instance mlp/3")
    assert 100 << 10 < worker["memoryUsage"] < 1 << 30
    assert (worker["status"], worker["gpu"]) == ("READY", False)
    assert manage.get("/models/mlp/3.0").json()[0]["modelVersion"] == "3"
    assert [each["modelVersion"] for each in manage.get("/models/mlp/all").json()] == ["3"]


def test_a_version_is_scaled_under_traffic_and_no_request_fails(server: Any, manage: httpx.Client) -> None:
    stop, codes = threading.Event(), []

    def send() -> None:
        with httpx.Client(base_url=server.url, timeout=30.0) as client:
            while not stop.is_set():
                codes.append(client.post("/predictions/mlp", json=ROW).status_code)

    senders = [threading.Thread(target=send) for _ in range(4)]
    for sender in senders:
        sender.start()
    try:
        for count in (3, 1, 2, 0, 2, 1):
            scale = {"min_worker": count, "synchronous": "true"}
            assert done(manage.put("/models/mlp", params=scale)) == f"Workers scaled to {count} for model: mlp"
            if count:
                found = one(manage)
                assert (found["minWorkers"], found["maxWorkers"]) == (count, count)
                assert len({worker["pid"] for worker in found["workers"]}) == count
    finally:
        stop.set()
        for sender in senders:
            sender.join()
    assert codes
    assert set(codes) == {200}


def test_who_does_not_wait_is_answered_at_once(server: Any, manage: httpx.Client, helpers: Any) -> None:
    assert done(manage.put("/models/mlp/3?min_worker=2"), 202) == "Processing worker updates..."
    helpers.until(lambda: len(one(manage)["workers"]) == 2, 20.0)
    helpers.until(lambda: len(server.pids("instance mlp/3")) == 2, 20.0)  # one still loads at first


def test_versions_come_and_go_and_the_default_is_chosen(server: Any, manage: httpx.Client) -> None:
    http = server.http
    said = done(manage.post("/models", params={"url": "mlp/2", "initial_workers": 1, "synchronous": "true"}))
    assert said == 'Model "mlp" Version: 2 registered with 1 initial workers'
    assert [each["modelVersion"] for each in manage.get("/models/mlp/all").json()] == ["2", "3"]
    assert one(manage)["modelVersion"] == "3"
    said = done(manage.put("/models/mlp/2.0/set-default"))
    assert said == 'Default version successfully updated for model "mlp" to "2.0"'
    assert one(manage)["modelVersion"] == "2"
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 16], "data": ROW}
    assert http.post("/v2/models/mlp/infer", json={"inputs": [tensor]}).json()["model_version"] == "2"
    said = refused(manage.delete("/models/mlp/2"), 403, "InvalidModelVersionException")
    assert said == "Cannot remove default version for model mlp"
    assert done(manage.delete("/models/mlp/3")) == 'Model "mlp" unregistered'
    refused(http.post("/predictions/mlp/3", json=ROW), 404, "ModelVersionNotFoundException")
    assert done(manage.delete("/models/mlp")) == 'Model "mlp" unregistered'
    assert refused(http.post("/predictions/mlp", json=ROW), 404, "ModelNotFoundException") == "Model not found: mlp"
    assert refused(manage.get("/models/mlp"), 404, "ModelNotFoundException") == "Model not found: mlp"
    assert not server.pids("instance mlp/")
    said = done(manage.post("/models", json={"url": "mlp", "model_name": "mlp"}))
    assert said.startswith('Model "mlp" Version: 3 registered with 0 initial workers. Use scale workers API')
    assert one(manage)["workers"] == []
    assert http.post("/predictions/mlp", json=ROW).status_code == 200
    said = refused(manage.post("/models?url=mlp"), 409, "ConflictStatusException")
    assert said == "Model version 3 is already registered for model mlp"


def test_who_registers_need_not_wait_either(manage: httpx.Client, helpers: Any) -> None:
    assert (
        done(manage.post("/models?url=mlp/2&initial_workers=2&synchronous=false"), 202)
        == "Processing worker updates..."
    )
    helpers.until(lambda: len(one(manage, "mlp/2")["workers"]) == 2, 20.0)


@pytest.mark.parametrize(
    ("method", "path", "code", "kind", "said"),
    [
        ("POST", "/models", 400, "BadRequestException", "Parameter url is required."),
        ("POST", "/models?url=../x", 404, "ModelNotFoundException", "Relative path is not allowed in url: ../x"),
        ("POST", "/models?url=file:///etc/passwd", 404, "ModelNotFoundException", "does not match any allowed URL(s)"),
        ("POST", "/models?url=/etc/passwd", 404, "ModelNotFoundException", "Model not found in model store"),
        ("POST", "/models?url=nobody", 404, "ModelNotFoundException", "Model not found in model store: nobody"),
        ("POST", "/models?url=mlp/9", 404, "ModelVersionNotFoundException", "has no version 9 in the model store"),
        (
            "POST",
            "/models?url=InvalidUrl&runtime=InvalidRuntime",
            400,
            "BadRequestException",
            "Invalid RuntimeType value",
        ),
        ("POST", "/models?url=old", 400, "BadRequestException", "`gateway import` reads model archives"),
        ("POST", "/models?url=old.mar", 404, "ModelNotFoundException", "`gateway import` reads model archives"),
        (
            "POST",
            "/models/?url=/tmp/m.mar",
            404,
            "ModelNotFoundException",
            "Model not found in model store: /tmp/m.mar",
        ),
        ("GET", "/models/nobody", 404, "ModelNotFoundException", "Model not found: nobody"),
        (
            "GET",
            "/models/mlp/9",
            404,
            "ModelVersionNotFoundException",
            "Model version: 9 does not exist for model: mlp",
        ),
        ("GET", "/models/mlp/x", 404, "ModelVersionNotFoundException", "Model version: x does not exist"),
        ("PUT", "/models/nobody?min_worker=1", 404, "ModelNotFoundException", "Model not found: nobody"),
        ("PUT", "/models/mlp/9?min_worker=1", 404, "ModelVersionNotFoundException", "Model version: 9 does not exist"),
        ("PUT", "/models/mlp?min_worker=2&max_worker=1", 400, "BadRequestException", "max_worker cannot be less"),
        ("PUT", "/models/mlp?min_worker=1000", 400, "BadRequestException", "min_worker must be from 0 to 128"),
        ("PUT", "/models/mlp/9/set-default", 404, "ModelVersionNotFoundException", "Model version: 9 does not exist"),
        ("DELETE", "/models/nobody", 404, "ModelNotFoundException", "Model not found: nobody"),
        ("DELETE", "/models/mlp/9", 404, "ModelVersionNotFoundException", "Model version: 9 does not exist"),
        ("POST", "/models/mlp", 405, "MethodNotAllowedException", "Requested method is not allowed"),
        ("GET", "/predictions/mlp", 404, "ResourceNotFoundException", "Requested resource is not found"),
    ],
)
def test_what_cannot_be_is_refused_as_torchserve_says_it(
    manage: httpx.Client, method: str, path: str, code: int, kind: str, said: str
) -> None:
    assert said in refused(manage.request(method, path), code, kind)


@pytest.mark.parametrize("body", [b"{", b"[1]", b'{"url": 1}', b"{" + b" " * (65 << 10)])
def test_a_body_that_is_none_is_refused(manage: httpx.Client, body: bytes) -> None:
    answer = manage.post("/models", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in {400, 413}
    assert answer.json().keys() == {"code", "type", "message"}


def test_the_listener_describes_itself(manage: httpx.Client) -> None:
    assert "/models/{model}" in manage.options("/").json()["paths"]


@pytest.mark.parametrize(
    "page",
    [
        {"origin": "http://evil.example"},
        {"sec-fetch-site": "cross-site"},
        {"host": "evil.example"},
        {"host": "evil.example", "origin": "http://evil.example"},
    ],
)
def test_a_web_page_of_somebody_else_changes_nothing(server: Any, manage: httpx.Client, page: dict[str, str]) -> None:
    refused(manage.delete("/models/mlp", headers=page), 403, "ForbiddenException")
    answer = server.http.post("/v2/repository/models/mlp/unload", headers=page | {"content-type": "text/plain"})
    assert answer.status_code == 403
    assert "error" in answer.json()
    assert one(manage)["status"] == "READY"


def test_heads_are_limited_here_too(server: Any) -> None:
    address = urlsplit(server.listener("management"))
    with socket.create_connection((address.hostname, address.port), 20) as connection:
        connection.sendall(b"GET /models HTTP/1.1\r\nhost: x\r\nx-a: " + b"a" * (1 << 17))
        assert connection.recv(4096).startswith(b"HTTP/1.1 431 ")
