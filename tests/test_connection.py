"""An instance's side of the line to a worker."""

import os
import socket
from collections.abc import Iterator

import pytest

from gateway.errors import ProtocolError
from gateway.instance.connection import Connection
from gateway.ipc.arena import NOTE_BYTES, create_memory, map_readable
from gateway.ipc.framing import RELEASE_MEMORY


class Line:
    """A connection that has been greeted, and what its worker sees of the replies."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self.fds = [create_memory("requests"), create_memory("replies")]
        socket.send_fds(theirs, [b"arenas"], self.fds)
        self.replies = map_readable(self.fds[1])
        self.connection = Connection(ours)
        self.connection.greet()
        theirs.close()

    def used(self) -> int:
        """Bytes that the replies take."""
        return os.fstat(self.fds[1]).st_blocks * 512

    def close(self) -> None:
        self.connection.close()
        for fd in self.fds:
            os.close(fd)


@pytest.fixture
def line() -> Iterator[Line]:
    line = Line()
    yield line
    line.close()


def test_the_memory_of_replies_goes_back_when_it_is_asked_for(line: Line) -> None:
    note = line.connection.note
    assert note is not None
    note.write([7])
    for number in (1, 2):
        assert line.connection.place(number, b"x" * (8 << 20)) is not None
    line.connection.release(1)
    line.connection.release(RELEASE_MEMORY)
    assert line.used() >= 16 << 20  # the other one is still being read
    line.connection.release(2)
    line.connection.release(RELEASE_MEMORY)
    assert line.used() <= NOTE_BYTES
    assert note.read() == {7}


def test_what_was_not_lent_cannot_be_released(line: Line) -> None:
    with pytest.raises(ProtocolError):
        line.connection.release(1)
