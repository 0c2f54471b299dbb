"""The node beside an instance that has been taken over: it speaks into the real descriptors that it was given."""

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway import cpus
from gateway.errors import Conflict, InferenceFailed, InstanceDied, LoadFailed, OutOfMemory
from gateway.ipc.batching import Batching
from gateway.ipc.messages import Failed, Ready, Spawn, pack, unpack
from gateway.ipc.recording import Record, Recorded, ToInstance, graph_name, trace_name
from gateway.lifecycle.placement import CPU
from gateway.nodes import local, scratch
from gateway.nodes.local import LocalNode
from gateway.nodes.node import Instance
from gateway.nodes.recording import Recording
from gateway.store.manifest import ModelConfig
from gateway.store.source import Artifact
from gateway.tensors import Signature, TensorSpec

SPEC = TensorSpec("x", "FP32", (-1, 4))
READY = Ready(
    pid=1,
    platform="pytorch_torchscript",
    signatures={"forward": Signature("forward", (SPEC,), (SPEC,))},
    default_signature="forward",
    batching=Batching(1, "off"),
    notes=[],
    load_seconds=0.1,
)


class TakenOver:
    """In the place of a runner: keeps an instance's ends of control socket and output pipe for the test to use."""

    alive = True

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.imported = loop.create_future()
        self.imported.set_result(1.0)
        self.forked: asyncio.Future[int] = loop.create_future()
        self.process = contextlib.nullcontext()
        self.spawned: list[Spawn] = []
        self.killed = False

    def spawn(self, spawn: Spawn, instance: Instance, descriptors: list[int]) -> "asyncio.Future[int]":
        self.spawned.append(spawn)
        self.instance = instance
        self.control, self.output = socket.socket(fileno=os.dup(descriptors[0])), os.dup(descriptors[1])
        instance.pid = 4711
        self.forked.set_result(4711)
        return self.forked

    def kill(self, instance: Instance) -> None:
        assert instance is self.instance
        if not self.killed:
            self.killed = True
            self.exits(-9)

    def exits(self, code: int) -> None:
        self.control.close()
        os.close(self.output)
        self.instance.exited.set_result(code)

    def says(self, *messages: Any) -> None:
        for message in messages:
            data = message if isinstance(message, bytes) else pack(message)
            self.control.sendall(struct.pack("<I", len(data)) + data)


@contextlib.asynccontextmanager
async def taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[LocalNode, TakenOver]]:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(local, "LOOK_SECONDS", 0.01)
    node, runner = LocalNode("auto", 1 << 30), TakenOver()
    node._runners["pytorch"] = runner  # type: ignore[assignment] # noqa: SLF001 - there is no other way to be taken over
    (tmp_path / "store" / "m" / "1").mkdir(parents=True)
    artifact = Artifact("m", 1, "pytorch_torchscript", tmp_path / "store" / "m" / "1" / "model.pt", ModelConfig())
    await node.spawn(artifact, 0, CPU)
    try:
        yield node, runner
    finally:
        if not runner.instance.exited.done():
            runner.kill(runner.instance)
        runner.alive = False
        await node.close()
    assert not list(tmp_path.glob("gateway-*"))  # noqa: ASYNC240 - the node is closed, nothing runs


async def test_what_an_instance_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with taken_over(tmp_path, monkeypatch) as (_, runner):
        (spawn,) = runner.spawned
        assert spawn.directory == str(tmp_path / "store" / "m" / "1")
        assert Path(spawn.scratch).stat().st_mode & 0o777 == 0o700  # noqa: ASYNC240 - as above
        assert (spawn.sandbox, spawn.memory_limit) == ("auto", 1 << 30)


async def test_automatic_threads_are_half_of_the_cpus_that_the_gateway_may_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpus, "usable", lambda: 6)
    async with taken_over(tmp_path, monkeypatch) as (_, runner):
        assert runner.spawned[0].config.threads == 3


