"""A gateway with keys, an access log, ids and spans, and a collector that takes the spans."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

BODY = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 16], "data": [0.5] * 16}]}
INFER = "/v2/models/mlp/infer"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"


class Collector:
    """An OTLP/HTTP receiver."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.services: set[str] = set()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.path == "/v1/traces"
                collector.take(self.rfile.read(int(self.headers["content-length"])))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever)

    def take(self, data: bytes) -> None:
        request = ExportTraceServiceRequest()
        request.ParseFromString(data)
        for resource in request.resource_spans:
            for attribute in resource.resource.attributes:
                if attribute.key == "service.name":
                    self.services.add(attribute.value.string_value)
            for scope in resource.scope_spans:
                self.spans += scope.spans

    def of(self, trace: str) -> dict[str, Any]:
        return {span.name: span for span in list(self.spans) if span.trace_id.hex() == trace}


class Edge:
    """The gateway, what is known of its keys, and how to read what it writes."""

    def __init__(self, gateway: Any, file: Path, keys: dict[str, str], collector: Collector, until: Any) -> None:
        self.gateway, self.file, self.keys, self.collector = gateway, file, keys, collector
        self.until = until

    def post(self, path: str, key: str | None = "infer", body: Any = None, **headers: str) -> Any:
        if key is not None:
            headers["authorization"] = f"Bearer {self.keys.get(key, key)}"
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.gateway.http.post(path, json=BODY if body is None else body, headers=named)

    def get(self, path: str, key: str | None = None) -> Any:
        headers = {} if key is None else {"x-api-key": self.keys.get(key, key)}
        return self.gateway.http.get(path, headers=headers)

    def line(self, identity: str) -> dict[str, Any]:
        """The access log's line of a request with this id."""
        return self.until(lambda: self.lines(identity), 10)[0]

    def lines(self, identity: str) -> list[dict[str, Any]]:
        written = self.gateway.log.read_text().splitlines()
        found = [json.loads(line) for line in written if line.startswith('{"time":') and line.endswith("}")]
        return [line for line in found if line.get("request_id") == identity]


