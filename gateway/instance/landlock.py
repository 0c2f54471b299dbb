"""Landlock: which files a process may read and write, asked of the kernel without a wrapper library.

https://docs.kernel.org/userspace-api/landlock.html
"""

import contextlib
import os
import stat
import struct
from collections.abc import Iterable

from gateway.instance.kernel import syscall

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every architecture
_VERSION = 1
_PATH_BENEATH = 1

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, REMOVE_DIR, REMOVE_FILE = (1 << bit for bit in range(6))
MAKE_REG = 1 << 8
TRUNCATE = 1 << 14
IOCTL_DEVICE = 1 << 15
_OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEVICE
"""The rights that exist on something that is not a directory."""

READ = READ_FILE | READ_DIR
SCRATCH = READ | WRITE_FILE | MAKE_REG | TRUNCATE
"""Make and write files, side by side. Not: directories, so that they can be counted; nor take files away, which an open
descriptor would keep on the disk where nobody sees them."""
DEVICE = READ | WRITE_FILE | IOCTL_DEVICE

Grant = tuple[str, int]
"""A path and the rights beneath it."""


def abi() -> int:
    """The version of Landlock that the kernel has in force; 0 for none."""
    try:
        return syscall(_CREATE_RULESET, None, 0, _VERSION)
    except OSError:
        return 0


def handled(version: int) -> tuple[int, int, int]:
    """What a version can forbid: file rights, TCP rights, scopes (abstract Unix sockets, signals)."""
    files = (1 << 13) - 1
    for since, right in ((2, 1 << 13), (3, TRUNCATE), (5, IOCTL_DEVICE)):
        files |= right if version >= since else 0
    return files, 0b11 if version >= 4 else 0, 0b11 if version >= 6 else 0


def restrict(version: int, grants: Iterable[Grant]) -> None:
    """Forbid this process, for good, all files but those granted, all TCP, and signals to others.

    A path that is not there grants nothing. no_new_privs must be set. OSError if the kernel refuses.
    """
    files, network, scopes = handled(version)
    attributes = struct.pack("=QQQ", files, network, scopes)[: 24 if version >= 6 else 16 if version >= 4 else 8]
    ruleset = syscall(_CREATE_RULESET, attributes, len(attributes), 0)
    try:
        for path, rights in grants:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
                _grant(ruleset, path, rights & files, keep=path.startswith("/proc/"))
        syscall(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _grant(ruleset: int, path: str, rights: int, *, keep: bool) -> None:
    """Add a rule for an inode. To `keep` it, a descriptor stays open.

    A rule holds for the inode that a path has now. /proc makes a new inode where the kernel has dropped its directory
    entry, under pressure of memory say, and the new one would be forbidden; an open descriptor holds the entry.
    """
    parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISDIR(os.fstat(parent).st_mode):
            rights &= _OF_FILES
        syscall(_ADD_RULE, ruleset, _PATH_BENEATH, struct.pack("=Qi", rights, parent), 0)
    except BaseException:
        keep = False
        raise
    finally:
        if not keep:
            os.close(parent)
