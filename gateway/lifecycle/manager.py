"""What becomes of the models in the store: loads, swaps, unloads, and lets go cold what the memory is needed for."""

import asyncio
import logging
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence

import msgspec

from gateway.errors import GatewayError, LoadFailed, ModelNotFound, ModelNotReady, OutOfMemory, VersionNotFound
from gateway.ipc.messages import VersionRoute
from gateway.lifecycle.keeper import Keeper
from gateway.lifecycle.placement import LEAST_BYTES, place
from gateway.lifecycle.policy import aspired, labels_of, to_drain
from gateway.lifecycle.residency import NoRoom, Residency
from gateway.lifecycle.state import State
from gateway.lifecycle.version import Version
from gateway.nodes.node import Node
from gateway.store.manifest import ModelConfig
from gateway.store.source import Artifact, Inventory, Key

log = logging.getLogger("gateway.manager")

_COLD = "loaded by its first request"
CONTROL_FIELDS = ("version_policy", "version_labels", "pinned", "idle_ttl")
"""Of model.yaml: what changes nothing in a running instance."""


def same_instance(one: Artifact, other: Artifact) -> bool:
    """Whether instances of both would be the same: the same files, and model.yaml but for what only steers us."""
    default = ModelConfig()
    plain = {name: getattr(default, name) for name in CONTROL_FIELDS}
    configs = [msgspec.structs.replace(each.config, **plain) for each in (one, other)]
    return configs[0] == configs[1] and (one.contents.stamp, one.problem) == (other.contents.stamp, other.problem)


