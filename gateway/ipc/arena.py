"""Shared memory through which large tensors pass from one process to another without a socket.

The side that writes owns the arena and decides what is free; the other side only reads. An arena is a
memfd whose size is sealed, so that the reader cannot be made to touch memory that is gone.
"""

import bisect
import contextlib
import fcntl
import mmap
import os
from array import array
from collections.abc import Sequence
from typing import cast

ALIGNMENT = 64
CAPACITY = 256 << 20
"""Bytes of address space; memory is used only where something was written."""
THRESHOLD = 64 << 10
"""Tensors of more bytes than this travel in the arena."""

NOTE_BYTES = 64 << 10
"""At the head of an arena; see ExecutionNote and CancelNote."""

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class Regions:
    """Which parts of [first, capacity) are taken: first fit from the low end, so that the same pages serve again."""

    def __init__(self, capacity: int, first: int = 0) -> None:
        self.capacity = capacity
        self._first = first
        self.used = 0
        self._starts: list[int] = []
        self._ends: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._starts)

    def allocate(self, size: int, lead: int = 0) -> int | None:
        """Offset of a free region of `size` bytes, or None; the byte at offset + lead is aligned."""
        size = max(size, 1)
        at = self._next(self._first, lead)
        for start in self._starts:
            if start - at >= size:
                break
            at = self._next(self._ends[start], lead)
        if size > self.capacity - at:
            return None
        bisect.insort(self._starts, at)
        self._ends[at] = at + size
        self.used += size
        return at

    def free(self, offset: int) -> None:
        """Give back the region at `offset`; KeyError if none is there."""
        self.used -= self._ends.pop(offset) - offset
        del self._starts[bisect.bisect_left(self._starts, offset)]

    @staticmethod
    def _next(end: int, lead: int) -> int:
        return end + (-(end + lead) % ALIGNMENT)


class Arena:
    """The writer's side: an anonymous file, its mapping and what of it is in use. Takes over the descriptor.

    Bytes before `first` are never given out.
    """

    def __init__(self, fd: int, first: int = 0) -> None:
        self.fd = fd
        self._map = mmap.mmap(fd, os.fstat(fd).st_size)
        self.view = memoryview(self._map)
        self.regions = Regions(len(self.view), first)
        self._first = first

    @classmethod
    def create(cls, name: str, capacity: int = CAPACITY, first: int = 0) -> "Arena":
        """A new arena of its own."""
        fd = create_memory(name, capacity)
        try:
            return cls(fd, first)
        except OSError:
            os.close(fd)
            raise

    def trim(self) -> None:
        """Give the memory of an idle arena back to the system; nothing may be in use."""
        assert not self.regions
        self._map.madvise(mmap.MADV_REMOVE, self._first)

    def close(self) -> None:
        """Drop the descriptor and the mapping; where views of it are still in use, the mapping goes with the last."""
        os.close(self.fd)
        unmap(self.view)


FEW_IDS = 8
"""Up to so many are written faster one by one."""


class ExecutionNote:
    """Which requests an instance is executing, written where its worker can still read it when the instance is dead.

    One word says how many, the next ones are their ids; of more than there is room for, the rest is left out. The last
    two words are the number of the execution and how many requests it has, those of other workers included.
    """

    def __init__(self, memory: memoryview) -> None:
        self._words = memory[:NOTE_BYTES].cast("Q")

    def release(self) -> None:
        """It is not used any more."""
        self._words.release()

    def write(self, ids: Sequence[int], execution: int = 0, total: int = 0) -> None:
        """These are about to be executed; the count comes last, so that a torn note says less and nothing wrong."""
        words = self._words
        words[-1], words[-2] = execution, total
        count = min(len(ids), len(words) - 3)
        if count <= FEW_IDS:
            for index in range(count):
                words[1 + index] = ids[index]
        else:
            words[1 : 1 + count] = memoryview(array("Q", ids))[:count]
        words[0] = count

    def clear(self) -> None:
        """Nothing is being executed any more."""
        self._words[0] = 0

    def read(self, most: int = NOTE_BYTES) -> frozenset[int]:
        """The ids in the note, no more than `most`, whatever an instance has made of it."""
        words = self._words
        return frozenset(words[1 : 1 + min(words[0], len(words) - 3, most)].tolist())

    def read_execution(self) -> tuple[int, int, frozenset[int]]:
        """(number of the execution, its requests in all, the ids in the note); no ids if it changed meanwhile."""
        words = self._words
        execution, total = words[-1], words[-2]
        ids = self.read()
        return execution, total, ids if words[-1] == execution else frozenset()


class CancelNote:
    """Which requests nobody waits for any more, for the instance to read before it computes.

    A cancellation in the stream comes behind all requests that were sent before, of which there may be more than a
    socket holds. One word counts all cancellations, the others are a ring of the latest ids. Reading starts where the
    last reading ended; of more than the ring holds the oldest are lost, and found in the stream.
    """

    def __init__(self, memory: memoryview) -> None:
        self._words = memory[:NOTE_BYTES].cast("Q")
        self._count = 0

    def release(self) -> None:
        """It is not used any more."""
        self._words.release()

    def add(self, request_id: int) -> None:
        """Nobody waits for this one."""
        words = self._words
        words[1 + self._count % (len(words) - 1)] = request_id
        self._count += 1
        words[0] = self._count

    def read(self) -> list[int]:
        """The ids since the last reading."""
        words, begun = self._words, self._count
        count = words[0]
        if count == begun:
            return []
        self._count = count
        room = len(words) - 1
        return [words[1 + at % room] for at in range(max(begun, count - room), count)]


def create_memory(name: str, capacity: int = CAPACITY) -> int:
    """A descriptor of new shared memory whose size nobody can change."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, capacity)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except OSError:
        os.close(fd)
        raise
    return fd


def create_pair() -> tuple[Arena, int, memoryview]:
    """An arena for requests, and a descriptor and view of memory for replies; each begins with room for a note.

    OSError where there are no descriptors left; then nothing stays open.
    """
    with contextlib.ExitStack() as opened:
        requests = Arena.create("gateway-requests", first=NOTE_BYTES)
        opened.callback(requests.close)
        fd = create_memory("gateway-replies")
        opened.callback(os.close, fd)
        replies = map_readable(fd)
        opened.pop_all()
    return requests, fd, replies


def unmap(view: memoryview) -> None:
    """Give a whole mapping back at once, if nobody looks at a part of it.

    A mapping holds a descriptor. Left to the garbage collector, which a worker runs rarely, those of instances that
    are gone would add up to more than a process may have.
    """
    mapping = view.obj
    with contextlib.suppress(BufferError):
        view.release()
        cast("mmap.mmap", mapping).close()


def map_readable(fd: int) -> memoryview:
    """The reader's side: the whole arena behind `fd`; ValueError if its size is not sealed."""
    if fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
        raise ValueError("the arena's size is not sealed")
    # Writable although it is only read: frameworks refuse arrays that are not (they never write to inputs).
    return memoryview(mmap.mmap(fd, os.fstat(fd).st_size))
