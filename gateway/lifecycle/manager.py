"""What becomes of the versions in the store: loads them, watches their instances, unloads them."""

import asyncio
import logging
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

from gateway.errors import GatewayError, LoadFailed, ModelNotFound
from gateway.ipc.messages import Ready, VersionRoute
from gateway.lifecycle.placement import Device, place
from gateway.lifecycle.state import State, next_state
from gateway.nodes.node import Instance, Node
from gateway.store.source import Artifact, Inventory

log = logging.getLogger("gateway.manager")

RESTARTS = 5
"""After so many instances in a row that did not live for STEADY_SECONDS a version is FAILED."""
STEADY_SECONDS = 30.0
FIRST_BACKOFF_SECONDS = 0.1


@dataclass(eq=False)
class Version:
    """One model version and everything that runs for it."""

    artifact: Artifact
    state: State = State.NEW
    reason: str = ""
    devices: list[Device] = field(default_factory=list)
    """Where its instances are or are about to be."""
    instances: list[Instance] = field(default_factory=list)
    starting: set[Instance] = field(default_factory=set)
    ready: Ready | None = None
    deaths: int = 0
    """Of instances in a row, each soon after its start."""
    load_seconds: float = 0.0

    def become(self, state: State, reason: str = "") -> None:
        """Enter a state; the only place where one is assigned."""
        self.state = next_state(self.state, state)
        self.reason = reason

    def serving(self) -> bool:
        """Whether it is wanted and answers."""
        return self.state is State.READY

    @property
    def title(self) -> str:
        """name/version, for people."""
        return f"{self.artifact.model}/{self.artifact.version}"

    def route(self) -> VersionRoute:
        """The version as the HTTP workers need to know it."""
        artifact = self.artifact
        return VersionRoute(
            model=artifact.model,
            version=artifact.version,
            platform=artifact.platform,
            framework=artifact.framework,
            state=self.state.value,
            reason=self.reason,
            config=artifact.config,
            ready=self.ready if self.state is State.READY else None,
            instances=[instance.address for instance in self.instances] if self.state is State.READY else [],
        )


