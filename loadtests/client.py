"""The client of the load tests: the gateway's own load generator, and an open loop."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Self

from gateway.commands.load_generator import RIGHT, Check, ClosedLoop, Line, Load, Shot, Tally, any_200, request

__all__ = ["RIGHT", "Check", "ClosedLoop", "Load", "OpenLoop", "Shot", "Tally", "any_200", "request"]


class OpenLoop(Load):
    """Requests at a constant rate whatever the answers do; each one's time counts from when it was due.

    `connections` bounds how many are under way. Those that are due beyond wait for a connection ("late"), and beyond
    `waiting` of them are not sent, which counts as a failure of that name.
    """

    def __init__(
        self,
        address: tuple[str, int],
        shots: Sequence[Shot] | Callable[[], Shot],
        rate: float,
        connections: int,
        timeout: float = 60.0,
        waiting: int = 1000,
    ) -> None:
        super().__init__(address, shots, connections, timeout)
        self._rate = rate
        self._most = waiting
        self._idle: deque[Line] = deque()
        self._due: deque[float] = deque()

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        self._task(self._pace())
        return self

    def idle(self, line: Line) -> None:
        """Send what waits for a connection, or keep it."""
        if self._due and self._running and line.open:
            self.send_next(line, self._due.popleft())
        else:
            self._idle.append(line)

    async def _pace(self) -> None:
        started = time.perf_counter()
        sent = 0
        while self._running:
            due = int((time.perf_counter() - started) * self._rate)
            for number in range(sent, due):
                self._arrive(started + number / self._rate)
            sent = due
            await asyncio.sleep(0.001)

    def _arrive(self, due: float) -> None:
        while self._idle:
            line = self._idle.popleft()
            if line.open:
                self.send_next(line, due)
                return
        if len(self._due) >= self._most:
            self.tally.fail("not sent")
        else:
            self.tally.late += 1
            self._due.append(due)
