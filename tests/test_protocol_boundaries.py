"""Where one message on a connection ends and the next begins, whatever the client sends and however it is cut."""

import json
from typing import Any

import pytest

HIDDEN = (
    b"\r\n\r\nPOST /v2/repository/models/hidden/load HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUPGRADE: h2c\r\n"
    b"Upgrade: h2c\r\nContent-Length: 2\r\n\r\n{}"
)
"""A body that looks like a request; whoever removes lines from it loses the place where it ends."""


def statuses(connection: Any, last: bytes) -> list[int]:
    """The statuses of all responses up to the one whose body names the last request."""
    found = []
    while True:
        response = connection.response()
        found.append(response.status)
        if last in response.body:
            return found


def last_request(gateway: Any) -> bytes:
    body = json.loads(gateway.good().partition(b"\r\n\r\n")[2]) | {"id": "the last one"}
    return gateway.inference("mlp", body)


@pytest.mark.parametrize(("path", "status"), [("/v2/nothing/here", 404), ("/v2", 405), ("/v2/models/mlp/infer", 400)])
@pytest.mark.parametrize("pipelined", [False, True])
def test_what_a_body_hides_is_never_answered_wherever_it_is_cut(
    gateway: Any, path: str, status: int, pipelined: bool
) -> None:
    request = gateway.request("POST", path, HIDDEN)
    start = len(request) - len(HIDDEN)
    last = last_request(gateway)
    for cut in range(start - 4, len(request)):
        with gateway.connect() as connection:
            before = gateway.good() if pipelined else b""
            connection.send(before + request[:cut])
            if pipelined:
                assert connection.response().status == 200
            if cut >= start and status != 400:
                assert connection.response().status == status  # answered early
                expected = [200]
            else:
                expected = [status, 200]
            connection.send(request[cut:] + last)
            assert statuses(connection, b"the last one") == expected, cut


@pytest.mark.parametrize("name", ["Upgrade", "UPGRADE", "uPgRaDe"])
@pytest.mark.parametrize("chunked", [False, True])
def test_an_offer_to_upgrade_is_declined_and_its_body_read_to_the_end(gateway: Any, name: str, chunked: bool) -> None:
    body = gateway.good().partition(b"\r\n\r\n")[2]
    offer = (f"{name}: h2c", "Connection: keep-alive, Upgrade, HTTP2-Settings", "HTTP2-Settings: AAMAAABk")
    if chunked:
        headers = (*offer, "Transfer-Encoding: chunked")
        request = gateway.request("POST", "/v2/models/mlp/infer", b"", *headers, length=False)
        request += b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    else:
        request = gateway.request("POST", "/v2/models/mlp/infer", body, *offer)
    get = gateway.request("GET", "/v2/health/live", b"", *offer)
    last = last_request(gateway)
    with gateway.connect() as connection:
        connection.send(request + get + request + get + last)
        assert statuses(connection, b"the last one") == [200] * 5
    for cut in range(1, len(request), 7):
        with gateway.connect() as connection:
            connection.send(request[:cut])
            connection.send(request[cut:] + last)
            assert statuses(connection, b"the last one") == [200, 200]


def test_close_beside_an_offer_to_upgrade_is_obeyed(gateway: Any) -> None:
    body = gateway.good().partition(b"\r\n\r\n")[2]
    with gateway.connect() as connection:
        offer = ("Connection: close, Upgrade", "Upgrade: h2c")
        answer = connection.ask(gateway.request("POST", "/v2/models/mlp/infer", body, *offer))
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert connection.closed_by_peer()


def test_many_offers_in_one_segment_are_declined(gateway: Any) -> None:
    get = gateway.request("GET", "/v2/health/live", b"", "Connection: Upgrade", "Upgrade: h2c")
    with gateway.connect() as connection:
        connection.send(get * 1500 + last_request(gateway))
        assert statuses(connection, b"the last one") == [200] * 1501


