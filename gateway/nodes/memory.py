"""What memory there is and what a process has of it, as the kernel says."""

import contextlib
import os
import re
from pathlib import Path
from typing import NamedTuple

_CGROUP = Path("/sys/fs/cgroup")
_PAGE = os.sysconf("SC_PAGE_SIZE")


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
    figures = [_fields(Path("/proc/meminfo"))["MemAvailable"]]
    with contextlib.suppress(OSError, ValueError):
        figures += left_in_groups(Path("/proc/self/cgroup").read_text(encoding="utf-8"), _CGROUP)
    return min(figures)


def left_in_groups(membership: str, root: Path) -> list[int]:
    """What each limited control group above this process leaves, for both versions of control groups."""
    left = []
    for line in membership.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, limit, used, cache = root, "memory.max", "memory.current", "inactive_file"
            if not (root / "cgroup.controllers").exists():
                base = root / "unified"
        elif "memory" in controllers.split(","):
            base, limit, used = root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            cache = "total_inactive_file"
        else:
            continue
        group = base / path.lstrip("/")
        # In a container the path may be the host's, and the group itself lies at the root.
        for directory in [group, *group.parents] if group.is_dir() else [base]:
            if not directory.is_relative_to(base):
                break
            with contextlib.suppress(OSError, ValueError):
                bound = int((directory / limit).read_text(encoding="ascii"))
                taken = int((directory / used).read_text(encoding="ascii"))
                stat = (directory / "memory.stat").read_text(encoding="ascii")
                match = re.search(rf"^{cache} (\d+)$", stat, re.MULTILINE)
                left.append(max(0, bound - taken + (int(match[1]) if match else 0)))
    return left
