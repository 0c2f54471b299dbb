"""A gateway that serves HTTPS on all its listeners."""

import json
import shutil
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway import tls
from gateway.errors import ConfigError

PEMS = Path(__file__).parent / "fixtures" / "tls"
BODY = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 16], "data": [0.5] * 16}]}
VALUES = 2 << 20


def trusting(name: str) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=PEMS / f"{name}.crt")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The first certificate and its key, in files that a test may change."""
    directory = tmp_path_factory.mktemp("tls")
    cert, key = (Path(shutil.copy(PEMS / f"first.{kind}", directory / f"server.{kind}")) for kind in ("crt", "key"))
    return cert, key


@pytest.fixture(scope="module")
def secure(start_gateway: Any, pair: tuple[Path, Path]) -> Iterator[Any]:
    listeners = ("--management-address", "127.0.0.1:0", "--metrics-address", "127.0.0.1:0")
    options = ("--tls-cert", str(pair[0]), "--tls-key", str(pair[1]), "--drain-timeout", "20")
    with start_gateway(["mlp", "identity_torch", "slow"], *options, *listeners) as gateway:
        yield gateway


@pytest.fixture
def client(secure: Any) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"https://127.0.0.1:{secure.port}", verify=trusting("first"), timeout=30) as client:
        yield client


def large() -> tuple[bytes, bytes, dict[str, str]]:
    """An 8 MB request for the model that gives back what it gets, its tensor, and the headers it needs."""
    binary = struct.pack(f"<{VALUES}f", *range(VALUES))
    described = {"name": "x", "datatype": "FP32", "shape": [VALUES], "parameters": {"binary_data_size": len(binary)}}
    text = json.dumps({"inputs": [described], "parameters": {"binary_data_output": True}}).encode()
    return text + binary, binary, {"inference-header-content-length": str(len(text))}


def test_every_listener_speaks_https_and_says_so(secure: Any, client: httpx.Client) -> None:
    assert client.get("/v2/health/ready").status_code == 200
    for name, path in (("management", "/models"), ("metrics", "/metrics")):
        url = secure.listener(name)
        assert url.startswith("https://127.0.0.1:")
        assert client.get(url.rstrip("/") + path).status_code == 200
    assert f"Serving on https://127.0.0.1:{secure.port}" in secure.log.read_text()


def test_many_requests_go_over_one_connection(client: httpx.Client, secure: Any) -> None:
    with secured(secure) as connection:
        request = secure.inference("mlp", BODY)
        for _ in range(20):
            connection.sendall(request)
            assert answered(connection)[0] == 200
        connection.sendall(request * 5)  # pipelined
        assert [answered(connection)[0] for _ in range(5)] == [200] * 5
    assert client.post("/v2/models/mlp/infer", json=BODY).status_code == 200


def test_8_megabytes_come_back_as_they_were_sent_and_the_connection_goes_on(client: httpx.Client) -> None:
    body, binary, headers = large()
    for _ in range(3):
        answer = client.post("/v2/models/identity_torch/infer", content=body, headers=headers)
        assert answer.status_code == 200
        assert answer.content[-len(binary) :] == binary
        assert client.post("/v2/models/mlp/infer", json=BODY).status_code == 200


def test_a_large_body_may_come_in_pieces_of_any_size(secure: Any) -> None:
    body, binary, headers = large()
    head = secure.request("POST", "/v2/models/identity_torch/infer", body, *(f"{k}: {v}" for k, v in headers.items()))
    with secured(secure) as connection:
        at = 0
        for size in (1, 100, 5, 70_000, 1, 300_000, 16_385, 1 << 20, 8 << 20):
            connection.sendall(head[at : at + size])
            at += size
        connection.sendall(head[at:] + secure.inference("mlp", BODY))
        status, answer = answered(connection)
        assert status == 200
        assert answer[-len(binary) :] == binary
        assert answered(connection)[0] == 200


def test_a_client_that_leaves_within_a_large_body_harms_nobody(secure: Any, client: httpx.Client) -> None:
    body, _, _ = large()
    head = secure.request("POST", "/v2/models/identity_torch/infer", body)
    connection = secured(secure)
    connection.sendall(head[: 4 << 20])
    connection.close()
    assert client.post("/v2/models/mlp/infer", json=BODY).status_code == 200


def test_who_does_not_speak_tls_or_only_an_old_one_is_let_go(secure: Any, client: httpx.Client) -> None:
    with secure.connect() as plain:
        plain.send(b"GET /v2 HTTP/1.1\r\nHost: a\r\n\r\n")
        plain.sock.settimeout(10)
        assert b"HTTP" not in plain.sock.recv(1000)
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    with socket.create_connection(secure.address, 10) as sock, pytest.raises(ssl.SSLError):
        old.wrap_socket(sock)
    assert client.get("/v2/health/live").status_code == 200


def test_a_new_certificate_is_served_and_a_bad_one_is_not(secure: Any, pair: tuple[Path, Path], helpers: Any) -> None:
    pair[1].write_bytes(b"nonsense")
    helpers.until(lambda: "the certificate until now stays" in secure.log.read_text(), 15)
    assert httpx.get(f"https://127.0.0.1:{secure.port}/v2/health/live", verify=trusting("first")).status_code == 200
    for kind, path in zip(("crt", "key"), pair, strict=True):
        shutil.copy(PEMS / f"second.{kind}", path)

    def is_new() -> bool:
        try:
            with secured(secure, "second"):
                return True
        except ssl.SSLCertVerificationError:
            return False

    helpers.until(is_new, 15)


def test_a_stop_answers_what_is_under_way_and_waits_for_nobody_else(secure: Any, helpers: Any) -> None:
    idle = secured(secure, "second")  # it does not answer the server's goodbye either
    with idle, secured(secure, "second") as busy, secured(secure, "second") as asking:

        def slow(rounds: int) -> bytes:
            return secure.inference("slow", {"inputs": [helpers.tensor("rounds", "INT64", [1], [rounds])]})

        def pending() -> float:
            asking.sendall(secure.request("GET", "/metrics"))
            lines = answered(asking)[1].decode().splitlines()
            found = [line for line in lines if line.startswith("gateway_pending_requests{") and 'model="slow"' in line]
            return sum(float(line.rpartition(" ")[2]) for line in found)

        start = time.perf_counter()
        busy.sendall(slow(4000))
        assert answered(busy)[0] == 200
        busy.sendall(slow(int(4000 / (time.perf_counter() - start))))  # a second, at most
        helpers.until(pending, 10)
        stopping = threading.Thread(target=secure.stop)
        stopping.start()
        assert answered(busy)[0] == 200
        stopping.join(15)
        assert not stopping.is_alive()


@pytest.mark.parametrize(
    ("cert", "key", "said"),
    [
        ("first.crt", "second.key", "do not belong together"),
        ("first.key", "first.key", "no TLS certificate"),
        ("nobody.crt", "first.key", "cannot be read"),
        ("first.crt", "nobody.key", "cannot be read"),
    ],
)
def test_files_that_cannot_be_used_are_named(cert: str, key: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        tls.server_context(PEMS / cert, PEMS / key)


def test_one_file_without_the_other_is_a_mistake(helpers: Any) -> None:
    done = helpers.run(["--model-store", str(PEMS), "--tls-cert", str(PEMS / "first.crt")])
    assert done.returncode != 0
    assert done.stderr.strip() == "gateway: tls_cert and tls_key belong together: set both, or neither"


def secured(gateway: Any, name: str = "first") -> ssl.SSLSocket:
    sock = socket.create_connection(gateway.address, 20)
    try:
        return trusting(name).wrap_socket(sock, server_hostname="127.0.0.1")
    except BaseException:
        sock.close()
        raise


def answered(connection: ssl.SSLSocket) -> tuple[int, bytes]:
    """The status and body of the next response, and not a byte more."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = connection.recv(1)
        assert byte, "closed instead of answering"
        head += byte
    length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    body = bytearray()
    while len(body) < length:
        piece = connection.recv(length - len(body))
        assert piece, "closed in mid-response"
        body += piece
    return int(head.split(b" ")[1]), bytes(body)
