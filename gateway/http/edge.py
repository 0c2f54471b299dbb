"""An HTTP worker's edge: whether a request may come in, what it is called, and who writes it down."""

import random
import time
from collections.abc import Sequence
from hmac import compare_digest
from typing import TYPE_CHECKING, Any, Literal, Protocol

from gateway.errors import GatewayError, Unauthenticated
from gateway.http import rates
from gateway.http.access import Access, Holder, Need, bare, check_rate, check_time, key_in
from gateway.http.access_log import AccessLog
from gateway.http.calls import Call
from gateway.http.identity import traceparent
from gateway.http.rates import Memory
from gateway.http.visit import Visit
from gateway.ipc.messages import Keys, Start

if TYPE_CHECKING:
    from gateway.http.tracing import Tracing

Shown = tuple[Access, int, bytes, bytes, Holder]
"""Which header (its place, name and value) of a connection's last request was its key, and whose among which keys."""
Headers = Sequence[tuple[bytes, bytes]]


class Client(Protocol):
    """What is read of a connection, and kept with it."""

    headers: list[tuple[bytes, bytes]]
    shown: Shown | None
    url: bytes
    method: bytes
    client: Any
    scheme: Literal["http", "https"] | None


class Edge:
    """Made only where something of it is configured, so that a request otherwise costs one look."""

    def __init__(self, shared: Memory | None, log: AccessLog | None, tracing: "Tracing | None") -> None:
        self.access = Access()
        self.rates = shared or rates.own_memory()
        self._log = log
        self._tracing = tracing
        self.records = log is not None or tracing is not None
        """Whether somebody wants to know of each request."""

    def use(self, message: Keys) -> None:
        """These keys are in force from now on."""
        self.access = Access(message.keys, message.places)

    def refusal(self, connection: Client, model: str) -> GatewayError | None:
        """Why an inference may not be made; None if it may.

        A connection's requests mostly show the same key: whose it is has to be found out once.
        """
        holder = self._same_holder(connection)
        try:
            if holder is None:
                holder = self._holder(connection)
            elif holder.mortal:
                check_time(holder, time.time())
            if not holder.infer or not holder.is_for(model):
                holder.check(Need("infer", model))
            if holder.interval:
                check_rate(holder, self.rates, time.monotonic())
        except GatewayError as error:
            return error
        return None

    def _same_holder(self, connection: Client) -> Holder | None:
        """Whose key it is, if it stands where the last request of the connection had it."""
        shown, headers = connection.shown, connection.headers
        if shown is None or shown[0] is not self.access or len(headers) <= shown[1]:
            return None
        name, value = headers[shown[1]]
        # Behind a proxy the last request may have been somebody else's, so that this comparison, too, tells no time.
        return shown[4] if name == shown[2] and compare_digest(value, shown[3]) else None

    def _holder(self, connection: Client) -> Holder:
        """Whose key it is, to be remembered; Unauthenticated."""
        connection.shown = None
        place, name, value = key_in(connection.headers)
        holder = self.access.holder(bare(value), time.time())
        connection.shown = (self.access, place, name, value or b"", holder)
        return holder

    def visit(
        self, client: Client, call: Call, started: float, identity: bytes, refusal: GatewayError | None
    ) -> tuple[Visit, bytes]:
        """Begin to write down an inference, refused or not; also the id to answer with."""
        path = client.url.partition(b"?")[0].decode("latin-1")
        method = client.method.decode("latin-1")
        visit = Visit(self.record, method, path, client.client, client.scheme, started)
        visit.model, visit.protocol = call.wish[0], call.dialect.protocol
        if self.access.required and client.shown is not None and not isinstance(refusal, Unauthenticated):
            visit.key = client.shown[4].id
        return visit, self.begin(visit, identity, client.headers)

    def begin(self, visit: Visit, identity: bytes, headers: Headers) -> bytes:
        """Take down what a request is called; the id to answer with, which is made if the client has sent none."""
        parent, state = None, ""
        for name, value in headers:
            if name == b"traceparent":
                parent = traceparent(value)
            elif name == b"tracestate":
                state = value.decode("latin-1")
        if self._tracing is not None:
            self._tracing.begin(visit, parent, state)
        elif parent is not None:
            visit.trace_id = parent.trace_id
        identity = identity or (visit.trace_id or f"{random.getrandbits(128):032x}").encode()
        visit.request_id = identity.decode()
        return identity

    def record(self, visit: Visit) -> None:
        """Write down a request that has ended."""
        if self._log is not None:
            self._log.add(visit)
        if self._tracing is not None:
            self._tracing.end(visit)

    def close(self, seconds: float) -> None:
        """Write down what is left, as far as that takes no longer than this."""
        if self._log is not None:
            self._log.close(seconds)
        if self._tracing is not None:
            self._tracing.close(seconds)


def open_edge(start: Start) -> Edge | None:
    """What the settings ask for; None if that is nothing."""
    tracing = None
    if start.otlp_endpoint:
        from gateway.http.tracing import Tracing  # noqa: PLC0415 - an extra, and a third of a second

        tracing = Tracing(start.otlp_endpoint)
    if start.rates < 0 and not start.access_log and tracing is None:
        return None
    shared = rates.shared_memory(start.rates) if start.rates >= 0 else None
    return Edge(shared, AccessLog() if start.access_log else None, tracing)
