"""The control plane: starts the HTTP workers and the manager, keeps both informed, never touches a request."""

import asyncio
import itertools
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Coroutine

from gateway import metrics
from gateway.errors import ConfigError, GatewayError, RequestError
from gateway.exposition import GatewayCollector, exposition, measure
from gateway.ipc.messages import (
    Answer,
    Applied,
    Ask,
    Collect,
    Counts,
    FromWorker,
    Hello,
    MessageStream,
    Routes,
    Start,
)
from gateway.lifecycle.manager import Manager, Version
from gateway.metrics import VersionCounters
from gateway.nodes.local import LocalNode
from gateway.settings import Settings
from gateway.store.source import Inventory, scan

log = logging.getLogger("gateway.supervisor")

COLLECT_SECONDS = 5.0
APPLY_SECONDS = 10.0
WORKER_RESTARTS = 5
"""So many deaths of a worker in a row, each within STEADY_SECONDS of its start, and the gateway gives up."""
STEADY_SECONDS = 30.0


def listening_socket(host: str, port: int) -> socket.socket:
    """The socket that all workers accept from; ConfigError if the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror}") from None
    sock.listen(2048)
    return sock


class _Worker:
    """The supervisor's side of one HTTP worker process."""

    def __init__(self, index: int, listen_fd: int) -> None:
        self.index = index
        self.stream: MessageStream[FromWorker]
        self.applied = 0
        self.said_hello = False
        self.counts: list[VersionCounters] = []
        self._ours, theirs = socket.socketpair()
        self.process = subprocess.Popen(  # noqa: S603 - our own module
            [sys.executable, "-m", "gateway.http.worker", str(theirs.fileno()), str(os.getpid()), str(index)],
            pass_fds=[theirs.fileno(), listen_fd],
            stdin=subprocess.DEVNULL,
        )
        theirs.close()

    async def open(self) -> None:
        """Open the line to the worker."""
        self.stream = await MessageStream.over(self._ours, FromWorker)


