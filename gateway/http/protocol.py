"""The HTTP connection: uvicorn's own, with inference answered inside it instead of in an ASGI task.

Everything but inference calls (http/calls.py) goes on to uvicorn and the FastAPI app. An inference takes the place that
uvicorn gives a request (its "cycle"), so that order among pipelined requests, flow control, keep-alive
and graceful shutdown stay uvicorn's.
"""

import asyncio
import re
from typing import Any, cast

import httptools
from fastapi import FastAPI
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from gateway.errors import RequestError
from gateway.http.body import LARGE
from gateway.http.calls import Call
from gateway.http.edge import Shown
from gateway.http.inference import Inference
from gateway.http.responses import error_body, response_head
from gateway.http.state import WorkerState

_UPGRADE = re.compile(rb"\r\n(?:upgrade|http2-settings|connection):[^\r\n]*", re.IGNORECASE)
RECEIVE_SECONDS = 60.0
"""A client that sends nothing for so long in mid-request is let go, or that takes so long for a request's head."""
WATCH_SECONDS = 5.0
"""So often, at least, a connection is looked at."""
MAX_HEAD_BYTES = 64 << 10
MAX_HEADERS = 1000
DIRECT_FROM = LARGE
"""Bodies of more bytes are read from the socket straight to where they are needed."""


