"""An HTTP worker's connection to one instance: requests out, replies in, large tensors through arenas."""

import asyncio
import logging
import math
import os
import socket
import time
from collections.abc import Callable, Sequence
from typing import cast

import msgspec

from gateway.errors import DeadlineExceeded, GatewayError, InstanceDied, ProtocolError, QueueFull, from_code
from gateway.ipc.abandonment import AbandonmentWatch
from gateway.ipc.arena import (
    THRESHOLD,
    CancelNote,
    ExecutionNote,
    create_pair,
    unmap,
)
from gateway.ipc.framing import (
    CANCEL,
    DEFAULT_PRIORITY,
    INFER,
    OFFSET,
    RELEASE,
    RELEASE_MEMORY,
    RESULT,
    Failure,
    ReplyHead,
    ResultHeader,
    reply_reader,
    request_frame,
    result_header,
    split_payload,
)
from gateway.ipc.reply import DIED, Call, InstanceLost, Reply
from gateway.tensors import Buffer

log = logging.getLogger("gateway.channel")

SWEEP_SECONDS = 1.0
TRIM_SECONDS = 5.0


MAX_RETRY_AFTER, MAX_SECONDS = 60, 1e6
_decode_failure = msgspec.msgpack.Decoder(Failure).decode


class Channel(asyncio.Protocol):
    """A multiplexed stream: any number of calls under way, answered in any order.

    When the instance is gone its calls stay in `pending` until `settle` says why.
    """

    def __init__(self, instance: str, timeout: float, on_lost: Callable[["Channel"], None]) -> None:
        self.instance = instance
        self.max_rows = 1 << 30
        self.max_bytes = 1 << 62
        self.rows = 0  # under way: of requests that wait or are computed
        self.bytes = 0  # of their bodies
        self.max_executing = 1 << 30
        """Requests that the instance computes at once: no more are believed to have ended it."""
        self.row_seconds = 0.0  # what one row takes of late
        self.distrusted = False
        """Whether the instance was let go of because it spoke nonsense."""
        self.on_execution: Callable[[float, int], None] | None = None
        """Called with the seconds and rows of each execution, whoever waited for it."""
        self.pending: dict[int, Call] = {}
        self.arena, self._reply_fd, self._replies = create_pair()
        self._cancelled = CancelNote(self.arena.view)
        self._note = ExecutionNote(self._replies)
        self.abandonment = AbandonmentWatch(self._note, self.pending)
        self._timeout = timeout
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._reader = reply_reader(self.pending.__contains__)
        self._next_id = 0
        self._out: list[Buffer] = []
        self._transport: asyncio.Transport
        self._sweeper: asyncio.TimerHandle | None = None
        self._trimmer: asyncio.TimerHandle | None = None
        self._reply_trimmer: asyncio.TimerHandle | None = None
        self._lent_at = 0.0
        self._draining = False
        self.closed = False

    @classmethod
    async def connect(
        cls, instance: str, path: str, patience: float, on_lost: Callable[["Channel"], None]
    ) -> "Channel":
        """Connect to an instance's socket and lend it the arenas; OSError if it is not there.

        A call takes `patience` seconds at most; `on_lost`, called when the instance is gone, sees to `settle`.
        """
        channel = cls(instance, patience, on_lost)
        sock: socket.socket | None = None
        try:
            sock = socket.socket(socket.AF_UNIX)
            sock.setblocking(False)  # one that accepts no more lines must not hold up everybody
            sock.connect(path)
            socket.send_fds(sock, [b"arenas"], [channel.arena.fd, channel._reply_fd])
            await channel._loop.create_unix_connection(lambda: channel, sock=sock)
        except OSError:
            if sock is not None:
                sock.close()
            channel._close_arenas()
            channel._note.release()
            unmap(channel._replies)
            raise
        return channel

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Called by asyncio: no call is answered any more, which `settle` tells them."""
        self.closed = True
        self.abandonment.close()
        for timer in filter(None, (self._trimmer, self._reply_trimmer)):
            timer.cancel()
        self._close_arenas()
        self._on_lost(self)

    def settle(self, verdict: str = InstanceDied.code, reason: str = "", *, blameless: bool = False) -> bool:
        """Tell the calls of an instance that is gone: `verdict` is for those that it was computing.

        `blameless` if no call is to blame, for example because only the connection was lost. Returns whether a call was
        computed that had been cancelled: no one else will say that it was the cause.
        """
        executing = frozenset[int]() if blameless else self._note.read(self.max_executing)
        self._note.release()
        unmap(self._replies)
        if self._sweeper:
            self._sweeper.cancel()
        calls = dict(self.pending)
        self.pending.clear()  # the reader has this very dict, in which calls, being gc=False, would stay for ever
        for request_id, call in calls.items():
            lost = InstanceLost(executing=request_id in executing, verdict=verdict, reason=reason)
            error = InstanceDied(DIED) if self.distrusted else lost
            self._tell(call.on_reply, Reply(error, None, (), 0.0, 0.0, 0, time.perf_counter()))
        return any(call.on_reply is None and request_id in executing for request_id, call in calls.items())

    def close(self) -> None:
        """Stop using this instance."""
        self._transport.abort()

    def close_when_idle(self) -> None:
        """Let calls under way finish, then close."""
        self._draining = True
        if not self.pending:
            self.close()

    def reserve(self, size: int, lead: int = 0) -> int | None:
        """A region of the request arena whose byte `lead` is aligned, or None while half of the arena is taken.

        Bodies may take long to arrive; the other half is for tensors that are there (`place`).
        """
        if self.arena.regions.used + size > self.arena.regions.capacity // 2:
            return None
        return self.allocate(size, lead)

    def allocate(self, size: int, lead: int = 0) -> int | None:
        """A region for what is there, or None if there is no room now."""
        if self._trimmer:
            self._trimmer.cancel()
            self._trimmer = None
        return self.arena.regions.allocate(size, lead)

    def unreserve(self, region: int) -> None:
        """Give back a region that no call took over."""
        if self.closed:
            return
        self.arena.regions.free(region)
        if not self.arena.regions and not self._trimmer:
            self._trimmer = self._loop.call_later(TRIM_SECONDS, self._trim)

    def place(self, raw: Buffer, regions: list[int]) -> Buffer | None:
        """Copy a large tensor into the arena: its offset as bytes, its region appended; None: send it inline."""
        if len(raw) <= THRESHOLD:
            return None
        region = self.allocate(len(raw))
        if region is None:
            return None
        regions.append(region)
        self.arena.view[region : region + len(raw)] = raw
        return OFFSET.pack(region)

    def has_room(self, size: int) -> bool:
        """Whether another body of so many bytes may be sent; one may in any case when nothing is under way."""
        return not self.rows or (self.rows < self.max_rows and self.bytes + size <= self.max_bytes)

    def retry_after(self) -> int:
        """Seconds until what is under way will probably be done."""
        seconds = self.rows * self.row_seconds  # as the instance says, so it may be anything
        return 1 if not seconds > 1.0 else math.ceil(min(seconds, MAX_RETRY_AFTER))

    def queue_full(self) -> QueueFull:
        """The error for a request that is not sent because there is no room."""
        error = QueueFull("the model's queue is full")
        error.retry_after = self.retry_after()
        return error

    def call(
        self,
        header: bytes,
        payload: Sequence[Buffer],
        regions: list[int],
        on_reply: Callable[[Reply], None],
        now: float,
        deadline: float,
        flags: int = DEFAULT_PRIORITY,
        rows: int = 1,
        size: int = 0,
    ) -> int:
        """Send a request; `regions` are freed when its reply is in. Returns the id that `cancel` takes.

        `rows` and `size` are its load. It is answered DeadlineExceeded some time after its deadline.
        """
        self._next_id = request_id = self._next_id + 1
        if self.closed:
            self._loop.call_soon(on_reply, Reply(InstanceLost(), None, (), 0.0, 0.0, 0, now))
            return request_id
        self._write(request_frame(INFER, request_id, header, payload, now, deadline, flags))
        self.pending[request_id] = Call(on_reply, regions, deadline, rows, size)
        self.rows += rows
        self.bytes += size
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(SWEEP_SECONDS, self._sweep)
        return request_id

    def cancel(self, request_id: int) -> None:
        """Nobody waits for this call any more; its regions stay taken until the instance confirms."""
        call = self.pending.get(request_id)
        if call and call.on_reply:
            call.on_reply = None
            call.cancelled = time.perf_counter()
            if not self.closed:
                self.abandonment.cancelled()
                self._cancelled.add(request_id)
                self._write(request_frame(CANCEL, request_id))

    def data_received(self, data: bytes) -> None:
        """Called by asyncio: hand each reply to its call."""
        now = time.perf_counter()
        try:
            for head, header, payload in self._reader.feed(data):
                self._hand_over(head, header, payload, now)
            if self._draining and not self.pending:
                self.close()
        except (ProtocolError, msgspec.DecodeError):
            self.distrusted = True
            self._transport.abort()  # a model that has taken over its instance must not take over the worker

    def _hand_over(self, head: ReplyHead, raw_header: bytes, payload: bytes, now: float) -> None:
        kind, _, _, request_id, queue_seconds, compute_seconds, batch_rows = head
        if not (0.0 <= queue_seconds < MAX_SECONDS and 0.0 <= compute_seconds < MAX_SECONDS):  # NaN is not either
            raise ProtocolError("a reply that took no time that there is")
        call = self.pending.pop(request_id, None)
        if call is None:
            raise ProtocolError("a reply to no request")
        for region in call.regions:
            self.unreserve(region)
        self.rows -= call.rows
        self.bytes -= call.size
        if batch_rows:
            seconds = compute_seconds / batch_rows
            self.row_seconds += (seconds - self.row_seconds) * (0.1 if self.row_seconds else 1.0)
            if self.on_execution:
                self.on_execution(compute_seconds, batch_rows)
        header: ResultHeader | None = None
        error: GatewayError | None = None
        tensors: Sequence[Buffer] = ()
        try:
            if kind == RESULT:
                header = result_header(raw_header)
                tensors = split_payload(header.outputs, payload, self._replies)
            else:
                failure = _decode_failure(payload)
                error = from_code(failure.code, failure.message)
        except (ProtocolError, msgspec.DecodeError):
            self._tell(call.on_reply, Reply(InstanceDied(DIED), None, (), 0.0, 0.0, 0, now))
            raise
        self._tell(call.on_reply, Reply(error, header, tensors, queue_seconds, compute_seconds, batch_rows, now))
        if header is not None and header.lent:
            self._write(request_frame(RELEASE, request_id))
            self._lent_at = now
            if self._reply_trimmer is None:
                self._reply_trimmer = self._loop.call_later(TRIM_SECONDS, self._trim_replies)

    @staticmethod
    def _tell(on_reply: Callable[[Reply], None] | None, reply: Reply) -> None:
        """Hand a reply to its caller, whose own mistakes must not reach the other calls."""
        if on_reply is None:
            return
        try:
            on_reply(reply)
        except Exception:
            log.exception("the receiver of a reply failed")

    def _write(self, parts: list[Buffer]) -> None:
        if not self._out:  # one write per turn of the event loop, however many requests the turn brought
            self._loop.call_soon(self._flush)
        self._out += parts

    def _flush(self) -> None:
        if not self.closed:
            self._transport.write(b"".join(self._out))
        self._out.clear()

    def _sweep(self) -> None:
        """Answer the calls whose time is over.

        Calls are in the order in which they were sent, and so are their deadlines: who has one of its own sees to it.
        """
        self._sweeper = self._loop.call_later(SWEEP_SECONDS, self._sweep) if self.pending else None
        now = time.perf_counter()
        late = []
        for request_id, call in self.pending.items():
            if call.deadline > now:
                break
            if call.on_reply is not None:
                late.append((request_id, call.on_reply))
        error = DeadlineExceeded(f"the model did not answer within {self._timeout:g} s")
        for request_id, on_reply in late:
            self.cancel(request_id)
            self._tell(on_reply, Reply(error, None, (), 0.0, 0.0, 0, now))

    def _trim(self) -> None:
        self._trimmer = None
        if not self.arena.regions:
            self.arena.trim()

    def _trim_replies(self) -> None:
        """Have the instance give back the memory of its replies, if none has been in the arena for a while."""
        left = self._lent_at + TRIM_SECONDS - time.perf_counter()
        if left > 0:
            self._reply_trimmer = self._loop.call_later(left, self._trim_replies)
            return
        self._reply_trimmer = None
        self._write(request_frame(RELEASE, RELEASE_MEMORY))

    def _close_arenas(self) -> None:
        self._cancelled.release()
        self.arena.close()
        os.close(self._reply_fd)