def test_connect_is_refused_and_what_follows_is_not_read(gateway: Any) -> None:
    with gateway.connect() as connection:
        connection.send(b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n" + gateway.good())
        assert connection.response().status == 400
        assert connection.closed_by_peer()


@pytest.mark.parametrize(
    ("broken", "status"),
    [
        (b"GET /v2 HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 200_000, 431),
        (b"GET /v2 HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 1100 + b"\r\n", 431),
        (b"nonsense\r\n\r\n", 400),
        (b"POST /v2/models/mlp/infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"POST /v2/repository/index HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
    ],
    ids=["long head", "many headers", "no http", "chunk of an inference", "chunk of another call"],
)
def test_the_refusal_of_a_broken_request_waits_for_the_responses_before_it(
    gateway: Any, broken: bytes, status: int
) -> None:
    with gateway.connect() as connection:
        connection.send(gateway.slow() + gateway.request("GET", "/v2/health/live") + broken)
        assert [connection.response().status for _ in range(3)] == [200, 200, status]
        assert connection.closed_by_peer()
    with gateway.connect() as connection:
        connection.send(broken)
        assert connection.response().status == status
        assert connection.closed_by_peer()


def test_many_small_requests_in_one_segment_before_an_unfinished_head_are_no_large_head(gateway: Any) -> None:
    request = gateway.request("GET", "/v2/health/live")
    count = (80 << 10) // len(request)
    last = last_request(gateway)
    with gateway.connect() as connection:
        connection.send(request * count + last[:20])
        assert connection.response().status == 200
        connection.send(last[20:])
        assert statuses(connection, b"the last one") == [200] * count


def test_a_repeated_head_is_answered_like_the_first_and_another_one_as_it_says(gateway: Any) -> None:
    def request(number: int, *headers: str) -> bytes:
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [float(number % 10)] * 4}
        body = json.dumps({"id": f"{number:04}", "inputs": [tensor]}).encode()
        return gateway.request("POST", "/v2/models/identity_torch/infer", body, *headers)

    with gateway.connect() as connection:
        for number in range(60):
            sent = request(number, *(["Expect: 100-continue"] if number % 7 == 6 else []))
            if number % 5 == 4:  # cut somewhere, or with the next one behind it
                connection.send(sent[: number * 3 + 1])
                connection.send(sent[number * 3 + 1 :] + gateway.request("GET", "/v2/health/live"))
            else:
                connection.send(sent)
            response = connection.response()
            while response.status == 100:
                response = connection.response()
            answer = response.json()
            assert (answer["id"], answer["outputs"][0]["data"][0]) == (f"{number:04}", number % 10)
            if number % 5 == 4:
                assert connection.response().json() == {"live": True}


def test_trailers_of_a_chunked_body_are_dropped_and_limited(gateway: Any) -> None:
    body = gateway.good().partition(b"\r\n\r\n")[2]
    request = gateway.request("POST", "/v2/models/mlp/infer", b"", "Transfer-Encoding: chunked", length=False)
    request += b"%x\r\n%b\r\n0\r\n" % (len(body), body)
    with gateway.connect() as connection:
        connection.send(request + b"Inference-Header-Content-Length: 0\r\n\r\n")
        assert connection.response().status == 200
        connection.send(request + b"a: b\r\n" * 2000)
        assert connection.response().status == 431
        assert connection.closed_by_peer()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/models/mlp:predict", b'{"instances":[NaN],"signature_name":"\\ud800"}'),
        ("/predictions/mlp", b'{"\\ud800":NaN}'),
    ],
)
def test_half_a_surrogate_pair_in_an_error_is_no_silence(gateway: Any, path: str, body: bytes) -> None:
    with gateway.connect() as connection:
        answer = connection.ask(gateway.request("POST", path, body, "Content-Type: application/json"))
        assert 400 <= answer.status < 500
        assert connection.ask(gateway.good()).status == 200


def test_a_path_that_is_not_ascii_is_refused(gateway: Any) -> None:
    with gateway.connect() as connection:
        connection.send("GET /v2/models/größe HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert connection.response().status in (400, 404)
