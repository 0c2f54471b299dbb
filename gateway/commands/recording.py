"""A recording as it comes from a gateway, made into a folder that TensorBoard and Perfetto read."""

import io
import re
import time
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import msgspec

from gateway import graphdef
from gateway.commands import spans, xspace
from gateway.commands.spans import Operation
from gateway.errors import CallFailed

MOST_BYTES = {"recording.json": 1 << 20, "trace": 64 << 20, "graph": 16 << 20}
"""All that is read of an archive, and how much of each: it comes from whoever answers at the URL."""
_NO_ARCHIVE = (
    zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, OSError,
    ValueError,
)  # fmt: skip
"""What zipfile says of damaged or strange archives."""
_TIME = "%Y%m%d-%H%M%S"
_FOLDERS = 100


class Facts(msgspec.Struct):
    """What a gateway says of a recording (gateway/profiling.py)."""

    model: str
    version: str
    framework: str
    instance: int
    instances: list[int]
    """All that the version has."""
    device: str
    seconds: float
    executions: int
    full: bool
    """The trace was, so that it ended early."""
    missing: str
    """Why there is no graph."""


class Kept(NamedTuple):
    """What became of a recording."""

    facts: Facts
    operations: list[Operation]
    folder: Path
    trace: Path
    """For Perfetto."""
    graph: bool
    """Whether there is one."""


def unpack(archive: bytes) -> dict[str, bytes]:
    """The files in an archive; CallFailed if it is not such a one."""
    found = {}
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as opened:
            for name, most in MOST_BYTES.items():
                if name not in opened.namelist():
                    continue
                with opened.open(name) as file:
                    found[name] = file.read(most + 1)
                if len(found[name]) > most:
                    raise CallFailed(f"'{name}' of the recording is larger than {most >> 20} MiB")
    except _NO_ARCHIVE:
        raise CallFailed("what came is no recording") from None
    return found


def keep(archive: bytes, out: Path) -> Kept:
    """Write a recording into a new folder below `out`, under names that are ours; CallFailed if that cannot be done."""
    files = unpack(archive)
    try:
        facts = msgspec.json.decode(files["recording.json"], type=Facts)
        tensorflow = facts.framework == "tensorflow"
        computed = list((xspace.spans if tensorflow else spans.from_chrome)(files["trace"]))
        operations = spans.operations(computed)
        name = f"{_plain(facts.model)}-{_plain(facts.version)}"
    except (KeyError, ValueError):  # msgspec's errors are ValueErrors
        raise CallFailed("what came is no recording") from None
    try:
        folder = _new_folder(out, f"{name}-{time.strftime(_TIME)}")
        if tensorflow:
            trace = _write(folder / f"{name}.trace.json", spans.to_chrome(computed))
            _write(folder / "plugins" / "profile" / folder.name / f"{name}.xplane.pb", files["trace"])
        else:
            trace = _write(folder / f"{name}.pt.trace.json", files["trace"])
        if graph := files.get("graph"):
            now = time.time()
            _write(folder / f"events.out.tfevents.{int(now)}.gateway", graphdef.event_file(graph, now))
    except OSError as error:
        raise CallFailed(f"{out} cannot be written to: {error.strerror or error}") from None
    return Kept(facts, operations, folder, trace, bool(graph))


def _plain(text: object) -> str:
    return re.sub(r"[^\w.-]", "_", str(text)).lstrip(".")[:100] or "_"


def _new_folder(out: Path, name: str) -> Path:
    for number in range(_FOLDERS):
        folder = out / (f"{name}-{number}" if number else name)
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            if not out.is_dir():
                raise
            continue
        return folder
    raise FileExistsError(0, f"{name} is there already")


def _write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path
