import asyncio
import socket
import struct
from typing import Any

import pytest
import uvicorn

from gateway.errors import ModelNotReady
from gateway.http.app import create_app
from gateway.http.worker import Worker
from gateway.ipc.messages import MAX_MESSAGE, MessageStream, Start, ToWorker

START = Start(listen_fd=0, max_body_bytes=1000, request_timeout=5.0, keep_alive_seconds=5, drain_timeout=5.0)


@pytest.mark.parametrize("last", [b"", struct.pack("<I", MAX_MESSAGE + 1), struct.pack("<I", 1) + b"\xc1"])
async def test_a_worker_that_hears_no_more_of_the_supervisor_stops(last: bytes) -> None:
    ours, theirs = socket.socketpair()
    stream: MessageStream[ToWorker] = await MessageStream.over(theirs, ToWorker)
    worker = Worker(stream, START)
    server = uvicorn.Server(uvicorn.Config(create_app()))
    asked: asyncio.Task[Any] = asyncio.create_task(worker.ask("metrics"))
    await asyncio.sleep(0)
    with ours:
        ours.sendall(last)
        ours.shutdown(socket.SHUT_WR)
        await asyncio.wait_for(worker.listen(server), 5)
    assert server.should_exit
    with pytest.raises(ModelNotReady):
        await asked
    stream.close()
