"""How many CPUs this process may use: the kernel's affinity mask and the quotas of its control groups."""

import os
from collections.abc import Iterable, Iterator

from gateway import cgroups
from gateway.cgroups import Group


def usable() -> int:
    """CPUs that this process can keep busy, at least 1; a process in a sandbox sees the affinity mask only."""
    return within(len(os.sched_getaffinity(0)), quotas(cgroups.groups("cpu", cgroups.membership())))


def threads(setting: int | str) -> int:
    """Threads of one operation for a model.yaml's `threads`: `auto` is half of the usable CPUs, at least 1."""
    return max(1, usable() // 2) if isinstance(setting, str) else setting


def within(affinity: int, limits: Iterable[float]) -> int:
    """Whole CPUs within an affinity mask of so many and all of these quotas, at least 1."""
    return max(1, int(min([affinity, *limits])))


def quotas(groups: Iterable[Group]) -> Iterator[float]:
    """CPUs that each group with a quota may use, on average over its period."""
    for group in groups:
        if group.unified:
            quota, _, period = group.read("cpu.max").partition(" ")
        else:
            quota, period = group.read("cpu.cfs_quota_us"), group.read("cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit() and int(quota) > 0 and int(period) > 0:
            yield int(quota) / int(period)
