import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.http import lines as module
from gateway.http.lines import Lines
from gateway.ipc.arena import ExecutionNote, map_readable
from gateway.ipc.channel import Channel
from gateway.ipc.messages import Died, InstanceAddress, VersionRoute
from gateway.ipc.reply import InstanceLost, Reply
from gateway.metrics import Counters
from gateway.store.manifest import ModelConfig

PATIENCE = 5
NAME = "m/1#0.7"


class Bench:
    """Lines to one instance, whose part the test plays."""

    def __init__(self, path: Path) -> None:
        self.path = str(path / "i.sock")
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen()
        self.address = InstanceAddress(NAME, "cpu", self.path)
        self.route = VersionRoute(
            model="m",
            version=1,
            platform="p",
            framework="pytorch",
            state="READY",
            reason="",
            config=ModelConfig(max_queue_size=7, max_queue_bytes=1000),
            instances=[self.address],
        )
        self.lost: list[Channel] = []
        self.reconnects = 0
        self.counters = Counters()
        self.lines = Lines(PATIENCE, self.counters, self.lost.append, self.count_reconnect)
        self.peers: list[socket.socket] = []
        self.note: ExecutionNote

    def count_reconnect(self) -> None:
        self.reconnects += 1

    async def connect(self) -> Channel:
        await self.lines.connect({NAME: (self.address, self.route)})
        (channel,) = self.lines.channels([self.address])
        peer, _ = self.listener.accept()
        _, fds, _, _ = socket.recv_fds(peer, 16, 2)
        self.note = ExecutionNote(map_readable(fds[1]))
        for fd in fds:
            os.close(fd)
        self.peers.append(peer)
        return channel

    async def call_and_cut(self, channel: Channel) -> "asyncio.Future[Reply]":
        """A request that is being computed when the line is cut."""
        answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        now = time.perf_counter()
        number = channel.call(b"", [], [], answer.set_result, now, now + PATIENCE)
        await asyncio.sleep(0)
        self.note.write([number])
        self.peers[-1].close()
        await eventually(lambda: channel in self.lost)
        return answer

    def close(self) -> None:
        self.listener.close()
        for peer in self.peers:
            peer.close()


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    for channel in bench.lines.channels([bench.address]):
        channel.close()
        await eventually(lambda channel=channel: channel.closed)  # type: ignore[misc] # mypy: bound at once
    bench.close()


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 - what is waited for sets no event
            await asyncio.sleep(0.001)


async def loss(answer: "asyncio.Future[Reply]") -> tuple[bool, str, str]:
    error = (await asyncio.wait_for(answer, PATIENCE)).error
    assert isinstance(error, InstanceLost)
    return error.executing, error.verdict, error.reason


async def test_of_an_end_without_blame_no_request_hears(bench: Bench) -> None:
    answer = await bench.call_and_cut(await bench.connect())
    bench.lines.died(Died(instance=NAME, error_code="instance_died", reason="", blameless=True))
    assert (await loss(answer))[0] is False


async def test_an_end_by_a_cancelled_request_is_explained_by_it(bench: Bench) -> None:
    channel = await bench.connect()
    explained: list[str] = []
    bench.lines._explain = explained.extend  # noqa: SLF001
    answer = await bench.call_and_cut(channel)
    channel.cancel(next(iter(channel.pending)))
    bench.lines.died(Died(instance=NAME, error_code="instance_died", reason=""))
    assert explained == [NAME]
    assert not answer.done()


DEATH = Died(instance=NAME, error_code="deadline", reason="too slow")


async def test_a_channel_takes_the_bounds_of_its_models_queue(bench: Bench) -> None:
    channel = await bench.connect()
    assert (channel.max_rows, channel.max_bytes, channel.max_executing) == (8, 1000, 2)


async def test_requests_are_pending_until_they_are_answered_also_on_lines_let_go_of(bench: Bench) -> None:
    channel = await bench.connect()
    counters = bench.counters.of("m", "1", "pytorch")
    now = time.perf_counter()
    for _ in range(2):
        channel.call(b"", [], [], lambda _: None, now, now + PATIENCE)
    await bench.lines.connect({})
    bench.lines.keep_only_wanted()
    for _ in range(2):
        bench.lines.count_pending()
        assert counters.pending == 2
    bench.peers[-1].close()
    await eventually(lambda: not channel.pending)
    bench.lines.count_pending()
    assert counters.pending == 0


async def test_requests_wait_for_the_supervisor_to_say_why_their_instance_died(bench: Bench) -> None:
    answer = await bench.call_and_cut(await bench.connect())
    bench.lines.died(Died(instance="m/1#0.8", error_code="instance_died", reason=""))
    await asyncio.sleep(0)
    assert not answer.done()
    assert bench.lines.channels([bench.address]) == []
    bench.lines.died(DEATH)
    assert await loss(answer) == (True, "deadline", "too slow")


async def test_what_the_supervisor_said_before_the_line_was_cut_counts(bench: Bench) -> None:
    channel = await bench.connect()
    bench.lines.died(DEATH)
    assert await loss(await bench.call_and_cut(channel)) == (True, "deadline", "too slow")


async def test_routes_without_the_instance_say_that_it_is_gone(bench: Bench) -> None:
    answer = await bench.call_and_cut(await bench.connect())
    await bench.lines.connect({})
    bench.lines.keep_only_wanted()
    assert await loss(answer) == (True, "instance_died", "")


async def test_after_a_while_nobody_waits_for_the_supervisor(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DEATH_PATIENCE_SECONDS", 0.01)
    assert await loss(await bench.call_and_cut(await bench.connect())) == (True, "instance_died", "")


async def test_an_instance_that_is_reached_again_has_not_died_of_anything(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RECONNECT_SECONDS", 0.01)
    answer = await bench.call_and_cut(await bench.connect())
    await eventually(lambda: bench.reconnects > 0)
    assert not answer.done()
    await bench.connect()
    assert await loss(answer) == (False, "instance_died", "")


async def test_an_instance_that_refuses_is_tried_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RECONNECT_SECONDS", 0.01)
    nowhere = InstanceAddress(NAME, "cpu", bench.path + ".none")
    await bench.lines.connect({NAME: (nowhere, bench.route)})
    assert bench.lines.channels([nowhere]) == []
    await eventually(lambda: bench.reconnects > 0)


async def test_nonsense_is_told_at_once_and_is_no_death(bench: Bench) -> None:
    channel = await bench.connect()
    answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
    channel.call(b"", [], [], answer.set_result, 0.0, time.perf_counter() + PATIENCE)
    bench.peers[-1].sendall(b"\xff" * 100)
    error: Any = (await asyncio.wait_for(answer, 1)).error
    assert error.code == "instance_died"
    assert not isinstance(error, InstanceLost)


async def test_of_deaths_only_so_many_are_remembered(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "VERDICTS", 3)
    for number in range(10):
        bench.lines.died(Died(instance=f"m/1#0.{number}", error_code="instance_died", reason=""))
    assert list(bench.lines._verdicts) == ["m/1#0.7", "m/1#0.8", "m/1#0.9"]  # noqa: SLF001 - the bound is the point