@pytest.fixture(scope="module")
def edge(start_gateway: Any, helpers: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    file = tmp_path_factory.mktemp("keys") / "keys.yaml"
    keys = {
        "infer": helpers.keys(file, "add", "a web shop"),
        "admin": helpers.keys(file, "add", "operations", "--scope", "admin"),
        "metrics": helpers.keys(file, "add", "prometheus", "--scope", "metrics"),
        "other": helpers.keys(file, "add", "somebody else", "--model", "iden*"),
        "slow": helpers.keys(file, "add", "a trial", "--rate", "0.01", "--burst", "3"),
    }
    collector = Collector()
    collector.thread.start()
    with pytest.MonkeyPatch.context() as patch, collector.server:
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        options = ("--keys-file", str(file), "--access-log", "--otlp-endpoint", collector.url, "--workers", "2")
        listeners = ("--management-address", "127.0.0.1:0", "--metrics-address", "127.0.0.1:0")
        with start_gateway(["mlp", "identity_torch", "raises"], *options, *listeners) as gateway:
            yield Edge(gateway, file, keys, collector, helpers.until)
        collector.server.shutdown()
        collector.thread.join()


# Keys


def test_a_call_without_a_key_is_answered_401_and_how_to_send_one(edge: Edge) -> None:
    for answer in (edge.post(INFER, None), edge.get("/v2/models/mlp"), edge.get("/v2"), edge.get("/metrics")):
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert "Authorization: Bearer KEY" in answer.json()["error"]


def test_only_what_is_answered_as_a_preflight_needs_no_key(edge: Edge) -> None:
    with_method = {"access-control-request-method": "POST"}
    for path in ("/docs", "/predictions/mlp"):
        assert edge.gateway.http.options(path, headers=with_method).status_code == 401


def test_health_needs_no_key(edge: Edge) -> None:
    assert edge.get("/v2/health/live").status_code == 200
    assert edge.get("/v2/health/ready").status_code == 200


@pytest.mark.parametrize("wrong", ["nonsense", "gw_a_b", "gw__", "a" * 5000])
def test_a_key_that_is_none_is_answered_401(edge: Edge, wrong: str) -> None:
    assert edge.post(INFER, wrong).status_code == 401
    assert edge.get("/v2", wrong).status_code == 401


def test_a_key_with_another_secret_is_answered_401(edge: Edge) -> None:
    key = edge.keys["infer"]
    assert edge.post(INFER, key[:-1] + ("b" if key[-1] == "a" else "a")).status_code == 401


def test_both_headers_carry_a_key(edge: Edge) -> None:
    assert edge.post(INFER).status_code == 200
    assert edge.post(INFER, None, x_api_key=edge.keys["infer"]).status_code == 200
    assert edge.post(INFER, None, authorization=f"bearer  {edge.keys['infer']}").status_code == 200
    assert edge.post(INFER, None, authorization=edge.keys["infer"]).status_code == 401


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", INFER, {"infer", "admin"}),
        ("POST", "/v1/models/mlp:predict", {"infer", "admin"}),
        ("GET", "/v2/models/mlp", {"infer", "admin"}),
        ("GET", "/v1/models/mlp", {"infer", "admin"}),
        ("GET", "/v2/models/stats", {"infer", "admin"}),
        ("GET", "/v2", {"infer", "admin", "other"}),
        ("GET", "/metrics", {"metrics", "admin"}),
        ("POST", "/v2/repository/index", {"admin"}),
        ("POST", "/v2/repository/index%0A", {"admin"}),
        ("POST", "/v2/repository/models/mlp/load", {"admin"}),
        ("POST", "/v2/repository/models/mlp/load%0A", {"admin"}),
    ],
)
def test_a_key_is_good_for_its_scope_and_models_only(edge: Edge, method: str, path: str, allowed: set[str]) -> None:
    body = {"instances": [[0.5] * 16]} if path.startswith("/v1") else BODY if path == INFER else {}
    for name in ("infer", "admin", "metrics", "other"):
        headers = {"x-api-key": edge.keys[name]}
        answer = edge.gateway.http.request(method, path, json=body if method == "POST" else None, headers=headers)
        assert (answer.status_code == 403) == (name not in allowed), (name, answer.text)
        if name in allowed:
            assert answer.status_code in (200, 400, 404), answer.text
        else:
            assert "this API key" in answer.json()["error"]


def test_a_key_for_some_models_serves_those(edge: Edge) -> None:
    assert edge.post("/v2/models/identity_torch/infer", "other").status_code == 200
    assert edge.post(INFER, "other").json() == {"error": "this API key is not for model 'mlp'"}


def test_the_other_listeners_ask_for_keys_too(edge: Edge) -> None:
    for listener, path, allowed in (("management", "/v2", {"admin"}), ("metrics", "/metrics", {"admin", "metrics"})):
        url = edge.gateway.listener(listener).rstrip("/") + path
        assert edge.gateway.http.get(url).status_code == 401
        for name in ("infer", "metrics", "admin"):
            answer = edge.gateway.http.get(url, headers={"x-api-key": edge.keys[name]})
            assert (answer.status_code == 403) == (name not in allowed)


def test_one_connection_may_show_one_key_after_the_other(edge: Edge) -> None:
    gateway = edge.gateway
    with gateway.connect() as connection:
        for name, status in [("infer", 200), ("infer", 200), ("other", 403), ("infer", 200), ("metrics", 403)]:
            request = gateway.inference("mlp", BODY, f"Authorization: Bearer {edge.keys[name]}")
            assert connection.ask(request).status == status
        assert connection.ask(gateway.inference("mlp", BODY)).status == 401
        assert connection.ask(gateway.inference("mlp", BODY, f"X-API-Key: {edge.keys['infer']}")).status == 200


