"""The control groups that limit this process, of both versions of the kernel's interface."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


@dataclass(frozen=True)
class Group:
    """One control group with a controller; `unified` tells version 2 from version 1."""

    directory: Path
    unified: bool

    def read(self, name: str) -> str:
        """The text of one of its files, empty if it has no such file."""
        with contextlib.suppress(OSError, UnicodeDecodeError):
            return (self.directory / name).read_text(encoding="ascii").strip()
        return ""

    def number(self, name: str) -> int | None:
        """The integer in one of its files; None where there is none, or it says `max`."""
        with contextlib.suppress(ValueError):
            return int(self.read(name))
        return None


def membership() -> str:
    """The kernel's list of the groups that this process is in; empty where it cannot be read."""
    with contextlib.suppress(OSError):
        return _MEMBERSHIP.read_text(encoding="utf-8", errors="replace")
    return ""


def groups(controller: str, members: str, root: Path = ROOT) -> Iterator[Group]:
    """The group of a process and all groups above it that a controller may limit; `members` as `membership` returns."""
    for line in members.splitlines():
        _, controllers, path = line.split(":", 2)
        unified = controllers == ""
        if unified:
            base = root if (root / "cgroup.controllers").exists() else root / "unified"
        elif controller in controllers.split(","):
            base = root / controller
        else:
            continue
        group = base / path.lstrip("/")
        # In a container the path may be the host's, and the group itself is mounted at the root.
        for directory in [group, *group.parents] if group.is_dir() else [base]:
            if not directory.is_relative_to(base):
                break
            yield Group(directory, unified)
