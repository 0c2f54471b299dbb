import errno
import mmap
import os
import platform
import re
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.instance import seccomp
from gateway.instance.kernel import prctl, syscall
from gateway.instance.seccomp import ARCHITECTURES, OWN_PID, Instruction, Rule
from gateway.instance.syscalls import NEWEST, NUMBERS

NOBODY = 65534
KILL, ALLOW = "kill", "allow"
HEADERS = {
    "x86_64": [Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), Path("/usr/include/asm/unistd_64.h")],
    "aarch64": [Path("/usr/include/asm-generic/unistd.h")],
}
PROGRAMS = {
    (machine, gpu): seccomp.assemble(seccomp.rules(gpu=gpu), machine) for machine in ARCHITECTURES for gpu in (0, 1)
}


def run(program: list[Instruction], audit: int, number: int, arguments: list[int]) -> str:
    """What the kernel would make of a program: its own small machine, with bounds checked."""
    data = {0: number, 4: audit} | {16 + 8 * index: value & 0xFFFFFFFF for index, value in enumerate(arguments)}
    accumulator, at = 0, 0
    while True:
        operation, if_true, if_false, operand = program[at]
        at += 1
        if operation == 0x20:
            accumulator = data[operand]
        elif operation == 0x54:
            accumulator &= operand
        elif operation == 0x05:
            at += operand
        elif operation in (0x15, 0x25):
            holds = accumulator == operand if operation == 0x15 else accumulator > operand
            at += if_true if holds else if_false
        elif operand == 0x7FFF0000:
            return ALLOW
        elif operand == 0x80000000:
            return KILL
        else:
            assert operand >> 16 == 5
            return errno.errorcode[operand & 0xFFFF]


def expected(rules: list[Rule], call: str, arguments: list[int]) -> str:
    """The same, from the rules as they are written."""
    for rule in rules:
        if rule.call == call and all(
            (
                ((arguments[test.argument] & (test.mask or 0xFFFFFFFF)) & 0xFFFFFFFF)
                in [v & 0xFFFFFFFF for v in test.values]
            )
            == test.inside
            for test in rule.tests
        ):
            return errno.errorcode[rule.error]
    return ALLOW


INTERESTING = st.one_of(
    st.sampled_from([0, 1, 2, 3, 5, 8, 10, 15, 38, 1026, 0x8901, 0x5412, 0x10000, 0o20200000, OWN_PID]),
    st.integers(0, 2**32 - 1),
)


@pytest.mark.parametrize(("machine", "gpu"), PROGRAMS)
@given(call=st.sampled_from(sorted(NUMBERS)), arguments=st.lists(INTERESTING, min_size=6, max_size=6))
def test_the_program_says_what_the_rules_say(machine: str, gpu: int, call: str, arguments: list[int]) -> None:
    audit, column = ARCHITECTURES[machine]
    number = NUMBERS[call][column]
    if number is not None:
        program = PROGRAMS[machine, gpu]
        assert run(program, audit, number, arguments) == expected(seccomp.rules(gpu=bool(gpu)), call, arguments)


