import fcntl
import os
import socket
import tempfile

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from gateway.ipc.arena import (
    ALIGNMENT,
    NOTE_BYTES,
    Arena,
    CancelNote,
    ExecutionNote,
    Regions,
    create_memory,
    map_readable,
)

CAPACITY = 2048


class RegionsMachine(RuleBasedStateMachine):
    """Regions against a plain list of (start, size) and the slowest possible first fit."""

    taken = Bundle("taken")

    def __init__(self) -> None:
        super().__init__()
        self.regions = Regions(CAPACITY)
        self.model: dict[int, int] = {}

    def first_fit(self, size: int, lead: int) -> int | None:
        for at in range(-lead % ALIGNMENT, CAPACITY - size + 1, ALIGNMENT):
            if all(at + size <= start or at >= start + length for start, length in self.model.items()):
                return at
        return None

    @rule(target=taken, size=st.integers(1, 700) | st.integers(1, CAPACITY + 1), lead=st.integers(0, 200))
    def allocate(self, size: int, lead: int) -> int | None:
        want = self.first_fit(size, lead)
        at = self.regions.allocate(size, lead)
        assert at == want
        if at is not None:
            assert (at + lead) % ALIGNMENT == 0
            assert at >= 0
            assert at + size <= CAPACITY
            self.model[at] = size
        return at

    @rule(offset=consumes(taken))
    def free(self, offset: int | None) -> None:
        if offset is None:
            return
        self.regions.free(offset)
        del self.model[offset]
        with pytest.raises(KeyError):
            self.regions.free(offset)

    @rule()
    def free_everything(self) -> None:
        for offset in list(self.model):
            self.regions.free(offset)
            del self.model[offset]
        everything = self.regions.allocate(CAPACITY)
        assert everything == 0
        self.regions.free(everything)

    @invariant()
    def counts(self) -> None:
        assert len(self.regions) == len(self.model)


class OnceFreed(RegionsMachine):
    """The same; bundles may hold offsets that `free_everything` freed, so only whole clearings are done."""

    free = None  # type: ignore[assignment]


class OneByOne(RegionsMachine):
    free_everything = None  # type: ignore[assignment]


TestRegionsFreedOneByOne = OneByOne.TestCase
TestRegionsFreedTogether = OnceFreed.TestCase
for case in (TestRegionsFreedOneByOne, TestRegionsFreedTogether):
    case.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


def test_a_region_of_nothing_overlaps_no_other() -> None:
    regions = Regions(CAPACITY)
    first = regions.allocate(64)
    nothing = regions.allocate(0)
    assert first != nothing
    assert first is not None
    regions.free(first)
    assert regions.allocate(64) == first


def test_freeing_what_is_not_taken_is_an_error() -> None:
    with pytest.raises(KeyError):
        Regions(CAPACITY).free(0)


@pytest.mark.parametrize("size", [0, 4096, 1 << 20, 1 << 40])
def test_the_size_of_an_arena_cannot_be_changed(size: int) -> None:
    fd = create_memory("test", 65536)
    try:
        with pytest.raises(PermissionError):
            os.ftruncate(fd, size)
        with pytest.raises(PermissionError):
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
        assert os.fstat(fd).st_size == 65536
    finally:
        os.close(fd)


def test_an_arena_is_not_inherited_by_programs() -> None:
    arena = Arena.create("test", 4096)
    assert not os.get_inheritable(arena.fd)
    arena.close()


def test_what_one_side_writes_the_other_reads() -> None:
    arena = Arena.create("test", 65536)
    readable = map_readable(arena.fd)
    arena.view[100:105] = b"hello"
    assert bytes(readable[100:105]) == b"hello"
    assert len(readable) == len(arena.view) == arena.regions.capacity == 65536
    arena.close()
    assert bytes(readable[100:105]) == b"hello"  # the mapping outlives the descriptor


