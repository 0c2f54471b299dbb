"""Bodies that are refused leave nothing in the memory of the HTTP worker."""

import gzip
import zlib
from pathlib import Path
from typing import Any

import pytest

COUNT = 40
LEFT = 8 << 20
ZEROS = bytes(80 << 20)
BOMB, WRAPPED = gzip.compress(ZEROS, 1), zlib.compress(ZEROS, 1)
TORN = gzip.compress(ZEROS[: 6 << 20], 0)[:-9]
PATHS = ("/v2/models/mlp/infer", "/v1/models/mlp:predict", "/predictions/mlp")
FORM = "multipart/form-data; boundary=x"


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/status").read_text().partition("VmRSS:")[2].split()[0]) * 1024


@pytest.mark.parametrize(
    ("body", "encoding", "kind", "status"),
    [
        pytest.param(BOMB, "gzip", "application/json", 413, id="bomb"),
        pytest.param(BOMB * 2, "gzip", FORM, 413, id="bomb_as_form"),
        pytest.param(gzip.compress(ZEROS[: 5 << 20]) * 2, "gzip", "application/json", 413, id="bomb_in_members"),
        pytest.param(WRAPPED, "deflate", "application/json", 413, id="deflate_bomb"),
        pytest.param(TORN, "gzip", "application/json", 400, id="cut_off"),
        pytest.param(zlib.compress(ZEROS[: 7 << 20]), "deflate", FORM, 400, id="torn_form"),
        pytest.param(ZEROS[: 9 << 20], "", "application/json", 413, id="too_large"),
    ],
)
def test_a_refused_body_leaves_nothing_in_the_worker(
    gateway: Any, body: bytes, encoding: str, kind: str, status: int
) -> None:
    headers = [f"Content-Type: {kind}", *([f"Content-Encoding: {encoding}"] if encoding else [])]
    (pid,) = gateway.pids("http worker")

    def send(count: int) -> None:
        for number in range(count):
            with gateway.connect() as connection:
                answer = connection.ask(gateway.request("POST", PATHS[number % len(PATHS)], body, *headers))
                assert answer.status in (status, 415), answer.body

    send(len(PATHS))
    before = resident(pid)
    send(COUNT)
    assert resident(pid) - before < LEFT


def test_gzip_of_several_members_is_read(gateway: Any) -> None:
    text = b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 16], "data": [%s]}]}' % b",".join([b"1"] * 16)
    body = gzip.compress(text[:20]) + gzip.compress(text[20:])
    answer = gateway.infer("mlp", body, "Content-Encoding: gzip")
    assert answer.status == 200
    assert answer.json()["outputs"]
