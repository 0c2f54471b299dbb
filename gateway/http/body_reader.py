"""Reads the rest of a large body straight into its buffer, in place of the connection's own protocol."""

import asyncio
from typing import TYPE_CHECKING

from gateway.http.inference import Inference

if TYPE_CHECKING:
    from gateway.http.protocol import InferenceProtocol


PIECE = 64 << 10
"""Bytes that are read at once. uvloop reads up to 32 times before another connection has its turn, and the system may
hold several MB for each: with pieces of any size 20 clients would take 100 ms a turn."""


class BodyReader(asyncio.BufferedProtocol):
    """Stands in for a connection's protocol while the rest of a large body is read into its buffer."""

    def __init__(self, connection: "InferenceProtocol", inference: Inference) -> None:
        self._connection = connection
        self._inference = inference

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's signature
        """Called by asyncio: where the bytes belong."""
        return self._inference.body.unread()[:PIECE]

    def buffer_updated(self, nbytes: int) -> None:
        """Called by asyncio: so many bytes are there."""
        self._connection.heard = self._connection.loop.time()
        if not self._inference.body.filled(nbytes):
            return
        self._connection.body_read_directly()
        swap_protocol(self._connection.transport, self._connection)
        self._inference.body_complete()

    def eof_received(self) -> None:
        """Called by asyncio."""
        self._connection.eof_received()

    def pause_writing(self) -> None:
        """Called by asyncio."""
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        """Called by asyncio."""
        self._connection.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio."""
        self._connection.connection_lost(exc)


def swap_protocol(transport: asyncio.Transport, protocol: asyncio.BaseProtocol) -> None:
    """Have another protocol get what arrives; the pause makes uvloop ask the new one for its buffers."""
    transport.pause_reading()
    transport.set_protocol(protocol)
    transport.resume_reading()
