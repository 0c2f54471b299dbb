"""The private temporary folder of an instance: made, watched and taken away by the supervisor."""

import os
import shutil
from contextlib import suppress
from pathlib import Path

MOST_BYTES = 256 << 20
MOST_FILES = 1000


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