@pytest.mark.parametrize(("machine", "gpu"), PROGRAMS)
@given(number=st.integers(0, NEWEST), arguments=st.lists(INTERESTING, min_size=6, max_size=6))
def test_calls_without_a_rule_are_allowed(machine: str, gpu: int, number: int, arguments: list[int]) -> None:
    audit, column = ARCHITECTURES[machine]
    if number not in {numbers[column] for numbers in NUMBERS.values()}:
        assert run(PROGRAMS[machine, gpu], audit, number, arguments) == ALLOW


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_calls_of_another_architecture_kill_and_unknown_ones_do_not_exist(machine: str) -> None:
    audit, _ = ARCHITECTURES[machine]
    program = PROGRAMS[machine, 0]
    assert run(program, 0x40000003, 20, [0] * 6) == KILL  # i386
    assert run(program, audit, NEWEST + 1, [0] * 6) == "ENOSYS"
    assert run(program, audit, 0x40000000 + 41, [0] * 6) == "ENOSYS"  # x32
    assert run(program, audit, 0xFFFFFFFF, [0] * 6) == "ENOSYS"


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_the_numbers_are_the_kernels(machine: str) -> None:
    header = next((path for path in HEADERS[machine] if path.is_file()), None)
    if header is None:
        pytest.skip("the kernel's headers are not installed")
    defined = dict(re.findall(r"^#define __NR(?:3264)?_(\w+)\s+(\d+)$", header.read_text(), re.MULTILINE))
    column = ARCHITECTURES[machine][1]
    ours = {call: numbers[column] for call, numbers in NUMBERS.items() if numbers[column] is not None}
    theirs = {call: int(defined[call]) for call in ours if call in defined}
    assert len(theirs) > len(ours) - 5  # a newer or an older header has or lacks a few
    assert {call: ours[call] for call in theirs} == theirs
    assert len(set(ours.values())) == len(ours)


def test_a_process_is_named_in_the_program_where_it_may_touch_itself() -> None:
    program = seccomp.program(gpu=False)
    assert len(program) % 8 == 0
    assert program.count(OWN_PID.to_bytes(4, "little")) == 5


def confined(act: Callable[[], Any], *, gpu: bool = False) -> Callable[[], Any]:
    def inside() -> Any:
        program = seccomp.program(gpu=gpu)
        prctl(38, 1)
        seccomp.install(program)
        try:
            return act() or "done"
        except OSError as error:
            return errno.errorcode[error.errno or 0]

    return inside


def a_thread() -> str:
    thread = threading.Thread(target=lambda: None)
    thread.start()
    thread.join()
    return "done"


def an_alarm() -> str:
    rung = []
    signal.signal(signal.SIGALRM, lambda *_: rung.append(1))
    signal.setitimer(signal.ITIMER_REAL, 0.001)
    signal.pause()
    return "done" * len(rung)


def numbered(call: str, *arguments: int) -> Callable[[], Any]:
    number = NUMBERS[call][ARCHITECTURES[platform.machine()][1]]
    return lambda: syscall(number or 0, *arguments)


REFUSED: dict[str, Callable[[], Any]] = {
    "socket": socket.socket,
    "a Unix socket": lambda: socket.socket(socket.AF_UNIX),
    "a pair of sockets": socket.socketpair,
    "fork": os.fork,
    "exec": lambda: os.execv("/bin/true", ["true"]),
    "kill": lambda: os.kill(os.getppid(), 0),
    "kill all": lambda: os.kill(-1, 0),
    "kill the group": lambda: os.killpg(0, 0),
    "a handle of a process": lambda: os.pidfd_open(os.getpid()),
    "memfd": lambda: os.memfd_create("x"),
    "mode": lambda: Path("/tmp").chmod(0o777),
    "owner": lambda: os.chown("/tmp", 0, 0),
    "times": lambda: os.utime("/tmp"),
    "attributes": lambda: os.setxattr("/tmp", "user.x", b""),
    "truncate": lambda: os.truncate("/dev/null", 0),
    "truncate by reading": lambda: os.open("/dev/null", os.O_RDONLY | os.O_TRUNC),
    "slow down others": lambda: os.setpriority(os.PRIO_PROCESS, os.getppid(), 19),
    "move others": lambda: os.sched_setaffinity(os.getppid(), {0}),
    "limits of others": numbered("prlimit64", 1, 7, 0, 0),
    "outlive the parent": lambda: prctl(1, 0),
    "trace": numbered("ptrace", 0, 0, 0, 0),
    "read memory": numbered("process_vm_readv", 1, 0, 0, 0, 0, 0),
    "io_uring": numbered("io_uring_setup", 1, 0),
    "bpf": numbered("bpf", 0, 0, 0),
    "keys": numbered("keyctl", 0, 0),
    "shared memory": numbered("shmget", 0, 4096, 0o600),
    "namespaces": numbered("unshare", 0),
    "watch": numbered("inotify_add_watch", 0, 0, 0),
    "session": os.setsid,
}
ALLOWED: dict[str, Callable[[], Any]] = {
    "threads": a_thread,
    "alarms": an_alarm,
    "signals to itself": lambda: os.kill(os.getpid(), 0),
    "own limits": lambda: __import__("resource").setrlimit(7, (100, 100)),
    "own affinity": lambda: os.sched_setaffinity(0, os.sched_getaffinity(0)),
    "files": lambda: len(list(Path("/").iterdir())) and "done",
}


