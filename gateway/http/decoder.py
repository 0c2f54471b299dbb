"""The worker's side of its decoder process: started when there is work, bounded, replaced when it ends or hangs."""

import asyncio
import logging
import os
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable

import msgspec

from gateway.errors import GatewayError, InstanceDied, ProtocolError, QueueFull
from gateway.http.decoding import EXTENT, Answer, Job, error_of, read_some, write_all
from gateway.tensors import Buffer

log = logging.getLogger("gateway.worker")

FROM = 1 << 20
"""Bodies whose JSON has more bytes are decoded in the other process: about 10 ms of work."""
MOST_WAITING = 64
"""Bodies that wait for the decoder; those that come on top are refused."""
ROOM_BYTES = 256 << 20
"""While so many bytes of decoded tensors wait for their place in an instance's arena, no other body is decoded."""
IDLE_SECONDS = 10.0
"""After so long without work the process ends, so that its memory is the system's again."""
GRACE_SECONDS = 1.0
"""A body that nobody waits for any more may be decoded for so long before the process is replaced."""
MOST_ENDS = 2
"""A body that so many decoders ended with is not tried again."""
BASE_BYTES, BYTES_PER_BODY_BYTE = 1 << 30, 24
"""Private memory that the process may have: its own, and so many times the largest body."""

_encode = msgspec.msgpack.Encoder().encode
_decode_answer = msgspec.msgpack.Decoder(Answer).decode


class Decoded:
    """An answer, and the memory in which its tensors lie until `close`."""

    def __init__(self, answer: Answer, fd: int, size: int, release: Callable[[int, int], None]) -> None:
        self.answer = answer
        self.fd = fd
        self._size = size
        self._release: Callable[[int, int], None] | None = release

    def close(self) -> None:
        """Give the memory back, once."""
        if self._release is not None:
            release, self._release = self._release, None
            release(self.fd, self._size)


class Task:
    """One body to decode. `on_done` is called with what came of it, unless it is cancelled before."""

    def __init__(
        self,
        job: Job,
        body: Buffer,
        body_fd: int | None,
        on_done: Callable[[Decoded | GatewayError], None],
    ) -> None:
        self.text = _encode(job)
        self.body: Buffer = b"" if body_fd is not None else body
        self.body_fd = os.dup(body_fd) if body_fd is not None else -1
        self.room_fd = -1
        self.on_done: Callable[[Decoded | GatewayError], None] | None = on_done
        self.sent = False
        """Whether the process has it."""
        self.ends = 0

    def memory(self) -> tuple[int, int, int]:
        """Descriptors of the body, the job and the room for the answer; in a thread, for a body may be copied."""
        if self.body_fd < 0:
            self.body_fd = os.memfd_create("gateway-body", os.MFD_CLOEXEC)
            write_all(self.body_fd, self.body)
            self.body = b""
        job_fd = os.memfd_create("gateway-job", os.MFD_CLOEXEC)
        try:
            write_all(job_fd, self.text)
            self.room_fd = os.memfd_create("gateway-decoded", os.MFD_CLOEXEC)
        except BaseException:
            os.close(job_fd)
            raise
        return self.body_fd, job_fd, self.room_fd

    def close(self) -> None:
        """Let go of the memory. In a thread: freeing much of it takes milliseconds."""
        fds, self.body_fd, self.room_fd, self.body = (self.body_fd, self.room_fd), -1, -1, b""
        for fd in fds:
            if fd >= 0:
                os.close(fd)


class _Process:
    """One decoder process and the line to it."""

    def __init__(self, limit: int) -> None:
        self.line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.line.setblocking(False)
        module, numbers = "gateway.http.decoder_process", (theirs.fileno(), os.getpid(), limit)
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own module
                [sys.executable, "-m", module, *map(str, numbers)], pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL
            )
        except BaseException:
            self.line.close()
            raise
        finally:
            theirs.close()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def end(self) -> None:
        """Kill it and wait for its end, which may take a moment. In a thread."""
        self._process.kill()
        self._process.wait()


