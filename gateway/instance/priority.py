"""Loads that nobody waits for give way to requests: they run at the lowest priority, and are raised afterwards."""

import contextlib
import os
from pathlib import Path

from gateway.instance.kernel import capabilities

_SYS_NICE = 1 << 23
LOWEST = 19


def can_be_raised() -> bool:
    """Whether this process may raise a priority again, which takes CAP_SYS_NICE; else none should be lowered."""
    effective, _ = capabilities()
    return bool(effective & _SYS_NICE)


def give_way(nice: int = LOWEST) -> None:
    """Run only when nobody else wants to, until `raise_again`."""
    os.setpriority(os.PRIO_PROCESS, 0, nice)


def raise_again(pid: int) -> None:
    """Give all threads of a process the normal priority; nothing if it is gone or has it, or if that is not allowed."""
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            os.setpriority(os.PRIO_PROCESS, int(task.name), 0)
