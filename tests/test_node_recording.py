"""What is picked up from a folder in which an instance may have left anything."""

import os
import socket
from pathlib import Path

import pytest

from gateway.nodes.recording import NotTaken, take

NAMES = ("a.trace", "a.trace.tmp")


def test_the_first_file_that_is_there_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.trace.tmp").write_bytes(b"second")
    assert take(tmp_path, NAMES, 6) == b"second"
    (tmp_path / "a.trace").write_bytes(b"first")
    assert take(tmp_path, NAMES, 6) == b"first"


@pytest.mark.parametrize("kind", ["link", "hard link", "folder", "fifo", "socket", "dangling", "loop"])
def test_what_is_no_file_of_the_instance_is_left_and_nobody_waits(tmp_path: Path, kind: str) -> None:
    secret, place = tmp_path / "secret", tmp_path / "a.trace"
    secret.write_bytes(b"secret")
    if kind == "link":
        place.symlink_to(secret)
    elif kind == "hard link":
        place.hardlink_to(secret)
    elif kind == "folder":
        place.mkdir()
    elif kind == "fifo":
        os.mkfifo(place)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(place))
    else:
        place.symlink_to(place if kind == "loop" else tmp_path / "nothing")
    with pytest.raises(NotTaken, match="is no file"):
        take(tmp_path, NAMES, 100)


def test_a_large_file_is_refused_by_its_size_and_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.trace").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(NotTaken, match="larger than 1 MiB"):
        take(tmp_path, NAMES, 1 << 20)


def test_what_is_not_there_was_not_written(tmp_path: Path) -> None:
    with pytest.raises(NotTaken, match="was not written"):
        take(tmp_path, NAMES, 100)