class Manager:
    """Owns all versions. `publish` sends the routes to the workers and returns when they route by them."""

    def __init__(
        self,
        node: Node,
        keeper: Keeper,
        residency: Residency,
        publish: Callable[[], Awaitable[None]],
        on_settled: Callable[[Version], None] = lambda _: None,
    ) -> None:
        self.versions: dict[Key, Version] = {}
        self.settled = False
        """Whether everything that was there at the start is READY, COLD or FAILED."""
        self.residency = residency
        self.keeper = keeper
        self._node = node
        self._publish = publish
        self._on_settled = on_settled
        self._wanted: dict[str, list[Artifact]] = {}
        self._unloaded: set[str] = set()
        """Models that were unloaded through the API, and stay so until they are loaded through it."""
        self._loading = asyncio.Semaphore(max(2, os.cpu_count() or 1))
        self._locks: dict[str, asyncio.Lock] = {}

    def routes(self) -> list[VersionRoute]:
        """Every version as a route."""
        return [version.route() for version in self.versions.values()]

    def _lock(self, model: str) -> asyncio.Lock:
        """Held while something becomes of a model, so that what becomes of it comes one after another."""
        return self._locks.setdefault(model, asyncio.Lock())

    def _of(self, model: str) -> list[Version]:
        return [version for (name, _), version in self.versions.items() if name == model]

    # The store as it is wanted

    async def reconcile(self, inventory: Inventory) -> None:
        """Serve what is in the store now; returns when all of it is READY, COLD or FAILED."""
        found: dict[str, list[Artifact]] = {}
        for artifact in inventory.artifacts:
            found.setdefault(artifact.model, []).append(artifact)
        self._wanted = {model: aspired(artifacts) for model, artifacts in found.items()}
        models = dict.fromkeys([*self._wanted, *(name for name, _ in self.versions)])
        # Pinned models first, for there may not be room for all.
        first = sorted(models, key=lambda model: not any(each.config.pinned for each in self._wanted.get(model, ())))
        await asyncio.gather(*map(self._settle, first))
        if not self.settled:
            self.settled = True
            await self._publish()

    async def _settle(self, model: str) -> None:
        """Bring one model to what is wanted of it now."""
        async with self._lock(model):
            wanted = [] if model in self._unloaded else self._wanted.get(model, [])
            await asyncio.gather(*(self._bring(artifact) for artifact in wanted))
            await self._drain_unwanted(model)

    async def _bring(self, artifact: Artifact, *, force: bool = False) -> Version:
        """Serve this version as these files have it; returns what has become of it.

        A version of other files that serves goes on until its successor is ready, and for good if that fails.
        """
        key = (artifact.model, artifact.version)
        current = self.versions.get(key)
        if current is not None and not force and current.state is not State.UNLOADED:
            if artifact.settling:
                return current  # it is being changed; what it was before is what runs, or has been replaced by hand
            if same_instance(artifact, current.artifact):
                current.artifact = artifact  # its control fields may have changed
                return current
            if current.rejected is not None and same_instance(artifact, current.rejected):
                return current
            if current.state is State.COLD:
                current.artifact = artifact
                return current
        swaps = any(version.is_ready() for version in self._of(artifact.model))
        successor = Version(artifact, background=swaps and not force)
        replaces = current is not None and current.is_ready()
        if not replaces:
            self.versions[key] = successor
        await self._load(successor, evict=force or swaps)
        if replaces and current is not None:
            await self._replace(current, successor)
        self._on_settled(successor)
        return successor

    async def _replace(self, current: Version, successor: Version) -> None:
        """Let a READY successor take over from the version of the same number, or remember why it is not."""
        if not successor.is_ready():
            current.rejected = successor.artifact
            current.reason = f"newer files of this version failed to load: {successor.reason}"
            await self._publish()
            return
        self.versions[current.key] = successor
        await self._publish()
        await self._drain(current, announce=False)

    async def _drain_unwanted(self, model: str) -> None:
        """Let go of versions that are not wanted any more, as far as what is wanted serves in their place."""
        wanted = [] if model in self._unloaded else self._wanted.get(model, [])
        numbers = {artifact.version for artifact in wanted}
        versions = self._of(model)
        unwanted = {each.artifact.version: each for each in versions if each.artifact.version not in numbers}
        states = [version.state for version in versions if version.artifact.version in numbers]
        gone = [number for number, version in unwanted.items() if version.state is State.UNLOADED]
        for number in (*gone, *to_drain({number: each.state for number, each in unwanted.items()}, states)):
            await self._drain(unwanted[number])
            self.versions.pop(unwanted[number].key, None)
        if wanted:
            labels = labels_of(wanted[0].config, [version.artifact.version for version in self._of(model)])
            for version in self._of(model):
                version.labels = labels.get(version.artifact.version, [])
        if versions:
            await self._publish()

    # The repository API

    async def load(self, model: str, artifacts: Sequence[Artifact]) -> None:
        """Serve a model as it is in the store now, from its files anew; returns when its versions are READY.

        ModelNotFound, or LoadFailed with the reason; a version that serves is not lost by that.
        """
        if not artifacts:
            raise ModelNotFound(f"Request for unknown model: '{model}' is not found")
        async with self._lock(model):
            self._unloaded.discard(model)
            self._wanted[model] = aspired(artifacts)
            brought = await asyncio.gather(*(self._bring(artifact, force=True) for artifact in self._wanted[model]))
            await self._drain_unwanted(model)
        for version in brought:
            if not version.is_ready():
                error = LoadFailed if version.state is State.FAILED and not version.refusal else OutOfMemory
                raise error(f"model '{model}' version {version.artifact.version} failed to load: {version.reason}")

    async def unload(self, model: str) -> None:
        """End a model's processes when they have answered what they have; ModelNotFound if it was never there.

        It stays so, whatever happens in the store, until `load`.
        """
        async with self._lock(model):
            versions = self._of(model)
            if not versions:
                raise ModelNotFound(f"Request for unknown model: '{model}' is not found")
            self._unloaded.add(model)
            await asyncio.gather(*map(self._drain, versions))

    # Loading and letting go of one version

    async def _load(self, version: Version, *, evict: bool) -> None:
        """From NEW or COLD to READY or FAILED, or to COLD where there is no room without evicting."""
        listed = self.versions.get(version.key) is version  # and not yet only a successor
        version.become(State.LOADING)
        if listed and not version.dormant:
            await self._publish()
        started = asyncio.get_running_loop().time()
        failure: GatewayError | None = None
        room = False
        try:
            room = await self._start(version, evict=evict)
        except NoRoom as error:
            version.reason = error.message
            beside = [other for other in self._of(version.key[0]) if other is not version and other.is_ready()]
            failure = NoRoom(f"{error.message}; {beside[0].title} serves on") if beside else None
        except GatewayError as error:
            failure = error
        except Exception:  # whatever goes wrong with one model, the others are served
            log.exception("loading %s failed", version.title)
            failure = LoadFailed("internal error; the log tells more")
        if failure is not None:
            self._fail(version, failure)
        elif room:
            version.load_seconds = asyncio.get_running_loop().time() - started
            version.ready_since = asyncio.get_running_loop().time()
            version.become(State.READY)
            self.keeper.watch(version)
        else:
            self.residency.release(version)
            version.devices.clear()
            version.become(State.COLD, version.reason or _COLD)
        version.dormant = False
        if listed:
            await self._publish()
        if version.is_ready():
            await self._measure(version)

    def _fail(self, version: Version, failure: GatewayError) -> None:
        self.residency.release(version)
        version.devices.clear()
        version.become(State.FAILED, failure.message, OutOfMemory.code if isinstance(failure, OutOfMemory) else "")
        log.warning("%s FAILED: %s", version.title, failure.message)

    async def _start(self, version: Version, *, evict: bool) -> bool:
        """Place a version, make room for it and start its instances; False if there is no room without evicting."""
        artifact = version.artifact
        if artifact.problem:
            raise LoadFailed(artifact.problem)
        cuda = await self._node.cuda(artifact.framework)
        need = await self.residency.need_on_gpu(version)
        memory = await self._node.memory()
        free, load = self.residency.unreserved(memory), self._load_by_device()
        version.devices = place(artifact.config.groups, self._node.devices(), load, free, need, cuda=cuda)
        # Noted before anything else is waited for, so that models which load together are spread over the devices.
        self.residency.reserve(version, need or LEAST_BYTES)
        async with self._loading:
            if not await self.residency.make_room(version, self._evict if evict else None, self._evictable):
                return False
            await self.keeper.start_all(version)
        return True

    async def _measure(self, version: Version) -> None:
        """Measure what a version really takes; one that can never fit its budget is FAILED after all."""
        never = await self.residency.measure(version)
        if never and version.is_ready():
            version.become(State.FAILED, never, OutOfMemory.code)
            log.warning("%s FAILED: %s", version.title, never)
            await self._publish()
            await self.keeper.end(version)
            self.residency.release(version)

    def _load_by_device(self) -> Counter[str]:
        return Counter(device.name for version in self.versions.values() for device in version.devices)

    async def _drain(self, version: Version, *, announce: bool = True) -> None:
        """Take a version out of the routes, let its instances answer what they have, and end them."""
        if version.state not in (State.READY, State.FAILED, State.COLD):
            return
        version.become(State.DRAINING, "unloading")
        if announce:
            await self._publish()
        await self.keeper.end(version)
        self.residency.release(version)
        version.become(State.UNLOADED, "unloaded")
        if announce:
            await self._publish()

    # Cold versions

    async def wake(self, model: str, number: int) -> None:
        """Load a COLD version for a request; returns when it is READY. Raises why it is not."""
        async with self._lock(model):
            version = self.versions.get((model, number))
            if version is None:
                raise VersionNotFound(f"Request for unknown model: '{model}' version '{number}' is not found")
            if version.state is State.COLD:
                version.dormant = True
                await self._load(version, evict=True)
            if not version.is_ready():
                out_of_memory = version.refusal or version.state is State.COLD
                error = OutOfMemory if out_of_memory else ModelNotReady
                raise error(f"model '{model}' version {number} is {version.state}: {version.reason}")

    def _evictable(self) -> set[Key]:
        """READY versions that may go cold: not pinned, and with nothing else going on with their model."""
        return {
            version.key
            for version in self.versions.values()
            if version.is_ready() and not version.artifact.config.pinned and not self._lock(version.key[0]).locked()
        }

    async def _evict(self, key: Key) -> bool:
        """Make a version COLD; its processes end, and all their memory returns. False if it must stay after all."""
        if key not in self._evictable():
            return False
        async with self._lock(key[0]):  # free a moment ago, and nothing has been waited for since
            version = self.versions[key]
            version.dormant = True
            version.become(State.DRAINING, _COLD)
            await self._publish()
            await self.keeper.end(version)
            self.residency.evicted(version)
            version.dormant = False
            version.become(State.COLD, _COLD)  # which is what the routes say already
        return True

    async def look_at_memory(self, usage_of: Callable[[], Awaitable[dict[Key, tuple[float, int]]]]) -> None:
        """Called from time to time: end what is over its limit, let go what is idle or over the budget."""
        await self.residency.sample(self.versions.values())
        self.residency.save_the_machine()
        over = self.residency.excess()
        limited = [
            version for version in self.versions.values() if version.is_ready() and version.artifact.config.idle_ttl
        ]
        if not over and not limited:
            return
        usage = await usage_of()
        now = asyncio.get_running_loop().time()
        for key in self._idle_for_too_long(limited, usage, now):
            await self._evict(key)
        free = sorted(
            (usage.get(key, (0.0, 0))[0], key) for key in self._evictable() if not usage.get(key, (0.0, 0))[1]
        )
        for _, key in free:
            if not self.residency.excess():
                break
            await self._evict(key)

    def _idle_for_too_long(
        self, versions: Iterable[Version], usage: dict[Key, tuple[float, int]], now: float
    ) -> list[Key]:
        found = []
        for version in versions:
            last_used, under_way = usage.get(version.key, (0.0, 0))
            ttl = version.artifact.config.idle_ttl or 0.0
            if not under_way and now - max(last_used, version.ready_since) > ttl:
                found.append(version.key)
        return found

    async def close(self) -> None:
        """Replace nothing any more."""
        await self.keeper.close()
