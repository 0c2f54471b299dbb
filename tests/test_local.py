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

from gateway.errors import InstanceDied, LoadFailed, OutOfMemory
from gateway.ipc.messages import Batching, Failed, Ready, Spawn, pack
from gateway.lifecycle.placement import CPU
from gateway.nodes import local, scratch
from gateway.nodes.local import LocalNode
from gateway.nodes.node import Instance
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
