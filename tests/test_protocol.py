"""HTTP itself, byte by byte where bytes matter."""

import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

LARGE = 10 * (1 << 20)


def answered(gateway: Any) -> None:
    """A stranger is served within the time a person would call at once."""
    began = time.monotonic()
    with gateway.connect() as stranger:
        assert stranger.ask(gateway.good()).status == 200
    assert time.monotonic() - began < 2


def test_a_request_may_arrive_byte_by_byte(gateway: Any) -> None:
    request = gateway.good()
    with gateway.connect() as connection:
        connection.send(*(request[at : at + 1] for at in range(len(request))))
        assert connection.response().status == 200


def test_pipelined_requests_are_answered_in_order_whoever_answers_them(gateway: Any, helpers: Any) -> None:
    requests, expected = [], []
    for number in range(40):
        if number % 4 == 3:
            requests.append(gateway.request("GET", "/v2/health/live"))
            expected.append({"live": True})
        elif number % 4 == 2:
            requests.append(gateway.inference("nobody", b"{}"))
            expected.append({"error": "Request for unknown model: 'nobody' is not found"})
        else:
            model = ("optional_input", "identity_torch")[number % 2]
            tensor = helpers.tensor("a" if model == "optional_input" else "x", "FP32", [1, 4], [number] * 4)
            requests.append(gateway.inference(model, {"id": str(number), "inputs": [tensor]}))
            expected.append(str(number))
    with gateway.connect() as connection:
        connection.send(b"".join(requests))
        found = [connection.response().json() for _ in requests]
    assert [each.get("id", each) for each in found] == expected


def test_a_slow_request_holds_back_those_behind_it_on_its_connection_and_nobody_else(gateway: Any) -> None:
    slow = gateway.slow()
    with gateway.connect() as connection:
        connection.send(slow + gateway.request("GET", "/v2/health/live") + gateway.good())
        answered(gateway)
        names = [connection.response().json().get("model_name") for _ in range(3)]
    assert names == ["slow", None, "mlp"]


def test_a_connection_serves_a_hundred_requests(gateway: Any) -> None:
    with gateway.connect() as connection:
        for _ in range(100):
            answer = connection.ask(gateway.good())
            assert answer.status == 200
            assert answer.headers.get("connection", "") != "close"


@pytest.mark.parametrize("body", [b"{}", None], ids=["refused", "good"])
def test_connection_close_is_obeyed(gateway: Any, body: bytes | None) -> None:
    request = gateway.good() if body is None else gateway.inference("mlp", body)
    request = request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1)
    with gateway.connect() as connection:
        answer = connection.ask(request)
        assert answer.status == (200 if body is None else 400)
        assert answer.headers["connection"] == "close"
        assert connection.closed_by_peer()


def test_http_1_0_gets_its_answer_and_the_end_of_the_connection(gateway: Any) -> None:
    with gateway.connect() as connection:
        assert connection.ask(gateway.good().replace(b"HTTP/1.1", b"HTTP/1.0", 1)).status == 200
        assert connection.closed_by_peer()


@pytest.mark.parametrize("size", [0, 300_000])
def test_a_client_that_waits_for_100_continue_gets_it(gateway: Any, size: int) -> None:
    head, _, body = gateway.good().partition(b"\r\n\r\n")
    body += b" " * size
    head = gateway.request("POST", "/v2/models/mlp/infer", body, "Expect: 100-continue")[: -len(body)]
    with gateway.connect() as connection:
        assert connection.ask(head).status == 100
        assert connection.ask(body).status == 200
        assert connection.ask(gateway.good()).status == 200


@pytest.mark.parametrize(
    ("path", "length", "status"),
    [("/v2/models/mlp/infer", 9 << 20, 413), ("/v2/models/nobody/infer", 9, 404)],
)
def test_a_client_that_waits_for_100_continue_is_spared_the_body_where_it_would_be_refused(
    gateway: Any, path: str, length: int, status: int
) -> None:
    request = gateway.request("POST", path, b"", "Expect: 100-continue", f"Content-Length: {length}", length=False)
    with gateway.connect() as connection:
        assert connection.ask(request).status == status
        assert connection.closed_by_peer()


