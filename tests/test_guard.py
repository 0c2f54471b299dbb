"""A gateway that other machines reach, without keys and then with them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BODY = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 16], "data": [0.5] * 16}]}
PAGE = "https://page.example"
CHANGES = [
    ("POST", "/v2/repository/index"),
    ("POST", "/v2/repository/models/mlp/load"),
    ("POST", "/v2/repository/models/mlp/unload"),
    ("POST", "/v2/repository/models/mlp/profile"),
    ("POST", "/v2/repository/index%0A"),
]


@pytest.fixture(scope="module")
def keys_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("keys") / "keys.json"
    file.write_text('{"keys": []}')
    return file


@pytest.fixture(scope="module")
def exposed(start_gateway: Any, keys_file: Path) -> Iterator[Any]:
    listeners = ("--host", "0.0.0.0", "--management-address", "0.0.0.0:0", "--metrics-address", "off")
    options = ("--keys-file", str(keys_file), "--cors-origins", PAGE)
    with start_gateway(["mlp"], *listeners, *options) as gateway:
        yield gateway


def test_inference_metadata_health_and_metrics_are_open(exposed: Any) -> None:
    assert exposed.http.post("/v2/models/mlp/infer", json=BODY).status_code == 200
    for path in ("/v2", "/v2/models/mlp", "/v2/health/ready", "/metrics"):
        assert exposed.http.get(path).status_code == 200


@pytest.mark.parametrize(("method", "path"), CHANGES)
def test_what_changes_the_server_is_refused_with_how_to_allow_it(exposed: Any, method: str, path: str) -> None:
    answer = exposed.http.request(method, path)
    assert answer.status_code == 403
    assert "`gateway keys add NAME --scope admin`" in answer.json()["error"]
    assert "--keys-file" in answer.json()["error"]


def test_so_is_everything_on_the_management_listener(exposed: Any) -> None:
    url = exposed.listener("management").rstrip("/").replace("0.0.0.0", "127.0.0.1")
    for path in ("/v2", "/models", "/models/mlp"):
        answer = exposed.http.get(url + path)
        assert answer.status_code == answer.json()["code"] == 403
        assert "--keys-file" in answer.json()["message"]


def test_a_web_page_may_read_why(exposed: Any) -> None:
    answer = exposed.http.post("/v2/repository/index", headers={"origin": PAGE})
    assert answer.status_code == 403
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert answer.headers.get_list("access-control-allow-origin") == [PAGE]


def test_an_id_comes_back_though_nothing_is_recorded_and_none_is_made(exposed: Any) -> None:
    for path, how in (("/v2/models/mlp/infer", {"json": BODY}), ("/v2/repository/index", {})):
        answer = exposed.http.post(path, headers={"x-request-id": "mine"}, **how)
        assert answer.headers["x-request-id"] == "mine"
        assert "x-request-id" not in exposed.http.post(path, **how).headers


def test_the_first_admin_key_opens_them_to_its_owner(exposed: Any, keys_file: Path, helpers: Any) -> None:
    key = helpers.keys(keys_file, "add", "me", "--scope", "admin")
    headers = {"authorization": f"Bearer {key}"}
    helpers.until(lambda: exposed.http.post("/v2/repository/index", headers=headers).status_code == 200, 10)
    for method, path in CHANGES:
        assert exposed.http.request(method, path).status_code == 401
    assert exposed.http.post("/v2/models/mlp/infer", json=BODY).status_code == 401
    preflight = {"origin": PAGE, "access-control-request-method": "POST"}
    assert exposed.http.options("/v2/models/mlp/infer", headers=preflight).status_code == 200
    assert exposed.http.post("/v2/models/mlp/infer", json=BODY, headers=headers).status_code == 200
    helpers.keys(keys_file, "revoke", "me")
    helpers.until(lambda: exposed.http.post("/v2/repository/index", headers=headers).status_code == 403, 10)
    assert exposed.http.post("/v2/models/mlp/infer", json=BODY).status_code == 401


@pytest.mark.parametrize(
    "path", ["/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/mlp", "/ping", "/metrics", "/console", "/docs"]
)
def test_what_answers_get_answers_head_without_a_body(gateway: Any, path: str) -> None:
    with gateway.connect() as connection:
        connection.send(gateway.request("HEAD", path) + gateway.request("GET", "/v2/health/live"))
        head = connection.head()
        get = gateway.http.get(path)
        assert (head.status, head.headers["content-type"]) == (get.status_code, get.headers["content-type"])
        assert connection.response().json() == {"live": True}


def test_head_of_a_stream_without_end_ends(gateway: Any) -> None:
    with gateway.connect() as connection:
        connection.send(gateway.request("HEAD", "/console/events") + gateway.request("GET", "/v2/health/live"))
        assert connection.head().status == 200
        assert connection.response().json() == {"live": True}


def test_head_of_what_only_post_answers_is_refused(gateway: Any) -> None:
    with gateway.connect() as connection:
        connection.send(gateway.request("HEAD", "/v2/repository/index"))
        assert connection.head().status == 405
