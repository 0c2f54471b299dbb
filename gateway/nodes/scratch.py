"""The private temporary folder of an instance: made, watched and taken away by the supervisor."""

import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from gateway.errors import ConfigError

_SOCKET_PATH = 107
"""Bytes of a Unix socket's path (unix(7)), without the zero at its end."""
_SOCKET_NAME = len("/1234567890.sock")
MOST_BYTES = 256 << 20
MOST_FILES = 1000


def private_directory() -> Path:
    """A new directory for the sockets and folders of instances; ConfigError, with what to set, if there can be none."""
    try:
        directory = Path(tempfile.mkdtemp(prefix="gateway-"))
    except OSError as error:
        raise ConfigError(
            f"no temporary directory can be written to ({error.strerror or error}): the sockets and temporary files of "
            "models lie in one; set TMPDIR to a writable directory, or mount one at /tmp"
        ) from None
    if len(os.fsencode(directory)) + _SOCKET_NAME > _SOCKET_PATH:
        remove(directory)
        raise ConfigError(
            f"the temporary directory {directory.parent} has too long a name for Unix sockets, whose path has at most "
            f"{_SOCKET_PATH} bytes; set TMPDIR to a shorter one"
        )
    return directory


def make(folder: Path) -> None:
    """Make it, for this user alone."""
    folder.mkdir(0o700)


def excess(folder: Path) -> str | None:
    """What is too much in a folder; None if nothing is. Looks at no more entries than are allowed.

    A sandboxed model makes no directories in it and takes no file away, so this sees all there is.
    """
    size = 0
    with suppress(OSError), os.scandir(folder) as entries:
        for number, entry in enumerate(entries):
            if number >= MOST_FILES:
                return f"more than {MOST_FILES} temporary files"
            with suppress(FileNotFoundError):
                size += entry.stat(follow_symlinks=False).st_blocks * 512
            if size > MOST_BYTES:
                return f"more than {MOST_BYTES >> 20} MiB of temporary files"
    return None


def remove(folder: Path) -> None:
    """Take it away with all that is in it; what a model without a sandbox has made too deep to be removed stays."""
    with suppress(RecursionError):
        shutil.rmtree(folder, ignore_errors=True)
