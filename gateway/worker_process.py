"""One HTTP worker process as the supervisor has it: started, pinged, ended."""

import asyncio
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterable

from gateway import orphans
from gateway.children import Pulse, ended
from gateway.ipc.messages import (
    Abandoned,
    Applied,
    Ask,
    Condemned,
    Counts,
    Explained,
    FromWorker,
    Hello,
    MessageStream,
    Ping,
    Usage,
)
from gateway.metrics import VersionCounters

log = logging.getLogger("gateway.workers")

PING_SECONDS = 1.0
MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20), "MALLOC_TRIM_THRESHOLD_": str(4 << 20)}
"""Large blocks go back to the kernel at once (mallopt(3)). By itself glibc keeps more and more of them for the heap,
where smaller ones leave holes: under hostile bodies a worker then takes 100 MB instead of 60."""
NO_POOL = {"OPENBLAS_NUM_THREADS": "1"}
"""numpy's linear algebra, which no worker uses, would start a thread for each of the host's cores."""
Heard = Hello | Applied | Counts | Ask | Condemned | Explained | Abandoned | Usage
"""Messages from a worker, but for the answer to a ping."""


class WorkerProcess:
    """The supervisor's side of one HTTP worker process."""

    def __init__(self, index: int, descriptors: Iterable[int]) -> None:
        self.index = index
        self.stream: MessageStream[FromWorker]
        self.applied = 0
        self.said_hello = False
        self.counts: list[VersionCounters] = []
        self.used: list[tuple[str, int, float, int]] = []
        self._ours, theirs = socket.socketpair()
        with theirs:
            try:
                self.process = subprocess.Popen(  # noqa: S603 - our own module
                    [sys.executable, "-m", "gateway.http.worker", str(theirs.fileno()), str(os.getpid()), str(index)],
                    pass_fds=[theirs.fileno(), *descriptors],
                    stdin=subprocess.DEVNULL,
                    env=MALLOC | NO_POOL | os.environ,
                )
            except BaseException:
                self._ours.close()
                raise
        orphans.started(self.process)
        self.pulse = Pulse(self.process.pid)

    async def open(self) -> None:
        """Open the line to the worker; if it cannot be opened, the worker is ended."""
        try:
            self.stream = await MessageStream.over(self._ours, FromWorker)
        except BaseException:
            self._ours.close()
            self.process.kill()
            await ended(self.process)
            raise

    async def wait(self, seconds: float) -> None:
        """Wait for its end, which comes after so many seconds at the latest."""
        try:
            await asyncio.wait_for(ended(self.process), seconds)
        except TimeoutError:
            self.process.kill()
            await ended(self.process)

    async def ping(self) -> None:
        """Ping it until it hangs, and end it then."""
        while True:
            await asyncio.sleep(PING_SECONDS)
            self.stream.send(Ping())
            if self.pulse.pinged():
                log.error("HTTP worker %d does not answer and is ended", self.index)
                self.process.kill()
                return
