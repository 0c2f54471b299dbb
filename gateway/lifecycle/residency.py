"""Memory as a budget: what each version holds, who must go for another, and who has taken too much."""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol
from weakref import WeakKeyDictionary

from gateway.errors import OutOfMemory
from gateway.lifecycle import scarcity
from gateway.lifecycle.admission import Resident, admit, excess, never_fits
from gateway.lifecycle.version import Version
from gateway.nodes.node import DeviceMemory, Instance, Node
from gateway.sizes import format_size
from gateway.store.footprints import estimate
from gateway.store.source import Artifact, Key

log = logging.getLogger("gateway.residency")

PATIENCE_SECONDS = 10.0
"""How long a version waits for memory that others hold who cannot go now."""
AGAIN_SECONDS = 0.05
EFFECT_SECONDS = 2.0
"""After an instance was ended for lack of memory, so long is waited for what that gives back."""
FRESH_SECONDS = 5.0
AT_ONCE = 2
"""So many versions are measured again at one look, if that was FRESH_SECONDS ago: it costs milliseconds each."""

UsageOf = Mapping[Key, tuple[float, int]]
"""Version → monotonic time of its last request, requests under way."""


class NoRoom(OutOfMemory):
    """There is no memory now, but there may be later."""


class Footprints(Protocol):
    """Measured footprints that outlive the gateway (store/footprints.py)."""

    def digest_of(self, artifact: Artifact) -> str:
        """Of what decides how much memory it takes; reads files."""

    def get(self, digest: str) -> int | None:
        """Bytes of one instance, if it was measured before."""

    def put(self, digest: str, size: int) -> None:
        """Keep a measurement; may wait for a disk."""


@dataclass
class Account:
    """The books: what there is, who has it, and what came back."""

    budgets: Mapping[str, int] = field(default_factory=dict)
    """Bytes by device."""
    held: dict[Version, dict[str, int]] = field(default_factory=dict)
    """Bytes by device that each version in memory holds: estimated, then measured."""
    evictions: Counter[Key] = field(default_factory=Counter)
    reclaimed: Counter[str] = field(default_factory=Counter)
    """Bytes by device that evictions gave back."""
    peaks: WeakKeyDictionary[Instance, int] = field(default_factory=WeakKeyDictionary)
    """The most private memory, in bytes, that an instance was seen with."""

    def saw(self, instance: Instance, private: int) -> int:
        """An instance has so much private memory now; the most that it was seen with."""
        self.peaks[instance] = most = max(private, self.peaks.get(instance, 0))
        return most


