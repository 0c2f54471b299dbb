"""One inference request on a client connection: its body in, the call to an instance, its response out."""

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from gateway.errors import GatewayError
from gateway.http import compression, oip
from gateway.http.body import RequestBody
from gateway.http.responses import error_body, error_headers, response_head, status_of
from gateway.ipc.channel import Channel, Reply
from gateway.routing import Target, pick
from gateway.tensors import Buffer

if TYPE_CHECKING:
    from gateway.http.protocol import InferenceProtocol

log = logging.getLogger("gateway.worker")


class _Quiet:
    """What uvicorn sets to wake an ASGI task; an inference has none."""

    def set(self) -> None:
        """Called by uvicorn."""


_QUIET = _Quiet()


class Inference:
    """The stand-in for uvicorn's RequestResponseCycle.

    uvicorn reads and sets `response_complete`, `keep_alive`, `disconnected` and `message_event`.
    """

    message_event = _QUIET

    # Defaults, so that a plain small request sets little.
    response_complete = False
    disconnected = False
    keep_alive = True
    has_turn = False
    _target: Target | None = None
    _error: GatewayError | None = None
    _channel: Channel | None = None
    _request: oip.InferenceRequest | None = None
    _request_id = 0
    _region: int | None = None  # of the arena, where a large body goes; owned until it is among _regions
    _decode_seconds = 0.0
    _sent = 0.0

    def __init__(self, connection: "InferenceProtocol", path: bytes, target: Target | GatewayError) -> None:
        self.started = time.perf_counter()
        self._path = path
        self._table = connection.state.table
        self.body = RequestBody(connection.state.max_body_bytes)
        self._connection = connection
        self._regions: list[int] = []
        if isinstance(target, Target):
            self._target = target
        else:
            self._error = target

    # Reading the request

    def read_headers(self) -> None:
        """Take what matters from the request's head."""
        connection = self._connection
        self.keep_alive = connection.parser.should_keep_alive() and connection.parser.get_http_version() != "1.0"
        self.body.read_headers(connection.headers)
        if connection.expect_100_continue and self.has_turn:
            if (error := self._error or self.body.error) is None:
                connection.state.write_soon(connection.transport, b"HTTP/1.1 100 Continue\r\n\r\n")
            else:
                self.keep_alive = False  # the client has not sent the body and need not
                self._answer_error(error)
        elif self.body.hopeless and self.has_turn and self.body.error:
            self.keep_alive = False
            self._answer_error(self.body.error)

    def take(self, piece: bytes) -> None:
        """Called for each piece of the body that comes through the parser."""
        if not self.body.take(piece) and self.has_turn and not self.response_complete and self.body.error:
            self.keep_alive = False
            self._answer_error(self.body.error)

    def read_directly(self) -> None:
        """Have the rest of a large binary body read to where the instance will read it, if there is room."""
        body, target = self.body, self._target
        if body.complete or body.error or target is None or body.json_size is None or body.encoding:
            return
        try:
            self._channel = pick(target)
        except GatewayError:
            return  # said when the body is in
        self._region = self._channel.reserve(body.size, lead=min(body.json_size, body.size))
        if self._region is not None:
            body.continue_in(self._channel.arena.view[self._region : self._region + body.size])
            self._connection.read_past_parser(self)

    def body_complete(self) -> None:
        """The whole body is there."""
        self.body.complete = True
        if self.has_turn and not self.response_complete:
            self._run()

    def take_turn(self) -> None:
        """The responses before this one on its connection are written."""
        self.has_turn = True
        if self.body.complete:
            self._run()

    # Calling the instance

    def _run(self) -> None:
        error = self._error or self.body.error
        if error is not None:
            self._answer_error(error)
        elif self.body.encoding:
            self._unpack()
        else:
            self._send(self.body.data)

    def _unpack(self) -> None:
        if len(self.body.data) <= compression.THREAD_FROM // 8:
            try:
                self._send(self.body.unpacked())
            except GatewayError as error:
                self._answer_error(error)
            return
        work = self._connection.loop.run_in_executor(None, self.body.unpacked)
        work.add_done_callback(self._unpacked)

    def _unpacked(self, work: "asyncio.Future[bytes]") -> None:
        if self.disconnected:
            work.exception()  # looked at, so that asyncio does not report it
            return
        try:
            self._send(work.result())
        except GatewayError as error:
            self._answer_error(error)

    def _send(self, data: Buffer) -> None:
        """Decode the body and send it to an instance."""
        begun = time.perf_counter()
        try:
            if self._connection.state.table is not self._table:
                data = self._route_again(data)
            target = self._target
            assert target is not None
            if self._channel is None or self._channel.closed:
                self._channel = pick(target)
            channel = self._channel
            body = oip.Body(data, self.body.json_size, self._region)
            if self._region is not None:
                self._regions.append(self._region)
            self._request = request = oip.decode(body, target, channel, self._regions)
            now = time.perf_counter()
            self._request_id = channel.call(request.header, request.payload, self._regions, self._on_reply, now)
        except GatewayError as error:
            self._give_back()
            self._answer_error(error)
            return
        except Exception:
            log.exception("decoding a request failed")
            self._give_back()
            self._answer_error(GatewayError("internal error"))
            return
        self._decode_seconds = now - begun
        self._sent = now

    def _route_again(self, data: Buffer) -> Buffer:
        """The routes have changed since the head came: find the model anew, and move the body if it must move."""
        target = self._connection.target_for(self._path)
        if not isinstance(target, Target):
            raise target
        self._target = target
        channel = self._channel
        if channel is not None and channel not in target.channels:
            if self._region is not None:
                data = bytes(data)
                channel.unreserve(self._region)
                self._region = None
            self._channel = None
        return data

    def _give_back(self) -> None:
        """Free the regions that no call took over."""
        if self._channel is not None:
            for region in self._regions:
                self._channel.unreserve(region)
        self._regions = []

    def abandon(self) -> None:
        """The client is gone."""
        self.disconnected = True
        self.body.drop()
        if self.response_complete or self._channel is None:
            return
        if self._request_id:
            self._channel.cancel(self._request_id)
            if self._target:
                self._target.counters.drop("disconnected")
        elif self._region is not None and not self._regions:
            self._channel.unreserve(self._region)

    # Answering

    def _on_reply(self, reply: Reply) -> None:
        target, request = self._target, self._request
        assert target is not None
        assert request is not None
        if reply.error is not None or reply.header is None:
            self._answer_error(reply.error or GatewayError("internal error"))
            return
        try:
            text, binary = oip.encode_response(request, target.response_start, reply.header, reply.tensors)
        except GatewayError as error:
            self._answer_error(error)
            return
        except Exception:
            log.exception("encoding a response failed")
            self._answer_error(GatewayError("internal error"))
            return
        self._answer(text, binary)
        now = time.perf_counter()
        between = reply.received - self._sent - reply.queue_seconds - reply.compute_seconds
        target.timings.add(
            (
                now - self.started,
                self._decode_seconds,
                reply.queue_seconds,
                reply.compute_seconds,
                between if between > 0.0 else 0.0,  # noqa: FURB136 - max() costs three times as much
                now - reply.received,
            )
        )

    def _answer(self, text: bytes, binary: list[Buffer]) -> None:
        size = len(text)
        if binary:
            size += sum(map(len, binary))
        if self.body.accept is not None and size >= compression.SMALLEST:
            self._answer_packed(b"".join([text, *binary]), len(text) if binary else None)
            return
        if binary:
            head = (
                b"HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\n"
                b"inference-header-content-length: %d\r\ncontent-length: %d\r\n" % (len(text), size)
            )
        else:
            head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n" % size
        self._write(200, [head, self._end_of_head(), text, *binary])

    def _end_of_head(self) -> bytes:
        dates = self._connection.state.default_headers(self._connection.server_state.default_headers)
        return dates + (b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n")

    def _answer_packed(self, body: bytes, json_size: int | None) -> None:
        assert self.body.accept is not None
        if len(body) <= compression.THREAD_FROM:
            self._write_packed(compression.compress(body, self.body.accept), json_size)
            return
        work = self._connection.loop.run_in_executor(None, compression.compress, body, self.body.accept)

        def packed(done: "asyncio.Future[bytes]") -> None:
            self._write_packed(done.result(), json_size)

        work.add_done_callback(packed)

    def _write_packed(self, packed: bytes, json_size: int | None) -> None:
        headers = {"content-encoding": str(self.body.accept), "vary": "accept-encoding"}
        if json_size is not None:
            headers["inference-header-content-length"] = str(json_size)
        kind = "application/json" if json_size is None else "application/octet-stream"
        self._write(200, [response_head(200, len(packed), kind, headers), self._end_of_head(), packed])

    def _answer_error(self, error: GatewayError) -> None:
        status, body = status_of(error), error_body(error)
        head = response_head(status, len(body), headers=error_headers(error))
        if self._target:
            self._target.counters.drop_for(error)
        self._write(status, [head, self._end_of_head(), body])

    def _write(self, status: int, parts: list[Buffer]) -> None:
        if self._target:
            self._target.counters.count(status, "oip")
        if self.disconnected or self.response_complete:
            return
        connection = self._connection
        connection.state.write_soon(connection.transport, b"".join(parts))
        self.response_complete = True
        self.body.drop()
        if not self.keep_alive:
            connection.state.flush()
            connection.transport.close()
        connection.on_response_complete()
