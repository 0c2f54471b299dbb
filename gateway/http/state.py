"""What all connections of an HTTP worker share."""

from collections.abc import Sequence
from typing import Protocol

from gateway.metrics import Counters
from gateway.routing import RoutingTable


class Supervisor(Protocol):
    """The questions that only the supervisor can answer."""

    async def ask(self, what: str, model: str = "") -> bytes:
        """The answer to metrics, statistics, load or unload; GatewayError if it refuses."""


class WorkerState:
    """The routing table in force, the counters and the limits; all of it used from one thread."""

    def __init__(self, supervisor: Supervisor, max_body_bytes: int) -> None:
        self.supervisor = supervisor
        self.max_body_bytes = max_body_bytes
        self.table = RoutingTable()
        self.counters = Counters()
        self._headers: Sequence[tuple[bytes, bytes]] = ()
        self._headers_text = b""

    def default_headers(self, headers: list[tuple[bytes, bytes]]) -> bytes:
        """uvicorn's default headers (Date, Server) as bytes; uvicorn makes a new list each second."""
        if headers is not self._headers:
            self._headers = headers
            self._headers_text = b"".join(b"%s: %s\r\n" % header for header in headers)
        return self._headers_text
