"""One HTTP worker's connection to an instance, on the instance's side: frames in, frames out, never blocking."""

import os
import socket
from collections import deque

from gateway.errors import ProtocolError
from gateway.instance.queue import PendingRequest
from gateway.ipc.arena import NOTE_BYTES, THRESHOLD, Arena, CancelNote, ExecutionNote, map_readable
from gateway.ipc.framing import OFFSET, RELEASE_MEMORY, RequestHead, request_reader
from gateway.tensors import Buffer

RECEIVE = 256 << 10


class Connection:
    """A non-blocking stream socket with an arena each way."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.arena: memoryview | None = None
        self.note: ExecutionNote | None = None
        self.queued: dict[int, PendingRequest] = {}
        """Its requests in the queue."""
        self.last_id = 0
        """Of the requests that have come; they come in order."""
        self.unwanted: set[int] = set()
        """Requests that have yet to come and that nobody waits for any more."""
        self._cancelled: CancelNote | None = None
        self.closed = False
        self.blocked = False  # the socket took no more; EPOLLOUT is being waited for
        self._replies: Arena | None = None
        self._lent: dict[int, list[int]] = {}  # request id → offsets the worker has yet to release
        self._reader = request_reader()
        self._unsent: deque[memoryview] = deque()

    def greet(self) -> None:
        """Take the worker's first message: the two arenas; OSError or ValueError if it is something else."""
        _, fds, _, _ = socket.recv_fds(self.sock, 16, 2)
        try:
            if len(fds) == 2:
                self.arena = map_readable(fds[0])
                self._cancelled = CancelNote(self.arena)
                self._replies = Arena(fds.pop(), first=NOTE_BYTES)
                self.note = ExecutionNote(self._replies.view)
        finally:
            for fd in fds:
                os.close(fd)

    def receive(self) -> list[tuple[RequestHead, bytes, bytes]]:
        """The frames that have arrived; EOFError when the worker is gone, ProtocolError if it speaks nonsense."""
        frames: list[tuple[RequestHead, bytes, bytes]] = []
        while True:
            try:
                data = self.sock.recv(RECEIVE)
            except BlockingIOError:
                return frames
            except ConnectionError:
                raise EOFError from None
            if not data:
                if frames:
                    return frames  # the next call meets the end again
                raise EOFError
            frames += self._reader.feed(data)
            if len(data) < RECEIVE:
                return frames

    def cancelled(self) -> list[PendingRequest]:
        """Requests in the queue that nobody waits for any more, as the worker has noted since the last call."""
        if self._cancelled is None:
            return []
        found = []
        for request_id in self._cancelled.read():
            request = self.queued.get(request_id)
            if request is not None:
                found.append(request)
            elif request_id > self.last_id:
                self.unwanted.add(request_id)
        return found

    def place(self, request_id: int, raw: Buffer) -> Buffer | None:
        """Copy a large output into the reply arena; its offset as bytes, or None: send it inline."""
        if len(raw) <= THRESHOLD or self._replies is None:
            return None
        offset = self._replies.regions.allocate(len(raw))
        if offset is None:
            return None
        self._replies.view[offset : offset + len(raw)] = raw
        self._lent.setdefault(request_id, []).append(offset)
        return OFFSET.pack(offset)

    def release(self, request_id: int) -> None:
        """The worker has done with a reply's outputs in the arena; ProtocolError if it had none."""
        if request_id == RELEASE_MEMORY:
            if self._replies is not None and not self._replies.regions:
                self._replies.trim()
            return
        offsets = self._lent.pop(request_id, None)
        if offsets is None or self._replies is None:
            raise ProtocolError("a release of what was not lent")
        for offset in offsets:
            self._replies.regions.free(offset)

    def take_back(self, request_id: int) -> None:
        """Free what was placed for a reply that is not sent after all."""
        if request_id in self._lent:
            self.release(request_id)

    def send(self, parts: list[Buffer]) -> bool:
        """Write the parts of frames, or keep what the socket does not take; True if nothing is left."""
        if parts and not self.closed:
            self._unsent.append(memoryview(b"".join(parts)))
        while self._unsent:
            head = self._unsent[0]
            try:
                sent = self.sock.send(head)
            except BlockingIOError:
                return False
            except ConnectionError:
                self._unsent.clear()  # the end is met at the next receive
                return True
            if sent < len(head):
                self._unsent[0] = head[sent:]
            else:
                self._unsent.popleft()
        return True

    def send_rest(self, seconds: float) -> None:
        """Write what is left, waiting for the worker to read it; a worker that does not read loses it."""
        self.sock.settimeout(seconds)
        try:
            while self._unsent:
                self.sock.sendall(self._unsent.popleft())
        except OSError:
            self._unsent.clear()

    def close(self) -> None:
        """Drop the socket; queued requests of this connection are dead from now on."""
        self.closed = True
        self._unsent.clear()
        self.sock.close()
        if self._replies is not None:
            self._replies.close()
            self._replies = None
