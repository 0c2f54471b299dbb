import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gateway.ipc import abandonment as module
from gateway.ipc.abandonment import AbandonmentReports, AbandonmentWatch
from gateway.ipc.arena import NOTE_BYTES, ExecutionNote

PATIENCE = 5


class Call:
    def __init__(self) -> None:
        self.on_reply: Any = print
        self.cancelled = 0.0


class Scene:
    """A worker that waits for requests 1 to 3, and an instance that computes what the test says."""

    def __init__(self) -> None:
        self.note = ExecutionNote(memoryview(bytearray(NOTE_BYTES)))
        self.calls = {number: Call() for number in (1, 2, 3)}
        self.reports: list[tuple[int, int, int]] = []
        self.watch = AbandonmentWatch(self.note, self.calls)
        self.watch.grace = 0.02
        self.watch.report = lambda *report: self.reports.append(report)

    def cancel(self, *numbers: int, ago: float = 0.0) -> None:
        for number in numbers:
            self.calls[number].on_reply = None
            self.calls[number].cancelled = module.time.perf_counter() - ago
            self.watch.cancelled()

    async def look(self) -> None:
        """Until there is no more to look for."""
        async with asyncio.timeout(PATIENCE):
            while self.watch._timer is not None:  # noqa: ASYNC110, SLF001 - nothing tells
                await asyncio.sleep(0.001)


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    scene = Scene()
    yield scene
    scene.watch.close()


async def test_a_batch_that_no_client_waits_for_is_reported_once(scene: Scene) -> None:
    scene.note.write([1, 2], execution=7, total=5)
    scene.cancel(1, 2)
    await scene.look()
    assert scene.reports == [(7, 2, 5)]
    scene.cancel(3)
    await scene.look()
    assert scene.reports == [(7, 2, 5)]


async def test_a_batch_is_left_alone_while_one_client_waits_for_it(scene: Scene) -> None:
    scene.note.write([1, 2], execution=7, total=2)
    scene.cancel(1)
    await scene.look()
    assert scene.reports == []
    scene.cancel(2)
    await scene.look()
    assert scene.reports == [(7, 2, 2)]


async def test_a_batch_that_comes_to_its_end_within_the_grace_is_not_reported(scene: Scene) -> None:
    scene.note.write([1], execution=7, total=1)
    scene.cancel(1)
    scene.note.write([2], execution=8, total=1)
    await scene.look()
    assert scene.reports == []


async def test_the_grace_counts_from_the_last_cancellation(scene: Scene) -> None:
    scene.note.write([1, 2], execution=7, total=2)
    scene.cancel(1, ago=1.0)
    scene.watch.grace = 0.1
    begun = asyncio.get_running_loop().time()
    scene.cancel(2)
    await scene.look()
    assert scene.reports == [(7, 2, 2)]
    assert asyncio.get_running_loop().time() - begun >= 0.1


async def test_after_its_end_a_channel_looks_no_more(scene: Scene) -> None:
    scene.note.write([1], execution=7, total=1)
    scene.cancel(1)
    scene.watch.close()
    scene.note.release()
    await asyncio.sleep(0.03)
    assert scene.reports == []


def test_an_execution_is_given_up_only_when_all_workers_have_given_it_up() -> None:
    reports = AbandonmentReports()
    assert not reports.report(0, "m/1#0", 7, 2, 3)
    assert not reports.report(0, "m/1#0", 7, 2, 3)
    assert reports.report(1, "m/1#0", 7, 1, 3)
    assert not reports.report(0, "m/1#0", 8, 2, 3)
    assert not reports.report(1, "m/1#0", 9, 1, 3)
    assert reports.report(1, "n/1#0", 9, 1, 1)


def test_of_instances_only_so_many_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_INSTANCES", 2)
    reports = AbandonmentReports()
    for number in range(5):
        assert not reports.report(0, f"m/1#{number}", 7, 1, 2)
    assert not reports.report(1, "m/1#0", 7, 1, 2)
    assert reports.report(1, "m/1#4", 7, 1, 2)
