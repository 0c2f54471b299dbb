"""Zip archives of others: looked at within bounds, never unpickled, and nothing of them is run."""

import contextlib
import io
import stat
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from gateway.errors import ConfigError
from gateway.store.contents import MAX_DEPTH, shown
from gateway.store.regular import open_regular

MAX_ENTRIES = 10_000
MAX_BYTES = 64 << 30
MAX_RATIO = 200
FREE_BYTES = 16 << 20
"""An archive that unpacks to no more may be packed as tightly as it likes."""
MAX_READ = 16 << 20
"""Of one read: the directory of the archive is one."""
COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""zipfile unpacks the others without a bound, whatever size a member is said to have."""
FAULTS = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, OSError)


class _Unreadable(zipfile.BadZipFile):
    """The file of the archive could not be read, for the reason that the operating system gives."""


class _Cautious(io.RawIOBase):
    """A file that does not read without a bound, whatever an archive says of its sizes.

    Its OSErrors are _Unreadable, so that they differ from those of whatever the archive's members are written to.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            return self._file.seek(offset, whence)
        except OSError:  # to before its beginning
            raise zipfile.BadZipFile("a member is nowhere in it") from None

    def tell(self) -> int:
        return self._file.tell()

    def read(self, size: int | None = -1) -> bytes:
        """As a file's; BadZipFile for more than MAX_READ bytes."""
        wanted = MAX_READ + 1 if size is None or size < 0 else size
        try:
            data = self._file.read(min(wanted, MAX_READ + 1))
        except OSError as error:
            raise _Unreadable(error.strerror) from None
        if len(data) > MAX_READ:
            raise zipfile.BadZipFile("too large a read")
        return data


@contextlib.contextmanager
def opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """The archive, whose names and sizes have been checked; ConfigError with what is wrong with it.

    An OSError of what is done with it is not the archive's, and goes through.
    """
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(open_regular(path))
            archive = stack.enter_context(_checked(file, path.stat().st_size))
        except FAULTS as error:
            raise _refusal(path, error) from None
        try:
            yield archive
        except OSError:
            raise
        except FAULTS as error:
            raise _refusal(path, error) from None


def _refusal(path: Path, error: Exception) -> ConfigError:
    reason = error.strerror if isinstance(error, OSError) else str(error) if isinstance(error, _Unreadable) else ""
    return ConfigError(f"{shown(path.name)} cannot be read: {reason or 'it is no sound zip archive'}")


def _checked(file: IO[bytes], size: int) -> zipfile.ZipFile:
    archive = zipfile.ZipFile(cast("IO[bytes]", _Cautious(file)))
    infos = archive.infolist()
    if len(infos) > MAX_ENTRIES:
        raise ConfigError(f"the archive has more than {MAX_ENTRIES} entries")
    names = [info.filename for info in infos]
    if len(set(names)) != len(names):
        raise ConfigError("the archive has two entries of one name")
    for info in infos:
        _check(info)
    total = sum(info.file_size for info in infos)
    if total > MAX_BYTES or total > max(FREE_BYTES, MAX_RATIO * size):
        raise ConfigError(f"the archive of {size} bytes unpacks to {total} bytes, which is more than is plausible")
    return archive


def _check(info: zipfile.ZipInfo) -> None:
    name = info.filename
    parts = name.rstrip("/").split("/")
    if len(name) > 1024 or len(parts) > MAX_DEPTH or "\\" in name or any(part in ("", ".", "..") for part in parts):
        raise ConfigError(f"the archive's entry {shown(name)} is no name of a file in it")
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise ConfigError(f"the archive's entry {shown(name)} is a link or a device")
    if info.flag_bits & 1:
        raise ConfigError(f"the archive's entry {shown(name)} is encrypted")
    if info.compress_type not in COMPRESSIONS:
        raise ConfigError(f"the archive's entry {shown(name)} is compressed in another way than by deflate")


def content(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    """A member of at most `limit` bytes; ConfigError if there is none or it is larger."""
    try:
        info = archive.getinfo(name)
    except KeyError:
        raise ConfigError(f"the archive has no {shown(name)}") from None
    if info.file_size > limit:
        raise ConfigError(f"{shown(name)} is larger than {limit} bytes")
    with archive.open(info) as file:
        return file.read(limit + 1)


def not_torchscript(file: IO[bytes], size: int) -> str:
    """Why a file is no TorchScript archive, told by the names in it alone; empty if it is one."""
    try:
        with _checked(file, size) as archive:
            names = archive.namelist()
    except FAULTS:
        return "it is no zip archive, as TorchScript is"
    except ConfigError as error:
        return error.message
    below = {name.partition("/")[2] for name in names}
    if any(name.startswith(("models/", "archive_format", "serialized_exported_program")) for name in (*below, *names)):
        return "it is an exported program (.pt2), not TorchScript"
    if "constants.pkl" in below and any(name.startswith("code/") for name in below):
        return ""
    if "data.pkl" in below:
        return "it holds pickled Python objects, such as weights alone, not TorchScript; pickles are never opened"
    return "it is no TorchScript archive"
