import os
import resource
import signal
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from gateway.errors import LoadFailed
from gateway.instance import sandbox
from gateway.instance.sandbox import Kernel, decide, describe
from gateway.ipc.lifeline import die_with_parent
from gateway.ipc.messages import Spawn
from gateway.store.manifest import ModelConfig

NOBODY = 65534
COMPLETE = Kernel(7, seccomp=True)
whole = pytest.mark.skipif(not (sandbox.probe().landlock and sandbox.probe().seccomp), reason="the kernel lacks a part")


def test_auto_takes_what_there_is_and_names_what_is_not() -> None:
    assert decide("auto", COMPLETE).missing == ()
    plan = decide("auto", Kernel(0, seccomp=True))
    assert plan.seccomp
    assert len(plan.missing) == 1
    assert "Linux 5.13" in plan.missing[0]
    assert len(decide("auto", Kernel(0, seccomp=False)).missing) == 2


@pytest.mark.parametrize(
    ("kernel", "lacking"), [(Kernel(0, seccomp=True), "Landlock"), (Kernel(7, seccomp=False), "seccomp")]
)
def test_require_refuses_and_names_what_is_lacking(kernel: Kernel, lacking: str) -> None:
    with pytest.raises(LoadFailed, match=f"require.*{lacking}"):
        decide("require", kernel)


def test_require_takes_every_landlock() -> None:
    assert not decide("require", Kernel(1, seccomp=True)).missing


def test_off_is_off_and_lacks_nothing() -> None:
    plan = decide("off", Kernel(0, seccomp=False))
    assert not (plan.landlock)
    assert not (plan.seccomp)
    assert not (plan.missing)
    assert describe(plan).startswith("off")


def test_the_status_says_what_is_in_force_and_what_is_not() -> None:
    said = describe(decide("auto", COMPLETE), 2 << 30)
    assert "Landlock 7, seccomp" in said
    assert "at most 2.1 GB" in said
    assert "not in force" not in said
    said = describe(decide("auto", Kernel(0, seccomp=True)))
    assert "no network" in said
    assert "writes only" not in said
    assert "not in force" in said


def test_what_lies_on_the_search_path_by_chance_is_not_readable(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere" / "package"
    module, single = ModuleType("package"), ModuleType("single")
    module.__path__ = [str(elsewhere)]
    single.__file__ = str(tmp_path / "single.py")
    search = [*sys.path, "", str(tmp_path), str(tmp_path / "site-packages")]
    found = sandbox.library_paths({"package": module, "package.inner": module, "single": single}, search, "/:/cuda:x")
    assert str(tmp_path) not in found
    assert str(Path.cwd()) not in found
    assert {str(elsewhere), str(tmp_path / "single.py"), str(tmp_path / "site-packages"), "/cuda"} <= set(found)
    assert not {"/", "", "/etc", "/home", "/root", "/tmp", "x"} & set(found)


@pytest.fixture
def spawn(tmp_path: Path) -> Spawn:
    """Of a model in a folder beside which there is another."""
    for name in ("model", "other", "scratch"):
        (tmp_path / name).mkdir()
        (tmp_path / name).chmod(0o777)
        (tmp_path / name / "file").write_text(name)
    for parent in (tmp_path, *tmp_path.parents):
        if parent.stat().st_uid == os.geteuid() and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o111)
    return Spawn(
        instance="model/1#0",
        model="model",
        version=1,
        index=0,
        platform="pytorch_torchscript",
        artifact=str(tmp_path / "model" / "file"),
        config=ModelConfig(),
        device="cpu",
        visible_gpu="",
        socket_path=str(tmp_path / "socket"),
        directory=str(tmp_path / "model"),
        scratch=str(tmp_path / "scratch"),
        sandbox="require",
    )


def status(name: str) -> str:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return line.split()[1]


def reads(path: str) -> bool:
    try:
        Path(path, "file").read_bytes()
    except PermissionError:
        return False
    return True


@whole
@pytest.mark.parametrize("uid", [0, NOBODY], ids=["root", "nobody"])
def test_an_instance_is_confined_whoever_it_belongs_to(spawn: Spawn, helpers: Any, uid: int) -> None:
    if uid and os.geteuid():
        pytest.skip("only root can become nobody")
    other = str(Path(spawn.directory).with_name("other"))

    def act() -> list[Any]:
        said = sandbox.enter(spawn)
        Path(spawn.scratch, "new").write_bytes(b"x")
        return [
            "not in force" in said,
            reads(spawn.directory),
            reads(other),
            status("NoNewPrivs"),
            status("Seccomp"),
            status("CapEff"),
            status("CapPrm"),
        ]

    sandbox.prepare()
    *rest, effective, permitted = helpers.in_child(act, uid)
    assert rest == [False, True, False, "1", "2"]
    # Root may read models that belong to others, and nothing else that others may not.
    assert int(effective, 16) == int(permitted, 16)
    assert int(permitted, 16) == (0 if uid or os.geteuid() else 1 << 2)


