"""What memory there is and what a process has of it, as the kernel says."""

import os
from pathlib import Path
from typing import NamedTuple

from gateway import cgroups
from gateway.cgroups import Group

_PAGE = os.sysconf("SC_PAGE_SIZE")
_LIMITS, _OLD_LIMITS = ("memory.max", "memory.high"), ("memory.limit_in_bytes",)
"""Above memory.high the kernel slows a group down until it has shrunk."""
_RECLAIMABLE = ("inactive_file", "active_file", "slab_reclaimable")
_OLD_RECLAIMABLE = ("total_inactive_file", "total_active_file")


class ProcessMemory(NamedTuple):
    """Bytes of one process."""

    private: int
    """What only this process has and only memory can hold (Private_Dirty): what comes back when it ends."""
    pss: int
    """Private, and its share of what it shares with others."""


def read_memory(pid: int) -> ProcessMemory:
    """The memory of a process; OSError if it is gone. Walks its page tables: milliseconds.

    Clean pages of libraries are cache, whether one process maps them or ten.
    """
    fields = _fields(Path(f"/proc/{pid}/smaps_rollup"))
    if "Private_Dirty" not in fields:
        raise ProcessLookupError(f"process {pid} has no memory any more")
    return ProcessMemory(fields["Private_Dirty"], fields["Pss"])


def read_anonymous(pid: int) -> int:
    """Anonymous memory that a process has touched, in bytes; OSError if it is gone. Costs microseconds.

    A forked process begins with what it shares with its parent: only the growth of this figure is its own.
    """
    resident, shared = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1:3]
    return (int(resident) - int(shared)) * _PAGE


def _fields(path: Path) -> dict[str, int]:
    found = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        name, _, value = line.partition(":")
        if value.endswith(" kB"):
            found[name] = int(value[:-3]) * 1024
    return found


def available_memory() -> int:
    """Bytes that could be taken now without swapping: the machine's, or what the control group leaves if less."""
    return min([_fields(Path("/proc/meminfo"))["MemAvailable"], *left_in_groups(cgroups.membership(), cgroups.ROOT)])


def left_in_groups(membership: str, root: Path) -> list[int]:
    """Bytes that each limited control group above this process leaves, for both versions of control groups.

    The kernel reclaims page cache and slab before it refuses memory to a group, so those count as free, as in
    MemAvailable. Files in tmpfs and locked pages cannot be reclaimed, and the kernel counts them elsewhere.
    """
    left = []
    for group in cgroups.groups("memory", membership, root):
        limits = [group.number(name) for name in (_LIMITS if group.unified else _OLD_LIMITS)]
        used = group.number("memory.current" if group.unified else "memory.usage_in_bytes")
        bounds = [limit for limit in limits if limit is not None]
        if bounds and used is not None:
            left.append(max(0, min(bounds) - max(0, used - _reclaimable(group))))
    return left


def _reclaimable(group: Group) -> int:
    """Bytes of page cache and slab that a group has and that the kernel can take back."""
    names = _RECLAIMABLE if group.unified else _OLD_RECLAIMABLE
    figures = dict(line.split(" ", 1) for line in group.read("memory.stat").splitlines() if " " in line)
    return sum(int(figures[name]) for name in names if figures.get(name, "").isdigit())
