"""A child that hangs is told from one that is busy."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from gateway.children import BUSY_PINGS, SILENT_PINGS, Pulse, ended, is_stopped, processor_ticks


@pytest.fixture
def idle() -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen(["/bin/sleep", "60"]) as process:
        yield process
        process.kill()


@pytest.fixture
def busy() -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        yield process
        process.kill()


def test_a_child_that_neither_answers_nor_works_hangs(idle: "subprocess.Popen[bytes]") -> None:
    pulse = Pulse(idle.pid)
    assert [pulse.pinged() for _ in range(SILENT_PINGS)] == [False] * (SILENT_PINGS - 1) + [True]


def test_a_child_that_answers_does_not_hang(idle: "subprocess.Popen[bytes]") -> None:
    pulse = Pulse(idle.pid)
    for _ in range(3 * BUSY_PINGS):
        assert not pulse.pinged()
        pulse.heard()


def test_a_busy_child_that_does_not_answer_is_given_longer(busy: "subprocess.Popen[bytes]", helpers: Any) -> None:
    pulse = Pulse(busy.pid)
    for _ in range(2 * SILENT_PINGS):
        used = processor_ticks(busy.pid)
        helpers.until(lambda used=used: processor_ticks(busy.pid) > used, 20)
        assert not pulse.pinged()


def test_a_child_that_is_busy_forever_hangs_too(busy: "subprocess.Popen[bytes]") -> None:
    pulse = Pulse(busy.pid)
    assert any(pulse.pinged() for _ in range(BUSY_PINGS))


def test_a_stopped_process_is_known(idle: "subprocess.Popen[bytes]", helpers: Any) -> None:
    assert not is_stopped(idle.pid)
    os.kill(idle.pid, signal.SIGSTOP)
    helpers.until(lambda: is_stopped(idle.pid), 5)


async def test_the_end_of_a_child_is_awaited(idle: "subprocess.Popen[bytes]") -> None:
    idle.kill()
    assert await ended(idle) == -signal.SIGKILL
    assert processor_ticks(idle.pid) == 0
    assert not is_stopped(idle.pid)