class Manager:
    """Owns all versions. `publish` sends the routes to the workers and returns when they route by them."""

    def __init__(
        self, node: Node, look: Callable[[], Inventory], publish: Callable[[], Awaitable[None]], load_timeout: float
    ) -> None:
        self.versions: dict[tuple[str, int], Version] = {}
        self.settled = False
        self.restarts: Counter[tuple[str, str]] = Counter()
        """(model/version, reason) → instances replaced."""
        self._node = node
        self._look = look
        self._publish = publish
        self.on_death: Callable[[str, int], None] = lambda _name, _code: None
        """Called with an instance's name and exit code, before the routes without it are published."""
        self._load_timeout = load_timeout
        self._loading = asyncio.Semaphore(max(2, os.cpu_count() or 1))
        self._locks: dict[str, asyncio.Lock] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False

    def routes(self) -> list[VersionRoute]:
        """Every version as a route."""
        return [version.route() for version in self.versions.values()]

    async def serve(self, artifacts: Iterable[Artifact], on_settled: Callable[[Version], None]) -> None:
        """Load these versions, several at a time; `on_settled` is called as each becomes READY or FAILED."""

        async def one(artifact: Artifact) -> None:
            version = self.versions[artifact.model, artifact.version] = Version(artifact)
            async with self._lock(artifact.model):
                await self._load(version)
            on_settled(version)

        await asyncio.gather(*map(one, artifacts))
        self.settled = True
        await self._publish()

    def _lock(self, model: str) -> asyncio.Lock:
        """Held while something becomes of a model, so that loads and unloads of it come one after another."""
        return self._locks.setdefault(model, asyncio.Lock())

    async def load(self, model: str) -> None:
        """Read a model from the store again and serve what is there; returns when it is READY.

        The version that serves goes on until its successor is ready. ModelNotFound or LoadFailed with the reason.
        """
        async with self._lock(model):
            aspired = [artifact for artifact in self._look().aspired() if artifact.model == model]
            if not aspired:
                raise ModelNotFound(f"Request for unknown model: '{model}' is not found")
            artifact = aspired[0]
            key = (model, artifact.version)
            before = [version for (name, _), version in self.versions.items() if name == model]
            successor = Version(artifact)
            serving = self.versions.get(key)
            if serving is None or serving.state is not State.READY:
                self.versions[key] = successor
            await self._load(successor, announce=self.versions.get(key) is successor)
            if successor.state is not State.READY:
                raise LoadFailed(f"model '{model}' version {artifact.version} failed to load: {successor.reason}")
            self.versions[key] = successor
            await self._publish()
            for version in before:
                await self._drain(version)
                if self.versions.get((model, version.artifact.version)) is version:
                    del self.versions[model, version.artifact.version]

    async def unload(self, model: str) -> None:
        """End a model's processes when they have answered what they have; ModelNotFound if it was never there."""
        async with self._lock(model):
            versions = [version for (name, _), version in self.versions.items() if name == model]
            if not versions:
                raise ModelNotFound(f"Request for unknown model: '{model}' is not found")
            for version in versions:
                await self._drain(version)

    async def _load(self, version: Version, *, announce: bool = True) -> None:
        """From NEW to READY or FAILED."""
        version.become(State.LOADING)
        if announce:
            await self._publish()
        started = asyncio.get_running_loop().time()
        failure: GatewayError | None = None
        try:
            await self._start_all(version)
        except GatewayError as error:
            failure = error
        except Exception:  # whatever goes wrong with one model, the others are served
            log.exception("loading %s failed", version.title)
            failure = LoadFailed("internal error; the log tells more")
        if failure is not None:
            version.devices.clear()
            version.become(State.FAILED, failure.message)
            log.warning("%s FAILED: %s", version.title, failure.message)
        else:
            version.load_seconds = asyncio.get_running_loop().time() - started
            version.become(State.READY)
            for instance in version.instances:
                self._watch(version, instance)
        if announce:
            await self._publish()

    async def _start_all(self, version: Version) -> None:
        """Place and start all instances of a version; if one fails the others are ended, and its error raised."""
        artifact = version.artifact
        if artifact.problem:
            raise LoadFailed(artifact.problem)
        # Counted from now on, so that models which load together are spread over the devices.
        version.devices = place(artifact.config.groups, self._node.devices(), self._load_by_device())
        failures: list[BaseException] = []
        async with self._loading:
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [
                        group.create_task(self._start(version, index, device))
                        for index, device in enumerate(version.devices)
                    ]
            except* Exception as errors:  # noqa: BLE001 - raised again below, when the siblings are ended
                failures = list(errors.exceptions)
        if failures:
            for task in tasks:
                if not task.cancelled() and task.exception() is None:
                    self._node.stop(task.result()[0], kill=True)
            raise failures[0]
        version.instances = [task.result()[0] for task in tasks]
        version.ready = tasks[0].result()[1]

    async def _start(self, version: Version, index: int, device: Device) -> tuple[Instance, Ready]:
        """Spawn an instance and wait until it is ready; one that fails, or is not waited for, is ended."""
        try:
            instance = await self._node.spawn(version.artifact, index, device)
        except OSError as error:
            raise LoadFailed(f"its process could not be started: {error.strerror or error}") from None
        version.starting.add(instance)
        try:
            ready = await asyncio.wait_for(asyncio.shield(instance.ready), self._load_timeout)
        except TimeoutError:
            self._node.stop(instance, kill=True)
            raise LoadFailed(f"it was not ready within {self._load_timeout:g} s") from None
        except BaseException:
            self._node.stop(instance, kill=True)
            raise
        finally:
            version.starting.discard(instance)
        return instance, ready

    def _load_by_device(self) -> Counter[str]:
        return Counter(device.name for version in self.versions.values() for device in version.devices)

    def _watch(self, version: Version, instance: Instance) -> None:
        task = asyncio.create_task(self._replace_when_dead(version, instance))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _replace_when_dead(self, version: Version, instance: Instance) -> None:
        """Wait for an instance's end and, if the version is still wanted, start another in its place."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        code = await asyncio.shield(instance.exited)
        self.on_death(instance.name, code)
        if not version.serving() or self._closing or instance not in version.instances:
            return
        version.instances.remove(instance)
        log.warning("instance %s ended with code %d and is replaced", instance.name, code)
        self.restarts[version.title, f"exit {code}" if code >= 0 else f"signal {-code}"] += 1
        await self._publish()
        if loop.time() - started > STEADY_SECONDS:
            version.deaths = 0
        while version.serving() and not self._closing:
            version.deaths += 1
            if version.deaths > RESTARTS:
                await self._give_up(
                    version, f"its instances ended {version.deaths} times in a row, the first with code {code}"
                )
                return
            await asyncio.sleep(FIRST_BACKOFF_SECONDS * 2 ** (version.deaths - 2) if version.deaths > 1 else 0)
            try:
                another, ready = await self._start(version, instance.index, instance.device)
            except GatewayError as error:
                log.warning("%s: an instance could not be replaced: %s", version.title, error.message)
                continue
            if not version.serving():
                self._node.stop(another)
                return
            version.ready = ready
            version.instances.append(another)
            self._watch(version, another)
            await self._publish()
            return

    async def _give_up(self, version: Version, reason: str) -> None:
        """A version whose instances do not live is FAILED, and what is left of it ended."""
        version.become(State.FAILED, reason)
        log.error("%s FAILED: %s", version.title, reason)
        await self._publish()
        await self._end(version)

    async def _drain(self, version: Version) -> None:
        """Take a version out of the routes, let its instances answer what they have, and end them."""
        if version.state not in (State.READY, State.FAILED):
            return
        version.become(State.DRAINING, "unloading")
        await self._publish()
        await self._end(version)
        version.become(State.UNLOADED, "unloaded")
        await self._publish()

    async def _end(self, version: Version) -> None:
        """End a version's processes: those that serve when they have answered what they have, the others now."""
        for instance in version.starting:
            self._node.stop(instance, kill=True)
        for instance in version.instances:
            self._node.stop(instance)
        if version.instances:
            await asyncio.wait([instance.exited for instance in version.instances], timeout=self._load_timeout)
        for instance in version.instances:
            self._node.stop(instance, kill=True)
        version.instances.clear()
        version.devices.clear()

    async def close(self) -> None:
        """Replace nothing any more."""
        self._closing = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
