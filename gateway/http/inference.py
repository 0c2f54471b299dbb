"""One inference request on a client connection: its body in, the call to an instance, its response out."""

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from gateway.errors import GatewayError, PayloadTooLarge, RequestError
from gateway.http import compression, oip
from gateway.http.responses import error_body, error_headers, response_head, status_of
from gateway.ipc.channel import Channel, Reply
from gateway.routing import Target, pick
from gateway.tensors import Buffer

if TYPE_CHECKING:
    from gateway.http.protocol import InferenceProtocol

log = logging.getLogger("gateway.worker")

DISCARD_TIMES = 8
"""Of a body over the limit up to this many times the limit are read and dropped, so that the client hears why."""
_HEADERS = frozenset(
    {b"content-length", b"content-encoding", b"accept-encoding", b"inference-header-content-length"}
)  # those that matter here


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
    size = -1  # of the body as announced; -1: not announced
    _target: Target | None = None
    _error: GatewayError | None = None
    _channel: Channel | None = None
    _request: oip.InferenceRequest | None = None
    _request_id = 0
    _complete = False
    _json_size: int | None = None
    _encoding = ""
    _accept: str | None = None
    _received = 0
    _buffer: memoryview | None = None  # where a large body goes, in the arena or beside it
    _region: int | None = None
    _decode_seconds = 0.0
    _sent = 0.0

    def __init__(self, connection: "InferenceProtocol", target: Target | GatewayError) -> None:
        self.started = time.perf_counter()
        self._connection = connection
        self._limit = connection.state.max_body_bytes
        self._parts: list[bytes] = []
        self._regions: list[int] = []
        if isinstance(target, Target):
            self._target = target
        else:
            self._error = target

    # Reading the request

    def read_headers(self) -> None:
        """Take what matters from the request's head; what is wrong with it is answered when the body is in."""
        connection = self._connection
        self.keep_alive = connection.parser.should_keep_alive() and connection.parser.get_http_version() != "1.0"
        try:
            for name, value in connection.headers:
                if name in _HEADERS:
                    self._read_header(name, value)
        except RequestError as error:
            self._error = self._error or error
        if self.size > self._limit:
            self._refuse_size()
        if connection.expect_100_continue and self.has_turn:
            if self._error is None:
                connection.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            else:
                self.keep_alive = False  # the client has not sent the body and will not
                self._answer_error(self._error)

    def _read_header(self, name: bytes, value: bytes) -> None:
        if name == b"content-length":
            self.size = int(value)  # the parser has checked that it is a number
        elif name == b"content-encoding":
            encoding = value.strip().lower().decode("latin-1")
            self._encoding = "" if encoding == "identity" else encoding
        elif name == b"accept-encoding":
            self._accept = compression.chosen_encoding(value)
        else:
            text = value.strip()
            if not text.isdigit() or len(text) > 18:
                raise RequestError("Inference-Header-Content-Length must be a number of bytes")
            self._json_size = int(text)

    def _refuse_size(self) -> None:
        self._error = PayloadTooLarge(f"the body is larger than the limit of {self._limit} bytes")
        self._parts.clear()

    def take(self, body: bytes) -> None:
        """Called for each piece of the body that comes through the parser."""
        self._received += len(body)
        if self._error is not None:
            if self._received > DISCARD_TIMES * self._limit:
                self._connection.transport.close()
        elif self._received > self._limit:
            self._refuse_size()
        else:
            self._parts.append(body)

    def read_directly(self) -> None:
        """Have the rest of a large body read to where the instance will read it."""
        if self._error is not None or self._complete or not isinstance(self._target, Target):
            return
        if self._json_size is not None and not self._encoding and not self._reserve():
            return
        from gateway.http.protocol import BodyReader, swap_protocol  # noqa: PLC0415 - the two modules know each other

        if self._buffer is None:
            self._buffer = memoryview(bytearray(self.size))
        at = 0
        for part in self._parts:
            self._buffer[at : at + len(part)] = part
            at += len(part)
        self._parts.clear()
        swap_protocol(self._connection.transport, BodyReader(self._connection, self))

    def _reserve(self) -> bool:
        """Take a region of the arena for the body; False: none is free and reading waits for one."""
        try:
            self._channel = self._channel or pick(self._target) if self._target else None
        except GatewayError as error:
            self._error = error
            return False
        assert self._channel is not None
        json_size = min(self._json_size or 0, self.size)
        self._region = self._channel.reserve(self.size, lead=json_size)
        if self._region is None:
            self._connection.transport.pause_reading()
            self._channel.when_freed(self._try_again)
            return False
        self._buffer = self._channel.arena.view[self._region : self._region + self.size]
        return True

    def _try_again(self) -> None:
        if self.disconnected or self._connection.transport.is_closing():
            return
        self._connection.transport.resume_reading()
        if self._channel is not None and self._channel.closed:
            self._channel = None
        self.read_directly()

    def unread(self) -> memoryview:
        """The part of the buffer that is still to be filled."""
        assert self._buffer is not None
        return self._buffer[self._received :]

    def filled(self, count: int) -> bool:
        """So many more bytes of the buffer are filled; True if that is all."""
        self._received += count
        return self._received == self.size

    def body_complete(self) -> None:
        """The whole body is there."""
        self._complete = True
        if self.has_turn and not self.response_complete:
            self._run()

    def take_turn(self) -> None:
        """The responses before this one on its connection are written."""
        self.has_turn = True
        if self._complete:
            self._run()

    # Calling the instance

    def _run(self) -> None:
        if self._error is not None:
            self._answer_error(self._error)
            return
        if self._encoding:
            self._unpack()
            return
        if self._buffer is not None:
            self._send(self._buffer)
        else:
            self._send(self._parts[0] if len(self._parts) == 1 else b"".join(self._parts))

    def _unpack(self) -> None:
        body = bytearray(self._buffer) if self._buffer is not None else b"".join(self._parts)
        if len(body) <= compression.THREAD_FROM // 8:
            try:
                self._send(compression.decompress(body, self._encoding, self._limit))
            except GatewayError as error:
                self._answer_error(error)
            return
        loop = self._connection.loop
        work = loop.run_in_executor(None, compression.decompress, body, self._encoding, self._limit)
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
        target = self._target
        assert target is not None
        try:
            if self._channel is None:
                self._channel = pick(target)
            channel = self._channel
            body = oip.Body(data, self._json_size, self._region)
            if self._region is not None:
                self._regions.append(self._region)
            self._request = request = oip.decode(body, target, channel, self._regions)
        except GatewayError as error:
            self._give_back()
            self._answer_error(error)
            return
        except Exception:
            log.exception("decoding a request failed")
            self._give_back()
            self._answer_error(GatewayError("internal error"))
            return
        now = time.perf_counter()
        self._decode_seconds = now - begun
        self._request_id = channel.call(request.header, request.payload, self._regions, self._on_reply, now)
        self._sent = now

    def _give_back(self) -> None:
        if self._channel is not None:
            for region in self._regions:
                self._channel.unreserve(region)
        self._regions = []

    def abandon(self) -> None:
        """The client is gone."""
        self.disconnected = True
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
        if reply.batch_rows:
            target.counters.executed(reply.compute_seconds, reply.batch_rows)
        if reply.error is not None or reply.header is None:
            self._answer_error(reply.error or GatewayError("internal error"))
            return
        try:
            text, binary = oip.encode_response(request, target.response_start, reply.header, reply.tensors)
        except GatewayError as error:
            self._answer_error(error)
            return
        self._answer(text, binary)
        now = time.perf_counter()
        between = reply.received - self._sent - reply.queue_seconds - reply.compute_seconds
        target.counters.observe(
            now - self.started,
            (
                self._decode_seconds,
                reply.queue_seconds,
                reply.compute_seconds,
                max(0.0, between),
                now - reply.received,
            ),
        )

    def _answer(self, text: bytes, binary: list[Buffer]) -> None:
        size = len(text)
        if binary:
            size += sum(map(len, binary))
        if self._accept is not None and size >= compression.SMALLEST:
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
        assert self._accept is not None
        if len(body) <= compression.THREAD_FROM:
            self._write_packed(compression.compress(body, self._accept), json_size)
            return
        work = self._connection.loop.run_in_executor(None, compression.compress, body, self._accept)
        work.add_done_callback(lambda done: self.disconnected or self._write_packed(done.result(), json_size))

    def _write_packed(self, packed: bytes, json_size: int | None) -> None:
        headers = {"content-encoding": str(self._accept), "vary": "accept-encoding"}
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
        if self.keep_alive:
            connection.state.write_soon(connection.transport, b"".join(parts))
        else:
            connection.transport.write(b"".join(parts))
        self.response_complete = True
        self._parts = []
        self._buffer = None
        if not self.keep_alive:
            connection.transport.close()
        connection.on_response_complete()
