"""The HTTP workers as the supervisor sees them: kept running, told what changes, asked what they have counted."""

import asyncio
import itertools
import logging
import time
from collections.abc import Awaitable, Callable, Sequence

from gateway import metrics
from gateway.children import ended
from gateway.http.condemned import REMEMBER_SECONDS
from gateway.ipc.abandonment import AbandonmentReports
from gateway.ipc.messages import (
    Abandoned,
    Applied,
    Ask,
    AskUsage,
    Collect,
    Condemned,
    Counts,
    Explained,
    Hello,
    Keys,
    Message,
    Pong,
    Routes,
    Start,
    Usage,
)
from gateway.listeners import Listeners
from gateway.metrics import VersionCounters
from gateway.store.source import Key
from gateway.worker_process import Heard, WorkerProcess

log = logging.getLogger("gateway.workers")

REPLY_SECONDS = 5.0
APPLY_SECONDS = 10.0
RESTARTS = 5
"""So many deaths of a worker in a row, each within STEADY_SECONDS of its start, and the gateway gives up."""
STEADY_SECONDS = 10.0
END_SECONDS = 5.0
"""So long may a worker run on after its line is cut."""


class Workers:
    """All HTTP workers. `answer` is called for what only the supervisor knows."""

    def __init__(
        self, listeners: Listeners, start: Start, count: int, answer: Callable[[Ask], Awaitable[Message]]
    ) -> None:
        self._listeners = listeners
        self._start = start
        self._descriptors = [*start.listeners.values(), *([start.rates] if start.rates >= 0 else [])]
        self._keys: Keys | None = None
        self._count = count
        self._answer = answer
        self._workers: dict[int, WorkerProcess] = {}
        self._routes = Routes(epoch=0, versions=[], settled=False)
        self._condemned: dict[bytes, float] = {}
        self._changed = asyncio.Condition()
        self._tickets = itertools.count(1)
        self._awaited: dict[int, tuple[set[WorkerProcess], asyncio.Event]] = {}
        self._lost_counts: list[VersionCounters] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False
        self.on_explained: Callable[[list[str]], None] = lambda _: None
        """Called with instances that were ended by requests."""
        self.on_abandoned: Callable[[str], None] = lambda _: None
        """Called with an instance that computes only requests that were cancelled, in whatever worker."""
        self._abandonment = AbandonmentReports()
        self.given_up = asyncio.Event()
        """Set when a worker does not stay up."""

    def start(self) -> None:
        """Begin to keep the workers running."""
        for index in range(self._count):
            self._task(self._keep(index))

    def _task(self, coroutine: Awaitable[None]) -> None:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("a task for an HTTP worker failed", exc_info=error)

    async def listening(self) -> None:
        """Wait until every worker accepts connections."""
        async with self._changed:
            await self._changed.wait_for(
                lambda: len(self._workers) == self._count and all(each.said_hello for each in self._workers.values())
            )

    async def stop(self, grace: float) -> None:
        """Wait until all workers, which know from their routes that they are to end, have finished their requests.

        Those that have not within so many seconds are killed. Until then they hear what changes.
        """
        self._stopping = True
        self._listeners.close()  # when the workers have closed theirs, too, connections are refused
        await asyncio.gather(*(each.wait(grace) for each in self._workers.values()))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def kill(self) -> None:
        """End all workers now."""
        self._stopping = True
        for worker in self._workers.values():
            worker.process.kill()

    # Keeping them running

    async def _keep(self, index: int) -> None:
        """Run one worker, and another in its place when it dies; after too many in a row give up."""
        loop = asyncio.get_running_loop()
        deaths = 0
        while deaths < RESTARTS:
            started = loop.time()
            try:
                worker = WorkerProcess(index, self._descriptors)
                await worker.open()
            except Exception as error:  # noqa: BLE001 - whatever it is, the place of a worker must not stay empty
                log.error("HTTP worker %d cannot be started: %s", index, error)  # noqa: TRY400 - said in one line
                deaths += 1
                await asyncio.sleep(deaths)
                continue
            try:
                await self._follow(worker)
            except Exception:
                log.exception("what HTTP worker %d says cannot be understood", index)
                worker.process.kill()
            if self._stopping:
                return
            code = await self._end_of(worker)
            deaths = 0 if loop.time() - started > STEADY_SECONDS else deaths + 1
            log.error("HTTP worker %d ended with code %d and is replaced", index, code)
        log.critical("HTTP worker %d does not stay up; stopping", index)
        self.given_up.set()

    async def _end_of(self, worker: WorkerProcess) -> int:
        """The exit code of a worker whose line is cut; one that runs on is of no use and is ended."""
        try:
            return await asyncio.wait_for(ended(worker.process), END_SECONDS)
        except TimeoutError:
            worker.process.kill()
            return await ended(worker.process)

    async def _follow(self, worker: WorkerProcess) -> None:
        """Tell a worker what it needs to begin, and act on what it says until its line is cut."""
        pinging = asyncio.create_task(worker.ping())
        try:
            await self._listen(worker)
        finally:
            pinging.cancel()
            worker.stream.close()
            if self._workers.get(worker.index) is worker:
                del self._workers[worker.index]
            self._lost_counts += worker.counts
            for ticket in list(self._awaited):
                self._replied(worker, ticket)
            async with self._changed:
                self._changed.notify_all()

    async def _listen(self, worker: WorkerProcess) -> None:
        worker.stream.send(self._start)
        if self._keys is not None:  # before the routes, without which it serves nobody
            worker.stream.send(self._keys)
        for digest in self._condemned:
            worker.stream.send(Condemned(digest=digest))
        self._workers[worker.index] = worker
        worker.stream.send(self._routes)
        while (message := await worker.stream.receive()) is not None:
            worker.pulse.heard()
            if isinstance(message, Pong):
                continue
            self._hear(worker, message)
            async with self._changed:
                self._changed.notify_all()

    def _hear(self, worker: WorkerProcess, message: Heard) -> None:
        if isinstance(message, Applied):
            worker.applied = message.epoch
        elif isinstance(message, Hello):
            worker.said_hello = True
        elif isinstance(message, Counts):
            worker.counts = metrics.unpack(message.packed)
            self._replied(worker, message.ticket)
        elif isinstance(message, Usage):
            worker.used = message.versions
            self._replied(worker, message.ticket)
        elif isinstance(message, Condemned):
            self._condemn(worker, message)
        elif isinstance(message, Explained):
            self.on_explained(message.instances)
        elif isinstance(message, Abandoned):
            seen = message.instance, message.execution, message.requests, message.total
            if self._abandonment.report(worker.index, *seen):
                self.on_abandoned(message.instance)
        else:
            self._task(self._reply(worker, message))

    async def _reply(self, worker: WorkerProcess, ask: Ask) -> None:
        worker.stream.send(await self._answer(ask))

    def _condemn(self, source: WorkerProcess, message: Condemned) -> None:
        """Tell the others; those that come later are told for a while, too."""
        now = time.monotonic()
        self._condemned = {digest: until for digest, until in self._condemned.items() if until > now}
        self._condemned[message.digest] = now + REMEMBER_SECONDS
        for worker in self._workers.values():
            if worker is not source:
                worker.stream.send(message)

    # Telling them

    async def publish(self, routes: Routes) -> None:
        """Send the routes to every worker and wait until each routes by them, or is gone."""
        self._routes = routes
        self.tell(routes)
        async with self._changed:
            try:
                await asyncio.wait_for(
                    self._changed.wait_for(
                        lambda: all(
                            worker.applied >= routes.epoch for worker in self._workers.values() if worker.said_hello
                        )
                    ),
                    APPLY_SECONDS,
                )
            except TimeoutError:
                log.warning("a worker did not take routing table %d within %g s", routes.epoch, APPLY_SECONDS)

    def use_keys(self, keys: Keys) -> None:
        """These are the keys now, for workers to come as well."""
        self._keys = keys
        self.tell(keys)

    def tell(self, message: Message) -> None:
        """Send a message to every worker."""
        for worker in self._workers.values():
            worker.stream.send(message)

    # Asking them

    async def _ask_all(self, question: Callable[[int], Message]) -> set[WorkerProcess]:
        """Ask every worker and wait for the answers; those that did not answer in time."""
        ticket = next(self._tickets)
        asked = set(self._workers.values())
        if not asked:
            return asked
        done = asyncio.Event()
        self._awaited[ticket] = asked, done
        message = question(ticket)
        for worker in asked:
            worker.stream.send(message)
        try:
            await asyncio.wait_for(done.wait(), REPLY_SECONDS)
        except TimeoutError:
            log.warning("a worker did not answer %s within %g s", type(message).__name__, REPLY_SECONDS)
        finally:
            del self._awaited[ticket]
        return asked

    def _replied(self, worker: WorkerProcess, ticket: int) -> None:
        if ticket in self._awaited:
            waiting, done = self._awaited[ticket]
            waiting.discard(worker)
            if not waiting:
                done.set()

    async def counters(self, forget: Sequence[tuple[str, str]] = ()) -> list[VersionCounters]:
        """What all workers counted, also those that are gone; a worker that does not answer counts as it last did.

        Counters of the versions in `forget` (model, version), which are gone, are dropped.
        """
        await self._ask_all(lambda ticket: Collect(ticket=ticket, forget=list(forget)))
        kept = [each for each in self._lost_counts if (each.model, each.version) not in forget]
        self._lost_counts = metrics.summed([kept])
        for lost in self._lost_counts:
            lost.pending = 0
        return metrics.summed([self._lost_counts, *(worker.counts for worker in self._workers.values())])

    async def usage(self) -> dict[Key, tuple[float, int]]:
        """For each version when it was last used, of the monotonic clock, and how many requests are under way."""
        silent = await self._ask_all(lambda ticket: AskUsage(ticket=ticket))
        used: dict[Key, tuple[float, int]] = {}
        for worker in self._workers.values():
            for model, version, last, under_way in worker.used:
                # Of a worker that does not answer nobody knows whether it has requests: to be on the safe side, yes.
                known_last, known = used.get((model, version), (0.0, 0))
                used[model, version] = max(known_last, last), known + under_way + (worker in silent)
        return used
