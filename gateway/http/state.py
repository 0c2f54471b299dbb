"""What all connections of an HTTP worker share."""

import asyncio
from collections.abc import Sequence
from typing import Protocol

from gateway.http.calls import Calls
from gateway.http.condemned import Condemned
from gateway.http.cors import Cors
from gateway.http.decoder import Decoder
from gateway.http.edge import Edge
from gateway.http.live import Live
from gateway.http.waiting import WaitingRoom, Wish
from gateway.metrics import Counters
from gateway.routing import RoutingTable, Target

ARRIVING_BYTES = 1 << 30
ARRIVING_BODIES = 4
"""So many bytes, and so many bodies of the largest size, may be on their way in at once."""


class Supervisor(Protocol):
    """The questions that only the supervisor can answer."""

    async def ask(
        self,
        what: str,
        model: str = "",
        version: int = 0,
        workers: tuple[int, int] = (0, 0),
        *,
        seconds: float = 0.0,
        instance: int = 0,
    ) -> bytes:
        """The answer to what an Ask can ask (ipc/messages.py); GatewayError if it refuses."""

    def condemn(self, digest: bytes) -> None:
        """Have all workers refuse a request for a while."""

    def explain(self, instances: Sequence[str]) -> None:
        """Have it known that a request has ended these instances."""


class WorkerState:
    """The routing table in force, the counters and the limits; all of it used from one thread."""

    def __init__(self, supervisor: Supervisor, max_body_bytes: int, request_timeout: float) -> None:
        self.supervisor = supervisor
        self.max_body_bytes = max_body_bytes
        self.request_timeout = request_timeout
        self.server_name = "gateway"
        self.strict_readiness = False
        """Whether the server is ready only while every model is, instead of any."""
        self.compare_report = ""
        """The folder that `gateway compare` has written, or will; empty: nobody has named one."""
        self.cors: Cors | None = None
        """None: nobody asked for it."""
        self.arriving = 0
        """Bytes of large bodies on their way in: no model's queue has them yet."""
        self.max_arriving = max(ARRIVING_BYTES, ARRIVING_BODIES * max_body_bytes)
        self.use(RoutingTable())
        self.counters = Counters()
        self.condemned = Condemned()
        self.edge: Edge | None = None
        """What is asked and written down of each request; None: nothing."""
        self.decoder = Decoder(max_body_bytes)
        self.live = Live(lambda: supervisor.ask("overview"))
        self.waiting = WaitingRoom(self._resolve, lambda model, version: supervisor.ask("wake", model, version))
        self._loop = asyncio.get_running_loop()
        self._outbox: list[tuple[asyncio.Transport, bytes]] = []
        self._headers: Sequence[tuple[bytes, bytes]] = ()
        self._headers_text = b""

    def use(self, table: RoutingTable) -> None:
        """Route by this table from now on."""
        self.table = table
        self.calls = Calls(table)

    @property
    def ready(self) -> bool:
        """Whether the server is to get requests, as health probes ask."""
        return self.table.all_ready if self.strict_readiness else self.table.ready

    def _resolve(self, wish: Wish) -> Target:
        return self.table.target(*wish)

    def default_headers(self, headers: list[tuple[bytes, bytes]]) -> bytes:
        """Uvicorn's default headers (Date, Server) as bytes; uvicorn makes a new list each second."""
        if headers is not self._headers:
            self._headers = headers
            self._headers_text = b"".join(b"%s: %s\r\n" % header for header in headers)
        return self._headers_text

    def write_soon(self, transport: asyncio.Transport, data: bytes) -> None:
        """Write when the work at hand is done, all responses of a batch one right after another.

        A client that is woken by the first of them stays awake for the rest; waking it for each costs more than all
        else that a small request needs.
        """
        if not self._outbox:
            self._loop.call_soon(self.flush)
        self._outbox.append((transport, data))

    def flush(self) -> None:
        """Write what `write_soon` has kept."""
        outbox, self._outbox = self._outbox, []
        for transport, data in outbox:
            if not transport.is_closing():
                transport.write(data)
