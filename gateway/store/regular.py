"""Opening what should be a regular file and may be anything by the time it is opened."""

import errno
import io
import os
import stat
from pathlib import Path


def open_regular(path: str | Path, flags: int = 0) -> io.BufferedReader:
    """The file for reading; OSError if it is anything else, such as a FIFO, which would wait for its writer."""
    if not stat.S_ISREG(Path(path).stat().st_mode):  # for opening alone may do something to a device
        raise OSError(errno.EINVAL, "it is no regular file")
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | flags)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no regular file")
    return os.fdopen(descriptor, "rb")