def test_a_large_body_without_a_key_is_dropped_and_the_connection_goes_on(edge: Edge) -> None:
    gateway = edge.gateway
    with gateway.connect() as connection:
        connection.send(gateway.request("POST", INFER, b"x" * (4 << 20)))
        assert connection.response().status == 401
        assert connection.ask(gateway.inference("mlp", BODY, f"X-API-Key: {edge.keys['infer']}")).status == 200


def test_who_waits_for_a_word_before_sending_the_body_is_refused_without_it(edge: Edge) -> None:
    gateway = edge.gateway
    with gateway.connect() as connection:
        head = gateway.request("POST", INFER, b"", "Expect: 100-continue", "Content-Length: 5000000", length=False)
        assert connection.ask(head).status == 401


def test_the_rate_of_a_key_holds_over_all_workers(edge: Edge) -> None:
    statuses = []
    for _ in range(12):  # a connection each, so that both workers get some
        with edge.gateway.connect() as connection:
            request = edge.gateway.inference("mlp", BODY, f"X-API-Key: {edge.keys['slow']}")
            answer = connection.ask(request)
            statuses.append(answer.status)
    assert statuses == [200] * 3 + [429] * 9
    assert 1 <= int(answer.headers["retry-after"]) <= 100
    assert answer.json() == {"error": "this API key may make 0.01 requests a second"}
    assert edge.get("/v2/models/mlp", "slow").status_code == 429


def test_the_file_is_followed_while_the_gateway_runs(edge: Edge, helpers: Any) -> None:
    new = helpers.keys(edge.file, "add", "new")
    edge.until(lambda: edge.post(INFER, new).status_code == 200, 10)
    with edge.gateway.connect() as connection:
        request = edge.gateway.inference("mlp", BODY, f"X-API-Key: {new}")
        assert connection.ask(request).status == 200
        helpers.keys(edge.file, "revoke", "new")
        edge.until(lambda: connection.ask(request).status == 401, 10)
        assert "revoked" in connection.ask(request).json()["error"]
    good = edge.file.read_bytes()
    edge.file.write_bytes(b"keys: [{}]\n")
    edge.until(lambda: "the keys until now stay in force" in edge.gateway.log.read_text(), 10)
    edge.file.unlink()
    edge.until(lambda: "it cannot be read" in edge.gateway.log.read_text(), 10)
    assert edge.post(INFER).status_code == 200
    assert edge.post(INFER, None).status_code == 401
    edge.file.write_bytes(good)


# Ids and the access log


def test_an_id_comes_back_and_stands_in_the_log(edge: Edge) -> None:
    for path, key, status in ((INFER, "infer", 200), (INFER, None, 401), ("/v2/models/nobody/infer", "infer", 404)):
        identity = f"{status}-{path}"
        answer = edge.post(path, key, x_request_id=identity)
        assert (answer.status_code, answer.headers["x-request-id"]) == (status, identity)
        line = edge.line(identity)
        assert (line["method"], line["path"], line["status"]) == ("POST", path, status)
        assert (line["protocol"], line["client"]) == ("oip", "127.0.0.1")
        assert line["bytes_in"] == len(answer.request.content)
        assert line["bytes_out"] == len(answer.content)
        assert line.get("key", "") == (edge.keys["infer"].split("_")[1] if key else "")
        assert line["seconds"] > 0
    answer = edge.gateway.http.get("/v2", headers={"x-request-id": "app", "x-api-key": edge.keys["infer"]})
    assert answer.headers["x-request-id"] == "app"
    assert edge.line("app")["bytes_out"] == len(answer.content)
    assert edge.gateway.http.get("/v2/nowhere", headers={"x-request-id": "none"}).headers["x-request-id"] == "none"
    assert (edge.line("none")["status"], edge.line("none")["error"]) == (401, "unauthenticated")


