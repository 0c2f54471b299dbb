"""Copies of live requests for another version, sent once their callers are answered, and both answers compared."""

import asyncio
import functools
import logging
import random
import time
from collections import deque
from collections.abc import Sequence

import msgspec

from gateway.errors import GatewayError
from gateway.http.shadow_answers import Agreement, Outputs, compare, counterparts
from gateway.http.state import WorkerState
from gateway.ipc.channel import Channel
from gateway.ipc.framing import OFFSET, RequestHeader, TensorHeader
from gateway.ipc.reply import Reply
from gateway.metrics import DIFFERENCE_BOUNDS, DURATION_BOUNDS, ShadowCounters
from gateway.routing import Target, pick
from gateway.store.manifest import Shadow as ShadowConfig
from gateway.tensors import Buffer

log = logging.getLogger("gateway.shadow")

UNDER_WAY = 4
WAITING = 64
WAITING_BYTES = 32 << 20
"""Of one version's copies so many are computed at once, so many wait for it; what comes beyond is dropped."""
PAUSE_SECONDS = 0.002
"""A copy waits so long at least: the answers that arrived together with its own go out first."""
LAST = 100
"""The priority of copies: all live requests go first."""
COMPARE_HERE = 64 << 10
"""Answers of more bytes are compared in another thread."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(RequestHeader).decode


class _Copy(msgspec.Struct, gc=False):
    """A request and its answer, copied out of buffers that others use again."""

    header: RequestHeader
    inputs: list[bytes]
    rows: int
    outputs: Outputs
    seconds: float
    size: int


class Shadow:
    """Takes a share of one version's requests; how the other answers them goes to `counters`."""

    def __init__(self, state: WorkerState, live: Target, config: ShadowConfig, counters: ShadowCounters) -> None:
        self._state = state
        self._live = live
        self._model = config.model or live.model
        self._version = None if config.version is None else str(config.version)
        self._share = config.percent / 100
        self._tolerance = config.tolerance
        self._counters = counters
        self._waiting: deque[_Copy] = deque()
        self._bytes = 0
        self._under_way = 0
        self._begun = False
        self._loop = asyncio.get_running_loop()

    def see(
        self, header: bytes, payload: Sequence[Buffer], rows: int, channel: Channel, reply: Reply, sent: float
    ) -> None:
        """A request has been answered; see gateway.routing."""
        if random.random() >= self._share:  # noqa: S311 - a sample, no secret
            return
        decoded = _decode(header)
        assert reply.header is not None
        size = sum(tensor.size for tensor in decoded.inputs) + reply.header.size
        if len(self._waiting) >= WAITING or self._bytes + size > WAITING_BYTES:
            self._count("dropped")
            return
        inputs = [_bytes_of(tensor, part, channel) for tensor, part in zip(decoded.inputs, payload, strict=True)]
        outputs = [(one, bytes(raw)) for one, raw in zip(reply.header.outputs, reply.tensors, strict=True)]
        self._bytes += size
        self._waiting.append(_Copy(decoded, inputs, rows, outputs, reply.received - sent, size))
        if not self._begun:
            self._begun = True
            self._loop.call_later(PAUSE_SECONDS, self._send_next)

    def _send_next(self) -> None:
        """Send a copy, if one waits and not too many are under way; one in each turn of the event loop."""
        self._begun = False
        if not self._waiting or self._under_way >= UNDER_WAY:
            return
        copy = self._waiting.popleft()
        self._bytes -= copy.size
        try:
            self._send(copy)
        except GatewayError:
            self._count("failed")
        if self._waiting:
            self._begun = True
            self._loop.call_soon(self._send_next)

    def _send(self, copy: _Copy) -> None:
        target = self._state.table.target(self._model, self._version)
        if target.model == self._live.model and target.version == self._live.version:
            return  # it is its own shadow until another version is there
        channel = pick(target)
        if channel.closed or not channel.has_room(copy.size):
            self._count("dropped")
            return
        header = _translated(copy.header, self._live, target)
        if header is None:
            self._count("failed")
            return
        regions: list[int] = []
        places = [channel.place(raw, regions) for raw in copy.inputs]
        payload = [raw if place is None else place for raw, place in zip(copy.inputs, places, strict=True)]
        inputs = tuple(
            TensorHeader(tensor.name, tensor.datatype, tensor.shape, tensor.size, place is not None)
            for tensor, place in zip(header.inputs, places, strict=True)
        )
        packed = _encode(RequestHeader(header.signature, inputs))
        now = time.perf_counter()
        target.timings.last_used = now
        answered = functools.partial(self._answered, copy, now)
        deadline = now + self._state.request_timeout
        try:
            channel.call(packed, payload, regions, answered, now, deadline, LAST, copy.rows, copy.size)
        except GatewayError:
            for region in regions:
                channel.unreserve(region)
            raise
        self._under_way += 1

    def _answered(self, copy: _Copy, sent: float, reply: Reply) -> None:
        self._under_way -= 1
        if self._waiting and not self._begun:
            self._begun = True
            self._loop.call_soon(self._send_next)
        if reply.error is not None or reply.header is None or reply.header.size > WAITING_BYTES:
            self._count("failed")
            return
        seconds = reply.received - sent
        theirs = [(one, bytes(raw)) for one, raw in zip(reply.header.outputs, reply.tensors, strict=True)]
        if copy.size + reply.header.size <= COMPARE_HERE:
            self._compared(copy, seconds, self._compare(copy, theirs))
            return
        work = self._loop.run_in_executor(None, self._compare, copy, theirs)
        work.add_done_callback(lambda done: self._compared(copy, seconds, done.result()))

    def _compare(self, copy: _Copy, theirs: Outputs) -> Agreement:
        names = [header.name for header, _ in copy.outputs]
        signature = self._live.signatures.get(copy.header.signature)
        mine = [spec.name for spec in signature.outputs] if signature is not None else []
        found = counterparts(names, mine or names, [header.name for header, _ in theirs])
        if found is None:
            return Agreement(agrees=False)
        by_name = {header.name: (header, raw) for header, raw in theirs}
        return compare(copy.outputs, [by_name[name] for name in found], self._tolerance)

    def _compared(self, copy: _Copy, seconds: float, agreement: Agreement) -> None:
        counters = self._counters
        self._count("agreed" if agreement.agrees else "differed")
        for which, number in (("same", agreement.same), ("other", agreement.other)):
            if number:
                counters.classes[which] = counters.classes.get(which, 0) + number
        if agreement.difference is not None:
            counters.difference.count(DIFFERENCE_BOUNDS, agreement.difference)
        counters.live.count(DURATION_BOUNDS, copy.seconds)
        counters.shadow.count(DURATION_BOUNDS, seconds)

    def _count(self, outcome: str) -> None:
        self._counters.requests[outcome] = self._counters.requests.get(outcome, 0) + 1


