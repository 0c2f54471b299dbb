"""Reaps processes that the kernel gave to this one when their own parent ended, as PID 1 of a container has to."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from weakref import WeakSet

Process = subprocess.Popen[bytes]

_started: "WeakSet[Process]" = WeakSet()


def started(process: Process) -> Process:
    """The same process, noted as one whose exit status somebody else waits for.

    To be called before the event loop goes on, for `reap` runs there.
    """
    _started.add(process)
    return process


def reap() -> int:
    """Take the exit status of every orphan that has ended; how many there were. Microseconds where there is none.

    The status of a process that was noted with `started` is left to its owner.
    """
    if _next_ended() is None:
        return 0
    count = 0
    own = {process.pid for process in _started if process.returncode is None}
    for pid in _children():
        if pid not in own and _ended(pid):
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
                count += 1
    return count


def _next_ended() -> int | None:
    """Any child that has ended and was not waited for, which stays so."""
    with suppress(ChildProcessError):
        if found := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return found.si_pid
    return None


def _ended(pid: int) -> bool:
    with suppress(ChildProcessError):
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    return False


def _children() -> Iterator[int]:
    """All children of this process. Reads the table of processes: milliseconds."""
    this = os.getpid()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError, ValueError, IndexError):
                # After the name, which may hold anything: state and parent.
                if int((entry / "stat").read_bytes().rpartition(b")")[2].split()[1]) == this:
                    yield int(entry.name)