@pytest.mark.skipif(not seccomp.available(), reason="the kernel has no seccomp filters")
@pytest.mark.parametrize("uid", [0, NOBODY], ids=["root", "nobody"])
@pytest.mark.parametrize("name", [*REFUSED, *ALLOWED])
def test_a_confined_process_may_do_this_or_may_not(helpers: Any, uid: int, name: str) -> None:
    if uid and os.geteuid():
        pytest.skip("only root can become nobody")
    act = REFUSED.get(name) or ALLOWED[name]
    assert helpers.in_child(confined(act), uid) == ("EPERM" if name in REFUSED else "done")


@pytest.mark.skipif(not seccomp.available(), reason="the kernel has no seccomp filters")
def test_memory_that_no_limit_counts_is_refused_and_a_mapping_of_a_file_is_not(helpers: Any) -> None:
    arena = os.memfd_create("arena")
    os.ftruncate(arena, 1 << 20)

    def act() -> list[str]:
        mmap.mmap(arena, 1 << 20).close()
        mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
        said = []
        for flags in (mmap.MAP_SHARED, 0x03):  # 3 is MAP_SHARED_VALIDATE
            try:
                mmap.mmap(-1, 1 << 20, flags=flags | mmap.MAP_ANONYMOUS)
            except OSError as error:
                said.append(errno.errorcode[error.errno or 0])
        return said

    assert helpers.in_child(confined(act)) == ["ENOMEM", "ENOMEM"]
    os.close(arena)


@pytest.mark.skipif(not seccomp.available(), reason="the kernel has no seccomp filters")
def test_what_others_would_be_told_by_a_descriptor_is_refused(helpers: Any) -> None:
    import fcntl  # noqa: PLC0415 - only here

    for command in (fcntl.F_SETOWN, fcntl.F_SETSIG, fcntl.F_NOTIFY):
        assert helpers.in_child(confined(lambda command=command: fcntl.fcntl(0, command, 0))) == "EPERM"


@pytest.mark.skipif(not seccomp.available(), reason="the kernel has no seccomp filters")
def test_a_file_without_a_name_is_refused_in_a_way_that_libraries_know(helpers: Any, tmp_path: Path) -> None:
    act = confined(lambda: os.open(tmp_path, os.O_TMPFILE | os.O_RDWR))
    assert helpers.in_child(act) == errno.errorcode[errno.EOPNOTSUPP]


@pytest.mark.skipif(not seccomp.available(), reason="the kernel has no seccomp filters")
@pytest.mark.parametrize(
    ("act", "said"),
    [
        (lambda: socket.socket(socket.AF_UNIX).bind("\0gateway-test-seccomp"), "done"),
        (lambda: os.close(os.memfd_create("x")), "done"),
        (lambda: socket.socket(socket.AF_UNIX).connect("/nowhere"), "EPERM"),
        (lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM), "EPERM"),
        (socket.socket, "EPERM"),
        (os.fork, "EPERM"),
    ],
)
def test_a_process_with_a_gpu_may_listen_and_reach_nobody(helpers: Any, act: Callable[[], Any], said: str) -> None:
    assert helpers.in_child(confined(act, gpu=True)) == said
