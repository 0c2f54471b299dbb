"""One inference request on a client connection: its body in, the call to an instance, its response out."""

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from gateway.errors import DeadlineExceeded, GatewayError, QueueFull
from gateway.http import compression, oip
from gateway.http.body import RequestBody
from gateway.http.condemned import digest_of
from gateway.http.responses import error_body, error_headers, response_head, status_of
from gateway.http.retry import MOST_DEATHS, answer_to_loss, culprit
from gateway.http.waiting import Wish
from gateway.http.wishes import OtherVersion
from gateway.ipc.channel import Channel, InstanceLost, Reply
from gateway.ipc.framing import ALONE
from gateway.metrics import VersionCounters
from gateway.routing import NotYet, Target, pick
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
    _region: int | None = None  # of the arena, where a large body goes; one of _regions
    _decode_seconds = 0.0
    _sent = 0.0
    _arrived = 0.0  # when the body was complete, from which its time counts
    _seconds: float | None = None  # its time, if it is less than the server's own limit
    _timer: asyncio.TimerHandle | None = None
    _wish: Wish | None = None  # instead of what the path says
    _waits = False
    _deaths = 0  # of instances that were computing it
    _counters: VersionCounters | None = None  # where there is no target

    def __init__(self, connection: "InferenceProtocol", path: bytes, target: Target | GatewayError) -> None:
        self.started = time.perf_counter()
        self._path = path
        self._table = connection.state.table
        self.body = RequestBody(connection.state.max_body_bytes)
        self._connection = connection
        self._regions: list[int] = []
        if isinstance(target, Target):
            self._target = target
        elif not isinstance(target, NotYet):
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
        if body.complete or body.error or target is None:
            return
        try:
            channel = pick(target)
        except GatewayError:
            return  # seen to when the body is in
        if not channel.has_room(body.size):
            body.refuse(channel.queue_full())
            return
        if body.json_size is None or body.encoding:
            return
        region = channel.reserve(body.size, lead=min(body.json_size, body.size))
        if region is not None:
            self._channel, self._region = channel, region
            self._regions.append(region)
            body.continue_in(channel.arena.view[region : region + body.size])
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
            self._run()

    # Calling the instance

    def _run(self) -> None:
        error = self._error or self.body.error
        if error is not None:
            self._answer_error(error)
            return
        if self.body.timeout is not None:
            self._limit(self.body.timeout)
        if self.body.encoding:
            self._unpack()
        else:
            self._send()

    def _unpack(self) -> None:
        if len(self.body.data) <= compression.THREAD_FROM // 8:
            try:
                self.body.unpack(self.body.unpacked())
            except GatewayError as error:
                self._answer_error(error)
                return
            self._send()
            return
        work = self._connection.loop.run_in_executor(None, self.body.unpacked)
        work.add_done_callback(self._unpacked)

    def _unpacked(self, work: "asyncio.Future[bytes]") -> None:
        if self.disconnected or self.response_complete:
            work.exception()  # looked at, so that asyncio does not report it
            return
        try:
            self.body.unpack(work.result())
        except GatewayError as error:
            self._answer_error(error)
            return
        self._send()

    def _send(self) -> None:
        """Decode the body and send it to an instance, or wait until there is one."""
        begun = time.perf_counter()
        state, body = self._connection.state, self.body
        try:
            if state.table is not self._table or self._target is None:
                self._route()
            target, channel = self._target, self._channel
            assert target is not None
            target.timings.last_used = begun
            if channel is None or channel.closed:
                self._leave()
                channel = self._channel = pick(target)
            size = len(body.data)
            if not channel.has_room(size):
                raise channel.queue_full()
            if state.condemned and state.condemned.has(target.model, target.version, body.data):
                target.counters.drop("condemned")
                raise culprit()
            request = oip.decode(oip.Body(body.data, body.json_size, self._region), target, channel, self._regions)
            self._request = request
            arrived = self._arrived = self._arrived or begun
            flags = request.wishes.priority
            if request.wishes.timeout is not None:
                self._limit(request.wishes.timeout)
            if self._deaths:
                flags |= ALONE
            deadline = arrived + (state.request_timeout if self._seconds is None else self._seconds)
            now = time.perf_counter()
            self._request_id = channel.call(
                request.header, request.payload, self._regions, self._on_reply, now, deadline, flags, request.rows, size
            )
        except Exception as error:  # noqa: BLE001 - looked at there
            self._not_sent(error)
            return
        self._decode_seconds = now - begun
        self._sent = now

    def _not_sent(self, error: Exception) -> None:
        """Wait, go elsewhere, or answer with the error."""
        try:
            if isinstance(error, OtherVersion):
                self._go_elsewhere(error)
                return
            if isinstance(error, NotYet):
                self._wait(error)
                return
        except GatewayError as refusal:
            error = refusal
        self._give_back()
        if not isinstance(error, GatewayError):
            log.error("decoding a request failed", exc_info=error)
            error = GatewayError("internal error")
        self._answer_error(error)

    def _route(self) -> None:
        """The routes have changed since the head came, or another version is meant: find the model anew."""
        state = self._connection.state
        self._table, self._target = state.table, None
        target = state.table.target(*(self._wish or self._connection.wish_in(self._path)))
        self._target = target
        if self._channel not in target.channels:
            self._leave()

    def _go_elsewhere(self, other: OtherVersion) -> None:
        """The body names a version by its label."""
        model, version = self._wish or self._connection.wish_in(self._path)
        if version is not None:
            raise other
        self._leave()
        self._wish, self._target = (model, other.label), None
        self._send()

    def _wait(self, not_yet: NotYet) -> None:
        """Wait until the model can answer, no longer than the request may."""
        state, route = self._connection.state, not_yet.route
        self._leave()
        self._counters = state.counters.of(route.model, str(route.version), route.framework)
        wish = self._wish or self._connection.wish_in(self._path)
        if not self._arrived:
            self._arrived = time.perf_counter()
        if self._request is None and self._wish is None:  # what it says of itself is not known yet
            wishes = oip.wishes(oip.Body(self.body.data, self.body.json_size))
            if wishes.timeout is not None:
                self._limit(wishes.timeout)
            if wishes.label is not None and wishes.label not in route.labels:
                self._go_elsewhere(OtherVersion(wishes.label))
                return
        if self._timer is None:
            self._set_alarm()
        state.waiting.enter(wish, route, self, len(self.body.data))
        self._wish, self._waits = wish, True

    def resume(self) -> None:
        """Called by the waiting room."""
        self._waits = False
        self._send()

    def give_up(self, error: GatewayError) -> None:
        """Called by the waiting room."""
        self._waits = False
        self._answer_error(error)

    # Letting go

    def _leave(self) -> None:
        """Let go of the instance that was chosen; a body that lies in its arena is moved."""
        if self._channel is not None and self._region is not None and not self._channel.closed:
            self.body.data = bytes(self.body.data)
        self._give_back()
        self._channel = None

    def _give_back(self) -> None:
        """Free the regions that no call took over."""
        if self._channel is not None:
            for region in self._regions:
                self._channel.unreserve(region)
        self._regions, self._region = [], None

    def abandon(self) -> None:
        """The client is gone."""
        self.disconnected = True
        self.body.drop()
        if not self.response_complete and not self._withdraw():
            self._give_back()

    def _withdraw(self) -> bool:
        """Take the request back from where it waits to be computed; False if it is not on its way yet."""
        if self._timer is not None:
            self._timer.cancel()
        if self._waits and self._wish is not None:
            self._connection.state.waiting.leave(self._wish, self)
        elif self._request_id and self._channel is not None:
            self._channel.cancel(self._request_id)
        else:
            return False
        counters = self._counters if self._target is None else self._target.counters
        if self.disconnected and counters:
            counters.drop("disconnected")
        return True

    def _limit(self, seconds: float) -> None:
        """The client allows so long."""
        if seconds < (self._connection.state.request_timeout if self._seconds is None else self._seconds):
            self._seconds = seconds
            self._set_alarm()

    def _set_alarm(self) -> None:
        """Have the request answered when its time is over, wherever it is then."""
        if self._timer is not None:
            self._timer.cancel()
        now = time.perf_counter()
        self._arrived = self._arrived or now
        allowed = self._connection.state.request_timeout if self._seconds is None else self._seconds
        left = self._arrived + allowed - now
        self._timer = self._connection.loop.call_later(max(left, 0.0), self._expire, allowed)

    def _expire(self, allowed: float) -> None:
        if self.response_complete or self.disconnected:
            return
        self._withdraw()
        self._answer_error(DeadlineExceeded(f"the request was not answered within {allowed:g} s"))

    # Answering

    def _on_reply(self, reply: Reply) -> None:
        target, request = self._target, self._request
        assert target is not None
        assert request is not None
        if reply.error is not None or reply.header is None:
            self._failed(reply.error or GatewayError("internal error"))
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

    def _failed(self, error: GatewayError) -> None:
        """There are no outputs: say so, or try again if the instance is gone."""
        target, channel = self._target, self._channel
        assert target is not None
        if isinstance(error, InstanceLost):
            self._deaths += error.executing
            refusal = answer_to_loss(error, self._deaths, stateful=target.route.config.stateful)
            if refusal is None:
                target.counters.retries += 1
                self._request_id, self._regions, self._region, self._channel = 0, [], None, None
                self._send()
                return
            if self._deaths >= MOST_DEATHS:
                digest = digest_of(target.model, target.version, self.body.data)
                self._connection.state.supervisor.condemn(digest)
            error = refusal
        elif isinstance(error, QueueFull) and channel is not None:
            error.retry_after = channel.retry_after()
        self._answer_error(error)

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
        if (counters := self._target.counters if self._target else self._counters) is not None:
            counters.drop_for(error)
        self._write(status, [head, self._end_of_head(), body])

    def _write(self, status: int, parts: list[Buffer]) -> None:
        if self.response_complete:
            return  # its time was over before
        if (counters := self._target.counters if self._target else self._counters) is not None:
            counters.count(status, "oip")
        if self.disconnected:
            return
        if self._timer is not None:
            self._timer.cancel()
        connection = self._connection
        connection.state.write_soon(connection.transport, b"".join(parts))
        self.response_complete = True
        self.body.drop()
        if not self.keep_alive:
            connection.state.flush()
            connection.transport.close()
        connection.on_response_complete()
