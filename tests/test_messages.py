import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from gateway.ipc import messages
from gateway.ipc.batch_reports import BatchesAgree, BatchesDisagree, RunAlone
from gateway.ipc.batching import Batching
from gateway.ipc.messages import (
    MAX_MESSAGE,
    Abandoned,
    Answer,
    Applied,
    Ask,
    AskUsage,
    Collect,
    Condemned,
    Counts,
    Died,
    ExampleInput,
    Exited,
    Explained,
    Failed,
    Forked,
    FromRunner,
    FromWorker,
    Hello,
    InstanceAddress,
    Keys,
    Kill,
    MessageStream,
    Ping,
    Pong,
    Ready,
    Routes,
    RunnerFailed,
    RunnerReady,
    Spawn,
    Start,
    Stop,
    Testing,
    ToRunner,
    ToWorker,
    Usage,
    VersionRoute,
    pack,
    send,
    unpack,
)
from gateway.ipc.recording import EndRecord, FromInstance, Record, Recorded, ToInstance
from gateway.keys import new_key
from gateway.store.manifest import InstanceGroup, ModelConfig, TensorConfig
from gateway.tensors import Signature, TensorSpec

CONFIG = ModelConfig(
    platform="pytorch_torchscript",
    inputs=[TensorConfig("x", "FP32", [-1, 3])],
    outputs=[TensorConfig("y", "FP32", [-1, 2], ["cat", "dog"])],
    max_batch_size=4,
    instance_group=[InstanceGroup(2, "gpu", [0, 1])],
    threads=2,
)
READY = Ready(
    pid=7,
    platform="pytorch_torchscript",
    signatures={
        "forward": Signature("forward", (TensorSpec("x", "FP32", (-1, 3)), TensorSpec("z", "BYTES", None)), ())
    },
    default_signature="forward",
    batching=Batching(8, "on"),
    notes=["fine"],
    load_seconds=0.5,
    example=[ExampleInput("x", "FP32", (1, 3), b"x" * 12), ExampleInput("z", "BYTES", (1,))],
)
ROUTE = VersionRoute(
    model="m",
    version=2**53 + 1,
    platform="pytorch_torchscript",
    framework="pytorch",
    state="READY",
    reason="",
    config=CONFIG,
    ready=READY,
    instances=[InstanceAddress("m/1#0", "cpu", "/tmp/x")],
    file="model.pt",
)
EVERY: list[tuple[Any, Any]] = [
    (Kill(instance="m/1#0"), ToRunner),
    (
        Spawn(
            instance="m/1#0",
            model="m",
            version=1,
            index=0,
            platform="pytorch_torchscript",
            artifact="/m",
            config=CONFIG,
            device="cpu",
            visible_gpu="",
            socket_path="/tmp/x",
        ),
        ToRunner,
    ),
    (RunnerReady(seconds=1.5), FromRunner),
    (RunnerFailed(reason="torn"), FromRunner),
    (Forked(instance="m/1#0", pid=7), FromRunner),
    (Exited(instance="m/1#0", exit_code=-9), FromRunner),
    (READY, FromInstance),
    (Testing(), FromInstance),
    (Failed(reason="torn"), FromInstance),
    (
        Start(
            listeners={"http": 3},
            loopback=["http"],
            max_body_bytes=1,
            request_timeout=0.5,
            keep_alive_seconds=5,
            drain_timeout=0,
        ),
        ToWorker,
    ),
    (Routes(epoch=3, versions=[ROUTE], settled=True), ToWorker),
    (
        Keys(keys=[new_key("me", ["infer"], models=["m*"], rate=0.5, expires=datetime.now(UTC))[1]], places=[7]),
        ToWorker,
    ),
    (Collect(ticket=1), ToWorker),
    (Collect(ticket=1, forget=[("m", "1")]), ToWorker),
    (Ping(), ToWorker),
    (Ping(), ToRunner),
    (Pong(), FromWorker),
    (Pong(), FromRunner),
    (Answer(ticket=1, text=b"\0\xff", error_code="load_failed"), ToWorker),
    (Hello(pid=1), FromWorker),
    (Applied(epoch=3), FromWorker),
    (Counts(ticket=1, packed=b"\x90"), FromWorker),
    (Ask(ticket=1, what="load", model="m"), FromWorker),
    (Stop(), ToInstance),
    (Record(number=3), ToInstance),
    (EndRecord(number=3), ToInstance),
    (RunAlone(), ToInstance),
    (BatchesAgree(batches=32), FromInstance),
    (BatchesDisagree(difference="output 'y' differs"), FromInstance),
    (Recorded(number=3, executions=7, seconds=0.5, full=True, error="no"), FromInstance),
    (Died(instance="m/1#0", error_code="deadline", reason="too slow"), ToWorker),
    (Condemned(digest=b"\0\xff"), ToWorker),
    (Condemned(digest=b"\0\xff"), FromWorker),
    (Explained(instances=["m/1#0.7"]), FromWorker),
    (Abandoned(instance="m/1#0.7", execution=3, requests=1, total=2), FromWorker),
    (AskUsage(ticket=1), ToWorker),
    (Usage(ticket=1, versions=[("m", 1, 0.5, 2)]), FromWorker),
]


