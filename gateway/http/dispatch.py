"""A request's way to an instance: routed, sent, kept waiting, sent again, and taken back when its time is over."""

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from gateway.errors import DeadlineExceeded, GatewayError, QueueFull
from gateway.http import decoder
from gateway.http.body import RequestBody
from gateway.http.calls import Call
from gateway.http.condemned import digest_of
from gateway.http.dialect import InferenceRequest
from gateway.http.large_body import LargeBody
from gateway.http.retry import MOST_DEATHS, answer_to_loss, culprit
from gateway.http.waiting import Wish
from gateway.http.wishes import NONE, OtherVersion, Wishes
from gateway.ipc.channel import Channel
from gateway.ipc.framing import ALONE
from gateway.ipc.reply import InstanceLost, Reply
from gateway.metrics import VersionCounters
from gateway.routing import NotYet, Target, pick

if TYPE_CHECKING:
    from gateway.http.protocol import InferenceProtocol

log = logging.getLogger("gateway.worker")


class Dispatch:
    """One request whose body is there; what it is answered with is the business of who derives from this."""

    # Defaults, so that a plain small request sets little.
    response_complete = False
    disconnected = False
    _target: Target | None = None
    _error: GatewayError | None = None
    _channel: Channel | None = None
    _request: InferenceRequest | None = None
    _request_id = 0
    _large: LargeBody | None = None  # as long as it is being decoded
    _region: int | None = None  # of the arena, where a large body goes; one of _regions
    _decode_seconds = 0.0
    _sent = 0.0
    _arrived = 0.0  # when the body was complete, from which its time counts
    _seconds = 0.0  # its time, if it is less than the server's own limit
    _timer: asyncio.TimerHandle | None = None
    _wish: Wish | None = None  # instead of what the path says
    _waits = False
    _ended: tuple[str, ...] = ()  # the instances that ended while they computed it
    _counters: VersionCounters | None = None  # where there is no target

    def __init__(self, connection: "InferenceProtocol", call: Call) -> None:
        self.started = time.perf_counter()
        self._call = call
        target = call.target
        self._table = connection.state.table
        self.body = RequestBody(connection.state.max_body_bytes)
        self._connection = connection
        self._regions: list[int] = []
        if isinstance(target, Target):
            self._target = target
        elif not isinstance(target, NotYet):
            self._error = target

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
            if channel.rows >= channel.max_rows or channel.bytes + size > channel.max_bytes or state.condemned.digests:
                self._check(channel, target, size)
            if size > decoder.FROM and body.takes_long:
                request = self._decoded(target, channel)
                if request is None:
                    return  # this is called again
                begun = self._arrived
            else:
                request = self._call.dialect.decode(body.whole(self._region), target, channel, self._regions)
            self._request = request
            arrived = self._arrived = self._arrived or begun
            wishes = request.wishes
            flags = wishes.priority
            if wishes is not NONE and wishes.timeout is not None:
                self._limit(wishes.timeout)
            if self._ended:
                flags |= ALONE
            deadline = arrived + (self._seconds or state.request_timeout)
            now = time.perf_counter()
            self._request_id = channel.call(
                request.header, request.payload, self._regions, self._on_reply, now, deadline, flags, request.rows, size
            )
        except Exception as error:  # noqa: BLE001 - looked at there
            self._not_sent(error)
            return
        self._decode_seconds = now - begun
        self._sent = now

    def _decoded(self, target: Target, channel: Channel) -> InferenceRequest | None:
        """The request in a large body, or None: it is being decoded elsewhere, within its time."""
        request = self._begin_large().request(self._call, self.body, target, channel, self._regions)
        if request is not None:
            self._large = None
            self._arrived_or_gone()
        return request

    def _begin_large(self) -> LargeBody:
        if self._large is None:
            self._large = LargeBody(self._connection.state, self._send)
            if self._timer is None:
                self._set_alarm()
        return self._large

    def _wishes(self) -> Wishes | None:
        """What the request says of itself; None: it is being found out elsewhere."""
        if len(self.body.data) <= decoder.FROM or not self.body.takes_long:
            return self._call.dialect.wishes(self.body.whole())
        found = self._begin_large().wishes(self._call, self.body)
        if found is not None:
            self._large = None
        return found

    def _check(self, channel: Channel, target: Target, size: int) -> None:
        """Refuse a request that there is no room for, or that has ended two processes before."""
        if not channel.has_room(size):
            raise channel.queue_full()
        if size > decoder.FROM and self.body.takes_long:
            return  # LargeBody sees to it
        if self._connection.state.condemned.has(target.route, self.body.data):
            target.counters.drop("condemned")
            raise culprit()

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
        target = state.table.target(*(self._wish or self._call.wish))
        self._target = target
        if self._channel not in target.channels:
            self._leave()

    def _go_elsewhere(self, other: OtherVersion) -> None:
        """The body names a version by its label."""
        model, version = self._wish or self._call.wish
        if version is not None:
            raise other
        self._leave()
        self._wish, self._target = (model, other.label), None
        self._send()

    def _wait(self, not_yet: NotYet) -> None:
        """Wait until the model can answer, no longer than the request may."""
        state, route = self._connection.state, not_yet.route
        wishes = NONE
        if self._request is None and self._wish is None:  # what it says of itself is not known yet
            found = self._wishes()
            if found is None:
                return  # _send is called again
            wishes = found
        self._leave()
        self._counters = state.counters.of(route.model, str(route.version), route.framework)
        wish = self._wish or self._call.wish
        if not self._arrived:
            self._arrived = time.perf_counter()
        if wishes is not NONE:
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
        if self._large is not None:
            large, self._large = self._large, None
            large.drop()
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
        if self._large is not None:
            self._give_back()
        elif self._waits and self._wish is not None:
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
        if seconds < (self._seconds or self._connection.state.request_timeout):
            self._seconds = seconds
            self._set_alarm()

    def _set_alarm(self) -> None:
        """Have the request answered when its time is over, wherever it is then."""
        if self._timer is not None:
            self._timer.cancel()
        now = time.perf_counter()
        self._arrived = self._arrived or now
        allowed = self._seconds or self._connection.state.request_timeout
        left = self._arrived + allowed - now
        self._timer = self._connection.loop.call_later(max(left, 0.0), self._expire, allowed)

    def _expire(self, allowed: float) -> None:
        if self.response_complete or self.disconnected:
            return
        self._withdraw()
        self._answer_error(DeadlineExceeded(f"the request was not answered within {allowed:g} s"))

    # Failing

    def _failed(self, error: GatewayError) -> None:
        """There are no outputs: say so, or try again if the instance is gone."""
        target, channel = self._target, self._channel
        assert target is not None
        if isinstance(error, InstanceLost):
            if error.executing and channel is not None:
                self._ended += (channel.instance,)
            refusal = answer_to_loss(error, len(self._ended), stateful=target.route.config.stateful)
            if refusal is None:
                target.counters.retries += 1
                self._request_id, self._regions, self._region, self._channel = 0, [], None, None
                if self._timer is None:  # the channel looks only for calls whose time began as they were sent
                    self._set_alarm()
                self._send()
                return
            if self._ended:
                self._connection.state.supervisor.explain(self._ended)
            if len(self._ended) >= MOST_DEATHS:
                self._condemn(target)
            error = refusal
        elif isinstance(error, QueueFull) and channel is not None:
            error.retry_after = channel.retry_after()
        self._answer_error(error)

    def _condemn(self, target: Target) -> None:
        """Have this request refused from now on; the hash of a large body is made in a thread."""
        data, condemn = self.body.data, self._connection.state.supervisor.condemn
        if len(data) <= decoder.FROM:
            condemn(digest_of(target.route, data))
            return
        hashing = self._connection.loop.run_in_executor(None, digest_of, target.route, memoryview(data)[:])
        hashing.add_done_callback(lambda done: condemn(done.result()))

    def _on_reply(self, reply: Reply) -> None:
        """Called by the channel."""
        raise NotImplementedError

    def _arrived_or_gone(self) -> None:
        """The body is no longer on its way, or to be decoded."""
        raise NotImplementedError

    def _answer_error(self, error: GatewayError) -> None:
        """Answer the client with an error."""
        raise NotImplementedError