class Decoder:
    """Decodes the large bodies of one worker, one after another."""

    def __init__(self, max_body_bytes: int) -> None:
        self._limit = BASE_BYTES + BYTES_PER_BODY_BYTE * max_body_bytes
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[Task] = deque()
        self._running: Task | None = None
        self._process: _Process | None = None
        self._room_taken = 0
        self._idle: asyncio.TimerHandle | None = None

    @property
    def pid(self) -> int | None:
        """The process, if there is one."""
        return None if self._process is None else self._process.pid

    @property
    def busy(self) -> bool:
        """Whether the process has something to do."""
        return self._running is not None and self._running.sent

    def submit(self, task: Task) -> None:
        """Decode this body when its turn comes; QueueFull if too many wait."""
        if len(self._waiting) >= MOST_WAITING:
            self._discard(task)
            raise QueueFull("too many large bodies wait to be decoded")
        self._waiting.append(task)
        self._next()

    def cancel(self, task: Task) -> None:
        """Nobody waits for this one any more."""
        task.on_done = None
        if task in self._waiting:
            self._waiting.remove(task)
            self._discard(task)
        elif task is self._running:
            self._loop.call_later(GRACE_SECONDS, self._end_if_running, task)

    def _end_if_running(self, task: Task) -> None:
        if task is self._running and task.sent:
            log.warning("decoding a body that nobody waits for does not end: the decoder is replaced")
            self._lost()

    def _next(self) -> None:
        """Begin with the next body, if nothing is in the way."""
        if self._running is not None or self._room_taken >= ROOM_BYTES or not self._waiting:
            return
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        task = self._running = self._waiting.popleft()
        preparing = self._loop.run_in_executor(None, task.memory)
        preparing.add_done_callback(lambda done: self._send(task, done))

    def _send(self, task: Task, memory: "asyncio.Future[tuple[int, int, int]]") -> None:
        try:
            descriptors = memory.result()
            try:
                if task.on_done is None:
                    self._finish(InstanceDied("cancelled"))
                    return
                if self._process is None:
                    self._process = _Process(self._limit)
                    self._loop.add_reader(self._process.line, self._answered)
                task.sent = True
                socket.send_fds(self._process.line, [EXTENT.pack(0, len(task.text))], list(descriptors))
            finally:
                os.close(descriptors[1])
        except ConnectionError:
            self._lost()
        except OSError as error:
            task.sent = False
            log.error("no decoder could be started: %s", error)  # noqa: TRY400 - it says all there is
            self._finish(InstanceDied("the server cannot read large bodies at the moment"))

    def _answered(self) -> None:
        """The process has done its work, or ended."""
        task, process = self._running, self._process
        assert process is not None
        try:
            packet = process.line.recv(EXTENT.size)
        except BlockingIOError:
            return
        except ConnectionError:
            packet = b""
        if len(packet) != EXTENT.size or task is None or not task.sent:
            self._lost()
            return
        task.sent = False
        at, size = EXTENT.unpack(packet)
        reading = self._loop.run_in_executor(None, _read_answer, task.room_fd, at, size)
        reading.add_done_callback(lambda done: self._read(task, done, at + size))

    def _read(self, task: Task, reading: "asyncio.Future[Answer]", size: int) -> None:
        try:
            answer = reading.result()
        except (GatewayError, OSError, ValueError, msgspec.MsgspecError) as error:
            log.error("the decoder has answered with nonsense: %s", error)  # noqa: TRY400 - as above
            self._rest()
            self._retry(task)
            return
        if answer.refusal is not None:
            self._finish(error_of(answer.refusal))
        else:
            self._room_taken += size
            self._finish(Decoded(answer, task.room_fd, size, self._release))

    def _finish(self, outcome: Decoded | GatewayError) -> None:
        """The running task is done."""
        task, self._running = self._running, None
        assert task is not None
        on_done, task.on_done = task.on_done, None
        self._discard(task, room=isinstance(outcome, GatewayError))
        try:
            if on_done is not None:
                on_done(outcome)
            elif isinstance(outcome, Decoded):
                outcome.close()
        finally:
            if self._running is None and not self._waiting:
                self._idle = self._idle or self._loop.call_later(IDLE_SECONDS, self._rest)
            self._next()

    def _lost(self) -> None:
        """The process has ended, or is to end: what it was doing is tried again."""
        self._rest()
        if (task := self._running) is not None and task.sent:
            task.sent = False
            self._retry(task)

    def _retry(self, task: Task) -> None:
        task.ends += 1
        if task.on_done is None or task.ends >= MOST_ENDS:
            self._finish(InstanceDied("the process that read this body ended before it was done"))
            return
        self._running = None
        self._waiting.appendleft(task)
        room, task.room_fd = task.room_fd, -1
        self._loop.run_in_executor(None, os.close, room)
        self._next()

    def _rest(self) -> None:
        """End the process."""
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        process, self._process = self._process, None
        if process is not None:
            self._loop.remove_reader(process.line)
            process.line.close()
            self._loop.run_in_executor(None, process.end)

    def _release(self, fd: int, size: int) -> None:
        """Called when decoded tensors are where they belong."""
        self._room_taken -= size
        self._loop.run_in_executor(None, os.close, fd)
        self._next()

    def _discard(self, task: Task, *, room: bool = True) -> None:
        if not room:
            task.room_fd = -1
        self._loop.run_in_executor(None, task.close)


def _read_answer(fd: int, at: int, size: int) -> Answer:
    if at + size > os.fstat(fd).st_size:
        raise ProtocolError("an answer outside its memory")
    return _decode_answer(read_some(fd, at, size))
