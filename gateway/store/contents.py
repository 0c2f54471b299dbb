"""What lies in a version directory, by names, sizes and times alone: nothing in it is ever opened."""

import errno
import hashlib
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

MAX_ENTRIES = 10_000
MAX_DEPTH = 16
MAX_LINKED = 256
"""Links to other places in the store; an instance is granted each of them by its path."""
LEADS_OUT = "is a link that leads out of the model store"
_MAX_FOLLOWED = 40
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_KINDS = {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}

Directory = tuple[str, int, int]
"""(resolved path, device, inode): another directory in the same place is another Directory."""


@dataclass(frozen=True)
class Contents:
    """One look at a version directory."""

    stamp: int = 0
    """A fingerprint of the names, kinds, sizes and times of everything in it."""
    size: int = 0
    """Bytes of all files; one with several names counts once."""
    entries: int = 0
    files: tuple[str, ...] = ()
    """Names of its regular files, relative to it; one of several names of a file."""
    changed: float = 0.0
    """The newest change time of anything in it but of the directory itself, by the clock of the file system."""
    problem: str = ""
    """Why it cannot be served as it is, one sentence without a path outside of it."""
    unreadable: bool = False
    """Whether that is only because it could not be read now."""
    linked: tuple[str, ...] = ()
    """Resolved paths in the store but outside of the directory that links in it lead to."""
    directories: frozenset[Directory] = frozenset()


def shown(name: str) -> str:
    """A name from the file system as it may stand in a sentence: printable, quoted, not too long."""
    return repr(name if len(name) <= 100 else f"…{name[-99:]}")


def inside(path: str, root: str) -> bool:
    """Whether a resolved path is `root` or below it."""
    return path == root or path.startswith(root.rstrip("/") + "/")


def resolved(parent: str, name: str) -> str:
    """The resolved path of an entry of a directory whose own path is resolved; cheap where it is no link."""
    path = os.path.join(parent, name)  # noqa: PTH118 - a Path would cost more than all the rest
    return os.path.realpath(path) if os.path.islink(path) else path  # noqa: PTH114 - as above


def links_to(path: str) -> list[str]:
    """The links that are followed on the way to a path, each by its own absolute path; at most 40, as in the kernel."""
    found: list[str] = []
    at, ahead = "/", os.path.abspath(path).split("/")[1:]  # noqa: PTH100 - no link may be resolved here
    while ahead:
        name = ahead.pop(0)
        if name in ("", "."):
            continue
        step = os.path.dirname(at) if name == ".." else os.path.join(at, name)  # noqa: PTH118, PTH120 - as above
        try:
            target = os.readlink(step)  # noqa: PTH115 - as above
        except OSError:
            at = step
            continue
        found.append(step)
        if len(found) == _MAX_FOLLOWED:
            break
        ahead = target.split("/") + ahead
        at = "/" if target.startswith("/") else at
    return found


def identity(path: str) -> Directory:
    """The directory at a resolved path; OSError if there is none."""
    info = Path(path).stat()
    return path, info.st_dev, info.st_ino


def fingerprint(facts: Iterable[object]) -> int:
    """The same number for the same facts, in every process."""
    digest = hashlib.blake2b(repr(list(facts)).encode("utf-8", "surrogateescape"), digest_size=8)
    return int.from_bytes(digest.digest())


def look(version: Path, root: str) -> Contents:
    """Look at the directory `version`, which may be a link but has a resolved parent, of the store at `root`.

    FileNotFoundError if it is gone.
    """
    parent = str(version.parent)
    real = resolved(parent, version.name)
    problem = ""
    if not inside(real, root):
        problem = f"its directory {LEADS_OUT}"
    elif inside(parent, real):
        problem = "its directory is a link to a directory above it"
    if problem:
        info = version.lstat()
        return Contents(stamp=fingerprint([info.st_mtime_ns, info.st_ctime_ns]), entries=1, problem=problem)
    walk = _Walk(real, root)
    walk.all()
    return Contents(
        stamp=fingerprint([*walk.facts, walk.problem]),
        size=walk.size,
        entries=walk.entries,
        files=tuple(walk.files),
        changed=walk.changed_ns / 1e9,
        problem=walk.problem,
        unreadable=walk.unreadable,
        linked=tuple(sorted(walk.linked)),
        directories=frozenset(walk.directories),
    )