@pytest.mark.parametrize(("message", "kinds"), EVERY, ids=[type(message).__name__ for message, _ in EVERY])
def test_every_message_survives_its_packing(message: Any, kinds: Any) -> None:
    assert unpack(pack(message), kinds) == message


def test_no_message_is_forgotten_above() -> None:
    assert {type(message) for message, _ in EVERY} == set(messages.Message.__subclasses__())


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x80", pack(Stop()), pack(Stop())[:-1], pack(Hello(pid=1)) + b"\0"])
def test_what_is_no_message_of_these_kinds_is_a_decode_error(data: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        unpack(data, FromWorker)


@contextlib.asynccontextmanager
async def stream(kinds: Any) -> AsyncIterator[tuple[MessageStream[Any], socket.socket]]:
    ours, theirs = socket.socketpair()
    with theirs:
        made: MessageStream[Any] = await MessageStream.over(ours, kinds)
        yield made, theirs
        made.close()
        with contextlib.suppress(OSError):
            await made._writer.wait_closed()  # noqa: SLF001 - so that the test leaves no socket behind


async def receive(made: MessageStream[Any]) -> Any:
    return await asyncio.wait_for(made.receive(), 5)


async def test_messages_arrive_in_order_however_they_are_cut() -> None:
    async with stream(FromWorker) as (made, theirs):
        sent = [Hello(pid=1), Applied(epoch=2), Ask(ticket=3, what="load", model="m")]
        data = b"".join(struct.pack("<I", len(pack(each))) + pack(each) for each in sent)
        receiving = asyncio.create_task(receive(made))
        for at in range(len(data)):
            theirs.send(data[at : at + 1])
            await asyncio.sleep(0)
        assert [await receiving, await receive(made), await receive(made)] == sent


async def test_both_ends_understand_each_other() -> None:
    async with stream(ToWorker) as (made, theirs):
        send(theirs, Routes(epoch=1, versions=[ROUTE] * 100, settled=False))
        received = await receive(made)
        assert len(received.versions) == 100
        made.send(Collect(ticket=9))
        (size,) = struct.unpack("<I", await asyncio.to_thread(theirs.recv, 4, socket.MSG_WAITALL))
        assert unpack(await asyncio.to_thread(theirs.recv, size, socket.MSG_WAITALL), ToWorker) == Collect(ticket=9)


@pytest.mark.parametrize("data", [b"", b"\x05\0", b"\x05\0\0\0ab"])
async def test_the_end_is_none_also_in_the_middle_of_a_message(data: bytes) -> None:
    async with stream(FromWorker) as (made, theirs):
        theirs.sendall(data)
        theirs.shutdown(socket.SHUT_WR)
        assert await receive(made) is None
        assert await receive(made) is None


async def test_a_reset_is_the_end_too() -> None:
    async with stream(FromWorker) as (made, theirs):
        made.send(Hello(pid=1))
        await asyncio.sleep(0)
        theirs.close()  # with what was sent unread
        assert await receive(made) is None


async def test_a_message_that_is_too_long_is_refused_before_it_is_read() -> None:
    async with stream(FromWorker) as (made, theirs):
        theirs.sendall(struct.pack("<I", MAX_MESSAGE + 1))
        with pytest.raises(msgspec.DecodeError):
            await receive(made)


async def test_nonsense_and_messages_of_another_direction_are_decode_errors() -> None:
    for data in (b"\xc1", pack(Collect(ticket=1))):
        async with stream(FromWorker) as (made, theirs):
            theirs.sendall(struct.pack("<I", len(data)) + data)
            with pytest.raises(msgspec.DecodeError):
                await receive(made)


async def test_sending_to_someone_who_is_gone_raises_nothing() -> None:
    async with stream(FromWorker) as (made, theirs):
        theirs.close()
        for _ in range(20):
            made.send(Hello(pid=1))
            await asyncio.sleep(0)
        assert await receive(made) is None
