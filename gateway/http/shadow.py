"""Copies of live requests for another version, sent once their callers are answered, and both answers compared."""

import asyncio
import functools
import logging
import math
import random
import time
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec

from gateway.errors import GatewayError
from gateway.http.shadow_answers import Agreement, Outputs, compare, counterparts
from gateway.http.state import WorkerState
from gateway.ipc.channel import Channel
from gateway.ipc.framing import OFFSET, RequestHeader, TensorHeader
from gateway.ipc.reply import InstanceLost, Reply
from gateway.metrics import DIFFERENCE_BOUNDS, DURATION_BOUNDS, ShadowCounters
from gateway.routing import Target, pick
from gateway.store.manifest import Shadow as ShadowConfig
from gateway.tensors import Buffer

log = logging.getLogger("gateway.shadow")

TOGETHER = 8
PAUSE_SECONDS = 0.2
"""Copies wait so long for others, so many are sent together: one execution and one look at the answers disturb live
requests that share the cores less often than eight would."""
WAITING = 64
WAITING_BYTES = 8 << 20
"""Of one version's copies so many wait; what comes beyond is dropped."""
MOST_BYTES = 2 << 20
"""Of a request and its answer: copying takes the event loop a millisecond for each MiB."""
SHARE_OF_QUEUE = 4
"""Copies leave all but this part of the shadow's own queue to its own callers."""
FIRST_REST_SECONDS, LONGEST_REST_SECONDS = 10.0, 600.0
"""After a copy that ended the shadow's process none is sent for a while, twice as long each time in a row."""
LAST = 100
"""The priority of copies: all live requests go first."""
COMPARE_HERE = 64 << 10
"""Answers of more bytes are compared in another thread."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(RequestHeader).decode


class _Copy(msgspec.Struct):
    """A request and its answer, copied out of buffers that others use again."""

    live: Target
    header: RequestHeader
    inputs: list[bytes]
    rows: int
    outputs: Outputs
    seconds: float
    size: int


class Shadow:
    """Takes a share of one version's requests; how the other answers them goes to `counters`."""

    def __init__(
        self, state: WorkerState, config: ShadowConfig, counters: ShadowCounters, threads: ThreadPoolExecutor
    ) -> None:
        self.config = config
        self.live: Target
        """Whose requests they are: the same version each time the routes change."""
        self._state = state
        self._version = None if config.version is None else str(config.version)
        self._counters = counters
        self._threads = threads
        self._waiting: deque[_Copy] = deque()
        self._answers: deque[tuple[_Copy, float, Outputs]] = deque()
        self._bytes = 0
        self._under_way = 0
        self._begun = False
        self._rest = 0.0
        self._rests_until = 0.0
        self._loop = asyncio.get_running_loop()

    def see(
        self, header: bytes, payload: Sequence[Buffer], rows: int, channel: Channel, reply: Reply, sent: float
    ) -> None:
        """A request has been answered; see gateway.routing."""
        if random.random() * 100 >= self.config.percent:  # noqa: S311 - a sample, no secret
            return
        try:
            copy = self._copy(header, payload, rows, channel, reply, sent)
        except Exception:  # the caller is to get the answer whatever happens here
            log.exception("a request could not be copied for its shadow")
            copy = None
        if copy is None:
            self._count("dropped")
            return
        self._bytes += copy.size
        self._waiting.append(copy)
        self._go_on()

    def _copy(
        self, header: bytes, payload: Sequence[Buffer], rows: int, channel: Channel, reply: Reply, sent: float
    ) -> _Copy | None:
        """None if there is no room for it."""
        assert reply.header is not None
        decoded = _decode(header)
        size = sum(tensor.size for tensor in decoded.inputs) + reply.header.size
        full = len(self._waiting) >= WAITING or self._bytes + size > WAITING_BYTES
        if full or size > MOST_BYTES or time.monotonic() < self._rests_until:
            return None
        inputs = [_bytes_of(tensor, part, channel) for tensor, part in zip(decoded.inputs, payload, strict=True)]
        outputs = [(one, bytes(raw)) for one, raw in zip(reply.header.outputs, reply.tensors, strict=True)]
        return _Copy(self.live, decoded, inputs, rows, outputs, reply.received - sent, size)

    def _go_on(self) -> None:
        """See to it that what waits is sent, when those that were sent are done."""
        if not self._begun and self._waiting and not self._under_way:
            self._begun = True
            self._loop.call_later(PAUSE_SECONDS if len(self._waiting) < TOGETHER else 0.0, self._send_some)

    def _send_some(self) -> None:
        self._begun = False
        for _ in range(min(TOGETHER, len(self._waiting))):
            copy = self._waiting.popleft()
            self._bytes -= copy.size
            try:
                self._send(copy)
            except GatewayError:
                self._count("failed")
        self._go_on()

    def _send(self, copy: _Copy) -> None:
        target = self._state.table.target(self.config.model or copy.live.model, self._version)
        if (target.model, target.version) == (copy.live.model, copy.live.version):
            return  # it is its own shadow, until another version is there
        channel = pick(target)
        if channel.closed or not _has_room(channel, copy):
            self._count("dropped")
            return
        header = _translated(copy.header, copy.live, target)
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
        if reply.error is not None or reply.header is None or reply.header.size > MOST_BYTES:
            if isinstance(reply.error, InstanceLost) and reply.error.executing:
                self._rest = min(max(2 * self._rest, FIRST_REST_SECONDS), LONGEST_REST_SECONDS)
                self._rests_until = time.monotonic() + self._rest
            self._done("failed")
            return
        self._rest = 0.0
        seconds = reply.received - sent
        theirs = [(one, bytes(raw)) for one, raw in zip(reply.header.outputs, reply.tensors, strict=True)]
        if copy.size + reply.header.size <= COMPARE_HERE:
            self._answers.append((copy, seconds, theirs))
            if len(self._answers) == 1:
                self._loop.call_soon(self._compare_next)
            return
        work = self._loop.run_in_executor(self._threads, _agreement, copy, theirs, self.config.tolerance)
        work.add_done_callback(lambda done: self._compared(copy, seconds, done.result()))

    def _compare_next(self) -> None:
        """Compare one answer in each turn of the event loop, for live requests to have theirs between."""
        copy, seconds, theirs = self._answers.popleft()
        self._compared(copy, seconds, _agreement(copy, theirs, self.config.tolerance))
        if self._answers:
            self._loop.call_soon(self._compare_next)

    def _compared(self, copy: _Copy, seconds: float, agreement: Agreement) -> None:
        counters, difference = self._counters, agreement.difference
        for which, number in (("same", agreement.same), ("other", agreement.other)):
            if number:
                counters.classes[which] = counters.classes.get(which, 0) + number
        if difference is not None and math.isfinite(difference):
            counters.difference.count(DIFFERENCE_BOUNDS, difference)
        elif difference is not None:
            counters.difference.counts[-1] += 1  # and nothing to the sum, which would be infinite for ever
        counters.live.count(DURATION_BOUNDS, copy.seconds)
        counters.shadow.count(DURATION_BOUNDS, seconds)
        self._done("agreed" if agreement.agrees else "differed")

    def _done(self, outcome: str) -> None:
        self._under_way -= 1
        self._count(outcome)
        self._go_on()

    def _count(self, outcome: str) -> None:
        self._counters.requests[outcome] = self._counters.requests.get(outcome, 0) + 1


