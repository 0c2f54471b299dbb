"""What is written down of one request, by the access log and as a span: filled while it is answered."""

import time
from collections.abc import Callable
from typing import Any

from gateway.ipc.reply import Reply

LONGEST_PATH = 512
GONE = 499
"""The client left before it was answered; no real status, but what proxies write down for that."""


class Visit:
    """One request. Moments are of `time.perf_counter`; add `offset` for those of the clock on the wall."""

    __slots__ = (
        "_record", "bytes_in", "bytes_out", "client", "compute", "decode", "ended", "error", "key", "method", "model",
        "offset", "path", "protocol", "queue", "received", "request_id", "route", "scheme", "sent", "span", "started",
        "status", "trace_id", "version",
    )  # fmt: skip

    def __init__(
        self, record: Callable[["Visit"], None], method: str, path: str, client: Any, scheme: str | None, started: float
    ) -> None:
        self._record = record
        self.method = method
        self.path = path[:LONGEST_PATH]
        self.client: str = client[0] if client else ""
        self.scheme = scheme or "http"
        self.started = started
        self.offset = time.time() - time.perf_counter()
        self.ended = self.sent = self.received = 0.0
        self.decode = self.queue = self.compute = 0.0
        self.status = self.bytes_in = self.bytes_out = 0
        self.request_id = self.trace_id = self.key = self.protocol = self.model = self.version = self.error = ""
        self.route = ""
        """The path with placeholders for what differs from call to call, if somebody knows it."""
        self.span: Any = None

    def computed(self, sent: float, decode: float, reply: Reply) -> None:
        """The model has answered."""
        self.sent, self.decode = sent, decode
        self.queue, self.compute, self.received = reply.queue_seconds, reply.compute_seconds, reply.received

    def end(self, status: int) -> None:
        """The request is answered, or its client gone: have it recorded, once."""
        if self.ended:
            return
        self.status = status
        self.ended = time.perf_counter()
        self._record(self)
