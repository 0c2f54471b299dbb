"""A large body between its arrival and its instance: decoded in another process, its tensors copied in a thread."""

import asyncio
import contextlib
import mmap
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec

from gateway.errors import GatewayError
from gateway.http.calls import DIALECTS, Call
from gateway.http.condemned import digest_of
from gateway.http.decoder import Decoded, Task
from gateway.http.decoding import Job, read_into, read_some, request_of
from gateway.http.dialect import InferenceRequest
from gateway.http.retry import culprit
from gateway.http.wishes import NONE, Wishes
from gateway.ipc.arena import create_memory
from gateway.ipc.channel import Channel
from gateway.ipc.framing import OFFSET, RequestHeader, encode
from gateway.ipc.messages import VersionRoute
from gateway.routing import Target
from gateway.tensors import Buffer

if TYPE_CHECKING:
    from gateway.http.body import RequestBody
    from gateway.http.state import WorkerState

AGAIN_SECONDS = 0.02
"""So often it is tried to place tensors for which an arena had no room."""
_encode_route = msgspec.msgpack.Encoder().encode
_decode_header = msgspec.msgpack.Decoder(RequestHeader).decode


class BodyMemory:
    """Memory of the size of a body, that another process can be lent."""

    def __init__(self, size: int) -> None:
        self.fd = create_memory("gateway-body", size)
        try:
            self._map = mmap.mmap(self.fd, size)
        except BaseException:
            os.close(self.fd)
            raise
        self.view = memoryview(self._map)

    def give_back(self) -> None:
        """Nothing looks at it any more. It goes in a thread, for freeing much memory takes milliseconds."""
        self.view.release()
        asyncio.get_running_loop().run_in_executor(None, _close, self.fd, self._map)


def _close(fd: int, mapping: mmap.mmap) -> None:
    os.close(fd)
    with contextlib.suppress(BufferError):  # something is still being read to it: it goes with that
        mapping.close()