class Shadows:
    """Those of all versions of one worker; each is the same as long as it is configured so."""

    def __init__(self, state: WorkerState) -> None:
        self._state = state
        self._known: dict[tuple[str, str], Shadow] = {}
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="shadow")  # live requests have others

    def assign(self, targets: Iterable[Target]) -> None:
        """Give each version that is to have a shadow its own; these are all there are."""
        before, self._known = self._known, {}
        for target in targets:
            config = target.route.config.shadow
            if config is None:
                continue
            key = target.model, target.version
            shadow = before.get(key)
            if shadow is None or shadow.config != config:
                named = f"{config.model or target.model} {'default' if config.version is None else config.version}"
                counters = target.counters.shadows.setdefault(named, ShadowCounters())
                shadow = Shadow(self._state, config, counters, self._threads)
            shadow.live = target
            target.shadow = self._known[key] = shadow


def _has_room(channel: Channel, copy: _Copy) -> bool:
    """Whether a copy fits into the part of the instance's queue that copies may take."""
    rows, size = channel.max_rows // SHARE_OF_QUEUE, channel.max_bytes // SHARE_OF_QUEUE
    return channel.rows <= rows and channel.bytes + copy.size <= size


def _bytes_of(tensor: TensorHeader, part: Buffer, channel: Channel) -> bytes:
    """The tensor of a request that was just answered: the region of the arena is free, and not yet used again."""
    if not tensor.in_arena:
        return bytes(part)
    (at,) = OFFSET.unpack(part)
    return bytes(channel.arena.view[at : at + tensor.size])


def _agreement(copy: _Copy, theirs: Outputs, tolerance: float) -> Agreement:
    names = [header.name for header, _ in copy.outputs]
    signature = copy.live.signatures.get(copy.header.signature)
    mine = [spec.name for spec in signature.outputs] if signature is not None else []
    found = counterparts(names, mine or names, [header.name for header, _ in theirs])
    if found is None:
        return Agreement(agrees=False)
    by_name = {header.name: (header, raw) for header, raw in theirs}
    return compare(copy.outputs, [by_name[name] for name in found], tolerance)


def _translated(header: RequestHeader, live: Target, target: Target) -> RequestHeader | None:
    """The request in the words of the other model; None if its inputs are not the same."""
    mine = live.signatures[header.signature or live.default_signature]
    theirs = target.signatures.get(header.signature) or target.signatures[target.default_signature]
    specs = {spec.name: spec for spec in theirs.inputs}
    given = [tensor.name for tensor in header.inputs]
    names = counterparts(given, [spec.name for spec in mine.inputs], list(specs))
    if names is None or any(spec.name not in names for spec in theirs.inputs if not spec.optional):
        return None
    inputs = [msgspec.structs.replace(tensor, name=name) for tensor, name in zip(header.inputs, names, strict=True)]
    if any(specs[tensor.name].strict and specs[tensor.name].datatype != tensor.datatype for tensor in inputs):
        return None
    return RequestHeader(theirs.name, tuple(inputs))
