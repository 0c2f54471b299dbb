"""A fast HTTP/1.1 client for load: prebuilt requests on keep-alive connections, every answer checked and timed."""

import asyncio
import contextlib
import itertools
import ssl
import time
from array import array
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, NamedTuple, Self, cast

import numpy as np

RIGHT = ""
"""What a check says of the answer that was wanted; anything else is the kind of failure."""
Check = Callable[[int, bytes, bytes], str]
"""(status, head, body) of an answer → RIGHT or the kind of its failure."""
SWEEP_SECONDS = 0.5
RECONNECT_SECONDS = 0.02
EXAMPLE_BYTES = 300
_LENGTH = b"\r\ncontent-length:"


class Shot(NamedTuple):
    """A request as it goes over the wire, and how its answer is judged."""

    data: bytes
    check: Check


def request(method: str, path: str, body: bytes = b"", *headers: str, host: str = "127.0.0.1") -> bytes:
    """A request as bytes."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", *headers]
    if body or method == "POST":
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def any_200(status: int, _head: bytes, _body: bytes) -> str:
    """The check of who wants nothing but success."""
    return RIGHT if status == 200 else f"status {status}"


class Tally:
    """What became of requests: seconds of the right answers, and the others by kind with an example of each."""

    def __init__(self) -> None:
        self.latencies = array("d")
        self.failures: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        self.late = 0
        """Requests of an open loop that found every connection taken and had to wait for one."""
        self.began = time.perf_counter()
        self.seconds = 0.0

    def fail(self, kind: str, example: bytes = b"") -> None:
        """One request failed."""
        self.failures[kind] += 1
        if kind not in self.examples:
            self.examples[kind] = example[:EXAMPLE_BYTES].decode("utf-8", "backslashreplace")

    def close(self) -> Self:
        """Note for how long this was counted."""
        self.seconds = time.perf_counter() - self.began
        return self

    @property
    def right(self) -> int:
        """Requests with the right answer."""
        return len(self.latencies)

    @property
    def failed(self) -> int:
        """All other requests."""
        return self.failures.total()

    @property
    def total(self) -> int:
        """All requests."""
        return self.right + self.failed

    @property
    def rate(self) -> float:
        """Right answers per second."""
        return self.right / self.seconds if self.seconds else 0.0

    def percentile(self, percent: float) -> float:
        """Milliseconds; NaN of nothing."""
        if not self.latencies:
            return float("nan")
        return float(np.percentile(np.frombuffer(self.latencies), percent) * 1000)

    def add(self, other: "Tally") -> None:
        """Add what was counted elsewhere."""
        self.latencies.extend(other.latencies)
        self.failures.update(other.failures)
        self.examples = other.examples | self.examples
        self.late += other.late
        self.seconds += other.seconds

    def shown(self) -> str:
        """One line."""
        failures = ", ".join(f"{number} x {kind}" for kind, number in self.failures.most_common()) or "0 failed"
        percentiles = " / ".join(f"{self.percentile(percent):.2f}" for percent in (50, 95, 99))
        return f"{self.right} right ({self.rate:.0f}/s), {failures}, p50 / p95 / p99 {percentiles} ms"


class Line(asyncio.Protocol):
    """One connection with at most one request under way."""

    def __init__(self, load: "Load") -> None:
        self._load = load
        self._have = b""
        self._transport: asyncio.Transport
        self.shot: Shot | None = None
        self.since = 0.0
        self.sent = 0.0
        self.open = False
        self.port = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        self._transport, self.open = cast("asyncio.Transport", transport), True  # which uvloop's is not, by its class
        self.port = transport.get_extra_info("sockname")[1]

    def send(self, shot: Shot, since: float) -> None:
        """Send a request whose time counts from `since`."""
        self.shot, self.since, self.sent = shot, since, time.perf_counter()
        self._transport.write(shot.data)

    def data_received(self, data: bytes) -> None:
        """Called by asyncio: count the answer when all of it is there."""
        if self._have:
            data = self._have + data
        end = data.find(b"\r\n\r\n")
        if end < 0:
            self._have = data
            return
        at = data.find(_LENGTH, 0, end)
        if at < 0:
            at = data[:end].lower().find(_LENGTH)
        if at < 0:
            self._fail("unreadable", data)
            return
        at += len(_LENGTH)
        stop = data.find(b"\r\n", at)
        size = end + 4 + int(data[at:stop])
        if len(data) < size:
            self._have = data
            return
        shot, self.shot = self.shot, None
        if shot is None or len(data) > size:
            self._fail("answer without a request", data)
            return
        self._have = b""
        head = data[:end]
        self._load.answered(self, shot, head, data[end + 4 : size])
        if b"connection: close" in head:
            self.abort()
        else:
            self._load.idle(self)

    def _fail(self, kind: str, data: bytes) -> None:
        self.shot = None
        self._load.tally.fail(kind, data)
        self.abort()

    def give_up(self, kind: str) -> None:
        """Count the request under way as failed and break the connection."""
        self._fail(kind, self._have)

    def abort(self) -> None:
        """Break the connection."""
        if self.open:
            self._transport.abort()

    def connection_lost(self, _: Exception | None) -> None:
        """Called by asyncio."""
        self.open = False
        if self.shot is not None:
            self.shot = None
            self._load.tally.fail("reset", self._have)
            self._load.broken.append((time.monotonic(), self.port))
        self._load.lost(self)


class Load:
    """Connections and what they count; `async with` connects them, and at its end waits for the answers due."""

    def __init__(
        self,
        address: tuple[str, int],
        shots: Sequence[Shot] | Callable[[], Shot],
        connections: int,
        timeout: float = 60.0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.tally = Tally()
        self.lines: set[Line] = set()
        self.broken: list[tuple[float, int]] = []
        """(monotonic time, local port) of each connection that broke with a request under way."""
        self.next_shot = shots if callable(shots) else itertools.cycle(shots).__next__
        self._address = address
        self._connections = connections
        self._timeout = timeout
        self._tls = tls
        self._running = False
        self._error: Exception | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._running = True
        self.tally = Tally()
        async with asyncio.timeout(self._timeout):
            await asyncio.gather(*(self._connect() for _ in range(self._connections)))
        self._task(self._sweep())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._running = False
        self.tally.close()
        end = time.perf_counter() + self._timeout + SWEEP_SECONDS
        while any(line.shot for line in self.lines) and time.perf_counter() < end:
            await asyncio.sleep(0.005)
            self._expire()
        for line in self.lines.copy():
            line.abort()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._error is not None:
            raise self._error

    def take(self) -> Tally:
        """What has been counted so far; from now on it is counted anew."""
        taken, self.tally = self.tally.close(), Tally()
        return taken

    async def run(self, seconds: float) -> Tally:
        """Count for so long, `async with` included."""
        async with self:
            await asyncio.sleep(seconds)
        return self.tally

    # Called by the lines

    def answered(self, line: Line, shot: Shot, head: bytes, body: bytes) -> None:
        """An answer is complete."""
        try:
            kind = shot.check(int(head[9:12]), head, body)
        except Exception as error:  # noqa: BLE001 - raised where the load is used; the event loop would only print it
            self._error, kind = self._error or error, "the check raised"
        if kind:
            self.tally.fail(kind, body)
        else:
            self.tally.latencies.append(time.perf_counter() - line.since)

    def send_next(self, line: Line, due: float) -> None:
        """Send the next request on an idle connection; its time counts from `due`."""
        try:
            shot = self.next_shot()
        except Exception as error:  # noqa: BLE001 - as above
            self._error, self._running = self._error or error, False
            return
        line.send(shot, due)

    def idle(self, line: Line) -> None:
        """A connection can take the next request."""
        raise NotImplementedError

    def lost(self, line: Line) -> None:
        """A connection is gone."""
        self.lines.discard(line)
        if self._running:
            self._task(self._connect())

    # Connections

    def _task(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self) -> None:
        """One more connection; refusals are tried again as long as the load runs, and a lasting one is counted."""
        loop = asyncio.get_running_loop()
        for attempt in itertools.count(1):
            with contextlib.suppress(OSError):
                _, line = await loop.create_connection(lambda: Line(self), *self._address, ssl=self._tls)
                self.lines.add(line)
                self.idle(line)
                return
            if attempt % 50 == 0:
                self.tally.fail("refused")
            await asyncio.sleep(RECONNECT_SECONDS)
            if not self._running:
                return

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            self._expire()

    def _expire(self) -> None:
        oldest = time.perf_counter() - self._timeout
        for line in self.lines.copy():
            if line.shot is not None and line.sent < oldest:
                line.give_up("timeout")


class ClosedLoop(Load):
    """Each connection sends its next request when the last is answered; `count` bounds how many are sent in all."""

    def __init__(
        self,
        address: tuple[str, int],
        shots: Sequence[Shot] | Callable[[], Shot],
        connections: int,
        timeout: float = 60.0,
        count: int | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        super().__init__(address, shots, connections, timeout, tls)
        self._left = count
        self._finished = asyncio.Event()

    def idle(self, line: Line) -> None:
        """Send the next request."""
        if not self._running or not line.open:
            return
        if self._left is not None:
            if self._left <= 0:
                self._finished.set()
                return
            self._left -= 1
        self.send_next(line, time.perf_counter())

    def allow(self, line: Line) -> None:
        """Send one request more than `count`, on this connection, which is idle."""
        self._left = (self._left or 0) + 1
        self.idle(line)

    async def finish(self, seconds: float) -> Tally:
        """Until all of `count` are sent, and no longer than so many seconds."""
        async with self:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._finished.wait(), seconds)
        return self.tally