def test_the_log_tells_where_the_time_went(edge: Edge) -> None:
    edge.post(INFER, x_request_id="stages")
    line = edge.line("stages")
    assert (line["model"], line["version"]) == ("mlp", "3")
    assert set(line["stages"]) == {"decode", "queue", "compute", "encode"}
    assert 0 < sum(line["stages"].values()) <= line["seconds"] + 1e-5


@pytest.mark.parametrize("bad", ["two words", "x" * 129, "semi;colon", '"quoted"', "{"])
def test_an_id_that_is_not_safe_is_replaced(edge: Edge, bad: str) -> None:
    for answer in (
        edge.post(INFER, x_request_id=bad),
        edge.gateway.http.get("/v2", headers={"x-request-id": bad}),
    ):
        assert answer.headers["x-request-id"] != bad
        assert len(answer.headers["x-request-id"]) == 32


def test_a_client_that_leaves_is_written_down(edge: Edge) -> None:
    gateway = edge.gateway
    with gateway.connect() as connection:
        headers = (f"X-API-Key: {edge.keys['infer']}", "X-Request-ID: left", "Content-Length: 1000")
        connection.send(gateway.request("POST", INFER, b"{", *headers, length=False))
    assert edge.line("left")["status"] == 499


def test_no_secret_is_written_down(edge: Edge) -> None:
    edge.post(INFER)
    log = edge.gateway.log.read_text()
    assert not any(key.split("_")[2] in log for key in edge.keys.values())
    assert not any(key.split("_")[2] in edge.file.read_text() for key in edge.keys.values())


# Spans


def test_spans_continue_the_callers_trace(edge: Edge) -> None:
    edge.post(INFER, traceparent=f"00-{TRACE}-{SPAN}-01", x_request_id="traced")
    server = f"POST {INFER.replace('mlp', '{model}')}"
    spans = edge.until(lambda: (found := edge.collector.of(TRACE)) and server in found and found, 10)
    assert set(spans) == {server, "decode", "queue", "compute", "encode"}
    assert spans[server].parent_span_id.hex() == SPAN
    assert spans[server].kind == 2  # SPAN_KIND_SERVER
    assert {spans[name].parent_span_id for name in spans if name != server} == {spans[server].span_id}
    starts = [spans[name].start_time_unix_nano for name in (server, "decode", "queue", "compute", "encode")]
    assert starts == sorted(starts)
    ends = [spans[name].end_time_unix_nano for name in ("decode", "queue", "compute", "encode", server)]
    assert ends == sorted(ends)
    attributes = {each.key: each.value for each in spans[server].attributes}
    assert attributes["http.response.status_code"].int_value == 200
    assert attributes["gateway.model"].string_value == "mlp"
    assert edge.collector.services == {"gateway"}
    assert edge.line("traced")["trace_id"] == TRACE


def test_a_trace_that_is_not_sampled_sends_nothing(edge: Edge) -> None:
    silent, sampled = TRACE[::-1], "1" * 32
    edge.post(INFER, traceparent=f"00-{silent}-{SPAN}-00", x_request_id="silent")
    edge.post(INFER, traceparent=f"00-{sampled}-{SPAN}-01")
    edge.until(lambda: edge.collector.of(sampled), 10)
    edge.get("/v2", "infer")
    assert edge.line("silent")["trace_id"] == silent
    assert edge.collector.of(silent) == {}


def test_calls_that_are_no_inference_have_a_span_named_by_their_route(edge: Edge) -> None:
    trace = "2" * 32
    headers = {"traceparent": f"00-{trace}-{SPAN}-01", "x-api-key": edge.keys["infer"]}
    edge.gateway.http.get("/v2/models/mlp/ready", headers=headers)
    spans = edge.until(lambda: edge.collector.of(trace), 10)
    assert set(spans) == {"GET /v2/models/{model}/ready"}