class LargeBody:
    """One request's large body: `request` until it is there; `on_change` is called when it is worth asking again."""

    def __init__(self, state: "WorkerState", on_change: Callable[[], None]) -> None:
        self._state = state
        self._on_change: Callable[[], None] | None = on_change
        self._loop = asyncio.get_running_loop()
        self._digest: bytes | None = None  # by which it may be known as one that ends processes
        self._task: Task | None = None
        self._route: VersionRoute | None = None  # for which it is decoded
        self._decoded: Decoded | None = None
        self._error: GatewayError | None = None
        self._channel: Channel | None = None  # in whose arena the tensors are
        self._regions: list[int] = []
        self._payload: tuple[list[Buffer], frozenset[int]] | None = None  # and which tensors are inline
        self._copying: Decoded | None = None
        self._again: asyncio.TimerHandle | None = None

    def request(
        self, call: Call, body: "RequestBody", target: Target, channel: Channel, regions: list[int]
    ) -> InferenceRequest | None:
        """The decoded request, the regions that it takes in `regions`; None: not yet."""
        if self._error is not None:
            raise self._error.with_traceback(None)
        decoded = self._decoded
        if decoded is None or not _alike(self._route, target.route):
            self._let_go()
            self._route = target.route
            if self._is_suspect(target, body.data):
                return None
            self._submit(call, body, _encode_route(target.route))
            return None
        if self._payload is None or self._channel is not channel:
            self._take_back()
            self._place(channel)
            return None
        payload, inline = self._payload
        request = request_of(decoded.answer, payload)
        if inline:
            request.header = _with_inline(request.header, inline)
        regions += self._regions
        self._regions = []
        self.drop()
        return request

    def _is_suspect(self, target: Target, data: Buffer) -> bool:
        """Whether it may be a request that has ended two processes, and a thread finds out; culprit if it is one."""
        condemned = self._state.condemned
        if not condemned.may_have(target.route, data):
            return False
        if self._digest is not None:
            if self._digest in condemned.digests:
                target.counters.drop("condemned")
                raise culprit()
            return False
        hashing = self._loop.run_in_executor(None, digest_of, target.route, memoryview(data)[:])
        hashing.add_done_callback(self._hashed)
        return True

    def _hashed(self, hashing: "asyncio.Future[bytes]") -> None:
        self._digest = hashing.result()
        self._changed()

    def wishes(self, call: Call, body: "RequestBody") -> Wishes | None:
        """What the request says of itself, when its model is not there yet; None: not known yet."""
        if self._error is not None:
            raise self._error.with_traceback(None)
        if self._decoded is None:
            self._submit(call, body, b"")
            return None
        found = self._decoded.answer.wishes or NONE
        self.drop()
        return found

    def _submit(self, call: Call, body: "RequestBody", route: bytes) -> None:
        headers = [(bytes(name), bytes(value)) for name, value in body.headers]
        job = Job(DIALECTS.index(call.dialect), body.json_size, headers, route)
        self._task = Task(job, body.data, body.memory.fd if body.memory is not None else None, self._done)
        self._state.decoder.submit(self._task)

    def _done(self, outcome: Decoded | GatewayError) -> None:
        self._task = None
        if isinstance(outcome, GatewayError):
            self._error = outcome
        else:
            self._decoded = outcome
        self._changed()

    def _changed(self) -> None:
        if self._on_change is not None:
            self._on_change()

    # Placing

    def _place(self, channel: Channel) -> None:
        """Copy the tensors to the arena of an instance; wait while there is no room for them."""
        decoded = self._decoded
        assert decoded is not None
        self._again = None
        if channel.closed:
            self._changed()
            return
        sizes = [size for _, _, size in decoded.answer.placed]
        regions = _claim(channel, sizes)
        if regions is None:
            self._again = self._loop.call_later(AGAIN_SECONDS, self._place, channel)
            return
        self._copying = decoded
        copying = self._loop.run_in_executor(None, _copy, decoded, channel.arena.view, regions)
        copying.add_done_callback(lambda done: self._placed(decoded, channel, regions, done))

    def _placed(
        self,
        decoded: Decoded,
        channel: Channel,
        regions: Sequence[int],
        copying: "asyncio.Future[tuple[list[Buffer], frozenset[int]]]",
    ) -> None:
        if self._copying is decoded:
            self._copying = None
        regions = [region for region in regions if region >= 0]
        error = copying.exception()
        if decoded is not self._decoded or error is not None:
            for region in regions:
                channel.unreserve(region)
            decoded.close()
            if decoded is self._decoded:
                self._decoded = None
                self._error = error if isinstance(error, GatewayError) else GatewayError("internal error")
                self._changed()
            return
        self._channel, self._regions, self._payload = channel, regions, copying.result()
        self._changed()

    # Letting go

    def _take_back(self) -> None:
        """The tensors do not lie where they are needed."""
        if self._channel is not None:
            for region in self._regions:
                self._channel.unreserve(region)
        self._channel, self._regions, self._payload = None, [], None

    def _let_go(self) -> None:
        if self._again is not None:
            self._again.cancel()
            self._again = None
        self._take_back()
        decoded, self._decoded = self._decoded, None
        if decoded is not None and decoded is not self._copying:  # what is being read is closed after that
            decoded.close()

    def drop(self) -> None:
        """Nothing is wanted of it any more."""
        self._on_change = None
        self._let_go()
        task, self._task = self._task, None
        if task is not None:
            self._state.decoder.cancel(task)
        self._error = None


def _alike(one: VersionRoute | None, other: VersionRoute) -> bool:
    """Whether a request decoded for the one is right for the other."""
    return one is other or (
        one is not None
        and (one.model, one.version, one.stamp, one.ready, one.config, one.labels)
        == (other.model, other.version, other.stamp, other.ready, other.config, other.labels)
    )


def _claim(channel: Channel, sizes: Sequence[int]) -> list[int] | None:
    """Regions for tensors of these sizes; -1 for one that an empty arena has no room for; None: not now."""
    taken = bool(channel.arena.regions)
    regions: list[int] = []
    for size in sizes:
        region = channel.allocate(size)
        if region is None and taken:
            for each in regions:
                channel.unreserve(each)
            return None
        regions.append(-1 if region is None else region)
    return regions


def _copy(decoded: Decoded, arena: memoryview, regions: Sequence[int]) -> tuple[list[Buffer], frozenset[int]]:
    """The payload with the tensors in the arena, and which of them are sent inline. Runs in a thread."""
    answer = decoded.answer
    payload: list[Buffer] = list(answer.pieces)
    for (number, at, size), region in zip(answer.placed, regions, strict=True):
        if region < 0:
            payload[number] = read_some(decoded.fd, at, size)
        else:
            with arena[region : region + size] as view:
                read_into(decoded.fd, view, at)
            payload[number] = OFFSET.pack(region)
    inline = frozenset(number for (number, _, _), region in zip(answer.placed, regions, strict=True) if region < 0)
    return payload, inline


def _with_inline(header: bytes, inline: frozenset[int]) -> bytes:
    """The header when these tensors do not travel in the arena after all."""
    found = _decode_header(header)
    inputs = tuple(
        msgspec.structs.replace(tensor, in_arena=tensor.in_arena and number not in inline)
        for number, tensor in enumerate(found.inputs)
    )
    return encode(msgspec.structs.replace(found, inputs=inputs))
