"""Which device each instance of a version gets: a pure function of the devices and what is on them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice

from gateway.errors import LoadFailed
from gateway.store.manifest import InstanceGroup

LEAST_BYTES = 512 << 20
"""What an instance is taken to need on a GPU as long as nobody has measured it: a CUDA context and little more."""


@dataclass(frozen=True)
class Device:
    """Something instances run on; `visible` is what CUDA_VISIBLE_DEVICES must be for it alone to be seen."""

    name: str
    visible: str = ""
    total: int = 0
    """Bytes of memory; 0 where they are unknown."""


CPU = Device("cpu")


def place(
    groups: Sequence[InstanceGroup],
    devices: Sequence[Device],
    load: Mapping[str, int],
    free: Mapping[str, int] | None = None,
    need: int = 0,
    *,
    cuda: bool = True,
) -> list[Device]:
    """One device for each instance of these groups.

    `devices` are those of the machine. By their names, `load` is the number of instances on each and `free` the bytes
    that are neither in use nor promised, as far as they are known; each instance takes `need` of them, or LEAST_BYTES
    where that is 0 for unknown. `auto` takes the GPU with the most free memory, of equal or unmeasured ones that with
    the fewest instances, and the CPU where there is no GPU, or none for a framework without `cuda`; a group that lists
    GPUs gets `count` on each, full or not. Raises LoadFailed for a GPU that is not there.
    """
    gpus = {device.name: device for device in devices if device.name != CPU.name}
    tally = _Tally({name: load.get(name, 0) for name in gpus}, dict(free or {}), need or LEAST_BYTES)
    chosen: list[Device] = []
    for group in groups:
        if group.kind == "cpu" or (group.kind == "auto" and not (gpus and cuda)):
            chosen += [CPU] * group.count
            continue
        if not gpus:
            raise LoadFailed("instance_group asks for a GPU and this machine has none; kind: auto would use the CPU")
        listed = [name for name in _listed(group, gpus) for _ in range(group.count)]
        names = map(tally.take, listed) if listed else (tally.best() for _ in range(group.count))
        chosen += [gpus[name] for name in names]
    return chosen


def scaled(groups: Sequence[InstanceGroup], count: int) -> list[InstanceGroup]:
    """So many groups of one instance each, which are on what the instances of `groups` are on, in turn."""
    single = [
        InstanceGroup(1, group.kind, gpus)
        for group in groups
        for gpus in [[gpu] for gpu in group.gpus] or [[]]
        for _ in range(group.count)
    ]
    return list(islice(cycle(single), count))


def _listed(group: InstanceGroup, gpus: Mapping[str, Device]) -> list[str]:
    """The GPUs that a group asks for by number; a number stays a GPU's own when others are lost."""
    for index in group.gpus:
        if f"cuda:{index}" not in gpus:
            there = ", ".join(name.removeprefix("cuda:") for name in gpus)
            raise LoadFailed(f"instance_group asks for GPU {index}, this machine has GPU {there}")
    return [f"cuda:{index}" for index in group.gpus]


@dataclass
class _Tally:
    """What is on each GPU, with the instances that have just been placed."""

    counts: dict[str, int]
    free: dict[str, int]
    need: int

    def take(self, name: str) -> str:
        """The GPU itself, on which one more instance is counted."""
        self.counts[name] += 1
        if name in self.free:
            self.free[name] -= self.need
        return name

    def best(self) -> str:
        """The GPU for the next instance, which is counted."""
        return self.take(min(self.counts, key=self._rank))

    def _rank(self, name: str) -> tuple[int, int, int]:
        """Where there is room, then where it is not known, then where there is none; the first of equals."""
        if name not in self.free:
            return 1, 0, self.counts[name]
        return 0 if self.free[name] >= self.need else 2, -self.free[name], self.counts[name]