class InferenceProtocol(HttpToolsProtocol):
    """One client connection."""

    infers = True
    state: WorkerState
    shown: Shown | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.state = cast("FastAPI", self.config.app).state.worker
        self.heard = 0.0  # when bytes last came from the client
        self._begun = 0.0  # when it was the client's turn to send what it is to send now
        self._idle_since: float | None = None
        self._stalled = False
        self._in_head = False
        self._head_bytes = 0
        self._direct: Inference | None = None

    # Reading

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        """Called by asyncio."""
        super().connection_made(transport)
        self.heard = self._begun = self.loop.time()
        self._watch(min(self.timeout_keep_alive, WATCH_SECONDS))

    def data_received(self, data: bytes) -> None:
        """Called by asyncio: parse, and leave the parser out of the rest of a large body."""
        self.heard = self.loop.time()
        if b"pgrade:" in data and (self.cycle is None or self.cycle.response_complete):
            data = without_upgrade(data)
        super().data_received(data)
        if self._in_head:
            self._head_bytes += len(data)
        if self._head_bytes > MAX_HEAD_BYTES or (self.headers is not None and len(self.headers) > MAX_HEADERS):
            self._refuse_head()
        if self._direct is not None and not self.transport.is_closing():
            inference, self._direct = self._direct, None
            inference.read_directly()

    def on_message_begin(self) -> None:
        """Called by the parser; uvicorn's scope is made only for requests that uvicorn gets."""
        self.url = b""
        self.expect_100_continue = False
        self.headers = []
        self._in_head = True
        self._begun = self.heard

    def on_headers_complete(self) -> None:
        """Called by the parser: an inference request, or one for uvicorn."""
        self._in_head = False
        self._head_bytes = 0
        if self.infers and ((method := self.parser.get_method()) == b"POST" or method == b"PUT"):
            path = self.url if b"?" not in self.url else self.url.partition(b"?")[0]
            call = self.state.calls.get(path) or self.state.calls.find(path)
            if call is not None and (method == b"POST" or call.dialect.takes_put):
                self._begin(call)
                return
        url, expect, headers = self.url, self.expect_100_continue, self.headers
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expect
        self.headers += headers
        super().on_headers_complete()

    def _refuse_head(self) -> None:
        self.state.flush()
        body = error_body(RequestError("the head of the request is too large"))
        self.transport.write(response_head(431, len(body)) + b"connection: close\r\n\r\n" + body)
        self.transport.close()

    def _begin(self, call: Call) -> None:
        existing = self.cycle
        inference = Inference(self, call)
        self.cycle = cast("RequestResponseCycle", inference)
        if existing is None or existing.response_complete:
            inference.has_turn = True
            inference.read_headers()
            if inference.body.size > DIRECT_FROM:
                self._direct = inference
        else:
            inference.read_headers()
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, self.app))

    def on_body(self, body: bytes) -> None:
        """Called by the parser."""
        cycle: object = self.cycle
        if isinstance(cycle, Inference):
            cycle.take(body)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Called by the parser."""
        cycle: object = self.cycle
        if isinstance(cycle, Inference):
            self._direct = None
            cycle.body_complete()
        else:
            super().on_message_complete()

    def read_past_parser(self, inference: Inference) -> None:
        """Have the rest of a large body read straight into the request's buffer."""
        swap_protocol(self.transport, BodyReader(self, inference))

    def body_read_directly(self) -> None:
        """The rest of a large body has been read past the parser, which therefore starts anew."""
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn has it

    # Answering

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        waiting: object = cycle
        if isinstance(waiting, Inference):
            waiting.take_turn()
        else:
            super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        """A response was written: go on with the next request, or wait for one.

        uvicorn sets and cancels a keep-alive timer for each request; here one timer a connection looks at the clock.
        """
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if self.pipeline:
            self.state.flush()  # only then is it known whether the client takes its responses
        if self.flow.write_paused:
            self._stalled = True
            self.heard = self._begun = self.loop.time()  # from now on the client may take its time to read
        elif self.pipeline:
            self.loop.call_soon(self._go_on)  # not from here: a thousand bad requests in a row would nest as deeply
        else:
            self._go_on()

    def _go_on(self) -> None:
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._begun = self.loop.time()
            self._start_asgi_task(*self.pipeline.pop())
            return
        self._idle_since = self.loop.time()

    def pause_writing(self) -> None:
        """Called by asyncio: the client does not read its responses, so it gets no more of them."""
        super().pause_writing()
        self.flow.pause_reading()

    def resume_writing(self) -> None:
        """Called by asyncio: the client has caught up."""
        super().resume_writing()
        if self._stalled:
            self._stalled = False
            self._go_on()
        elif not self.pipeline:
            self.flow.resume_reading()

    def shutdown(self) -> None:
        """Called by uvicorn when the server stops: finish the response under way, then close."""
        self.state.flush()
        super().shutdown()

    def send_400_response(self, msg: str) -> None:
        """Called by uvicorn for what is not HTTP."""
        self.state.flush()
        body = error_body(RequestError(msg))
        self.transport.write(response_head(400, len(body)) + b"connection: close\r\n\r\n" + body)
        self.transport.close()

    def _watch(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def _unset_keepalive_if_required(self) -> None:
        if self._idle_since is not None:
            self._idle_since, self._begun = None, self.heard

    def timeout_keep_alive_handler(self) -> None:
        """Close the connection if it was idle for too long or its client stopped in mid-request; else look again."""
        self.timeout_keep_alive_task = None
        if self.transport.is_closing():
            return
        now = self.loop.time()
        if self._idle_since is not None:
            left = self._idle_since + self.timeout_keep_alive - now
        elif self._waits_for_client():
            left = min(self.heard + RECEIVE_SECONDS, self._sent_until()) - now
        else:
            left = self.timeout_keep_alive
        if left > 0:
            self._watch(min(left, self.timeout_keep_alive, WATCH_SECONDS))
        elif self.flow.write_paused:
            self.transport.abort()  # it will not read what closing would wait for
        else:
            self.transport.close()

    def _sent_until(self) -> float:
        """When the rest of a head, or of a small body, must be there; of an inference's body, or much more of it."""
        cycle: object = self.cycle
        if isinstance(cycle, Inference) and not cycle.body.complete:
            return cycle.started + cycle.body.seconds_allowed(self.state.request_timeout)
        return self._begun + RECEIVE_SECONDS

    def _waits_for_client(self) -> bool:
        """Whether it is the client's turn to send: the rest of a request, or a first one."""
        cycle: object = self.cycle
        if isinstance(cycle, Inference):
            return cycle.response_complete or not cycle.body.complete
        return self.cycle is None or self.cycle.response_complete or self.cycle.more_body

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio: nobody waits for the answers of this connection any more."""
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
            self.timeout_keep_alive_task = None
        for cycle in (self.cycle, *(waiting for waiting, _ in self.pipeline)):
            inference: object = cycle
            if isinstance(inference, Inference):
                inference.abandon()
        self.pipeline.clear()
        super().connection_lost(exc)
        self.cycle = None  # type: ignore[assignment] # as uvicorn begins; it and its request hold each other


class GuardedProtocol(InferenceProtocol):
    """A connection of a listener where nothing is inferred, with the same limits of sizes and times."""

    infers = False


class BodyReader(asyncio.BufferedProtocol):
    """Stands in for a connection's protocol while the rest of a large body is read into its buffer."""

    def __init__(self, connection: InferenceProtocol, inference: Inference) -> None:
        self._connection = connection
        self._inference = inference

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's signature
        """Called by asyncio: where the bytes belong."""
        return self._inference.body.unread()

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


def without_upgrade(data: bytes) -> bytes:
    """A request's head without its offer to change the protocol, which may be ignored (RFC 9110, 7.8).

    Java's client and curl --http2 make that offer; the parser would take the body for the new protocol's.
    """
    head, end, rest = data.partition(b"\r\n\r\n")
    return _UPGRADE.sub(b"", head) + end + rest


def swap_protocol(transport: asyncio.Transport, protocol: asyncio.BaseProtocol) -> None:
    """Have another protocol get what arrives; the pause makes uvloop ask the new one for its buffers."""
    transport.pause_reading()
    transport.set_protocol(protocol)
    transport.resume_reading()