def test_a_chunked_body_is_read_however_it_is_cut(gateway: Any) -> None:
    _, _, body = gateway.good().partition(b"\r\n\r\n")
    body += b" " * 200_000
    head = gateway.request("POST", "/v2/models/mlp/infer", b"", "Transfer-Encoding: chunked", length=False)
    with gateway.connect() as connection:
        for size in (7, 100, 70_000, len(body)):
            part = body if size > 50 else body[:2000]
            pieces = [part[at : at + size] for at in range(0, len(part), size)]
            chunked = b"".join(b"%x;note=1\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
            assert connection.ask(head + chunked + b"0\r\nTrailer: 1\r\n\r\n").status == 200


@pytest.mark.parametrize(
    "path",
    [
        "/v2/models/mlp/infer?",
        "/v2/models/mlp/infer?a=1&b=/infer",
        "/v2/models/%6dlp/infer",
        "/v2/models/%6D%6C%70/versions/3/infer?x",
        "/v2/models/mlp/versions/%33/infer",
        "/v2/models/mlp/versions/3/infer",
        "http://gateway.example/v2/models/mlp/infer",
        "http://gateway.example:8000/v2/models/mlp/versions/3/infer?a=1",
    ],
)
def test_a_path_may_be_written_in_other_ways(gateway: Any, path: str) -> None:
    _, _, body = gateway.good().partition(b"\r\n\r\n")
    with gateway.connect() as connection:
        answer = connection.ask(gateway.request("POST", path, body))
        assert answer.status == 200, answer.body
        assert answer.json()["model_name"] == "mlp"


@pytest.mark.parametrize(
    "path", ["/v2/health/live?test=1", "http://gateway.example/v2/health/live", "/v2/models/%6dlp?a", "/v2/models/mlp?"]
)
def test_so_may_the_paths_of_other_calls(gateway: Any, path: str) -> None:
    with gateway.connect() as connection:
        assert connection.ask(gateway.request("GET", path)).status == 200


@pytest.mark.parametrize("sent", [10, 100_000])
def test_clients_that_leave_in_the_middle_of_their_body_leave_nothing_behind(
    gateway: Any, helpers: Any, sent: int
) -> None:
    """Together they announce more than the memory for bodies holds."""
    array = np.ones(1_250_000, np.float32)
    inputs = [helpers.tensor("x", "FP32", [len(array)], binary_data_size=array.nbytes)]
    request = gateway.inference("identity_torch", ({"inputs": inputs}, array.tobytes()))
    head = request.index(b"\r\n\r\n") + 4
    for _ in range(70):
        with gateway.connect() as connection:
            connection.send(request[: head + sent])
    answered(gateway)
    with gateway.connect() as connection:
        assert connection.ask(request).status == 200


def test_a_client_that_leaves_while_its_request_runs_is_counted_and_harms_nobody(gateway: Any, helpers: Any) -> None:
    def dropped() -> float:
        return gateway.metrics().of("gateway_requests_dropped_total", model="slow", reason="disconnected")

    def pending() -> float:
        return gateway.metrics().of("gateway_pending_requests", model="slow")

    slow = gateway.slow(2.0)
    before = dropped()
    assert pending() == 0
    with gateway.connect() as connection:
        connection.send(slow)
        helpers.until(pending, 20)
    answered(gateway)
    helpers.until(lambda: dropped() == before + 1, 20)
    with gateway.connect() as connection:
        assert connection.ask(gateway.slow(0.01)).status == 200
    assert dropped() == before + 1
    helpers.until(lambda: pending() == 0, 20)


def test_a_client_that_never_reads_holds_back_nobody_and_can_still_read_later(gateway: Any, helpers: Any) -> None:
    body = {
        "parameters": {"binary_data_output": True},
        "inputs": [helpers.tensor("x", "FP32", [1], [0.0])],
    }

    def computed() -> float:
        return gateway.metrics().of("gateway_executions_total", model="large_output")

    before = computed()
    with gateway.connect(receive_buffer=4096) as lazy:
        lazy.send(gateway.inference("large_output", body))
        helpers.until(lambda: computed() == before + 1, 10)
        for _ in range(3):
            answered(gateway)
            answer = gateway.infer("large_output", body)
            assert answer.status == 200
            assert len(answer.parts()[1]) == LARGE
        late = lazy.response()
    assert late.status == 200
    assert late.parts()[1] == np.ones(LARGE // 4, np.float32).tobytes()


# --- With a gateway of its own


@pytest.fixture(scope="module")
def impatient(start_gateway: Callable[..., Any]) -> Iterator[Any]:
    with start_gateway(["mlp", "slow"], "--keep-alive-seconds", "1") as gateway:
        yield gateway


def test_an_idle_connection_is_closed_after_the_keep_alive_time_and_not_before(impatient: Any) -> None:
    with impatient.connect() as connection:
        began = time.monotonic()
        assert connection.ask(impatient.good()).status == 200
        assert connection.ask(impatient.good()).status == 200
        assert connection.closed_by_peer(seconds=5)
        assert 0.9 < time.monotonic() - began < 4
    answered(impatient)


def test_a_request_that_takes_longer_than_the_keep_alive_time_is_answered(impatient: Any) -> None:
    with impatient.connect() as connection:
        assert connection.ask(impatient.good()).status == 200
        assert connection.ask(impatient.slow(1.5)).status == 200
        assert connection.ask(impatient.good()).status == 200


def test_sigterm_lets_a_request_under_way_finish_and_then_ends_everything_with_code_0(
    impatient: Any, helpers: Any
) -> None:
    slow = impatient.slow(1.0)
    with impatient.connect() as connection, impatient.connect() as idle:
        assert idle.ask(impatient.good()).status == 200
        connection.send(slow)
        helpers.until(lambda: impatient.metrics().of("gateway_pending_requests", model="slow"), 5)
        impatient.process.send_signal(signal.SIGTERM)
        answers = []
        reader = threading.Thread(target=lambda: answers.append(connection.response()))
        reader.start()
        assert idle.closed_by_peer()
        reader.join(10)
        assert answers
        assert answers[0].status == 200
        assert connection.closed_by_peer()
    assert impatient.process.wait(10) == 0
    helpers.until(lambda: not impatient.processes(), 2)
    with pytest.raises(OSError, match="refused"), socket.create_connection(impatient.address, 1):
        pass
