"""Lines of the access log are JSON, whole, and hold nobody up."""

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.http import access_log
from gateway.http.access_log import ATOMIC, AccessLog, line_of, portions, timestamp
from gateway.http.visit import LONGEST_PATH, Visit

SECONDS = 10


def visit(path: str = "/v2", **known: Any) -> Visit:
    made = Visit(lambda _: None, "GET", path, ("127.0.0.1", 5), None, 1.0)
    for name, value in known.items():
        setattr(made, name, value)
    made.end(200)
    return made


def read_all(descriptor: int) -> list[dict[str, Any]]:
    with os.fdopen(descriptor, "rb") as file:
        return [json.loads(line) for line in file]


@given(st.text(), st.text(max_size=20))
def test_a_line_is_one_line_whatever_the_path(path: str, model: str) -> None:
    line = line_of(visit(path, model=model))
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert json.loads(line)["path"] == path[:LONGEST_PATH]
    assert json.loads(line).get("model", "") == model


@given(st.lists(st.binary(min_size=1, max_size=50)), st.integers(1, 100))
def test_lines_go_together_and_are_never_cut(lines: list[bytes], size: int) -> None:
    pieces = list(portions(lines, size))
    assert b"".join(pieces) == b"".join(lines)
    assert all(len(piece) <= max(size, 50) for piece in pieces)
    ends = {sum(map(len, lines[:count])) for count in range(len(lines) + 1)}
    assert {sum(map(len, pieces[:count])) for count in range(len(pieces) + 1)} <= ends


def test_a_time_is_written_as_rfc_3339() -> None:
    assert timestamp(0.0) == "1970-01-01T00:00:00.000Z"
    assert timestamp(1893456000.0625) == "2030-01-01T00:00:00.062Z"


def test_what_was_added_is_written_at_the_latest_at_the_end() -> None:
    readable, writable = os.pipe()
    log = AccessLog(writable)
    for number in range(100):
        log.add(visit(f"/{number}"))
    log.close(SECONDS)
    os.close(writable)
    assert [line["path"] for line in read_all(readable)] == [f"/{number}" for number in range(100)]


def test_a_reader_that_does_not_read_costs_lines_and_not_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access_log, "MOST_BYTES", 300 * 1024)
    readable, writable = os.pipe()
    log = AccessLog(writable)
    count = 5000
    for number in range(count):
        log.add(visit(f"/{number}"))
    log.close(0)  # gives up at once, the thread goes on
    found: list[dict[str, Any]] = []
    reader = threading.Thread(target=lambda: found.extend(read_all(readable)))
    reader.start()
    log.close(SECONDS)
    os.close(writable)
    reader.join(SECONDS)
    dropped = sum(line.get("dropped_lines", 0) for line in found)
    assert dropped > 0
    assert sum("path" in line for line in found) + dropped == count


def test_a_reader_that_is_gone_does_not_end_the_log(
    caplog: pytest.LogCaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, helpers: Any
) -> None:
    monkeypatch.setattr(access_log, "RETRY_SECONDS", 0.05)
    path = tmp_path / "pipe"
    os.mkfifo(path)
    first = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    writable = os.open(path, os.O_WRONLY)
    log = AccessLog(writable)
    os.close(first)
    log.add(visit("/lost"))
    helpers.until(lambda: "is tried again" in caplog.text, SECONDS)
    second = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    log.add(visit("/found"))
    log.close(SECONDS)
    os.close(writable)
    lines = read_all(second)
    assert [line["path"] for line in lines if "path" in line] == ["/found"]
    assert sum(line.get("dropped_lines", 0) for line in lines) == 1
    assert caplog.text.count("is tried again") == 1


def test_a_full_pipe_that_another_process_has_made_non_blocking_loses_no_line() -> None:
    readable, writable = os.pipe2(os.O_NONBLOCK)
    os.set_blocking(readable, True)
    log = AccessLog(writable)
    count = 3000  # several times what a pipe holds
    for number in range(count):
        log.add(visit(f"/{number}"))
    log.close(0)
    found: list[dict[str, Any]] = []
    reader = threading.Thread(target=lambda: found.extend(read_all(readable)))
    reader.start()
    log.close(SECONDS)
    os.close(writable)
    reader.join(SECONDS)
    assert [line["path"] for line in found] == [f"/{number}" for number in range(count)]


def test_two_workers_lines_do_not_mix_on_a_pipe() -> None:
    assert os.fpathconf(0, "PC_PIPE_BUF") >= ATOMIC
    readable, writable = os.pipe()
    logs = [AccessLog(writable) for _ in range(2)]
    found: list[dict[str, Any]] = []
    reader = threading.Thread(target=lambda: found.extend(read_all(readable)))
    reader.start()
    for number in range(1000):
        for log in logs:
            log.add(visit(f"/{number}"))
    for log in logs:
        log.close(SECONDS)
    os.close(writable)
    reader.join(SECONDS)
    assert len(found) == 2000
