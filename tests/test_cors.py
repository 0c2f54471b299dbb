"""Which web pages may call the API, as browsers ask and servers answer."""

from collections.abc import Iterator
from typing import Any

import pytest

from gateway.http.cors import Cors

PAGE = "https://page.example"
PREFLIGHT = {
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization, inference-header-content-length",
}


@pytest.fixture(scope="module")
def open_to_one(start_gateway: Any) -> Iterator[Any]:
    options = ("--cors-origins", PAGE, "--cors-origins", "http://localhost:3000", "--server-name", "triton")
    with start_gateway(["mlp", "raises"], *options) as gateway:
        yield gateway


def body(model: str, value: float = 0.5) -> dict[str, Any]:
    shape = [1, 16] if model == "mlp" else [1]
    count = 16 if model == "mlp" else 1
    return {"inputs": [{"name": "x", "datatype": "FP32", "shape": shape, "data": [value] * count}]}


def exposed(answer: Any) -> set[str]:
    return {name.strip() for name in answer.headers["access-control-expose-headers"].lower().split(",")}


def varies(answer: Any) -> set[str]:
    return {name.strip() for name in answer.headers.get("vary", "").lower().split(",")}


def test_a_preflight_is_answered_for_every_path(open_to_one: Any) -> None:
    for path in ("/v2/models/mlp/infer", "/v2/models/mlp/generate", "/v2", "/v2/repository/index"):
        answer = open_to_one.http.options(path, headers={"origin": PAGE, **PREFLIGHT})
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert "POST" in answer.headers["access-control-allow-methods"]
        assert "authorization" in answer.headers["access-control-allow-headers"]
        assert "origin" in varies(answer)


@pytest.mark.parametrize(
    ("path", "sent", "status"),
    [
        ("/v2/models/mlp/infer", body("mlp"), 200),
        ("/v2/models/mlp/generate", {"x": [0.5] * 16}, 200),
        ("/v2/models/mlp/infer", {}, 400),
        ("/v2/models/nobody/infer", body("mlp"), 404),
        ("/v2/models/raises/infer", body("raises", -1.0), 500),
        ("/v2/repository/index", {}, 200),
        ("/v2/nowhere", {}, 404),
    ],
)
def test_a_page_that_is_allowed_may_read_answers_and_errors(
    open_to_one: Any, path: str, sent: Any, status: int
) -> None:
    answer = open_to_one.http.post(path, json=sent, headers={"origin": PAGE})
    assert answer.status_code == status
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert exposed(answer) == {"inference-header-content-length", "x-request-id", "retry-after"}
    assert "origin" in varies(answer)


def test_packed_answers_vary_by_both(open_to_one: Any) -> None:
    sent = body("mlp")
    sent["inputs"][0] |= {"shape": [1000, 16], "data": [0.5] * 16_000}
    answer = open_to_one.http.post(
        "/v2/models/mlp/infer", json=sent, headers={"origin": PAGE, "accept-encoding": "gzip"}
    )
    assert answer.headers["content-encoding"] == "gzip"
    assert {"origin", "accept-encoding"} <= varies(answer)


def test_other_pages_are_told_nothing(open_to_one: Any) -> None:
    for origin in ("https://evil.example", "https://page.example.evil", "http://page.example", "null", ""):
        for path, sent, status in (("/v2/models/mlp/infer", body("mlp"), 200), ("/v2/repository/index", {}, 403)):
            answer = open_to_one.http.post(path, json=sent, headers={"origin": origin})
            assert answer.status_code == status  # it is the browser that keeps an answer from the page
            assert "access-control-allow-origin" not in answer.headers
        refused = open_to_one.http.options("/v2/models/mlp/infer", headers={"origin": origin, **PREFLIGHT})
        assert "access-control-allow-origin" not in refused.headers


def test_without_the_setting_nothing_is_said(gateway: Any) -> None:
    for path, sent in (("/v2/models/mlp/infer", body("mlp")), ("/v2/models/mlp/generate", {"x": [0.5] * 16})):
        answer = gateway.http.post(path, json=sent, headers={"origin": PAGE})
        assert answer.status_code == 200
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_the_server_is_called_what_it_is_told(open_to_one: Any, gateway: Any) -> None:
    assert open_to_one.http.get("/v2").json()["name"] == "triton"
    assert gateway.http.get("/v2").json()["name"] == "gateway"


def test_everybody_may_be_allowed() -> None:
    cors = Cors(["*"])
    assert cors.headers([(b"origin", b"http://any")]).startswith(b"access-control-allow-origin: *\r\n")
    assert cors.headers([(b"host", b"x")]) == b""


def test_caches_are_told_that_the_answer_depends_on_the_page() -> None:
    cors = Cors(["http://a"])
    assert cors.headers([]) == cors.headers([(b"origin", b"http://b")]) == b"vary: origin\r\n"
    assert b"access-control-allow-origin: http://a\r\n" in cors.headers([(b"origin", b"http://a")])


@pytest.mark.parametrize("wrong", ["page.example", "https://page.example/", "https://a b", "http://a,http://b", ""])
def test_what_is_no_origin_stops_the_start(helpers: Any, wrong: str) -> None:
    done = helpers.run(["--cors-origins", wrong, "--model-store", str(helpers.shipped)])
    assert done.returncode == 2
    assert "cors_origins" in done.stderr