def test_trim_gives_the_memory_back() -> None:
    arena = Arena.create("test", 1 << 20)
    assert os.fstat(arena.fd).st_blocks == 0  # address space only
    arena.view[:] = b"x" * (1 << 20)
    assert os.fstat(arena.fd).st_blocks * 512 == 1 << 20
    arena.trim()
    assert os.fstat(arena.fd).st_blocks == 0
    assert bytes(arena.view[:10]) == bytes(10)
    arena.close()


def test_an_arena_in_use_is_not_trimmed() -> None:
    arena = Arena.create("test", 4096)
    arena.regions.allocate(10)
    with pytest.raises(AssertionError):
        arena.trim()
    arena.close()


def test_memory_that_could_shrink_is_not_mapped() -> None:
    fd = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 4096)
    for seals in (0, fcntl.F_SEAL_GROW, fcntl.F_SEAL_SHRINK):
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        with pytest.raises(ValueError, match="not sealed"):
            map_readable(fd)
    os.close(fd)


def test_what_is_no_shared_memory_is_not_mapped() -> None:
    with tempfile.TemporaryFile() as file, pytest.raises((OSError, ValueError)):
        map_readable(file.fileno())
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises((OSError, ValueError)):
        map_readable(ours.fileno())


def test_nothing_is_given_out_before_the_first_byte() -> None:
    regions = Regions(4096, first=1000)
    offsets = [regions.allocate(100, lead) for lead in (0, 7, 0)]
    assert None not in offsets
    assert all(offset is not None and offset >= 1000 for offset in offsets)
    for offset in offsets:
        assert offset is not None
        regions.free(offset)
    assert regions.allocate(4096 - 1024) == 1024
    assert regions.allocate(1) is None


def test_a_note_is_read_as_it_was_written_and_forgotten_when_cleared() -> None:
    memory = memoryview(bytearray(2 * NOTE_BYTES))
    note, reader = ExecutionNote(memory), ExecutionNote(memory)
    assert reader.read() == frozenset()
    note.write([7, 2**63, 1], execution=3, total=4)
    assert reader.read() == {7, 2**63, 1}
    assert reader.read_execution() == (3, 4, {7, 2**63, 1})
    note.write([5])
    assert reader.read() == {5}
    note.clear()
    assert reader.read() == frozenset()


def test_of_more_than_there_is_room_for_the_rest_is_left_out_of_a_note() -> None:
    memory = memoryview(bytearray(2 * NOTE_BYTES))
    note = ExecutionNote(memory)
    note.write(range(1, 100_000))
    assert note.read() == frozenset(range(1, NOTE_BYTES // 8 - 2))
    assert not any(memory[NOTE_BYTES:])


def test_cancellations_are_read_once_in_their_order() -> None:
    memory = memoryview(bytearray(NOTE_BYTES))
    writer, reader = CancelNote(memory), CancelNote(memory)
    assert reader.read() == []
    for number in (7, 3, 2**63):
        writer.add(number)
    assert reader.read() == [7, 3, 2**63]
    assert reader.read() == []
    writer.add(8)
    assert reader.read() == [8]


def test_of_more_cancellations_than_there_is_room_for_the_latest_are_read() -> None:
    memory = memoryview(bytearray(NOTE_BYTES))
    writer, reader = CancelNote(memory), CancelNote(memory)
    room = NOTE_BYTES // 8 - 1
    for number in range(room + 10):
        writer.add(number)
    assert reader.read() == list(range(10, room + 10))
    writer.add(5)
    assert reader.read() == [5]


def test_trimming_leaves_what_is_before_the_first_byte() -> None:
    arena = Arena.create("test", 2 * NOTE_BYTES, first=NOTE_BYTES)
    arena.view[:] = b"x" * len(arena.view)
    arena.trim()
    assert bytes(arena.view[NOTE_BYTES - 2 : NOTE_BYTES + 2]) == b"xx\0\0"
    arena.close()
