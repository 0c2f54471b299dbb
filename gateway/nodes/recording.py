"""Has an instance record what it computes and picks up what it wrote, with care: by now it may be anybody's."""

import asyncio
import math
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import msgspec

from gateway.errors import InferenceFailed, InstanceDied
from gateway.ipc.recording import EndRecord, Record, Recorded, file_names
from gateway.nodes.control import Control

MOST_BYTES = {"trace": 48 << 20, "graph": 8 << 20}
"""By kind of file; together they fit into one message to a worker."""
WRITE_SECONDS = 60.0
"""So long may an instance take, beyond the request that it is at, to write the files."""
_TEXT = 200


class Nonsense(Exception):
    """What an instance did that none of ours does; the message goes on 'it …'."""


class Recording(NamedTuple):
    """What was recorded of one instance."""

    executions: int
    seconds: float
    full: bool
    """There was no room for more, so it ended before its time."""
    files: dict[str, bytes]
    """Contents by kind: trace, and graph where there is one."""
    missing: str
    """Why there is no graph; empty if there is."""


class NotTaken(Exception):
    """A file that is not picked up; the message says why."""


async def record(control: Control, folder: Path, number: int, seconds: float, grace: float) -> Recording:
    """Record for so many seconds, or until there is no room for more.

    InstanceDied if the instance ends, InferenceFailed if its profiler does not work, Nonsense if it is to be ended: it
    is heard no more then. `grace` is added to WRITE_SECONDS.
    """
    said = await _talk(control, number, seconds, grace + WRITE_SECONDS)
    if said.error:
        error = "".join(letter if letter.isprintable() else " " for letter in said.error[:_TEXT])
        raise InferenceFailed(f"the profiler did not work: {error}; the log tells more")
    return await asyncio.to_thread(_pick_up, said, folder)


async def _talk(control: Control, number: int, seconds: float, patience: float) -> Recorded:
    control.send(Record(number=number))
    answer = asyncio.ensure_future(control.receive())
    try:
        await asyncio.wait([answer], timeout=seconds)
        if not answer.done():
            control.send(EndRecord(number=number))
            await asyncio.wait([answer], timeout=patience)
        if not answer.done():
            raise Nonsense(f"did not hand its recording over within {patience:g} s")
        message = answer.result()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Nonsense("spoke nonsense") from None
    finally:
        answer.cancel()
    if message is None:
        raise InstanceDied("the instance ended while it was recorded; try again")
    if (
        not isinstance(message, Recorded)
        or message.number != number
        or message.executions < 0
        or not (math.isfinite(message.seconds) and message.seconds >= 0)
    ):
        raise Nonsense("spoke nonsense")
    return message


def _pick_up(said: Recorded, folder: Path) -> Recording:
    """Read the files and take them away."""
    files, missing = {}, ""
    names = file_names(said.number)
    try:
        files["trace"] = take(folder, names["trace"], MOST_BYTES["trace"])
        try:
            files["graph"] = take(folder, names["graph"], MOST_BYTES["graph"])
        except NotTaken as error:
            missing = f"the graph {error}"
    except NotTaken as error:
        raise InferenceFailed(f"the trace {error}") from None
    finally:
        for name in (name for each in names.values() for name in each):
            with suppress(OSError):
                (folder / name).unlink()
    return Recording(said.executions, said.seconds, said.full, files, missing)


def take(folder: Path, names: tuple[str, ...], most: int) -> bytes:
    """The contents of the first of these files that is there: an ordinary one of this folder, no larger than that.

    No link is followed, nothing is waited for. NotTaken says what is the matter.
    """
    for name in names:
        try:
            file = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        except OSError:
            raise NotTaken("is no file") from None
        try:
            return _contents(file, most)
        finally:
            os.close(file)
    raise NotTaken("was not written")


def _contents(file: int, most: int) -> bytes:
    status = os.fstat(file)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        raise NotTaken("is no file")
    with os.fdopen(file, "rb", closefd=False) as opened:
        data = opened.read(most + 1) if status.st_size <= most else b""
    if status.st_size > most or len(data) > most:
        raise NotTaken(f"is larger than {most >> 20} MiB, which is the most")
    return data
