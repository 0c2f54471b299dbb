"""Child processes as the supervisor watches them: their end without blocking, and whether a silent one still works."""

import asyncio
import subprocess
from pathlib import Path

POLL_SECONDS = 0.02
SILENT_PINGS = 5
"""A child that leaves so many pings unanswered, and uses no processor meanwhile, hangs."""
BUSY_PINGS = 60
"""A child that leaves so many unanswered hangs, although it uses the processor."""


async def ended(process: subprocess.Popen[bytes]) -> int:
    """The exit code of a child, when it has ended."""
    while (code := process.poll()) is None:  # noqa: ASYNC110 - no event tells of a child's end
        await asyncio.sleep(POLL_SECONDS)
    return code


def processor_ticks(pid: int) -> int:
    """Clock ticks of processor time that a process has used in all its threads; 0 if it is gone."""
    fields = _stat(pid)
    return int(fields[11]) + int(fields[12]) if fields else 0


def is_stopped(pid: int) -> bool:
    """Whether a signal has stopped a process (SIGSTOP, SIGTSTP)."""
    return _stat(pid)[:1] == ["T"]


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on (proc_pid_stat(5)); none if the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


class Pulse:
    """Decides by unanswered pings and used processor time whether a child hangs.

    A child that is busy or still starts uses the processor; one that is stopped or deadlocked does not. Pings are
    counted instead of seconds, so that a supervisor that was stopped itself accuses no child.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._unanswered = self._idle = 0
        self._ticks = 0

    def heard(self) -> None:
        """The child has sent something."""
        self._unanswered = self._idle = 0

    def pinged(self) -> bool:
        """Count one more ping; whether the child hangs."""
        ticks = processor_ticks(self._pid)
        self._unanswered += 1
        self._idle = self._idle + 1 if ticks == self._ticks else 0
        self._ticks = ticks
        return self._idle >= SILENT_PINGS or self._unanswered >= BUSY_PINGS