class Residency:
    """Who is in memory. `evict` makes a version COLD and returns whether it could."""

    def __init__(
        self,
        node: Node,
        budgets: Mapping[str, int],
        footprints: Footprints,
        ask_usage: Callable[[], Awaitable[UsageOf]],
        estimate: Callable[[Artifact], int] = estimate,
    ) -> None:
        self.account = Account(budgets)
        self.patience = PATIENCE_SECONDS
        self._node = node
        self._footprints = footprints
        self._ask_usage = ask_usage
        self._estimate = estimate
        self._asking: asyncio.Future[UsageOf] | None = None
        self.promised: dict[Version, Mapping[str, int]] = {}  # to versions for which others are being evicted
        self._digests: dict[Version, str] = {}
        self._baselines: WeakKeyDictionary[Instance, tuple[int, int]] = WeakKeyDictionary()
        # private and anonymous bytes when measured
        self._born: WeakKeyDictionary[Instance, int] = WeakKeyDictionary()  # anonymous bytes at the first measurement
        self._growth: WeakKeyDictionary[Instance, int] = WeakKeyDictionary()
        self._measured: WeakKeyDictionary[Version, float] = WeakKeyDictionary()
        self._reserve = scarcity.reserve(node.available())
        self._relieving: Instance | None = None  # ended for lack of memory, the last one
        self._relief_until = 0.0  # of the loop's clock: till then its memory may still come back
        self._shortage_logged = False

    async def make_room(
        self,
        version: Version,
        evict: Callable[[Key], Awaitable[bool]] | None,
        evictable: Callable[[], set[Key]],
        patience: float | None = None,
    ) -> bool:
        """Reserve the memory that a placed version needs, evicting others if `evict` is given.

        False if there is no room without evicting; OutOfMemory, with both numbers, if there never is; NoRoom if all
        that there is stays in use for so many seconds. No other version has to wait meanwhile.
        """
        need = await self._need(version)
        deadline = asyncio.get_running_loop().time() + (self.patience if patience is None else patience)
        while not self._reserved(version, need):
            if evict is None:
                return False
            usage = await self._usage_now()
            residents = self._residents(version, usage, evictable()) + self._promised_to_others(version)
            admission = admit(need, self.account.budgets, residents)
            if admission.evict and await self._make_way(version, need, admission.evict, evict):
                continue
            if asyncio.get_running_loop().time() >= deadline:
                wanted = format_size(sum(need.values()))
                raise NoRoom(f"it needs {wanted} of memory, and all there is belongs to models in use")
            await asyncio.sleep(AGAIN_SECONDS)
        return True

    async def has_room(self, version: Version, evictable: Callable[[], set[Key]]) -> bool:
        """Whether a load of a COLD version need not wait: it fits now, or if others are evicted, or it never will."""
        need = await self._need(version)
        admission = admit(need, self.account.budgets, self._residents(version) + self._promised_to_others(version))
        if not (admission.fits or admission.never):
            usage = await self._usage_now()
            residents = self._residents(version, usage, evictable()) + self._promised_to_others(version)
            admission = admit(need, self.account.budgets, residents)
        return bool(admission.fits or admission.never or admission.evict)

    def _reserved(self, version: Version, need: Mapping[str, int]) -> bool:
        """Reserve what a version needs if it fits now; OutOfMemory if it never does.

        Decides and reserves without waiting in between, so that no other version can take the same memory.
        """
        residents = self._residents(version) + self._promised_to_others(version)
        admission = admit(need, self.account.budgets, residents)
        if admission.never:
            raise OutOfMemory(admission.never)
        if admission.fits:
            self.account.held[version] = dict(need)
        return admission.fits

    def _promised_to_others(self, version: Version) -> list[Resident]:
        return [Resident(each.key, need) for each, need in self.promised.items() if each is not version]

    async def _make_way(
        self, version: Version, need: Mapping[str, int], keys: Sequence[Key], evict: Callable[[Key], Awaitable[bool]]
    ) -> bool:
        """Evict these for a version, to which their memory is promised meanwhile; whether any could be evicted."""
        self.promised[version] = need
        try:
            return any(await asyncio.gather(*map(evict, keys)))
        finally:
            del self.promised[version]

    async def _usage_now(self) -> UsageOf:
        """What the workers say of the use of each version; versions that wait for memory at once ask them once."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.ensure_future(self._ask_usage())
        return await asyncio.shield(self._asking)

    async def _digest(self, version: Version) -> str:
        if version not in self._digests:
            loop = asyncio.get_running_loop()
            self._digests[version] = await loop.run_in_executor(None, self._footprints.digest_of, version.artifact)
        return self._digests[version]

    async def need_on_gpu(self, version: Version) -> int:
        """Bytes that an instance needs on a GPU, as measured before; 0 if it never was."""
        return self._footprints.get(f"{await self._digest(version)} gpu") or 0

    def reserve(self, version: Version, on_gpu: int) -> None:
        """Note at once, before anything is waited for, what a version that was just placed needs on GPUs."""
        self.account.held[version] = dict(
            Counter({device.name: on_gpu for device in version.devices if device.name != "cpu"})
        )

    def reserve_more(self, version: Version, devices: Iterable[str], on_gpu: int) -> dict[str, int]:
        """The same for more instances, on these devices, of a version in memory; returns what it held before."""
        before = self.account.held.get(version, {})
        more = Counter(device for device in devices if device != "cpu")
        added = {device: before.get(device, 0) + count * on_gpu for device, count in more.items()}
        self.account.held[version] = before | added
        return before

    def unreserved(self, memory: Mapping[str, DeviceMemory]) -> dict[str, int]:
        """Bytes by GPU that are free as measured, less what versions that are still loading will take."""
        free = Counter({name: figures.free for name, figures in memory.items()})
        for version, holds in self.account.held.items():
            if version.ready is None:
                free.subtract({device: size for device, size in holds.items() if device in free})
        return dict(free)

    async def _need(self, version: Version) -> dict[str, int]:
        """Bytes by device; of the host for every instance, of a GPU what was measured there before."""
        digest = await self._digest(version)
        each = self._footprints.get(digest) or self._estimate(version.artifact)
        return {**self.account.held.get(version, {}), "cpu": each * (len(version.devices) or version.instances_wanted)}

    def _residents(
        self, but: Version | None = None, usage: UsageOf | None = None, evictable: set[Key] | None = None
    ) -> list[Resident]:
        found = []
        for version, holds in self.account.held.items():
            if version is but:
                continue
            last_used, under_way = (usage or {}).get(version.key, (0.0, 0))
            free = version.key in (evictable or ()) and not under_way
            found.append(Resident(version.key, holds, max(last_used, version.ready_since), evictable=free))
        return found

    def release(self, version: Version) -> None:
        """A version's processes have ended."""
        self.account.held.pop(version, None)
        self._digests.pop(version, None)

    def count_eviction(self, version: Version) -> None:
        """A version is about to give its memory back."""
        self.account.evictions[version.key] += 1
        self.account.reclaimed.update(self.account.held.get(version, {}))

    def oldest(self, usage: UsageOf, evictable: set[Key]) -> list[Key]:
        """Those of these versions that are idle, the least recently used first."""
        idle = [resident for resident in self._residents(None, usage, evictable) if resident.evictable]
        return [resident.key for resident in sorted(idle, key=lambda resident: resident.last_used)]

    async def measure(self, version: Version) -> str:
        """Measure a version that has just become ready and remember it; a sentence if it can never fit its budget."""
        footprints = await self._node.footprints(version.instances)
        if not footprints or version not in self.account.held:
            return ""
        self._measured[version] = asyncio.get_running_loop().time()
        holds: Counter[str] = Counter()
        for instance, footprint in footprints.items():
            self._baselines[instance] = footprint.private, footprint.anonymous
            self._born.setdefault(instance, footprint.anonymous)
            self.account.saw(instance, footprint.private)
            holds["cpu"] += footprint.private
            if instance.device.name != "cpu":
                holds[instance.device.name] += footprint.gpu
        # An instance that is being replaced will need as much as the others do.
        missing = Counter(device.name for device in version.devices) - Counter(each.device.name for each in footprints)
        for device, count in missing.items():
            holds["cpu"] += count * max(each.private for each in footprints.values())
            if device != "cpu":
                holds[device] += count * max(each.gpu for each in footprints.values())
        self.account.held[version] = dict(holds)
        if digest := self._digests.get(version):
            loop = asyncio.get_running_loop()
            largest = {digest: max(footprint.private for footprint in footprints.values())}
            if gpu := max(footprint.gpu for footprint in footprints.values()):
                largest[f"{digest} gpu"] = gpu
            for key, size in largest.items():
                await loop.run_in_executor(None, self._footprints.put, key, size)
        return next(
            (
                never_fits(d, size, self.account.budgets[d])
                for d, size in holds.items()
                if size > self.account.budgets.get(d, size)
            ),
            "",
        )

    async def sample(self, versions: Iterable[Version]) -> None:
        """Look how far instances have grown since they were measured, and end those over their memory_limit."""
        measured = [version for version in versions if version.is_ready() and version in self.account.held]
        await self._measure_again(measured)
        instances = [each for version in measured for each in version.instances if each in self._baselines]
        grown = await self._node.anonymous(instances)
        for version in measured:
            private = {}
            for instance in version.instances:
                if instance in grown:
                    base, anonymous = self._baselines[instance]
                    self._growth[instance] = grown[instance] - self._born[instance]
                    private[instance] = base + max(0, grown[instance] - anonymous)
            if private:
                missing = max(0, len(version.devices) - len(private))  # they are being replaced, and need as much
                held = sum(private.values()) + missing * max(private.values())
                self.account.held[version] = {**self.account.held.get(version, {}), "cpu": held}
            limit = version.artifact.config.memory_limit_bytes
            for instance, size in private.items():
                self.account.saw(instance, size)
                if limit and size > limit:
                    reason = f"the model took more than its memory_limit of {format_size(limit)}"
                    self._end(instance, reason, "memory_limit")

    async def _measure_again(self, versions: Sequence[Version]) -> None:
        """Measure replacements, and others now and then: what they shared with the runner becomes their own."""
        now = asyncio.get_running_loop().time()
        old = [version for version in versions if now - self._measured.get(version, now) > FRESH_SECONDS]
        old.sort(key=lambda version: self._measured[version])
        new = [each for each in versions if any(instance not in self._baselines for instance in each.instances)]
        for version in (*new, *old[:AT_ONCE]):
            await self.measure(version)

    def relieve_shortage(self) -> None:
        """If hardly any memory is left, end the one instance that has grown most, if that gives back enough to matter.

        The next one is ended only when this one is gone and its memory has had time to come back.
        """
        left, now = self._node.available(), asyncio.get_running_loop().time()
        if left >= self._reserve:
            self._shortage_logged = False
            return
        if self._relieving is not None and not self._relieving.exited.done():
            self._relief_until = now + EFFECT_SECONDS
            return
        if now < self._relief_until:
            return
        growth = {each: size for each, size in self._growth.items() if not each.exited.done()}
        worst = scarcity.to_end(left, self._reserve, growth)
        if worst is not None:
            self._relieving, self._relief_until = worst, now + EFFECT_SECONDS
            grown = format_size(growth[worst])
            reason = f"{format_size(left)} of memory are left, and the model has grown by {grown} since it was loaded"
            self._end(worst, reason, "low_memory")
        elif not self._shortage_logged:
            self._shortage_logged = True
            log.warning(
                "%s of memory are left; no model has grown by %s since it was loaded, so none is ended: other programs "
                "use the memory",
                format_size(left),
                format_size(scarcity.matters(self._reserve)),
            )

    def _end(self, instance: Instance, reason: str, cause: str) -> None:
        log.warning("%s is ended: %s", instance.name, reason)
        instance.verdict = (OutOfMemory.code, reason)
        instance.cause = cause
        self._node.stop(instance, kill=True)

    def excess(self) -> dict[str, int]:
        """By how many bytes each budget is exceeded."""
        return excess(self.account.budgets, self._residents())
