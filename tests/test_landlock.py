import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.instance import landlock
from gateway.instance.kernel import prctl

NOBODY = 65534
pytestmark = pytest.mark.skipif(not landlock.abi(), reason="the kernel has no Landlock")


@pytest.fixture(params=[0, NOBODY], ids=["root", "nobody"])
def uid(request: pytest.FixtureRequest) -> int:
    if request.param and os.geteuid():
        pytest.skip("only root can become nobody")
    return int(request.param)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Three folders with a file each, open to everybody."""
    for name in ("readable", "scratch", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
        (tmp_path / name / "file").chmod(0o666)
        (tmp_path / name).chmod(0o777)
    for parent in (tmp_path, *tmp_path.parents):
        if parent.stat().st_uid == os.geteuid() and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o111)
    return tmp_path


def outcome(act: Callable[[], Any]) -> str:
    """Done, or the name of the error."""
    try:
        act()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "done"


def confined(folders: Path, acts: dict[str, Callable[[], Any]], version: int = 0) -> Callable[[], dict[str, str]]:
    def act() -> dict[str, str]:
        prctl(38, 1)
        grants = [
            (str(folders / "readable"), landlock.READ),
            (str(folders / "scratch"), landlock.SCRATCH),
            (str(folders / "nowhere"), landlock.READ),
        ]
        landlock.restrict(version or landlock.abi(), grants)
        return {name: outcome(each) for name, each in acts.items()}

    return act


def test_files_can_be_used_as_granted_and_no_others(folders: Path, helpers: Any, uid: int) -> None:
    readable, scratch, other = folders / "readable", folders / "scratch", folders / "other"
    acts: dict[str, tuple[Callable[[], Any], str]] = {
        "read": ((readable / "file").read_bytes, "done"),
        "list": (lambda: list(readable.iterdir()), "done"),
        "write": (lambda: (readable / "file").write_bytes(b""), "EACCES"),
        "append": (lambda: os.open(readable / "file", os.O_APPEND | os.O_WRONLY), "EACCES"),
        "make": ((readable / "new").touch, "EACCES"),
        "read other": ((other / "file").read_bytes, "EACCES"),
        "list other": (lambda: list(other.iterdir()), "EACCES"),
        "list parent": (lambda: list(folders.iterdir()), "EACCES"),
        "write other": (lambda: (other / "file").write_bytes(b""), "EACCES"),
        "remove other": ((other / "file").unlink, "EACCES"),
        "rename other": (lambda: (other / "file").rename(scratch / "mine"), "EACCES"),
        "link other": (lambda: os.link(other / "file", scratch / "mine"), "EACCES"),
        "climb": ((readable / ".." / "other" / "file").read_bytes, "EACCES"),
        "through proc": (Path(f"/proc/self/root{other}/file").read_bytes, "EACCES"),
        "scratch": (lambda: (scratch / "new").write_bytes(b"x"), "done"),
        "overwrite": (lambda: (scratch / "file").write_bytes(b"x"), "done"),
        "remove": ((scratch / "file").unlink, "EACCES"),
        "make folder": ((scratch / "folder").mkdir, "EACCES"),
        "make link": (lambda: (scratch / "link").symlink_to("/"), "EACCES"),
        "make fifo": (lambda: os.mkfifo(scratch / "fifo"), "EACCES"),
        "the machine": (lambda: Path("/etc/passwd").read_bytes(), "EACCES"),
        "a process": (lambda: Path(f"/proc/{os.getppid()}/cmdline").read_bytes(), "EACCES"),
    }
    found = helpers.in_child(confined(folders, {name: act for name, (act, _) in acts.items()}), uid)
    # Hard links between folders are refused as such by old versions.
    assert {name: "EACCES" if said == "EXDEV" else said for name, said in found.items()} == {
        name: expected for name, (_, expected) in acts.items()
    }
    assert (other / "file").read_text() == "other"


def test_a_link_that_leads_out_leads_nowhere(folders: Path, helpers: Any, uid: int) -> None:
    (folders / "readable" / "link").symlink_to(folders / "other" / "file")
    found = helpers.in_child(confined(folders, {"follow": (folders / "readable" / "link").read_bytes}), uid)
    assert found == {"follow": "EACCES"}


@pytest.mark.skipif(landlock.abi() < 4, reason="this Landlock knows nothing of TCP")
def test_tcp_is_refused(folders: Path, helpers: Any, uid: int) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        address = listener.getsockname()
        acts = {
            "connect": lambda: socket.socket().connect(address),
            "bind": lambda: socket.socket().bind(("127.0.0.1", 0)),
        }
        assert helpers.in_child(confined(folders, acts), uid) == {"connect": "EACCES", "bind": "EACCES"}


@pytest.mark.skipif(landlock.abi() < 6, reason="this Landlock knows nothing of signals")
def test_signals_to_others_are_refused(folders: Path, helpers: Any) -> None:
    acts = {"other": lambda: os.kill(os.getppid(), 0), "itself": lambda: os.kill(os.getpid(), 0)}
    assert helpers.in_child(confined(folders, acts)) == {"other": "EPERM", "itself": "done"}


@pytest.mark.parametrize("version", range(1, landlock.abi() + 1))
def test_every_older_version_confines_reading_and_writing(folders: Path, helpers: Any, version: int) -> None:
    acts = {
        "read": (folders / "readable" / "file").read_bytes,
        "other": (folders / "other" / "file").read_bytes,
        "write": (folders / "readable" / "new").touch,
        "scratch": (folders / "scratch" / "new").touch,
    }
    found = helpers.in_child(confined(folders, acts, version))
    assert found == {"read": "done", "other": "EACCES", "write": "EACCES", "scratch": "done"}


@pytest.mark.parametrize(
    ("version", "files", "network", "scopes"),
    [(1, 13, 0, 0), (2, 14, 0, 0), (3, 15, 0, 0), (4, 15, 2, 0), (5, 16, 2, 0), (6, 16, 2, 2), (99, 16, 2, 2)],
)
def test_each_version_is_asked_for_what_it_knows(version: int, files: int, network: int, scopes: int) -> None:
    assert [rights.bit_count() for rights in landlock.handled(version)] == [files, network, scopes]


def test_without_no_new_privs_the_kernel_refuses_and_that_is_an_error(helpers: Any) -> None:
    if os.geteuid():
        said = helpers.in_child(lambda: landlock.restrict(landlock.abi(), []))
    else:
        said = helpers.in_child(lambda: landlock.restrict(landlock.abi(), []), NOBODY)
    assert said.startswith("PermissionError")


def test_a_rule_for_a_file_in_proc_outlives_its_directory_entry(helpers: Any) -> None:
    if os.geteuid() or not os.access("/proc/sys/vm/drop_caches", os.W_OK):
        pytest.skip("only root can have the kernel drop its directory entries")

    def act() -> list[str]:
        prctl(38, 1)
        status = Path(f"/proc/{os.getpid()}/status")
        drop = os.open("/proc/sys/vm/drop_caches", os.O_WRONLY)
        landlock.restrict(landlock.abi(), [(str(status), landlock.READ)])
        before = outcome(status.read_bytes)
        for _ in range(3):  # an entry that was used of late is spared once
            os.write(drop, b"2")
            status.stat()
        return [before, outcome(status.read_bytes)]

    assert helpers.in_child(act) == ["done", "done"]