def _bytes_of(tensor: TensorHeader, part: Buffer, channel: Channel) -> bytes:
    """The tensor of a request that was just answered: the region of the arena is free, and not yet used again."""
    if not tensor.in_arena:
        return bytes(part)
    (at,) = OFFSET.unpack(part)
    return bytes(channel.arena.view[at : at + tensor.size])


def _translated(header: RequestHeader, live: Target, target: Target) -> RequestHeader | None:
    """The request in the words of the other model; None if its inputs are not the same."""
    mine = live.signatures[header.signature or live.default_signature]
    theirs = target.signatures.get(header.signature) or target.signatures[target.default_signature]
    specs = {spec.name: spec for spec in theirs.inputs}
    names = counterparts(
        [tensor.name for tensor in header.inputs],
        [spec.name for spec in mine.inputs],
        [spec.name for spec in theirs.inputs],
    )
    if names is None or any(spec.name not in names for spec in theirs.inputs if not spec.optional):
        return None
    inputs = [msgspec.structs.replace(tensor, name=name) for tensor, name in zip(header.inputs, names, strict=True)]
    if any(specs[tensor.name].strict and specs[tensor.name].datatype != tensor.datatype for tensor in inputs):
        return None
    return RequestHeader(theirs.name, tuple(inputs))


def shadow_of(state: WorkerState, live: Target) -> Shadow | None:
    """What model.yaml asks for; None for nothing."""
    config = live.route.config.shadow
    if config is None:
        return None
    key = f"{config.model or live.model} {'latest' if config.version is None else config.version}"
    return Shadow(state, live, config, live.counters.shadows.setdefault(key, ShadowCounters()))
