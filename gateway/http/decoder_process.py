"""The process that decodes large bodies for one HTTP worker, so that the worker's event loop goes on meanwhile."""

import contextlib
import functools
import logging
import mmap
import os
import resource
import signal
import socket
import sys
from pathlib import Path
from typing import cast

import msgspec
from setproctitle import setproctitle

from gateway.errors import GatewayError, PayloadTooLarge
from gateway.http.calls import DIALECTS
from gateway.http.decoding import (
    DESCRIPTORS,
    EXTENT,
    Answer,
    Job,
    Room,
    read_some,
    refusal_of,
    write_all,
)
from gateway.http.dialect import Body
from gateway.ipc.arena import THRESHOLD
from gateway.ipc.channel import Channel
from gateway.ipc.lifeline import die_with_parent
from gateway.ipc.messages import VersionRoute
from gateway.metrics import VersionCounters
from gateway.routing import Target

log = logging.getLogger("gateway.decoder")

KILLED_FIRST = 800
"""Its oom_score_adj: when memory runs out, this process loses one request, any other one more."""
_decode_job = msgspec.msgpack.Decoder(Job).decode


@functools.lru_cache(maxsize=8)
def _target_of(route: bytes) -> Target:
    """The model version as decoding needs it."""
    found = msgspec.msgpack.decode(route, type=VersionRoute)
    return Target(found, [], VersionCounters(found.model, str(found.version), found.framework))


def decode(job: Job, data: memoryview, room: Room) -> Answer:
    """The request in a body, its large tensors in the room, or what is wrong with it."""
    dialect = DIALECTS[job.dialect]
    body = Body(data, job.json_size, None, job.headers)
    try:
        if not job.route:
            return Answer(wishes=dialect.wishes(body))
        # The room is all of a channel that decoding uses.
        return room.answer(dialect.decode(body, _target_of(job.route), cast("Channel", room), []))
    except GatewayError as error:
        return Answer(refusal=refusal_of(error))
    except MemoryError:
        return Answer(refusal=refusal_of(PayloadTooLarge("reading the body takes more memory than the server allows")))
    except Exception:
        log.exception("decoding a request failed")
        return Answer(refusal=refusal_of(GatewayError("internal error")))


def work(body_fd: int, job_fd: int, room_fd: int, extent: tuple[int, int]) -> bytes:
    """Do one job; the packet that says where its answer lies."""
    room = Room(room_fd, THRESHOLD)
    job = _decode_job(read_some(job_fd, *extent))
    mapping = mmap.mmap(body_fd, os.fstat(body_fd).st_size, access=mmap.ACCESS_READ)
    data = memoryview(mapping)
    answer = msgspec.msgpack.encode(decode(job, data, room))
    with contextlib.suppress(BufferError):  # if something still looks at it, it goes with that
        data.release()
        mapping.close()
    return EXTENT.pack(room.end, write_all(room_fd, answer, room.end))


def serve(line: socket.socket) -> None:
    """Do one job after another until the worker closes the line."""
    while True:
        packet, descriptors, _, _ = socket.recv_fds(line, EXTENT.size, DESCRIPTORS)
        if not packet:
            return
        try:
            body, job, room = descriptors
            reply = work(body, job, room, EXTENT.unpack(packet))
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        line.send(reply)


def main() -> None:
    """Entry point: `python -m gateway.http.decoder_process LINE_FD WORKER_PID MEMORY_LIMIT`."""
    line_fd, parent, limit = (int(argument) for argument in sys.argv[1:4])
    die_with_parent(parent)
    setproctitle("gateway: body decoder")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # these reach the whole group; the worker decides
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    logging.basicConfig(format="%(asctime)s %(name)s %(levelname)s %(message)s", level=logging.INFO)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(KILLED_FIRST))
    with socket.socket(fileno=line_fd) as line, contextlib.suppress(ConnectionError):
        serve(line)


if __name__ == "__main__":
    main()