async def test_the_process_id_is_the_runners_word_and_not_the_instances(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with taken_over(tmp_path, monkeypatch) as (_, runner):
        runner.says(READY)
        await asyncio.wait_for(runner.instance.ready, 5)
        assert runner.instance.pid == 4711
        assert not runner.killed


@pytest.mark.parametrize(
    "nonsense",
    [
        b"",
        b"garbage",
        b"\xc1" * 100,
        b"\x91" * 100_000 + b"\x01",
        pack(msgspec.structs.replace(READY, platform="other")),
        pack(msgspec.structs.replace(READY, default_signature="nowhere")),
        pack(msgspec.structs.replace(READY, notes=[""] * 100_000)),
    ],
    ids=["empty", "garbage", "bytes", "deep", "platform", "signature", "notes"],
)
async def test_an_instance_that_reports_nonsense_is_ended_and_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nonsense: bytes
) -> None:
    async with taken_over(tmp_path, monkeypatch) as (_, runner):
        runner.says(nonsense)
        with pytest.raises(LoadFailed, match="reported"):
            await asyncio.wait_for(runner.instance.ready, 5)
        assert runner.killed


async def test_a_message_that_is_announced_as_huge_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with taken_over(tmp_path, monkeypatch) as (_, runner):
        runner.control.sendall(struct.pack("<I", local.MAX_FROM_INSTANCE + 1))
        with pytest.raises(LoadFailed, match="nonsense"):
            await asyncio.wait_for(runner.instance.ready, 5)
        assert runner.killed


async def test_an_instance_that_hangs_up_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with taken_over(tmp_path, monkeypatch) as (_, runner):
        runner.control.shutdown(socket.SHUT_RDWR)
        with pytest.raises(InstanceDied, match="signal 9"):
            await asyncio.wait_for(runner.instance.ready, 5)


async def test_what_an_instance_said_counts_also_if_its_end_is_known_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with taken_over(tmp_path, monkeypatch) as (_, runner):
        runner.says(Failed(reason="too large", code="out_of_memory"))
        runner.exits(1)
        with pytest.raises(OutOfMemory, match="too large"):
            await asyncio.wait_for(runner.instance.ready, 5)
        runner.killed = True


async def test_an_instance_that_fills_its_temporary_folder_is_ended_and_its_requests_hear_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with taken_over(tmp_path, monkeypatch) as (_, runner):
        runner.says(READY)
        await asyncio.wait_for(runner.instance.ready, 5)
        folder = Path(runner.spawned[0].scratch)
        for number in range(scratch.MOST_FILES + 1):
            (folder / str(number)).touch()
        assert await asyncio.wait_for(asyncio.shield(runner.instance.exited), 5) == -9
        assert runner.instance.verdict == ("inference_failed", "the model made more than 1000 temporary files")
    assert not folder.exists()  # noqa: ASYNC240 - as above


async def test_after_the_end_nothing_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with taken_over(tmp_path, monkeypatch) as (node, runner):
        artifact = runner.instance.artifact
    with pytest.raises(LoadFailed, match="stopping"):
        await node.spawn(artifact, 0, CPU)


# Recordings: the instance has been asked for one, and answers as it likes


@contextlib.asynccontextmanager
async def recording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float = 0.01
) -> AsyncIterator[tuple[TakenOver, Path, "asyncio.Task[Recording]"]]:
    """An instance that has just been told to record, and what comes of it."""
    async with taken_over(tmp_path, monkeypatch) as (node, runner):
        runner.says(READY)
        await asyncio.wait_for(runner.instance.ready, 5)
        task = asyncio.create_task(node.record(runner.instance, seconds))
        try:
            yield runner, Path(runner.spawned[0].scratch), task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def told(runner: TakenOver) -> int:
    """The number of the recording."""
    (size,) = struct.unpack("<I", await asyncio.to_thread(runner.control.recv, 4, socket.MSG_WAITALL))
    message = unpack(await asyncio.to_thread(runner.control.recv, size, socket.MSG_WAITALL), ToInstance)
    assert isinstance(message, Record)
    return message.number


