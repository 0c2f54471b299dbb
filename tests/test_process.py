import os
import socket
from pathlib import Path

import pytest

from gateway.errors import InferenceFailed, LoadFailed, OutOfMemory
from gateway.instance.process import Output, check_files, failure


def test_files_folders_and_links_to_them_are_no_trouble(tmp_path: Path) -> None:
    (tmp_path / "variables").mkdir()
    (tmp_path / "variables" / "data").touch()
    (tmp_path / "link").symlink_to("variables/data")
    (tmp_path / "up").symlink_to("..")
    (tmp_path / "nowhere").symlink_to("not there")
    check_files(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "nowhere", "up", "variables"]


@pytest.mark.parametrize("kind", ["fifo", "socket", "device", "link to a device", "link to a fifo"])
def test_what_may_block_its_reader_is_refused_without_being_opened(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "variables" / "data"
    place.parent.mkdir()
    if kind == "fifo":
        os.mkfifo(place)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(place))
    elif kind == "device":
        if os.geteuid():
            pytest.skip("only root can make devices")
        os.mknod(place, 0o20666, os.makedev(1, 3))
    elif kind == "link to a device":
        place.symlink_to("/dev/zero")
    else:
        os.mkfifo(tmp_path.parent / f"{tmp_path.name}.fifo")
        place.symlink_to(tmp_path.parent / f"{tmp_path.name}.fifo")
    with pytest.raises(LoadFailed, match=r"'data' .* neither file nor directory"):
        check_files(tmp_path)


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (LoadFailed("torn"), "load_failed", "torn"),
        (InferenceFailed("the warm-up raised"), "load_failed", "the warm-up raised"),
        (OutOfMemory("too large"), "out_of_memory", "too large"),
        (MemoryError(), "out_of_memory", "more memory"),
        (PermissionError(13, "Permission denied", "/secret/path"), "load_failed", "link to a place outside"),
        (RuntimeError("/secret/path"), "load_failed", "raised RuntimeError"),
    ],
)
def test_every_failure_has_a_code_and_a_reason_without_paths(error: Exception, code: str, words: str) -> None:
    told = failure(error)
    assert told.code == code
    assert words in told.reason
    assert "/secret" not in told.reason


def test_printing_into_a_full_pipe_neither_waits_nor_fails() -> None:
    readable, writable = os.pipe2(os.O_NONBLOCK)
    out = Output(writable)
    for _ in range(100):
        print("x" * 10_000, file=out, flush=True)
    os.close(readable)
    print("nobody is there", file=out)
    print("\udcff", file=out)
    os.close(writable)
    assert out.write("gone") == 4