class Supervisor:
    """Runs until stopped; every process of the gateway is its child or grandchild."""

    def __init__(self, settings: Settings, sock: socket.socket, on_settled: Callable[[Version], None]) -> None:
        self.settings = settings
        self._socket = sock
        self._on_settled = on_settled
        self._node = LocalNode(sandbox=settings.sandbox)
        self.manager = Manager(self._node, self._look, self._publish, settings.load_timeout)
        self._workers: dict[int, _Worker] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._epoch = 0
        self._changed = asyncio.Condition()
        self._tickets = itertools.count(1)
        self._collecting: dict[int, tuple[set[_Worker], asyncio.Event]] = {}
        self._lost_counts: list[VersionCounters] = []
        self._stop = asyncio.Event()
        self.exit_code = 0

    def stop(self) -> None:
        """Begin to end."""
        self._stop.set()

    async def start(self) -> None:
        """Start everything; returns when every worker listens and every model is READY or FAILED."""
        inventory = self._look()
        for sentence in inventory.ignored:
            log.warning("ignored: %s", sentence)
        aspired = inventory.aspired()
        for framework in {artifact.framework for artifact in aspired if not artifact.problem}:
            self._node.warm(framework)
        for index in range(self.settings.workers):
            self._task(self._keep_worker(index))
        await self.manager.serve(aspired, self._on_settled)
        async with self._changed:
            await self._changed.wait_for(
                lambda: (
                    len(self._workers) == self.settings.workers
                    and all(worker.said_hello for worker in self._workers.values())
                )
            )

    async def run(self) -> None:
        """Wait until told to stop, then end everything: first the workers, with their requests, then the models."""
        await self._stop.wait()
        await self.manager.close()
        for worker in self._workers.values():
            worker.stream.close()
        grace = self.settings.drain_timeout + 2
        loop = asyncio.get_running_loop()
        waits = [loop.run_in_executor(None, self._wait, worker, grace) for worker in self._workers.values()]
        await asyncio.gather(*waits)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._node.close()

    @staticmethod
    def _wait(worker: _Worker, seconds: float) -> None:
        try:
            worker.process.wait(seconds)
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()

    def _look(self) -> Inventory:
        return scan(self.settings.model_store)

    def _task(self, coroutine: Coroutine[object, object, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # Workers

    async def _keep_worker(self, index: int) -> None:
        """Run one worker, and another in its place when it dies; after too many in a row stop everything."""
        loop = asyncio.get_running_loop()
        deaths = 0
        while deaths < WORKER_RESTARTS:
            started = loop.time()
            worker = _Worker(index, self._socket.fileno())
            await worker.open()
            await self._follow_worker(worker)
            if self._stop.is_set():
                return
            code = await loop.run_in_executor(None, worker.process.wait)
            deaths = 1 if loop.time() - started > STEADY_SECONDS else deaths + 1
            log.error("HTTP worker %d ended with code %d and is replaced (%d in a row)", index, code, deaths)
        log.critical("HTTP worker %d does not stay up; stopping", index)
        self.exit_code = 1
        self._stop.set()

    async def _follow_worker(self, worker: _Worker) -> None:
        settings = self.settings
        worker.stream.send(
            Start(
                listen_fd=self._socket.fileno(),
                max_body_bytes=settings.max_body_bytes,
                request_timeout=settings.request_timeout,
                keep_alive_seconds=settings.keep_alive_seconds,
                drain_timeout=settings.drain_timeout,
            )
        )
        self._workers[worker.index] = worker
        worker.stream.send(self._routes())
        while (message := await worker.stream.receive()) is not None:
            if isinstance(message, Applied):
                worker.applied = message.epoch
            elif isinstance(message, Hello):
                worker.said_hello = True
            elif isinstance(message, Counts):
                worker.counts = metrics.unpack(message.packed)
                self._counted(worker, message.ticket)
            elif isinstance(message, Ask):
                self._task(self._answer(worker, message))
            async with self._changed:
                self._changed.notify_all()
        if self._workers.get(worker.index) is worker and not self._stop.is_set():
            del self._workers[worker.index]
        self._lost_counts += worker.counts
        for ticket in list(self._collecting):
            self._counted(worker, ticket)
        async with self._changed:
            self._changed.notify_all()

    def _routes(self) -> Routes:
        return Routes(epoch=self._epoch, versions=self.manager.routes(), settled=self.manager.settled)

    async def _publish(self) -> None:
        """Send the routes to every worker and wait until each routes by them, or is gone."""
        self._epoch = epoch = self._epoch + 1
        routes = self._routes()
        for worker in self._workers.values():
            worker.stream.send(routes)
        async with self._changed:
            try:
                await asyncio.wait_for(
                    self._changed.wait_for(
                        lambda: all(worker.applied >= epoch for worker in self._workers.values() if worker.said_hello)
                    ),
                    APPLY_SECONDS,
                )
            except TimeoutError:
                log.warning("a worker did not take routing table %d within %g s", epoch, APPLY_SECONDS)

    # Questions

    async def _answer(self, worker: _Worker, ask: Ask) -> None:
        try:
            text = await self._find_out(ask)
        except GatewayError as error:
            answer = Answer(ticket=ask.ticket, text=error.message.encode(), error_code=error.code)
        else:
            answer = Answer(ticket=ask.ticket, text=text)
        worker.stream.send(answer)

    async def _find_out(self, ask: Ask) -> bytes:
        if ask.what == "metrics":
            return await self._scrape()
        if ask.what == "counters":
            return metrics.pack(await self._collect())
        if ask.what == "load":
            await self.manager.load(ask.model)
        elif ask.what == "unload":
            await self.manager.unload(ask.model)
        else:
            raise RequestError(f"nobody knows how to answer '{ask.what}'")
        return b""

    async def _collect(self) -> list[VersionCounters]:
        """What all workers counted, also those that are gone; a worker that does not answer counts as it last did."""
        ticket = next(self._tickets)
        asked = set(self._workers.values())
        done = asyncio.Event()
        if asked:
            self._collecting[ticket] = asked.copy(), done
            for worker in asked:
                worker.stream.send(Collect(ticket=ticket))
            try:
                await asyncio.wait_for(done.wait(), COLLECT_SECONDS)
            except TimeoutError:
                log.warning("a worker did not send its counters within %g s", COLLECT_SECONDS)
            finally:
                del self._collecting[ticket]
        self._lost_counts = metrics.summed([self._lost_counts])
        for lost in self._lost_counts:
            lost.pending = 0
        return metrics.summed([self._lost_counts, *(worker.counts for worker in self._workers.values())])

    def _counted(self, worker: _Worker, ticket: int) -> None:
        if ticket in self._collecting:
            asked, done = self._collecting[ticket]
            asked.discard(worker)
            if not asked:
                done.set()

    async def _scrape(self) -> bytes:
        counters = await self._collect()
        versions = list(self.manager.versions.values())
        restarts = [
            (version, reason, number)
            for version in versions
            for (title, reason), number in sorted(self.manager.restarts.items())
            if title == version.title
        ]
        # Reading smaps walks the page tables of every instance: milliseconds, so not in the event loop.
        memory = await asyncio.get_running_loop().run_in_executor(None, measure, versions)
        return exposition(GatewayCollector(counters, versions, memory, restarts))


async def supervise(
    settings: Settings,
    sock: socket.socket,
    on_settled: Callable[[Version], None],
    on_started: Callable[[Manager], None],
) -> int:
    """Run the gateway until SIGINT or SIGTERM; its exit code, which is not 0 if it gave up."""
    supervisor = Supervisor(settings, sock, on_settled)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, supervisor.stop)
    starting = asyncio.create_task(supervisor.start())

    def show(done: "asyncio.Task[None]") -> None:
        if not done.cancelled() and done.exception() is None:
            on_started(supervisor.manager)

    starting.add_done_callback(show)
    running = asyncio.create_task(supervisor.run())
    await asyncio.wait([starting, running], return_when=asyncio.FIRST_COMPLETED)
    if starting.done() and starting.exception():
        supervisor.stop()
    await running
    if starting.done():
        await starting
    else:
        starting.cancel()
    return supervisor.exit_code
