"""Loads a version and lets it go again: room, place, start and measure; drain, or make it COLD."""

import asyncio
import contextlib
import functools
import logging
from collections import Counter
from collections.abc import Awaitable, Callable

from gateway import cpus
from gateway.errors import GatewayError, LoadFailed, OutOfMemory
from gateway.lifecycle.keeper import Keeper
from gateway.lifecycle.placement import LEAST_BYTES, place, scaled
from gateway.lifecycle.registry import Registry
from gateway.lifecycle.residency import AGAIN_SECONDS, NoRoom, Residency, UsageOf
from gateway.lifecycle.state import State
from gateway.lifecycle.version import Version
from gateway.nodes.node import Node
from gateway.store.source import Key

log = logging.getLogger("gateway.loader")

TURN_SECONDS = 5.0
"""A load that takes longer gives its turn to the next one, so that a few that hang do not stop all others."""
COLD_REASON = "loaded by its first request"


class Loader:
    """Acts on single versions; whoever calls `load` or `drain` holds the lock of their model."""

    def __init__(self, registry: Registry, node: Node, keeper: Keeper, residency: Residency) -> None:
        self._registry = registry
        self._node = node
        self._keeper = keeper
        self._residency = residency
        self._turns = asyncio.Semaphore(max(2, cpus.usable()))
        self._tidying: asyncio.Task[None] | None = None
        self.on_held_up: Callable[[], Awaitable[None]] = registry.publish
        """Called when a version turns out to hold up those who wait for all to be settled."""
        keeper.on_end = residency.release

    async def load(self, version: Version, *, evict: bool, patience: float | None = None) -> None:
        """From NEW or COLD to READY or FAILED, or to COLD where there is no room without evicting.

        So many seconds are waited for memory that is in use, by default PATIENCE_SECONDS.
        """
        registry = self._registry
        listed = registry.versions.get(version.key) is version  # and not yet only a successor
        version.become(State.LOADING)
        if listed and not version.dormant:
            await registry.publish()
        started = asyncio.get_running_loop().time()
        failure: GatewayError | None = None
        room = False
        try:
            room = await self._start(version, evict=evict, patience=patience)
        except NoRoom as error:
            failure = self._no_room(version, error)
        except GatewayError as error:
            failure = error
        except Exception:  # whatever goes wrong with one model, the others are served
            log.exception("loading %s failed", version.title)
            failure = LoadFailed("internal error; the log tells more")
        if failure is not None:
            self._fail(version, failure)
        elif room:
            version.ready_since = asyncio.get_running_loop().time()
            version.load_seconds = version.ready_since - started
            version.become(State.READY)
            self._keeper.watch(version)
        else:
            self._residency.release(version)
            version.devices.clear()
            version.become(State.COLD, version.reason or COLD_REASON)
        version.dormant = False
        if listed:
            await registry.publish()
        if version.is_ready():
            await self._measure(version)

    def _no_room(self, version: Version, error: NoRoom) -> GatewayError | None:
        """What is new fails if another version of the model serves; everything else becomes COLD and is tried again."""
        version.reason = error.message
        beside = [other for other in self._registry.of(version.key[0]) if other is not version and other.is_ready()]
        return NoRoom(f"{error.message}; {beside[0].title} serves on") if beside and not version.dormant else None

    def _fail(self, version: Version, failure: GatewayError) -> None:
        self._residency.release(version)
        version.devices.clear()
        version.become(State.FAILED, failure.message, OutOfMemory.code if isinstance(failure, OutOfMemory) else "")
        log.warning("%s FAILED: %s", version.title, failure.message)

    async def _start(self, version: Version, *, evict: bool, patience: float | None) -> bool:
        """Place a version, make room for it and start its instances; False if there is no room without evicting."""
        artifact, residency = version.artifact, self._residency
        if artifact.problem:
            raise LoadFailed(artifact.problem)
        cuda = await self._node.cuda(artifact.framework)
        need = await residency.need_on_gpu(version)
        memory = await self._node.memory()
        free, load = residency.unreserved(memory), self._load_by_device()
        version.devices = place(version.groups, self._node.devices(), load, free, need, cuda=cuda)
        # Noted before anything else is waited for, so that models which load together are spread over the devices.
        residency.reserve(version, need or LEAST_BYTES)
        # Of the same model, whose lock is held here, others may go for what a request wants, but not for a successor.
        holder = version.key[0] if version.dormant else ""
        evict_one = functools.partial(self.evict, holder=holder) if evict else None
        evictable = functools.partial(self.evictable, holder=holder)
        if not await residency.make_room(version, evict_one, evictable, patience):
            return False
        async with self._turns:
            starting = asyncio.create_task(self._keeper.start_all(version))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(starting), TURN_SECONDS)
        if not starting.done() and any(instance.testing for instance in version.starting):
            version.held_up = True
            await self.on_held_up()
        try:
            await starting
        finally:
            starting.cancel()  # nothing if it is done
        return True

    async def scale(self, version: Version, count: int) -> None:
        """Give a READY version so many instances, at least one, and lose no request by it.

        LoadFailed or OutOfMemory with the reason; then it has as many as before.
        """
        have = len(version.devices)
        if count > have:
            await self._grow(version, have, count)
        elif count < have:
            await self._keeper.shrink(version, count)
        if count != have and version.is_ready():
            await self._measure(version)

    async def _grow(self, version: Version, have: int, count: int) -> None:
        artifact, residency = version.artifact, self._residency
        cuda = await self._node.cuda(artifact.framework)
        need = await residency.need_on_gpu(version)
        free, load = residency.unreserved(await self._node.memory()), self._load_by_device()
        groups = scaled(artifact.config.groups, count)[have:]
        added = place(groups, self._node.devices(), load, free, need, cuda=cuda)
        version.devices += added
        before = residency.reserve_more(version, [device.name for device in added], need or LEAST_BYTES)
        try:
            await residency.make_room(version, self.evict, self.evictable)
            await self._keeper.grow(version, have)
        except BaseException:
            del version.devices[have:]
            if version.is_ready():
                residency.account.held[version] = before
            raise

    async def _measure(self, version: Version) -> None:
        """Measure what a version really takes; one that can never fit its budget is FAILED after all."""
        never = await self._residency.measure(version)
        if never and version.is_ready():
            version.become(State.FAILED, never, OutOfMemory.code)
            log.warning("%s FAILED: %s", version.title, never)
            await self._registry.publish()
            await self._keeper.end(version)

    def _load_by_device(self) -> Counter[str]:
        return Counter(device.name for version in self._registry.versions.values() for device in version.devices)

    async def drain(self, version: Version, *, announce: bool = True) -> None:
        """Take a version out of the routes, let its instances answer what they have, and end them."""
        if version.state not in (State.READY, State.FAILED, State.COLD):
            return
        version.become(State.DRAINING, "unloading")
        if announce:
            await self._registry.publish()
        await self._keeper.end(version)
        version.become(State.UNLOADED, "unloaded")
        if announce:
            await self._registry.publish()

    # Cold versions

    async def wait_for_room(self, version: Version, deadline: float) -> None:
        """Wait until a COLD version can be loaded without waiting, it is not COLD any more, or the deadline is over.

        Whoever calls this holds no lock, so that all else goes on, also with the same model.
        """
        loop = asyncio.get_running_loop()
        while version.state is State.COLD and loop.time() < deadline:
            if await self._residency.has_room(version, self.evictable):
                return
            await asyncio.sleep(AGAIN_SECONDS)

    def evictable(self, *, holder: str = "") -> set[Key]:
        """READY versions that may go cold: not pinned, and with nothing else going on with their model.

        Whoever holds the lock of a model gives its name as `holder`: that lock is then in nobody's way.
        """
        return {
            version.key
            for version in self._registry.versions.values()
            if version.is_ready()
            and not version.artifact.config.pinned
            and (version.key[0] == holder or not self._registry.lock(version.key[0]).locked())
        }

    async def evict(self, key: Key, *, holder: str = "") -> bool:
        """Make a version COLD to make room for others; False if it must stay after all. `holder` as above."""
        if key not in self.evictable(holder=holder):
            return False
        async with contextlib.nullcontext() if key[0] == holder else self._registry.lock(key[0]):
            version = self._registry.versions.get(key)
            if version is None or not version.is_ready():
                return False  # another caller had waited for the lock
            self._residency.count_eviction(version)
            await self.cool(version)
        return True

    async def cool(self, version: Version) -> None:
        """Make a READY version COLD; its processes end, and all their memory returns."""
        version.dormant = True
        version.become(State.DRAINING, COLD_REASON)
        await self._registry.publish()
        await self._keeper.end(version)
        version.dormant = False
        version.become(State.COLD, COLD_REASON)  # which is what the routes say already

    async def look_at_memory(self, usage_of: Callable[[], Awaitable[UsageOf]]) -> None:
        """Called from time to time: end what is over its limit, and begin to let go what is idle or over the budget."""
        await self._residency.sample(self._registry.versions.values())
        self._residency.relieve_shortage()
        if self._tidying is None or self._tidying.done():
            self._tidying = asyncio.create_task(self._tidy(usage_of))

    async def tidied(self) -> None:
        """Wait until what `look_at_memory` has begun is done."""
        if self._tidying is not None:
            await self._tidying

    async def _tidy(self, usage_of: Callable[[], Awaitable[UsageOf]]) -> None:
        limited = [
            each for each in self._registry.versions.values() if each.is_ready() and each.artifact.config.idle_ttl
        ]
        if not limited and not self._residency.excess():
            return
        usage = await usage_of()
        now = asyncio.get_running_loop().time()
        for version in limited:
            last_used, under_way = usage.get(version.key, (0.0, 0))
            if not under_way and now - max(last_used, version.ready_since) > (version.artifact.config.idle_ttl or 0.0):
                await self.evict(version.key)
        for key in self._residency.oldest(usage, self.evictable()):
            if not self._residency.excess():
                break
            await self.evict(key)

    async def close(self) -> None:
        """Let go of nothing any more."""
        if self._tidying is not None:
            self._tidying.cancel()
            await asyncio.gather(self._tidying, return_exceptions=True)
