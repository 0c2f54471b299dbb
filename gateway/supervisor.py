"""The control plane: starts the HTTP workers and the manager, keeps both informed, never touches a request."""

import asyncio
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine

from gateway import metrics, orphans
from gateway.byhand import ByHand
from gateway.departed import Departed
from gateway.errors import GatewayError, RequestError
from gateway.exposition import GatewayCollector, exposition
from gateway.ipc.messages import Answer, Ask, Routes, Start
from gateway.keyring import Keyring
from gateway.lifecycle.keeper import Keeper
from gateway.lifecycle.manager import Manager
from gateway.lifecycle.policy import absent_shadows, aspired, dangling_labels, missing
from gateway.lifecycle.residency import Residency
from gateway.lifecycle.version import Version
from gateway.listeners import Listeners
from gateway.nodes.local import LocalNode
from gateway.nodes.memory import available_memory
from gateway.overview import overview
from gateway.profiling import Profiling
from gateway.settings import Settings
from gateway.store.footprints import Footprints
from gateway.store.source import Artifact, Inventory, scan
from gateway.store.watch import changes
from gateway.workers import Workers

log = logging.getLogger("gateway.supervisor")

SHARE_OF_FREE = 0.8
"""Of the memory that is free at the start, so much is the budget if none is set."""
LOOK_SECONDS = 0.5
"""How often the memory of the instances, and whether an orphan has ended, is looked at."""
ONE_WISH_SECONDS = 0.1


