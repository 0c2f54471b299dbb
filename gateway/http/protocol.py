"""The HTTP connection: uvicorn's own, with inference answered inside it instead of in an ASGI task.

Everything but inference calls (http/calls.py) goes on to uvicorn and the FastAPI app. An inference takes the place that
uvicorn gives a request (its "cycle"), so that order among pipelined requests, flow control, keep-alive
and graceful shutdown stay uvicorn's.
"""

import asyncio
import logging
from typing import Any, cast

import httptools
from fastapi import FastAPI
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from gateway.errors import RequestError
from gateway.http.body import LARGE
from gateway.http.body_reader import BodyReader, swap_protocol
from gateway.http.calls import Call
from gateway.http.edge import Shown
from gateway.http.inference import Inference
from gateway.http.request_head import MAX_HEADERS, HeadRefused, RepeatedHead, check_head, head_without_offer, learned
from gateway.http.responses import error_body, response_head
from gateway.http.state import WorkerState

log = logging.getLogger("gateway.worker")

RECEIVE_SECONDS = 60.0
"""A client that sends nothing for so long in mid-request is let go, or that takes so long for a request's head."""
WATCH_SECONDS = 5.0
"""So often, at least, a connection is looked at."""
DIRECT_FROM = LARGE
"""Bodies of more bytes are read from the socket straight to where they are needed."""


