"""One inference request on a client connection: its body in, its response out; between the two it is dispatched."""

import asyncio
import logging
import time
from collections.abc import Callable

from gateway.errors import GatewayError, QueueFull
from gateway.http import compression, decoder
from gateway.http.body import LARGE
from gateway.http.dialect import InferenceRequest
from gateway.http.dispatch import Dispatch
from gateway.http.edge import Edge
from gateway.http.responses import error_headers, response_head
from gateway.http.visit import GONE, Visit
from gateway.ipc.framing import ResultHeader
from gateway.ipc.reply import Reply
from gateway.routing import Target, pick
from gateway.tensors import Buffer

log = logging.getLogger("gateway.worker")


class _Quiet:
    """What uvicorn sets to wake an ASGI task; an inference has none."""

    def set(self) -> None:
        """Called by uvicorn."""


_QUIET = _Quiet()


class Inference(Dispatch):
    """The stand-in for uvicorn's RequestResponseCycle.

    uvicorn reads and sets `response_complete`, `keep_alive`, `disconnected` and `message_event`.
    """

    message_event = _QUIET

    # Defaults, so that a plain small request sets little.
    keep_alive = True
    has_turn = False
    _arriving = 0  # bytes of its body that are counted as on their way in
    _encoding: "asyncio.Task[None] | None" = None
    visit: Visit | None = None  # what is written down of it, where somebody wants to know

    # Reading the request

    def read_headers(self, *, keep_alive: bool) -> None:
        """Take what matters from the request's head."""
        connection = self._connection
        self.keep_alive = keep_alive
        self.body.read_headers(connection.headers)
        if (edge := connection.state.edge) is not None:
            self._show_at(edge)
        if self.body.size > LARGE:
            self._count_arriving(self.body.size)
        if connection.expect_100_continue and self.has_turn:
            if (error := self._error or self.body.error) is None:
                connection.state.write_soon(connection.transport, b"HTTP/1.1 100 Continue\r\n\r\n")
            else:
                self.keep_alive = False  # the client has not sent the body and need not
                self._answer_error(error)
        elif self.body.hopeless and self.has_turn and self.body.error:
            self.keep_alive = False
            self._answer_error(self.body.error)

    def _show_at(self, edge: Edge) -> None:
        """Have it let in, and written down; if it is refused, nothing of it is kept or computed."""
        refusal = edge.refusal(self._connection, self._call.wish[0]) if edge.access.required else None
        if refusal is not None:
            self._error = refusal
            self.body.refuse(refusal)
        if edge.records:
            self.visit, self.body.request_id = edge.visit(
                self._connection, self._call, self.started, self.body.request_id, refusal
            )

    def take(self, piece: bytes) -> None:
        """Called for each piece of the body that comes through the parser."""
        if not self.body.take(piece) and self.has_turn and not self.response_complete and self.body.error:
            self.keep_alive = False
            self._answer_error(self.body.error)
        if self.body.size < 0 and len(self.body.data) > LARGE:
            self._count_arriving(len(self.body.data))

    def _count_arriving(self, size: int) -> None:
        """So much of the body is there or to come; nothing of it is kept where too much is on its way already."""
        state = self._connection.state
        if self.body.error or self.response_complete:
            return
        state.arriving += size - self._arriving
        self._arriving = size
        if state.arriving > state.max_arriving:
            self._arrived_or_gone()
            self.body.refuse(QueueFull("the server is receiving as many large bodies as it can hold"))

    def _arrived_or_gone(self) -> None:
        """See Dispatch."""
        self._connection.state.arriving -= self._arriving
        self._arriving = 0

    def read_directly(self) -> None:
        """Have the rest of a large binary body read to where the instance will read it, if there is room."""
        body, target = self.body, self._target
        if body.complete or body.error or target is None:
            return
        try:
            channel = pick(target)
        except GatewayError:
            return  # seen to when the body is in
        if not channel.has_room(body.size):
            self._arrived_or_gone()
            body.refuse(channel.queue_full())
            return
        if body.encoding:
            return
        if (body.size if body.json_size is None else min(body.json_size, body.size)) > decoder.FROM:
            self._read_to_memory()
            return
        if body.json_size is None:
            return
        region = channel.reserve(body.size, lead=min(body.json_size, body.size))
        if region is not None:
            self._channel, self._region = channel, region
            self._regions.append(region)
            body.continue_in(channel.arena.view[region : region + body.size])
            self._connection.read_past_parser(self)

    def _read_to_memory(self) -> None:
        """Have the rest of the body read to where another process can read it too."""
        try:
            self.body.continue_in_memory()
        except OSError:
            return  # the parser goes on
        self._connection.read_past_parser(self)

    def body_complete(self) -> None:
        """The whole body is there."""
        self.body.complete = True
        if self.has_turn and not self.response_complete:
            self._run()
        elif not self.has_turn:
            self._arrived = time.perf_counter()

    def take_turn(self) -> None:
        """The responses before this one on its connection are written."""
        self.has_turn = True
        if self.body.complete:
            self._set_alarm()  # its time began before it is sent, which the channel does not look for
            self._run()

    # Calling the instance

    def _run(self) -> None:
        body = self.body
        error = self._error or body.error
        if error is not None:
            self._answer_error(error)
            return
        if body.timeout is not None:
            self._limit(body.timeout)
        if body.encoding:
            self._unpack()
            return
        if self._arriving and not body.takes_long:  # else it counts until it is decoded
            self._arrived_or_gone()
        self._send()

    def _unpack(self) -> None:
        if len(self.body.data) <= compression.INLINE_BYTES:
            self._take_unpacked(self.body.unpacked)
            return
        if self._timer is None:
            self._set_alarm()
        work = self._connection.loop.run_in_executor(None, self.body.unpacked)
        work.add_done_callback(self._unpacked)

    def _unpacked(self, work: "asyncio.Future[bytes]") -> None:
        if self.disconnected or self.response_complete:
            work.exception()  # looked at, so that asyncio does not report it
            return
        self._take_unpacked(work.result)

    def _take_unpacked(self, unpacked: Callable[[], bytes]) -> None:
        try:
            self.body.unpack(unpacked())
        except Exception as error:  # noqa: BLE001 - looked at there
            self._not_sent(error)
            return
        self._arrived_or_gone()
        if self.body.takes_long:  # it counts with its real size until it is decoded
            self._count_arriving(len(self.body.data))
        if self.body.error is not None:
            self._answer_error(self.body.error)
            return
        self._send()

    def abandon(self) -> None:
        """The client is gone."""
        self._arrived_or_gone()
        if self.visit is not None and not self.response_complete:
            self._write_down(GONE, 0)
        super().abandon()

    # Answering

    def _on_reply(self, reply: Reply) -> None:
        target, request = self._target, self._request
        assert target is not None
        assert request is not None
        if reply.error is not None or reply.header is None:
            self._failed(reply.error or GatewayError("internal error"))
            return
        if target.shadow is not None and self._channel is not None:
            target.shadow.see(request.header, request.payload, request.rows, self._channel, reply, self._sent)
        dialect, header = self._call.dialect, reply.header
        try:
            if header.size > request.long_from and dialect.takes_long(request, header):
                self._encode_in_turns(reply, header, request, target)
                return
            text, binary = dialect.encode(request, target, header, reply.tensors)
        except Exception as error:  # noqa: BLE001 - looked at there
            self._not_encoded(error)
            return
        self._encoded(reply, target, text, binary)

    def _encoded(self, reply: Reply, target: Target, text: bytes, binary: list[Buffer]) -> None:
        """Answer, and count the times."""
        if self.visit is not None:
            self.visit.computed(self._sent, self._decode_seconds, reply)
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

    def _not_encoded(self, error: Exception) -> None:
        if not isinstance(error, GatewayError):
            log.error("encoding a response failed", exc_info=error)
            error = GatewayError("internal error")
        self._answer_error(error)

    def _encode_in_turns(self, reply: Reply, header: ResultHeader, request: InferenceRequest, target: Target) -> None:
        kept = [bytes(raw) for raw in reply.tensors]  # what lies in the arena is the instance's again after this turn

        async def encode() -> None:
            try:
                text, binary = await self._call.dialect.encode_in_turns(request, target, header, kept)
            except Exception as error:  # noqa: BLE001 - looked at there
                self._not_encoded(error)
            else:
                self._encoded(reply, target, text, binary)

        self._encoding = self._connection.loop.create_task(encode())

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
            assert self._request is not None
            head = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ncontent-length: %d\r\n" % (
                self._request.content_type,
                size,
            )
        self._write(200, [head, self._end_of_head(), text, *binary])

    def _end_of_head(self) -> bytes:
        state = self._connection.state
        dates = state.default_headers(self._connection.server_state.default_headers)
        if self.body.request_id:
            dates += b"x-request-id: %b\r\n" % self.body.request_id
        if state.cors is not None:
            dates += state.cors.headers(self.body.headers)
        return dates + (b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n")

    def _answer_packed(self, body: bytes, json_size: int | None) -> None:
        assert self.body.accept is not None
        if len(body) <= compression.THREAD_FROM:
            self._write_packed(compression.compress(body, self.body.accept), json_size)
            return
        if self._timer is None:
            self._set_alarm()
        work = self._connection.loop.run_in_executor(None, compression.compress, body, self.body.accept)

        def packed(done: "asyncio.Future[bytes]") -> None:
            try:
                self._write_packed(done.result(), json_size)
            except Exception as error:  # noqa: BLE001 - looked at there
                self._not_encoded(error)

        work.add_done_callback(packed)

    def _write_packed(self, packed: bytes, json_size: int | None) -> None:
        headers = {"content-encoding": str(self.body.accept), "vary": "accept-encoding"}
        if json_size is not None:
            headers["inference-header-content-length"] = str(json_size)
        assert self._request is not None
        kind = self._request.content_type.decode() if json_size is None else "application/octet-stream"
        self._write(200, [response_head(200, len(packed), kind, headers), self._end_of_head(), packed])

    def _answer_error(self, error: GatewayError) -> None:
        error.without_frames()
        status, body = self._call.dialect.error(error, self._wish or self._call.wish)
        head = response_head(status, len(body), headers=error_headers(error))
        if self.visit is not None:
            self.visit.error = error.code
        if (counters := self._target.counters if self._target else self._counters) is not None:
            counters.failed(error, time.perf_counter() - self.started)
        self._write(status, [head, self._end_of_head(), body])

    def _write(self, status: int, parts: list[Buffer]) -> None:
        if self.response_complete:
            return  # its time was over before
        if (counters := self._target.counters if self._target else self._counters) is not None:
            counters.count(status, self._call.dialect.protocol)
        if self.disconnected:
            return
        if self._timer is not None:
            self._timer.cancel()
        if self._arriving:
            self._arrived_or_gone()
        connection = self._connection
        connection.state.write_soon(connection.transport, b"".join(parts))
        self.response_complete = True
        if self.visit is not None:
            self._write_down(status, sum(map(len, parts[2:])))
        self.body.drop()
        if not self.keep_alive:
            connection.state.flush()
            connection.transport.close()
        connection.on_response_complete()

    def _write_down(self, status: int, size: int) -> None:
        """It is answered with a body of this size, or its client is gone."""
        assert self.visit is not None
        self.visit.version = self._target.version if self._target is not None else ""
        self.visit.bytes_in, self.visit.bytes_out = self.body.received, size
        self.visit.end(status)
