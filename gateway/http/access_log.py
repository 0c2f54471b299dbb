"""The access log: a line of JSON for each request, written to stdout by a thread for requests wait for no disk."""

import logging
import os
import stat
import threading
import time
from collections import deque
from collections.abc import Iterator

import msgspec

from gateway.http.visit import Visit

log = logging.getLogger("gateway.worker")

MOST_BYTES = 16 << 20
"""Of lines that wait to be written; those beyond are dropped, and counted."""
PAUSE_SECONDS = 0.05
ATOMIC = 4096
"""What a pipe takes at once is not mixed with what others write to it (pipe(7), PIPE_BUF)."""


class _Line(msgspec.Struct, omit_defaults=True):
    time: str
    method: str
    path: str
    status: int
    seconds: float
    bytes_in: int
    bytes_out: int
    client: str = ""
    request_id: str = ""
    trace_id: str = ""
    key: str = ""
    protocol: str = ""
    model: str = ""
    version: str = ""
    error: str = ""
    stages: dict[str, float] | None = None


class _Dropped(msgspec.Struct):
    time: str
    dropped_lines: int


def line_of(visit: Visit) -> bytes:
    """A request as one line."""
    stages = None
    if visit.received:
        stages = {
            "decode": round(visit.decode, 6),
            "queue": round(visit.queue, 6),
            "compute": round(visit.compute, 6),
            "encode": round(visit.ended - visit.received, 6),
        }
    line = _Line(
        timestamp(visit.started + visit.offset),
        visit.method,
        visit.path,
        visit.status,
        round(visit.ended - visit.started, 6),
        visit.bytes_in,
        visit.bytes_out,
        visit.client,
        visit.request_id,
        visit.trace_id,
        visit.key,
        visit.protocol,
        visit.model,
        visit.version,
        visit.error,
        stages,
    )
    return _encode(line) + b"\n"


_encode = msgspec.json.Encoder().encode
_second: tuple[int, str] = (0, "")


def timestamp(moment: float) -> str:
    """RFC 3339, UTC, with milliseconds."""
    global _second  # noqa: PLW0603 - the text of the second at hand is made once, not for each request
    whole = int(moment)
    if _second[0] != whole:
        _second = (whole, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)))
    return f"{_second[1]}.{int((moment - whole) * 1000):03}Z"


def portions(lines: list[bytes], size: int) -> Iterator[bytes]:
    """The lines in as few pieces as their size allows, none of them cut."""
    piece: list[bytes] = []
    room = size
    for line in lines:
        if len(line) > room and piece:
            yield b"".join(piece)
            piece, room = [], size
        piece.append(line)
        room -= len(line)
    if piece:
        yield b"".join(piece)


class AccessLog:
    """Lines on a descriptor. A reader that does not read holds up nobody but the thread."""

    def __init__(self, descriptor: int = 1) -> None:
        self._descriptor = descriptor
        self._size = ATOMIC if stat.S_ISFIFO(os.fstat(descriptor).st_mode) else 1 << 16
        self._lines: deque[bytes] = deque()
        self._waiting = 0
        self._written = 0
        self._dropped = 0
        self._told = 0
        self._broken = False
        self._closed = threading.Event()
        self._news = threading.Event()
        self._thread = threading.Thread(target=self._run, name="access-log", daemon=True)
        self._thread.start()

    def add(self, visit: Visit) -> None:
        """Write down a request, soon."""
        line = line_of(visit)
        if self._broken or self._waiting - self._written > MOST_BYTES:
            self._dropped += 1
            return
        self._waiting += len(line)
        self._lines.append(line)
        if not self._news.is_set():
            self._news.set()

    def close(self, seconds: float) -> None:
        """Write what is left, as far as that takes no longer than this."""
        self._closed.set()
        self._news.set()
        self._thread.join(seconds)

    def _run(self) -> None:
        """Write what has come, many lines at once; the pause lets them gather."""
        try:
            while True:
                self._news.wait()
                closed = self._closed.wait(PAUSE_SECONDS)
                self._news.clear()
                self._write_all()
                if closed:
                    return
        except OSError as error:
            log.warning("the access log ends here: %s", error.strerror)
            self._broken = True

    def _write_all(self) -> None:
        lines = []
        while self._lines:
            lines.append(self._lines.popleft())
        if dropped := self._dropped - self._told:
            self._told += dropped
            lines.append(_encode(_Dropped(timestamp(time.time()), dropped)) + b"\n")
        for piece in portions(lines, self._size):
            rest = memoryview(piece)
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
            self._written += len(piece)