class InferenceProtocol(HttpToolsProtocol):
    """One client connection."""

    infers = True
    state: WorkerState
    shown: Shown | None = None
    method = b""
    _trailers = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.state = cast("FastAPI", self.config.app).state.worker
        self.heard = 0.0  # when bytes last came from the client
        self._begun = 0.0  # when it was the client's turn to send what it is to send now
        self._idle_since: float | None = None
        self._stalled = False
        self._in_head = False
        self._head_bytes = 0
        self._between = True  # the next byte begins a request, as far as the parser knows
        self._segment: bytes | None = None  # what is being parsed, if a request began with it and has not ended yet
        self._repeated: RepeatedHead | None = None
        self._declined: bytes | None = None  # the head, without its offer, of a request that offers another protocol
        self._refused = False  # a broken request was met: nothing more is read
        self._farewell = b""  # its answer, as long as earlier requests are unanswered
        self._direct: Inference | None = None

    # Reading

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        """Called by asyncio."""
        super().connection_made(transport)
        self.heard = self._begun = self.loop.time()
        self._watch(min(self.timeout_keep_alive, WATCH_SECONDS))

    def data_received(self, data: bytes) -> None:
        """Called by asyncio: parse, but for a request whose head is byte for byte that of an earlier one."""
        self.heard = self.loop.time()
        if self._idle_since is not None:
            self._idle_since, self._begun = None, self.heard
        known = self._repeated
        if known is not None and self._between and len(data) == known.length and data.startswith(known.head):
            self._begin_again(known, data)
        elif not self._refused:
            self._parse(data)

    def _begin_again(self, known: RepeatedHead, data: bytes) -> None:
        """Take a whole request whose head is known: equal bytes mean the same."""
        call = self.state.calls.get(known.path) or self.state.calls.find(known.path)
        assert call is not None  # the paths of inference calls never change
        self.method, self.url, self.headers, self.expect_100_continue = known.method, known.url, known.headers, False
        self._begun = self.heard
        inference = self._begin(call, keep_alive=True)
        inference.take(data[len(known.head) :])
        inference.body_complete()

    def _parse(self, data: bytes) -> None:
        """Parse, and leave the parser out of the rest of a large body."""
        in_head = self._in_head
        whole = self._segment = data if self._between else None
        try:
            while True:
                try:
                    self.parser.feed_data(data)
                    break
                except httptools.HttpParserUpgrade as offer:
                    data = self._without_offer(data[offer.args[0] :])
            if self._in_head:
                self._head_bytes += len(data) if in_head or (whole is not None and self._segment is whole) else 0
                check_head(self._head_bytes, self.headers)
            self._segment = None
        except httptools.HttpParserCallbackError as error:
            self._refuse(error.__context__)
            return
        except (httptools.HttpParserError, HeadRefused) as error:
            self._refuse(error)
            return
        inference, self._direct = self._direct, None
        if inference is not None and not self.transport.is_closing():
            inference.read_directly()

    def _without_offer(self, rest: bytes) -> bytes:
        """What is to be parsed after the head of a request that offers another protocol, declined (RFC 9110, 7.8).

        Java's client and `curl --http2` make that offer. The parser ends such a message with its head, wherever its
        body ends; so it gets the head once more, without the offer.
        """
        assert self._declined is not None
        head, self._declined = self._declined, None
        self.new_parser()
        return head + rest

    def new_parser(self) -> None:
        """Have what comes next parsed as a new request."""
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn has it

    def on_message_begin(self) -> None:
        """Called by the parser; uvicorn's scope is made only for requests that uvicorn gets."""
        self.url = b""
        self.expect_100_continue = False
        self.headers = []
        self._in_head = True
        self._between = False
        self._trailers = 0
        self._begun = self.heard

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the parser; what follows a chunked body (its trailers) is read and dropped."""
        if not self._in_head:
            self._trailers += 1
            if self._trailers > MAX_HEADERS:
                raise HeadRefused(431, "a chunked body has too many trailers")
            return
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Called by the parser: an inference request, or one for uvicorn."""
        self._in_head = False
        self._head_bytes = 0
        parser = self.parser
        self.method = method = parser.get_method()
        check_head(0, self.headers)
        if parser.should_upgrade():
            self._declined = head_without_offer(method, self.url, parser.get_http_version(), self.headers)
            return
        if self.infers and method in {b"POST", b"PUT"}:
            path = self.url if b"?" not in self.url else self.url.partition(b"?")[0]
            call = self.state.calls.get(path) or self.state.calls.find(path)
            if call is not None and (method == b"POST" or call.dialect.takes_put):
                self._begin(call, keep_alive=parser.should_keep_alive() and parser.get_http_version() != "1.0")
                return
        url, expect, headers = self.url, self.expect_100_continue, self.headers
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expect
        self.headers += headers
        super().on_headers_complete()

    def _begin(self, call: Call, *, keep_alive: bool) -> Inference:
        existing = self.cycle
        inference = Inference(self, call)
        self.cycle = cast("RequestResponseCycle", inference)
        if existing is None or existing.response_complete:
            inference.has_turn = True
            inference.read_headers(keep_alive=keep_alive)
            if inference.body.size > DIRECT_FROM:
                self._direct = inference
        else:
            inference.read_headers(keep_alive=keep_alive)
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, self.app))
        return inference

    def on_body(self, body: bytes) -> None:
        """Called by the parser."""
        cycle: object = self.cycle
        if isinstance(cycle, Inference):
            cycle.take(body)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Called by the parser."""
        if self._declined is not None:
            return  # the message is parsed once more
        self._between = True
        segment, self._segment = self._segment, None
        cycle: object = self.cycle
        if not isinstance(cycle, Inference):
            super().on_message_complete()
            return
        self._direct = None
        if segment is not None and cycle.keep_alive and not self.expect_100_continue:
            self._repeated = learned(segment, cycle.body.size, self.url, self.headers, self.method)
        cycle.body_complete()

    def read_past_parser(self, inference: Inference) -> None:
        """Have the rest of a large body read straight into the request's buffer."""
        swap_protocol(self.transport, BodyReader(self, inference))

    def body_read_directly(self) -> None:
        """The rest of a large body has been read past the parser."""
        self.new_parser()
        self._between = True

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
        elif self._farewell:
            self._close_with(self._farewell)
        else:
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

    def _refuse(self, error: BaseException | None) -> None:
        """Answer a broken request after those before it, then close: where the next one begins cannot be known."""
        self._refused, self._between = True, False
        if not isinstance(error, HeadRefused | httptools.HttpParserError | UnicodeError):
            log.error("a request could not be answered", exc_info=error)
            self.transport.abort()
            return
        refusal = error if isinstance(error, HeadRefused) else HeadRefused(400, "Invalid HTTP request received.")
        body = error_body(RequestError(refusal.sentence))
        farewell = response_head(refusal.status, len(body)) + b"connection: close\r\n\r\n" + body
        earlier = self.cycle is not None and not self.cycle.response_complete
        if earlier and self._is_arriving():
            self._give_up()
            earlier = bool(self.pipeline)
            if earlier:
                self.pipeline.popleft()
            elif getattr(self.cycle, "response_started", False):
                farewell = b""
        if earlier:
            self._farewell = farewell
        else:
            self._close_with(farewell)

    def _is_arriving(self) -> bool:
        """Whether the body of the last request is not complete."""
        cycle: object = self.cycle
        return not cycle.body.complete if isinstance(cycle, Inference) else self.cycle.more_body

    def _give_up(self) -> None:
        """End the last request, whose body will never be complete."""
        cycle: object = self.cycle
        if isinstance(cycle, Inference):
            cycle.abandon()
        else:
            self.cycle.disconnected = True
            self.cycle.message_event.set()

    def _close_with(self, farewell: bytes) -> None:
        self.state.flush()
        self.transport.write(farewell)
        self.transport.close()

    def _watch(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

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
        return not self._refused and (self.cycle is None or self.cycle.response_complete or self._is_arriving())

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