class Supervisor:
    """Runs until stopped; every process of the gateway is its child or grandchild."""

    def __init__(self, settings: Settings, listeners: Listeners, on_settled: Callable[[Version], None]) -> None:
        self.settings = settings
        self._budget = settings.memory_budget or int(available_memory() * SHARE_OF_FREE)
        self._node = LocalNode(settings.sandbox, memory_limit=self._budget, libraries=settings.libraries)
        self._keyring = Keyring(settings.keys_file) if settings.keys_file else None
        start = Start(
            listeners={name: sock.fileno() for name, sock in listeners.sockets.items()},
            loopback=[name for name in listeners.sockets if listeners.is_loopback(name)],
            max_body_bytes=settings.max_body_bytes,
            request_timeout=settings.request_timeout,
            keep_alive_seconds=settings.keep_alive_seconds,
            drain_timeout=settings.drain_timeout,
            strict_readiness=settings.strict_readiness,
            server_name=settings.server_name,
            cors_origins=settings.cors_origins,
            compare_report=str(settings.compare_report.absolute()),
            tls_cert=str(settings.tls_cert or ""),
            tls_key=str(settings.tls_key or ""),
            access_log=settings.access_log,
            otlp_endpoint=settings.otlp_endpoint or "",
            rates=self._keyring.memory if self._keyring else -1,
        )
        self.workers = Workers(listeners, start, settings.workers, self._answer)
        keeper = Keeper(
            self._node, self._publish, self.workers.tell, settings.load_timeout, max(settings.drain_timeout, 1.0)
        )
        self.workers.on_explained = keeper.explained
        self.workers.on_abandoned = keeper.abandoned
        self.residency = Residency(self._node, {}, Footprints(settings.state_directory), self.workers.usage)
        self.manager = Manager(self._node, keeper, self.residency, self._publish, on_settled)
        self._by_hand = ByHand(settings.model_store, self._node, self.manager, self.workers.usage)
        self._profiling = Profiling(self._node, self.manager)
        self._departed = Departed()
        self._epoch = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._said: set[str] = set()
        self._stop = asyncio.Event()
        self._stopping = False
        self._stopped_at = 0.0
        self.exit_code = 0

    async def _budgets(self) -> dict[str, int]:
        """Bytes that all instances together may have, by device."""
        budgets = {"cpu": self._budget}
        for device, memory in (await self._node.memory()).items():
            budgets[device] = self.settings.gpu_memory_budget or int(memory.free * SHARE_OF_FREE)
        return budgets

    def stop(self) -> None:
        """Begin to end; the second time, end at once.

        Shells and process managers signal both a process and its group, so what comes twice in a moment is one wish.
        """
        now = asyncio.get_running_loop().time()
        if self._stop.is_set() and now - self._stopped_at < ONE_WISH_SECONDS:
            return
        self._stopped_at = now
        if self._stop.is_set():
            log.warning("ended at once, without waiting for requests")
            self._node.kill()
            self.workers.kill()
            os._exit(1)
        self._stop.set()

    async def start(self) -> None:
        """Start everything; returns when every worker listens and every model is READY, COLD or FAILED."""
        if self._keyring is not None:
            self.workers.use_keys(self._keyring.message())
            self._task(self._keyring.follow(self.workers.use_keys))
        self.workers.start()
        self.residency.account.budgets = await self._budgets()
        settings = self.settings
        inventories = changes(settings.model_store, settings.watch, settings.settle_seconds)
        inventory = await anext(inventories)
        self._say_what_is_odd(inventory)
        for framework in {each.framework for each in inventory.artifacts if each.framework and not each.problem}:
            self._node.warm(framework)
        self._task(self._watch_memory())
        await self.manager.reconcile(inventory)
        self._task(self._follow_store(inventories))
        await self.workers.listening()
        self.manager.on_settled = lambda version: log.info("%s: %s", version.title, version.state)

    async def _follow_store(self, inventories: AsyncIterator[Inventory]) -> None:
        """Serve what is in the store whenever that changes."""
        async for inventory in inventories:
            self._say_what_is_odd(inventory)
            self._task(self.manager.reconcile(inventory))

    def _say_what_is_odd(self, inventory: Inventory) -> None:
        by_model: dict[str, list[Artifact]] = {}
        for artifact in inventory.artifacts:
            by_model.setdefault(artifact.model, []).append(artifact)
        sentences = [f"ignored: {sentence}" for sentence in inventory.ignored] + inventory.notes
        sentences += absent_shadows(inventory.artifacts)
        for model, artifacts in by_model.items():
            versions = [artifact.version for artifact in aspired(artifacts)]
            sentences += missing(artifacts)
            sentences += [f"{model}: {sentence}" for sentence in dangling_labels(artifacts[0].config, versions)]
        for sentence in sentences:
            if sentence not in self._said:
                log.warning("%s", sentence)
        self._said = set(sentences)

    async def _watch_memory(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            orphans.reap()
            try:
                await self.manager.loader.look_at_memory(self.workers.usage)
            except Exception:  # the next look must not be lost with this one
                log.exception("looking at the memory failed")

    async def run(self) -> None:
        """Wait until told to stop, then end everything: first the workers, with their requests, then the models."""
        given_up = asyncio.create_task(self.workers.given_up.wait())
        stopped = asyncio.create_task(self._stop.wait())
        await asyncio.wait([given_up, stopped], return_when=asyncio.FIRST_COMPLETED)
        self.exit_code = 0 if stopped.done() else 1
        self._stop.set()
        stopped.cancel()
        given_up.cancel()
        self._stopping = True
        await self._publish()
        # Instances are replaced until the last request is answered.
        await self.workers.stop(self.settings.drain_timeout + 2)
        await self.manager.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._node.close()

    def _task(self, coroutine: Coroutine[object, object, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("a task of the supervisor failed", exc_info=error)

    async def _publish(self) -> None:
        self._epoch += 1
        await self.workers.publish(
            Routes(
                epoch=self._epoch,
                versions=self.manager.routes(),
                settled=self.manager.settled,
                stopping=self._stopping,
            )
        )

    # Questions of the workers

    async def _answer(self, ask: Ask) -> Answer:
        try:
            return Answer(ticket=ask.ticket, text=await self._find_out(ask))
        except GatewayError as error:
            return Answer(ticket=ask.ticket, text=error.message.encode(), error_code=error.code)
        except Exception:
            log.exception("%s failed", ask.what)
            return Answer(ticket=ask.ticket, text=b"internal error", error_code=GatewayError.code)

    async def _find_out(self, ask: Ask) -> bytes:
        if ask.what == "metrics":
            return await self._scrape()
        if ask.what == "overview":
            return await self._overview()
        if ask.what == "counters":
            return metrics.pack(await self.workers.counters())
        if ask.what == "load":
            loop = asyncio.get_running_loop()
            inventory = await loop.run_in_executor(None, scan, self.settings.model_store)
            await self.manager.load(ask.model, inventory.model(ask.model))
        elif ask.what == "unload":
            await self.manager.unload(ask.model)
        elif ask.what == "wake":
            await self.manager.wake(ask.model, ask.version)
        elif ask.what in ByHand.WHAT:
            return await self._by_hand.answer(ask)
        elif ask.what == "profile":
            return await self._profiling.answer(ask)
        else:
            raise RequestError(f"nobody knows how to answer '{ask.what}'")
        return b""

    async def _overview(self) -> bytes:
        counters = await self.workers.counters()
        manager = self.manager
        account, restarts, chosen = self.residency.account, manager.keeper.restarts, manager.registry.defaults
        return overview(counters, manager.versions.values(), account, restarts, chosen, time.time())

    async def _scrape(self) -> bytes:
        counters = await self.workers.counters(self._departed.expired)
        versions = list(self.manager.versions.values())
        counters = self._departed.without(counters, {(model, str(number)) for model, number in self.manager.versions})
        self._forget_departed()
        memory = await self._node.footprints([each for version in versions for each in version.instances])
        keeper, account = self.manager.keeper, self.residency.account
        gpus = await self._node.memory()
        violations = keeper.batches.violations
        return exposition(GatewayCollector(counters, versions, memory, account, keeper.restarts, gpus, violations))

    def _forget_departed(self) -> None:
        """Drop what is counted here of versions whose counters are no longer shown."""
        restarts, evictions = self.manager.keeper.restarts, self.residency.account.evictions
        expired = set(self._departed.expired)
        titles = {f"{model}/{version}" for model, version in expired}
        for title, reason in list(restarts):
            if title in titles:
                del restarts[title, reason]
        for model, number in list(evictions):
            if (model, str(number)) in expired:
                del evictions[model, number]


async def supervise(
    settings: Settings,
    listeners: Listeners,
    on_settled: Callable[[Version], None],
    on_started: Callable[[Manager], None],
) -> int:
    """Run the gateway until SIGINT or SIGTERM; its exit code, which is not 0 if it gave up."""
    supervisor = Supervisor(settings, listeners, on_settled)
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