@whole
def test_a_model_of_another_user_is_readable_for_a_gateway_of_root(spawn: Spawn, helpers: Any) -> None:
    if os.geteuid():
        pytest.skip("only root can give files away")
    os.chown(spawn.directory, NOBODY, NOBODY)
    Path(spawn.directory).chmod(0o700)
    assert helpers.in_child(lambda: [sandbox.enter(spawn), reads(spawn.directory)])[1] is True


@whole
def test_an_instance_still_ends_with_its_parent(spawn: Spawn, helpers: Any) -> None:
    """The parent here is a process between this one and the instance, which it leaves alone."""
    readable, writable = os.pipe()

    def act() -> None:
        parent = os.getpid()
        if os.fork() == 0:
            die_with_parent(parent)
            sandbox.enter(spawn)
            os.write(writable, b"confined")
            signal.pause()
        os.read(readable, 8)

    helpers.in_child(act)
    os.close(writable)
    assert os.read(readable, 1) == b""  # the last one who could write is gone
    os.close(readable)


@whole
def test_a_forbidden_part_is_told_and_under_require_the_load_fails(
    spawn: Spawn, helpers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(sandbox.landlock, "restrict", refuse)
    assert "LoadFailed" in helpers.in_child(lambda: sandbox.enter(spawn))
    spawn.sandbox = "auto"
    said = helpers.in_child(lambda: sandbox.enter(spawn))
    assert "not in force, for this machine lacks it: Landlock (Operation not permitted)" in said
    assert "seccomp" in said


def test_off_leaves_everything_but_limits(spawn: Spawn, helpers: Any) -> None:
    spawn.sandbox = "off"
    other = str(Path(spawn.directory).with_name("other"))
    said, readable, privileges, cores = helpers.in_child(
        lambda: [
            sandbox.enter(spawn),
            reads(other),
            status("NoNewPrivs"),
            resource.getrlimit(resource.RLIMIT_CORE)[1],
        ]
    )
    assert said.startswith("off")
    assert (readable, privileges, cores) == (True, "0", 0)


def test_an_allocation_over_the_memory_limit_fails_and_one_under_it_does_not(helpers: Any) -> None:
    def act() -> list[bool]:
        sandbox.limit_resources(256 << 20, gpu=False)
        found = []
        for size in (200 << 20, 400 << 20, 200 << 20):
            try:
                bytearray(size)
            except MemoryError:
                found.append(False)
            else:
                found.append(True)
        return found

    assert helpers.in_child(act) == [True, False, True]


def test_without_a_limit_nothing_larger_than_the_machine_is_allocated(helpers: Any) -> None:
    def act() -> Any:
        sandbox.limit_resources(0, gpu=False)
        return len(bytearray(1 << 42))

    assert helpers.in_child(act).startswith("MemoryError")


def test_a_file_does_not_grow_over_its_limit(helpers: Any, tmp_path: Path) -> None:
    def act() -> Any:
        sandbox.limit_resources(0, gpu=False)
        with (tmp_path / "large").open("wb") as file:
            file.truncate(sandbox.FILE_BYTES)
            file.truncate(sandbox.FILE_BYTES + 1)

    assert "File too large" in helpers.in_child(act)
    assert (tmp_path / "large").stat().st_size == sandbox.FILE_BYTES


@whole
def test_the_sandbox_costs_less_than_ten_milliseconds(spawn: Spawn, helpers: Any) -> None:
    sandbox.prepare()

    def act() -> float:
        started = time.process_time()
        sandbox.enter(spawn)
        return time.process_time() - started

    assert min(helpers.in_child(act) for _ in range(5)) < 0.010


def test_a_gpu_is_granted_its_devices(spawn: Spawn, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(Path, "glob", lambda _, pattern: asked.append(pattern) or [Path("/", pattern.strip("*"))])
    spawn.device = "cuda:0"
    granted = dict(sandbox.grants(spawn))
    assert granted["/dev/nvidia"] == sandbox.DEVICE
    assert granted["/proc/driver/nvidia"] == sandbox.READ
    assert all(not pattern.startswith("/") for pattern in asked)