async def test_what_an_instance_has_recorded_is_picked_up_and_taken_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with recording(tmp_path, monkeypatch) as (runner, folder, task):
        number = await told(runner)
        (folder / trace_name(number)).write_bytes(b"trace")
        (folder / graph_name(number)).write_bytes(b"graph")
        runner.says(Recorded(number=number, executions=7, seconds=0.5, full=True))
        assert await asyncio.wait_for(task, 5) == Recording(7, 0.5, True, {"trace": b"trace", "graph": b"graph"}, "")
        assert not list(folder.iterdir())
        assert not runner.killed


async def test_a_link_in_the_place_of_a_trace_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    async with recording(tmp_path, monkeypatch) as (runner, folder, task):
        number = await told(runner)
        (folder / trace_name(number)).symlink_to(secret)
        runner.says(Recorded(number=number, executions=1, seconds=0.5))
        with pytest.raises(InferenceFailed, match="the trace is no file"):
            await asyncio.wait_for(task, 5)
        assert secret.read_bytes() == b"secret"
        assert not list(folder.iterdir())


async def test_without_its_graph_where_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with recording(tmp_path, monkeypatch) as (runner, folder, task):
        number = await told(runner)
        (folder / trace_name(number)).write_bytes(b"trace")
        with (folder / graph_name(number)).open("wb") as file:
            file.truncate(1 << 40)
        runner.says(Recorded(number=number, executions=1, seconds=0.5))
        found = await asyncio.wait_for(task, 5)
        assert found.files == {"trace": b"trace"}
        assert found.missing == "the graph is larger than 8 MiB, which is the most"


async def test_an_instance_is_recorded_once_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with taken_over(tmp_path, monkeypatch) as (node, runner):
        runner.says(READY)
        await asyncio.wait_for(runner.instance.ready, 5)
        first = asyncio.create_task(node.record(runner.instance, 60))
        number = await told(runner)
        with pytest.raises(Conflict, match="instance 0 is being recorded already"):
            await node.record(runner.instance, 1)
        runner.says(Recorded(number=number, executions=0, seconds=0, error="it\nwould not"))
        with pytest.raises(InferenceFailed, match="the profiler did not work: it would not"):
            await asyncio.wait_for(first, 5)
        assert not runner.killed


@pytest.mark.parametrize(
    "answer",
    [
        b"\xc1",
        READY,
        Recorded(number=10**6, executions=1, seconds=0.5),
        Recorded(number=1, executions=-1, seconds=0.5),
        Recorded(number=1, executions=1, seconds=float("nan")),
    ],
    ids=["bytes", "another word", "another recording", "executions", "seconds"],
)
async def test_an_instance_that_answers_nonsense_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Any
) -> None:
    async with recording(tmp_path, monkeypatch) as (runner, _, task):
        number = await told(runner)
        runner.says(msgspec.structs.replace(answer, number=number) if getattr(answer, "number", 0) == 1 else answer)
        with pytest.raises(InferenceFailed, match="asked for a recording, it spoke nonsense"):
            await asyncio.wait_for(task, 5)
        assert runner.killed


async def test_an_instance_that_does_not_answer_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.nodes.recording.WRITE_SECONDS", 0.02 - ModelConfig().execution_timeout)
    async with recording(tmp_path, monkeypatch) as (runner, _, task):
        with pytest.raises(InferenceFailed, match=r"did not hand its recording over within 0\.02 s"):
            await asyncio.wait_for(task, 5)
        assert runner.killed


async def test_an_instance_that_ends_meanwhile_is_said_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with recording(tmp_path, monkeypatch, 60) as (runner, _, task):
        await told(runner)
        runner.exits(0)
        runner.killed = True
        with pytest.raises(InstanceDied, match="ended while it was recorded"):
            await asyncio.wait_for(task, 5)
