import asyncio
import socket
import struct
from typing import Any

import msgspec
import pytest

from gateway.errors import ModelNotReady
from gateway.http.servers import Servers
from gateway.http.worker import Worker
from gateway.ipc.messages import MAX_MESSAGE, MessageStream, Start, ToWorker

START = Start(
    listeners={}, loopback=[], max_body_bytes=1000, request_timeout=5.0, keep_alive_seconds=5, drain_timeout=5.0
)


@pytest.mark.parametrize("last", [b"", struct.pack("<I", MAX_MESSAGE + 1), struct.pack("<I", 1) + b"\xc1"])
async def test_a_worker_that_hears_no_more_of_the_supervisor_stops(last: bytes) -> None:
    ours, theirs = socket.socketpair()
    stream: MessageStream[ToWorker] = await MessageStream.over(theirs, ToWorker)
    worker = Worker(stream, START)
    start = msgspec.structs.replace(START, listeners={"http": socket.create_server(("127.0.0.1", 0)).detach()})
    servers = Servers(start, worker.state, on_listening=lambda: None)
    serving = asyncio.create_task(servers.serve())
    asked: asyncio.Task[Any] = asyncio.create_task(worker.ask("metrics"))
    await asyncio.sleep(0)
    with ours:
        ours.sendall(last)
        ours.shutdown(socket.SHUT_WR)
        await asyncio.wait_for(worker.listen(servers), 5)
    await asyncio.wait_for(serving, 5)
    with pytest.raises(ModelNotReady):
        await asked
    stream.close()
