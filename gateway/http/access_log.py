"""The access log: a line of JSON for each request, written to stdout by a thread for requests wait for no disk."""

import logging
import os
import select
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
RETRY_SECONDS = 1.0
"""After so long a descriptor that refused lines (a reader that is gone, a full disk) is tried again."""
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
        self._lost = 0  # as `_dropped`, of those that the thread had taken
        self._told = 0
        self._failing = False
        self._torn = False  # the last piece was written in part
        self._closed = threading.Event()
        self._news = threading.Event()
        self._thread = threading.Thread(target=self._run, name="access-log", daemon=True)
        self._thread.start()

    def add(self, visit: Visit) -> None:
        """Write down a request, soon."""
        line = line_of(visit)
        if self._waiting - self._written > MOST_BYTES:
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
        while True:
            self._news.wait()
            closed = self._closed.wait(PAUSE_SECONDS)
            self._news.clear()
            written = self._write_all()
            if closed:
                return
            if not written:
                self._closed.wait(RETRY_SECONDS)
                self._news.set()

    def _write_all(self) -> bool:
        """Write what has come; False if the descriptor takes nothing. What is lost is counted, and reported later."""
        lines = []
        while self._lines:
            lines.append(self._lines.popleft())
        lost = self._dropped + self._lost
        if lost > self._told:
            if self._write(_encode(_Dropped(timestamp(time.time()), lost - self._told)) + b"\n"):
                self._lose(lines)
                return False
            self._told = lost
        pieces = list(portions(lines, self._size))
        for index, piece in enumerate(pieces):
            if rest := self._write(piece):
                self._written += len(piece) - len(rest)
                self._lose([rest, *pieces[index + 1 :]])
                return False
            self._written += len(piece)
        return True

    def _lose(self, pieces: list[bytes]) -> None:
        self._lost += sum(piece.count(b"\n") for piece in pieces)
        self._written += sum(map(len, pieces))

    def _write(self, piece: bytes) -> bytes:
        """Write a piece, waiting for room as long as it takes; what of it the descriptor refuses."""
        rest = memoryview(piece)
        while rest:
            try:
                if self._torn:
                    os.write(self._descriptor, b"\n")
                    self._torn = False
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:  # another process has made the pipe that they share non-blocking
                room = select.poll()
                room.register(self._descriptor, select.POLLOUT)
                room.poll()
            except OSError as error:
                if not self._failing:
                    log.warning("the access log cannot be written and is tried again: %s", error.strerror)
                self._failing = True
                self._torn = len(rest) < len(piece)
                return bytes(rest)
        self._failing = False
        return b""
