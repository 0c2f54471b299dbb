"""A process that inherits orphans, as PID 1 does; each test runs one of its own."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

BECOME_REAPER = """
import ctypes, os, subprocess, sys, time
from gateway import orphans
assert ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0  # PR_SET_CHILD_SUBREAPER

def orphan():
    "A child of a child that has ended: the kernel has given it to this process, and it ends at once."
    read, write = os.pipe()
    middle = subprocess.Popen([sys.executable, "-c", f"import os\\nif os.fork(): os._exit(0)\\nos.read({read}, 1)"],
                              pass_fds=[read])
    assert middle.wait() == 0
    os.close(read)
    return write

def ended():
    return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)

def until(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)
"""


def run(code: str) -> int:
    return subprocess.run([sys.executable, "-c", BECOME_REAPER + code], check=False, timeout=60).returncode


def test_an_orphan_that_has_ended_is_reaped_and_one_that_runs_is_not() -> None:
    code = """
assert orphans.reap() == 0, "no child at all"
write = orphan()
assert orphans.reap() == 0, "it runs"
os.close(write)
until(ended)
assert orphans.reap() == 1
assert orphans.reap() == 0
"""
    assert run(code) == 0


def test_the_exit_status_of_an_own_child_is_left_to_its_owner_also_while_orphans_end() -> None:
    code = """
child = orphans.started(subprocess.Popen([sys.executable, "-c", "raise SystemExit(7)"]))
until(ended)
assert orphans.reap() == 0
for _ in range(3):
    os.close(orphan())
until(lambda: orphans.reap())
until(lambda: orphans.reap() == 0 and ended().si_pid == child.pid)
assert child.wait() == 7
"""
    assert run(code) == 0


def zombies(parent: int) -> set[int]:
    """Children of a process that have ended and that it has not waited for."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, its_parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            except OSError:
                continue
            if int(its_parent) == parent and state == "Z":
                found.add(int(entry.name))
    return found


def test_a_gateway_that_inherits_the_instances_of_a_dead_runner_leaves_no_zombies(
    start_gateway: Callable[..., Any], helpers: Any
) -> None:
    with start_gateway(["mlp", "identity_torch"], subreaper=True) as own:
        instances = own.pids("instance")
        assert len(instances) == 2
        os.kill(own.pid("runner pytorch"), signal.SIGKILL)
        helpers.until(lambda: len(own.pids("instance")) == 2 and not own.pids("instance") & instances, 30)
        helpers.until(lambda: not zombies(own.process.pid), 10)
        assert own.infer("mlp", {"inputs": [helpers.tensor("x", "FP32", [1, 16], [0.5] * 16)]}).status == 200
        os.kill(own.pid("http worker"), signal.SIGKILL)
        helpers.until(lambda: "HTTP worker 0 ended with code -9" in own.log.read_text(), 10)