@dataclass
class _Walk:
    """A walk through a version directory, which ends at the bounds above."""

    version: str
    root: str
    facts: list[object] = field(default_factory=list)
    size: int = 0
    entries: int = 0
    files: list[str] = field(default_factory=list)
    changed_ns: int = 0
    problem: str = ""
    unreadable: bool = False
    linked: set[str] = field(default_factory=set)
    directories: set[Directory] = field(default_factory=set)
    _counted: set[tuple[int, int]] = field(default_factory=set)

    def all(self) -> None:
        ahead = [(self.version, "", 0)]
        while ahead:
            path, relative, depth = ahead.pop()
            try:
                here = identity(path)
                if here in self.directories:
                    continue
                self.directories.add(here)
                with os.scandir(path) as found:
                    entries = list(islice(found, MAX_ENTRIES - self.entries + 1))
            except OSError as error:
                self._failed(error, relative)
                continue
            self.entries += len(entries)
            if self.entries > MAX_ENTRIES:
                self._say(f"it holds more than {MAX_ENTRIES} files")
                return
            for entry in sorted(entries, key=lambda each: each.name):
                below = self._entry(entry, f"{relative}{entry.name}", path)
                if below and depth == MAX_DEPTH:
                    self._say(f"its directories are nested more than {MAX_DEPTH} deep")
                elif below:
                    ahead.append((below, f"{relative}{entry.name}/", depth + 1))

    def _entry(self, entry: os.DirEntry[str], name: str, parent: str) -> str:
        """Take note of one entry; if it is a directory, its resolved path."""
        path = entry.path
        try:
            info = entry.stat(follow_symlinks=False)
            if stat.S_ISLNK(info.st_mode):
                self._note(name, info)
                path = os.path.realpath(path)
                if not inside(path, self.root):
                    self._say(f"{shown(name)} {LEADS_OUT}")
                    return ""
                if inside(parent, path):
                    self._say(f"{shown(name)} is a link to a directory above it")
                    return ""
                info = entry.stat()
                if not inside(path, self.version):
                    self._link(path)
        except OSError as error:
            self._failed(error, name)
            return ""
        self._note(name, info)
        if stat.S_ISDIR(info.st_mode):
            return path
        if not stat.S_ISREG(info.st_mode):
            self._say(f"{shown(name)} is {_KINDS.get(stat.S_IFMT(info.st_mode), 'no file')}")
        elif (info.st_dev, info.st_ino) not in self._counted:
            self._counted.add((info.st_dev, info.st_ino))
            self.files.append(name)
            self.size += info.st_size
        return ""

    def _link(self, path: str) -> None:
        self.linked.add(path)
        if len(self.linked) > MAX_LINKED:
            self._say(f"more than {MAX_LINKED} links in it lead to other places in the store; link directories instead")

    def _note(self, name: str, info: os.stat_result) -> None:
        size = 0 if stat.S_ISDIR(info.st_mode) else info.st_size
        self.facts.append((name, stat.S_IFMT(info.st_mode), size, info.st_mtime_ns, info.st_ctime_ns))
        self.changed_ns = max(self.changed_ns, info.st_ctime_ns)

    def _failed(self, error: OSError, name: str) -> None:
        """A name that leads nowhere, or was deleted a moment ago, is as good as none; anything else is a problem."""
        if not name and error.errno in _GONE:
            raise FileNotFoundError(error.errno, "gone")
        self.facts.append((name, error.errno))
        if error.errno not in _GONE:
            self.unreadable = True
            self._say(f"it cannot be read: {error.strerror}")

    def _say(self, problem: str) -> None:
        self.problem = self.problem or problem
