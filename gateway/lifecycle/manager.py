"""What becomes of the versions in the store: loads them, watches their instances, unloads them."""

import asyncio
import logging
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

from gateway.errors import GatewayError, LoadFailed, ModelNotFound
from gateway.ipc.messages import Ready, VersionRoute
from gateway.lifecycle.placement import place
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
    instances: list[Instance] = field(default_factory=list)
    ready: Ready | None = None
    restarts: int = 0
    load_seconds: float = 0.0

    def become(self, state: State, reason: str = "") -> None:
        """Enter a state; the only place where one is assigned."""
        self.state = next_state(self.state, state)
        self.reason = reason

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
            await self._load(version)
            on_settled(version)

        await asyncio.gather(*map(one, artifacts))
        self.settled = True
        await self._publish()

    async def load(self, model: str) -> None:
        """Read a model from the store again and serve what is there; returns when it is READY.

        The version that serves goes on until its successor is ready. ModelNotFound or LoadFailed with the reason.
        """
        async with self._locks.setdefault(model, asyncio.Lock()):
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
        async with self._locks.setdefault(model, asyncio.Lock()):
            versions = [version for (name, _), version in self.versions.items() if name == model]
            if not versions:
                raise ModelNotFound(f"Request for unknown model: '{model}' is not found")
            for version in versions:
                await self._drain(version)

    async def _load(self, version: Version, *, announce: bool = True) -> None:
        """From NEW to READY or FAILED."""
        artifact = version.artifact
        version.become(State.LOADING)
        if announce:
            await self._publish()
        started = asyncio.get_running_loop().time()
        try:
            if artifact.problem:
                raise LoadFailed(artifact.problem)
            devices = place(artifact.config.groups, self._node.devices(), self._load_by_device())
            async with self._loading:
                for index, device in enumerate(devices):
                    version.instances.append(await self._node.spawn(artifact, index, device))
                version.ready = (await asyncio.gather(*map(self._until_ready, version.instances)))[0]
        except GatewayError as error:
            for instance in version.instances:
                self._node.stop(instance, kill=True)
            version.instances.clear()
            version.become(State.FAILED, error.message)
            log.warning("%s FAILED: %s", version.title, error.message)
        else:
            version.load_seconds = asyncio.get_running_loop().time() - started
            version.become(State.READY)
            for instance in version.instances:
                self._watch(version, instance)
        if announce:
            await self._publish()

    def _load_by_device(self) -> Counter[str]:
        return Counter(instance.device.name for version in self.versions.values() for instance in version.instances)

    async def _until_ready(self, instance: Instance) -> Ready:
        try:
            return await asyncio.wait_for(asyncio.shield(instance.ready), self._load_timeout)
        except TimeoutError:
            raise LoadFailed(f"it was not ready within {self._load_timeout:g} s") from None

    def _watch(self, version: Version, instance: Instance) -> None:
        task = asyncio.create_task(self._replace_when_dead(version, instance))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _replace_when_dead(self, version: Version, instance: Instance) -> None:
        """Wait for an instance's end and, if the version is still wanted, start another in its place."""
        started = asyncio.get_running_loop().time()
        code = await asyncio.shield(instance.exited)
        if version.state is not State.READY or self._closing or instance not in version.instances:
            return
        version.instances.remove(instance)
        log.warning("instance %s ended with code %d and is replaced", instance.name, code)
        self.restarts[version.title, f"exit {code}" if code >= 0 else f"signal {-code}"] += 1
        await self._publish()
        steady = asyncio.get_running_loop().time() - started > STEADY_SECONDS
        version.restarts = 0 if steady else version.restarts
        while version.state is State.READY and not self._closing:
            version.restarts += 1
            if version.restarts > RESTARTS:
                version.become(
                    State.FAILED, f"its instances ended {RESTARTS} times in a row, the last with code {code}"
                )
                await self._publish()
                return
            try:
                await asyncio.sleep(FIRST_BACKOFF_SECONDS * 2 ** (version.restarts - 1) if version.restarts > 1 else 0)
                another = await self._node.spawn(version.artifact, instance.index, instance.device)
                version.ready = await self._until_ready(another)
            except GatewayError as error:
                log.warning("%s: an instance could not be replaced: %s", version.title, error.message)
                continue
            version.instances.append(another)
            self._watch(version, another)
            await self._publish()
            return

    async def _drain(self, version: Version) -> None:
        """Take a version out of the routes, let its instances answer what they have, and end them."""
        if version.state not in (State.READY, State.FAILED, State.LOADING):
            return
        version.become(State.DRAINING, "unloading")
        await self._publish()
        for instance in version.instances:
            self._node.stop(instance)
        if version.instances:
            await asyncio.wait([instance.exited for instance in version.instances], timeout=self._load_timeout)
        for instance in version.instances:
            self._node.stop(instance, kill=True)
        version.instances.clear()
        version.become(State.UNLOADED, "unloaded")
        await self._publish()

    async def close(self) -> None:
        """Replace nothing any more."""
        self._closing = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
