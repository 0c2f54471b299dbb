import asyncio
import gc
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from gateway.errors import (
    DeadlineExceeded,
    GatewayError,
    InferenceFailed,
    InstanceDied,
    OutOfMemory,
    QueueFull,
    RequestError,
)
from gateway.instance import heap, replies, serve
from gateway.instance.connection import Connection
from gateway.instance.row_separation import RowSeparation
from gateway.instance.serve import Server
from gateway.ipc.arena import THRESHOLD
from gateway.ipc.channel import Channel
from gateway.ipc.framing import (
    ALONE,
    CANCEL,
    DEFAULT_PRIORITY,
    INFER,
    RELEASE,
    REQUEST_HEAD,
    RequestHeader,
    TensorHeader,
    encode,
    reply_reader,
    request_frame,
)
from gateway.ipc.reply import Reply
from gateway.store.manifest import ModelConfig
from gateway.tensors import Array, Signature, array_from_raw, raw_from_array

PATIENCE = 5
LATER = time.perf_counter() + 3600
Execute = Callable[[Mapping[str, Array]], dict[str, Array]]


def double(inputs: Mapping[str, Array]) -> dict[str, Array]:
    return {"y": inputs["x"] * 2}


class FakeModel:
    """A model of numpy. While `gate` is shut, it stays in `execute`; what it was given lies in `batches`."""

    platform = "pytorch_torchscript"
    default_signature = "forward"
    signatures: ClassVar[dict[str, Signature]] = {}
    notes: ClassVar[list[str]] = []
    optimised = False

    def __init__(self, function: Execute = double) -> None:
        self.function = function
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.batches: list[list[float]] = []

    def execute(self, _: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self.batches.append([float(value) for value in inputs["x"].reshape(len(inputs["x"]), -1)[:, 0]])
        self.entered.set()
        assert self.gate.wait(PATIENCE)
        return self.function(inputs)

    def rest(self) -> float:
        return -1.0

    def example(self, _: str) -> None:
        return None

    def batching_obstacle(self, signature: str) -> str | None:  # noqa: ARG002 - the protocol's
        return None

    def row_separation(self, _: str) -> RowSeparation:
        return RowSeparation("unknown", "a model of numpy has no graph")


def settled(lost: asyncio.Event) -> Callable[[Channel], None]:
    """What to do when a channel is lost."""

    def told(channel: Channel) -> None:
        channel.settle()
        lost.set()

    return told


class Serving:
    """A Server in a thread, and channels to it."""

    def __init__(self, path: Path, model: FakeModel, max_rows: int, **config: Any) -> None:
        self.model = model
        self.path = str(path / "instance.sock")
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen(16)
        self.control, self._theirs = socket.socketpair()
        self.server = Server(
            model, ModelConfig(**config), max_rows, self.listener, lambda header: header.signature != "stateful"
        )
        self.thread = threading.Thread(target=self.server.run, args=(self._theirs, lambda: False))
        self._channels: list[tuple[Channel, asyncio.Event]] = []
        self.thread.start()

    async def connect(self) -> Channel:
        lost = asyncio.Event()
        channel = await Channel.connect("m/1#0", self.path, PATIENCE, settled(lost))
        self._channels.append((channel, lost))
        return channel

    @property
    def connections(self) -> list[Connection]:
        return list(self.server._connections.values())  # noqa: SLF001 - what it holds is what is tested

    async def stop(self) -> None:
        self.model.gate.set()
        self.control.close()
        await asyncio.to_thread(self.thread.join, PATIENCE)
        assert not self.thread.is_alive()

    async def close(self) -> None:
        for channel, lost in self._channels:
            if not channel.closed:
                channel.close()
            await asyncio.wait_for(lost.wait(), PATIENCE)
        await self.stop()
        for connection in self.connections:
            connection.close()
        self.server._poll.close()  # noqa: SLF001 - the process ends here; a test goes on
        self.listener.close()
        self._theirs.close()


Start = Callable[..., Awaitable[tuple[Serving, Channel]]]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    started: list[Serving] = []

    async def begin(
        function: Execute = double, max_rows: int = 8, *, busy: bool = False, **config: Any
    ) -> tuple[Serving, Channel]:
        serving = Serving(tmp_path, FakeModel(function), max_rows, **config)
        started.append(serving)
        channel = await serving.connect()
        if busy:
            await occupy(serving, channel)
        return serving, channel

    yield begin
    for serving in started:
        await serving.close()


class Call:
    """One request under way."""

    def __init__(self) -> None:
        self.id = 0
        self.answer: asyncio.Future[tuple[dict[str, Array], Reply]] = asyncio.get_running_loop().create_future()

    def on_reply(self, reply: Reply) -> None:
        if reply.error is not None:
            self.answer.set_exception(reply.error)
            return
        assert reply.header is not None
        arrays = {
            tensor.name: array_from_raw(tensor.datatype, tensor.shape, bytes(raw))
            for tensor, raw in zip(reply.header.outputs, reply.tensors, strict=True)
        }
        self.answer.set_result((arrays, reply))

    async def outputs(self) -> dict[str, Array]:
        return (await asyncio.wait_for(self.answer, PATIENCE))[0]

    async def reply(self) -> Reply:
        return (await asyncio.wait_for(self.answer, PATIENCE))[1]

    async def error(self) -> GatewayError:
        with pytest.raises(GatewayError) as caught:
            await asyncio.wait_for(self.answer, PATIENCE)
        return caught.value


def send(
    channel: Channel,
    inputs: dict[str, Array],
    outputs: tuple[str, ...] = (),
    signature: str = "forward",
    deadline: float = LATER,
    flags: int = DEFAULT_PRIORITY,
) -> Call:
    tensors, payload, regions = [], [], []
    for name, array in inputs.items():
        datatype, raw = raw_from_array(array)
        placed = channel.place(raw, regions)
        tensors.append(TensorHeader(name, datatype, array.shape, len(raw), placed is not None))
        payload.append(raw if placed is None else placed)
    made = Call()
    header = encode(RequestHeader(signature, tuple(tensors), outputs))
    now = asyncio.get_running_loop().time()
    made.id = channel.call(header, payload, regions, made.on_reply, now, deadline, flags)
    return made


def call(channel: Channel, *rows: float, **options: Any) -> Call:
    return send(channel, {"x": np.array(rows, np.float32).reshape(-1, 1)}, **options)


async def occupy(serving: Serving, channel: Channel) -> None:
    """Have the model compute a request until its gate is opened."""
    serving.model.entered.clear()
    serving.model.gate.clear()
    call(channel, 0.0)
    assert await asyncio.to_thread(serving.model.entered.wait, PATIENCE)


async def written() -> None:
    """Let the channels write what they have; the kernel takes it at once."""
    for _ in range(3):
        await asyncio.sleep(0)


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 - the other thread sets no event of this loop
            await asyncio.sleep(0.001)


async def test_a_request_is_answered(start: Start) -> None:
    _, channel = await start()
    answered = call(channel, 1.5, 2.0)
    assert (await answered.outputs())["y"].tolist() == [[3.0], [4.0]]
    reply = await answered.reply()
    assert reply.batch_rows == 2
    assert reply.queue_seconds >= 0
    assert reply.compute_seconds > 0
    assert not channel.pending


async def test_what_arrives_while_the_model_is_busy_runs_as_one_batch(start: Start) -> None:
    serving, channel = await start(busy=True)
    calls = [call(channel, float(number)) for number in range(1, 6)]
    await written()
    serving.model.gate.set()
    answers = [(await each.outputs())["y"].tolist() for each in calls]
    assert answers == [[[2.0 * number]] for number in range(1, 6)]
    assert serving.model.batches == [[0.0], [1.0, 2.0, 3.0, 4.0, 5.0]]
    assert [(await each.reply()).batch_rows for each in calls] == [5, 0, 0, 0, 0]


async def test_a_batch_takes_no_more_rows_than_it_may(start: Start) -> None:
    serving, channel = await start(busy=True, max_rows=3)
    calls = [call(channel, *rows) for rows in [(1, 2), (3,), (4, 5), (6, 7), (8, 9, 10, 11)]]
    await written()
    serving.model.gate.set()
    for each in calls:
        await each.outputs()
    assert serving.model.batches[1:] == [[1, 2, 3], [4, 5], [6, 7], [8, 9, 10, 11]]


async def test_requests_of_several_connections_run_together(start: Start) -> None:
    serving, first = await start()
    second = await serving.connect()
    await call(second, 5).outputs()
    await occupy(serving, first)
    calls = [call(first, 1), call(second, 2), call(first, 3)]
    await written()
    serving.model.gate.set()
    assert [(await each.outputs())["y"].item() for each in calls] == [2, 4, 6]
    assert list(map(sorted, serving.model.batches)) == [[5.0], [0.0], [1.0, 2.0, 3.0]]


async def test_without_batching_each_request_runs_alone(start: Start) -> None:
    serving, channel = await start(busy=True, max_rows=1)
    calls = [call(channel, float(number)) for number in range(1, 4)]
    await written()
    serving.model.gate.set()
    for each in calls:
        await each.outputs()
    assert serving.model.batches[1:] == [[1.0], [2.0], [3.0]]


async def test_requests_of_a_signature_that_must_not_be_joined_run_alone(start: Start) -> None:
    serving, channel = await start(busy=True)
    calls = [call(channel, float(number), signature="stateful") for number in range(1, 3)]
    await written()
    serving.model.gate.set()
    for each in calls:
        await each.outputs()
    assert serving.model.batches[1:] == [[1.0], [2.0]]


async def test_a_delay_waits_for_a_full_batch(start: Start) -> None:
    serving, channel = await start(max_rows=2, max_queue_delay_microseconds=10_000_000)
    first = call(channel, 1.0)
    await written()
    second = call(channel, 2.0)
    await first.outputs()
    await second.outputs()
    assert serving.model.batches == [[1.0, 2.0]]


async def test_a_delay_ends(start: Start) -> None:
    serving, channel = await start(max_rows=2, max_queue_delay_microseconds=20_000)
    await call(channel, 1.0).outputs()
    assert serving.model.batches == [[1.0]]


def refuse_negative(inputs: Mapping[str, Array]) -> dict[str, Array]:
    if (inputs["x"] < 0).any():
        raise InferenceFailed("index out of range")
    return double(inputs)


async def test_one_request_that_fails_does_not_fail_those_beside_it(start: Start) -> None:
    serving, channel = await start(refuse_negative, busy=True)
    calls = [call(channel, value) for value in (1, -1, 2)]
    await written()
    serving.model.gate.set()
    assert (await calls[0].outputs())["y"].item() == 2
    assert (await calls[1].error()).message == "index out of range"
    assert (await calls[2].outputs())["y"].item() == 4
    assert (await call(channel, 5).outputs())["y"].item() == 10


@pytest.mark.parametrize("error", [RequestError("wrong"), OutOfMemory("2 GB more"), InferenceFailed("raised")])
async def test_an_error_of_the_model_comes_back_as_it_is(start: Start, error: GatewayError) -> None:
    def fail(_: Mapping[str, Array]) -> dict[str, Array]:
        raise error

    _, channel = await start(fail)
    found = await call(channel, 1).error()
    assert (type(found), found.message) == (type(error), error.message)


@pytest.mark.parametrize("error", [KeyError("secret"), RecursionError(), ZeroDivisionError("/etc")])
async def test_of_any_other_exception_only_its_name_is_told(start: Start, error: Exception) -> None:
    def fail(_: Mapping[str, Array]) -> dict[str, Array]:
        raise error

    serving, channel = await start(fail)
    found = await call(channel, 1).error()
    assert type(found) is InferenceFailed
    assert type(error).__name__ in found.message
    assert "secret" not in found.message
    serving.model.function = double
    assert (await call(channel, 1).outputs())["y"].item() == 2


async def test_a_model_that_returns_too_few_rows_for_a_batch_is_called_for_each_request(start: Start) -> None:
    serving, channel = await start(lambda inputs: {"y": inputs["x"].sum(keepdims=True)}, busy=True)
    calls = [call(channel, value) for value in (1, 2)]
    await written()
    serving.model.gate.set()
    assert [(await each.outputs())["y"].item() for each in calls] == [1, 2]


async def test_a_request_cancelled_before_it_was_computed_is_not_computed(start: Start) -> None:
    serving, channel = await start(busy=True)
    dropped, kept = call(channel, 1.0), call(channel, 2.0)
    channel.cancel(dropped.id)
    await written()
    assert dropped.id in channel.pending  # its regions stay taken until the instance confirms
    serving.model.gate.set()
    await kept.outputs()
    await eventually(lambda: not channel.pending)
    assert serving.model.batches == [[0.0], [2.0]]
    assert not dropped.answer.done()
    assert not serving.connections[0].queued


async def test_a_cancellation_that_comes_too_late_leaves_nothing_behind(start: Start) -> None:
    serving, channel = await start()
    answered = call(channel, 1.0)
    await answered.outputs()
    channel._write(request_frame(CANCEL, answered.id))  # noqa: SLF001 - it crossed the reply on the way
    await call(channel, 2.0).outputs()
    assert not serving.connections[0].queued


async def test_a_full_queue_refuses_and_says_so(start: Start) -> None:
    serving, channel = await start(busy=True, max_queue_size=2)
    calls = [call(channel, float(number)) for number in range(1, 5)]
    await written()
    serving.model.gate.set()
    errors = [await each.error() for each in calls[2:]]
    assert [type(error) for error in errors] == [QueueFull, QueueFull]
    assert "2 rows" in errors[0].message
    assert [(await each.outputs())["y"].item() for each in calls[:2]] == [2, 4]


async def test_large_tensors_travel_through_the_arenas_and_leave_them_empty(start: Start) -> None:
    serving, channel = await start()
    big = np.arange(2 * THRESHOLD, dtype=np.float32).reshape(2, -1)
    sent = send(channel, {"x": big})
    assert len(channel.arena.regions) == 1
    assert np.array_equal((await sent.outputs())["y"], big * 2)
    reply = await sent.reply()
    assert reply.header is not None
    assert [tensor.in_arena for tensor in reply.header.outputs] == [True]
    assert not channel.arena.regions
    await eventually(lambda: not lent(serving))


def lent(serving: Serving) -> int:
    """Regions of the reply arenas that are taken."""
    arenas = [connection._replies for connection in serving.connections]  # noqa: SLF001 - as above
    return sum(len(arena.regions) for arena in arenas if arena)


async def test_large_tensors_are_joined_and_parted_too(start: Start) -> None:
    serving, channel = await start(busy=True)
    bigs = [np.full((1, THRESHOLD), number, np.float32) for number in range(1, 4)]
    calls = [send(channel, {"x": big}) for big in bigs]
    await written()
    serving.model.gate.set()
    for each, big in zip(calls, bigs, strict=True):
        assert np.array_equal((await each.outputs())["y"], big * 2)
    assert serving.model.batches == [[0.0], [1.0, 2.0, 3.0]]
    assert not channel.arena.regions
    await eventually(lambda: not lent(serving))


async def test_when_the_arenas_are_full_tensors_travel_through_the_socket(start: Start) -> None:
    serving, channel = await start()
    await call(channel, 1.0).outputs()
    channel.arena.regions.capacity = THRESHOLD
    replies = serving.connections[0]._replies  # noqa: SLF001 - filling it up would take 256 MB
    assert replies
    replies.regions.capacity = THRESHOLD
    big = np.arange(4 * THRESHOLD, dtype=np.float32).reshape(1, -1)
    calls = [send(channel, {"x": big + number}) for number in range(3)]
    assert not channel.arena.regions
    for number, each in enumerate(calls):
        assert np.array_equal((await each.outputs())["y"], (big + number) * 2)
        reply = await each.reply()
        assert reply.header is not None
        assert not reply.header.lent


async def test_cancelled_requests_give_their_regions_back(start: Start) -> None:
    serving, channel = await start(busy=True)
    dropped = send(channel, {"x": np.ones((1, THRESHOLD), np.float32)})
    channel.cancel(dropped.id)
    await written()
    assert len(channel.arena.regions) == 1
    serving.model.gate.set()
    await eventually(lambda: not channel.pending)
    assert not channel.arena.regions
    assert not lent(serving)


async def test_an_answer_nobody_waits_for_gives_its_regions_back(start: Start) -> None:
    serving, channel = await start()
    serving.model.gate.clear()
    running = send(channel, {"x": np.ones((1, THRESHOLD), np.float32)})
    assert await asyncio.to_thread(serving.model.entered.wait, PATIENCE)
    channel.cancel(running.id)
    await written()
    serving.model.gate.set()
    await eventually(lambda: not channel.pending)
    await eventually(lambda: not lent(serving))
    assert not channel.arena.regions


async def test_an_unknown_output_is_named_with_those_there_are(start: Start) -> None:
    _, channel = await start()
    error = await call(channel, 1.0, outputs=("z",)).error()
    assert type(error) is RequestError
    assert "'z'" in error.message
    assert "'y'" in error.message


async def test_only_the_outputs_asked_for_come_back_in_that_order(start: Start) -> None:
    _, channel = await start(lambda inputs: dict.fromkeys("abc", inputs["x"]))
    assert list(await call(channel, 1.0, outputs=("c", "a")).outputs()) == ["c", "a"]


@pytest.mark.parametrize("dtype", ["complex64", "datetime64[s]"])
async def test_an_output_that_the_protocol_cannot_carry_is_the_models_failure(start: Start, dtype: str) -> None:
    _, channel = await start(lambda inputs: {"y": np.zeros(inputs["x"].shape, dtype)})
    error = await call(channel, 1.0).error()
    assert type(error) is InferenceFailed
    assert dtype.split("[", maxsplit=1)[0] in error.message


@pytest.mark.parametrize("outputs", [(), ("big", "unknown")])
async def test_a_reply_that_fails_half_way_leaves_nothing_lent(start: Start, outputs: tuple[str, ...]) -> None:
    serving, channel = await start(
        lambda _: {"big": np.zeros((1, THRESHOLD), np.float32), "odd": np.zeros((1, 1), np.complex64)}
    )
    await call(channel, 1.0, outputs=outputs).error()
    await eventually(lambda: not channel.pending)
    assert not lent(serving)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("output", [["a list"], None, 1.0, np.array(["\ud800"], object)])
async def test_an_output_that_cannot_be_sent_does_not_end_the_instance(start: Start, output: Any) -> None:
    serving, channel = await start(lambda _: {"y": output})
    failing = call(channel, 1.0)
    await eventually(lambda: failing.answer.done() or not serving.thread.is_alive())
    assert serving.thread.is_alive()
    await failing.error()


async def closed_by_the_other_side(sock: socket.socket) -> bool:
    loop = asyncio.get_running_loop()
    sock.setblocking(False)
    async with asyncio.timeout(PATIENCE):
        try:
            while await loop.sock_recv(sock, 65536):
                pass
        except ConnectionError:
            pass
    return True


@pytest.mark.parametrize(
    "garbage",
    [
        b"\xff" * 100,
        REQUEST_HEAD.pack(INFER, 4, 0, 1, 0.0, 0.0, 50) + b"\xc1\xc1\xc1\xc1",
        REQUEST_HEAD.pack(INFER, 0, 2**32 - 1, 1, 0.0, 0.0, 50),
        REQUEST_HEAD.pack(RELEASE, 0, 0, 77, 0.0, 0.0, 50),
        b"",
    ],
    ids=["noise", "header", "size", "release", "nothing"],
)
async def test_garbage_closes_its_own_connection_only(start: Start, garbage: bytes) -> None:
    serving, channel = await start()
    with socket.socket(socket.AF_UNIX) as hostile:
        hostile.connect(serving.path)
        hostile.sendall(b"sixteen bytes___")
        hostile.sendall(garbage)
        if not garbage:
            hostile.shutdown(socket.SHUT_WR)
        assert await closed_by_the_other_side(hostile)
    assert (await call(channel, 1).outputs())["y"].item() == 2
    assert len(serving.connections) == 1


@pytest.mark.parametrize(
    "tensors",
    [
        (TensorHeader("x", "FP32", (1, 1), 5),),
        (TensorHeader("x", "FP32", (2, 1), 4),),
        (TensorHeader("x", "FP32", (1, 1), 4, in_arena=True),),
        (TensorHeader("x", "NONE", (1, 1), 4),),
        (TensorHeader("x", "FP32", (1 << 60, 1 << 60), 4),),
        (TensorHeader("x", "BYTES", (1,), 4),),
        (),
    ],
)
async def test_a_request_that_contradicts_itself_is_answered_with_an_error(
    start: Start, tensors: tuple[TensorHeader, ...]
) -> None:
    _, channel = await start()
    bad = Call()
    channel.call(encode(RequestHeader("forward", tensors)), [b"1234"], [], bad.on_reply, 0.0, LATER)
    await bad.error()
    assert (await call(channel, 1).outputs())["y"].item() == 2


async def test_a_request_whose_rows_fit_into_no_frame_gets_an_error_and_the_instance_stays(start: Start) -> None:
    serving, channel = await start()
    execute = serving.server.execute
    serving.server.execute = lambda *_: {"y": np.zeros((1, 1), np.float32)}
    absurd = Call()
    tensors = (TensorHeader("x", "FP32", (5_000_000_000, 0), 0),)
    channel.call(encode(RequestHeader("forward", tensors)), [], [], absurd.on_reply, 0.0, LATER)
    assert isinstance(await absurd.error(), InferenceFailed)
    serving.server.execute = execute
    assert (await call(channel, 1).outputs())["y"].item() == 2


async def test_a_frame_that_there_is_no_memory_for_costs_its_connection_only(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    serving, channel = await start()
    (greedy,) = await connected(serving)

    def exhausted() -> None:
        raise MemoryError

    monkeypatch.setattr(greedy, "receive", exhausted)
    lost = call(channel, 1.0)
    assert isinstance(await lost.error(), InstanceDied)
    assert (await call(await serving.connect(), 1).outputs())["y"].item() == 2


async def test_an_idle_instance_lets_its_model_rest_when_that_wants_to(start: Start) -> None:
    serving, channel = await start()
    rested = threading.Event()
    waits = iter([0.001, 0.001, -1.0])

    def rest() -> float:
        left = next(waits, -1.0)
        if left < 0:
            rested.set()
        return left

    serving.model.rest = rest  # type: ignore[method-assign]
    await call(channel, 1.0).outputs()
    assert await asyncio.to_thread(rested.wait, PATIENCE)


async def test_an_idle_instance_gives_back_what_its_batches_have_left_once(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    trimmed: list[float] = []
    monkeypatch.setattr(serve, "IDLE_SECONDS", 0.01)
    monkeypatch.setattr(heap, "trim", lambda: trimmed.append(time.perf_counter()))
    _, channel = await start()
    for count in (1, 2):
        await call(channel, 1.0).outputs()
        await eventually(lambda count=count: len(trimmed) == count)  # type: ignore[misc]
    await asyncio.sleep(0.05)
    assert len(trimmed) == 2


async def connected(serving: Serving) -> list[Connection]:
    await eventually(lambda: bool(serving.connections))
    return serving.connections


async def test_the_queue_of_a_worker_that_leaves_is_dropped(start: Start) -> None:
    serving, channel = await start(busy=True, max_rows=1)
    leaving = await serving.connect()
    for number in range(100, 110):
        call(leaving, float(number)).answer.add_done_callback(lambda future: future.exception())
    await written()
    leaving.close()
    await written()
    kept = call(channel, 1.0)
    await written()
    serving.model.gate.set()
    assert (await kept.outputs())["y"].item() == 2
    assert len([batch for batch in serving.model.batches if batch[0] >= 100]) <= 1
    await eventually(lambda: len(serving.connections) == 1)


async def test_a_worker_that_leaves_takes_its_descriptors_along(start: Start) -> None:
    serving, channel = await start()
    await call(channel, 1.0).outputs()
    for times in (1, 3):  # the first round fills caches
        before = descriptors()
        for _ in range(times):
            await come_and_go(serving)
            await eventually(lambda: len(serving.connections) == 1)
    assert descriptors() == before


def descriptors() -> list[str]:
    gc.collect()
    return sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names only, and from memory


async def come_and_go(serving: Serving) -> None:
    lost = asyncio.Event()
    leaving = await Channel.connect("m/1#0", serving.path, PATIENCE, settled(lost))
    await call(leaving, 1.0).outputs()
    leaving.close()
    await asyncio.wait_for(lost.wait(), PATIENCE)


async def test_what_is_queued_is_answered_before_the_instance_stops(start: Start) -> None:
    serving, channel = await start(busy=True, max_rows=1)
    calls = [call(channel, float(number)) for number in range(1, 4)]
    await written()
    await serving.stop()
    assert [(await each.outputs())["y"].item() for each in calls] == [2, 4, 6]


async def test_a_stop_does_not_wait_for_a_fuller_batch(start: Start) -> None:
    serving, channel = await start(max_queue_delay_microseconds=10_000_000)
    waiting = call(channel, 1.0)
    await eventually(lambda: bool(serving.server._queue.rows))  # noqa: SLF001 - it must be there before the stop
    await serving.stop()
    assert (await waiting.outputs())["y"].item() == 2


async def test_a_worker_that_reads_slowly_gets_everything(start: Start) -> None:
    serving, _ = await start()
    header = encode(RequestHeader("forward", (TensorHeader("x", "FP32", (1, 10_000), 40_000),)))
    payload = np.arange(10_000, dtype=np.float32).tobytes()
    count = 100
    with socket.socket(socket.AF_UNIX) as slow:
        slow.connect(serving.path)
        slow.sendall(b"sixteen bytes___")
        slow.setblocking(False)
        loop = asyncio.get_running_loop()
        frames = b"".join(b"".join(request_frame(INFER, number, header, [payload])) for number in range(count))
        writing = asyncio.create_task(loop.sock_sendall(slow, frames))
        await eventually(lambda: any(connection.blocked for connection in serving.connections))
        reader, got = reply_reader(), []
        async with asyncio.timeout(PATIENCE):
            while len(got) < count:
                got += reader.feed(await loop.sock_recv(slow, 10_000_000))
        await writing
    want = (np.arange(10_000, dtype=np.float32) * 2).tobytes()
    assert [head[3] for head, _, _ in got] == list(range(count))
    assert all(body == want for _, _, body in got)


async def test_kinds_of_requests_are_remembered_only_so_many(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.instance.serve.PLANS", 3)
    monkeypatch.setattr(replies, "HEADERS", 3)
    monkeypatch.setattr(replies, "_headers", {})
    serving, channel = await start()
    for rows in range(1, 12):
        await call(channel, *range(rows)).outputs()
        assert len(serving.server._plans) <= 3  # noqa: SLF001 - the bound is the point
        assert len(replies._headers) <= 3  # noqa: SLF001 - as above


# Priorities, deadlines, bounds


async def test_smaller_priorities_are_computed_first(start: Start) -> None:
    serving, channel = await start(busy=True, max_rows=1)
    calls = [call(channel, float(number), flags=flags) for number, flags in enumerate((50, 100, 1, 50), start=1)]
    await written()
    serving.model.gate.set()
    for each in calls:
        await each.outputs()
    assert serving.model.batches[1:] == [[3.0], [1.0], [4.0], [2.0]]


async def test_a_request_that_must_be_alone_is_not_joined(start: Start) -> None:
    serving, channel = await start(busy=True)
    calls = [call(channel, float(n), flags=50 | (ALONE if n == 2 else 0)) for n in range(1, 5)]
    await written()
    serving.model.gate.set()
    for each in calls:
        await each.outputs()
    assert sorted(serving.model.batches[1:]) == [[1.0, 3.0, 4.0], [2.0]]


async def test_a_request_whose_time_is_over_before_the_model_is_free_is_not_computed(start: Start) -> None:
    serving, channel = await start(busy=True)
    late, kept = call(channel, 1.0, deadline=time.perf_counter()), call(channel, 2.0)
    await written()
    serving.model.gate.set()
    assert isinstance(await late.error(), DeadlineExceeded)
    await kept.outputs()
    assert serving.model.batches == [[0.0], [2.0]]
    assert not serving.connections[0].queued


async def test_a_thousand_abandoned_requests_cost_the_model_nothing(start: Start) -> None:
    serving, channel = await start(busy=True, max_queue_size=2000)
    abandoned = [call(channel, float(number)) for number in range(1, 1001)]
    await written()
    for each in abandoned:
        channel.cancel(each.id)
    kept = call(channel, 5.0)
    await written()
    serving.model.gate.set()
    assert (await kept.outputs())["y"].item() == 10
    await eventually(lambda: not channel.pending)
    assert serving.model.batches == [[0.0], [5.0]]
    assert not serving.connections[0].queued
    assert (channel.rows, channel.bytes) == (0, 0)


async def test_abandoned_requests_that_are_still_on_their_way_are_not_computed(start: Start) -> None:
    """More requests than the socket holds: the words that cancel them in the stream come behind them all."""
    serving, channel = await start(busy=True, max_queue_size=100_000)
    wide = {"x": np.ones((1, 1000), np.float32)}
    abandoned = [send(channel, wide) for _ in range(1000)]
    await written()
    for each in abandoned:
        channel.cancel(each.id)
    await written()
    serving.model.gate.set()
    await eventually(lambda: not channel.pending)
    assert serving.model.batches == [[0.0]]
    assert not serving.connections[0].queued
    await eventually(lambda: not serving.connections[0].unwanted)


async def test_a_queue_is_bounded_in_rows(start: Start) -> None:
    serving, channel = await start(busy=True, max_queue_size=4)
    calls = [call(channel, *range(1, rows + 1)) for rows in (3, 2, 1)]
    await written()
    serving.model.gate.set()
    await calls[0].outputs()
    assert isinstance(await calls[1].error(), QueueFull)
    await calls[2].outputs()


async def test_a_queue_is_bounded_in_bytes(start: Start) -> None:
    serving, channel = await start(busy=True, max_queue_bytes=100)
    calls = [call(channel, *range(1, rows + 1)) for rows in (20, 10, 5)]
    await written()
    serving.model.gate.set()
    await calls[0].outputs()
    assert isinstance(await calls[1].error(), QueueFull)
    await calls[2].outputs()


async def test_one_request_larger_than_the_queue_is_taken_when_nothing_else_waits(start: Start) -> None:
    _, channel = await start(max_queue_size=2, max_queue_bytes=4)
    assert len((await call(channel, *range(50)).outputs())["y"]) == 50


# What it is computing


async def test_while_it_computes_the_worker_can_read_which_requests(start: Start) -> None:
    serving, channel = await start(busy=True, max_rows=4)
    first = next(iter(channel.pending))
    assert channel._note.read() == {first}  # noqa: SLF001 - what settle reads
    calls = [call(channel, float(number)) for number in range(1, 3)]
    await written()
    serving.model.entered.clear()
    serving.model.gate.set()
    for each in calls:
        await each.outputs()
    await eventually(lambda: not channel._note.read())  # noqa: SLF001 - as above


async def test_each_worker_reads_of_its_own_requests_only(start: Start) -> None:
    serving, first = await start()
    second = await serving.connect()
    await call(second, 1.0).outputs()
    await occupy(serving, first)
    calls = [call(first, 1.0), call(second, 2.0)]
    await written()
    notes: list[frozenset[int]] = []

    def look(inputs: Mapping[str, Array]) -> dict[str, Array]:
        if len(inputs["x"]) == 2:
            notes.extend(channel._note.read() for channel in (first, second))  # noqa: SLF001 - as above
        return double(inputs)

    serving.model.function = look
    serving.model.gate.set()
    for each in calls:
        await each.outputs()
    assert notes == [{calls[0].id}, {calls[1].id}]


async def test_a_failed_batch_is_noted_one_request_at_a_time(start: Start) -> None:
    serving, channel = await start(busy=True)
    notes: list[frozenset[int]] = []

    def look(inputs: Mapping[str, Array]) -> dict[str, Array]:
        notes.append(channel._note.read())  # noqa: SLF001 - as above
        return refuse_negative(inputs)

    serving.model.function = look
    calls = [call(channel, value) for value in (1, -1)]
    await written()
    serving.model.gate.set()
    await calls[0].outputs()
    await calls[1].error()
    ids = [each.id for each in calls]
    assert notes[-3:] == [frozenset(ids), {ids[0]}, {ids[1]}]


# Memory


@pytest.mark.parametrize("rows", [1, 3])
async def test_a_lack_of_memory_is_out_of_memory_wherever_it_occurs(start: Start, rows: int) -> None:
    def fail(_: Mapping[str, Array]) -> dict[str, Array]:
        raise MemoryError

    serving, channel = await start(fail, busy=True)
    calls = [call(channel, float(number)) for number in range(rows)]
    await written()
    serving.model.gate.set()
    for each in calls:
        assert isinstance(await each.error(), OutOfMemory)


async def test_a_lack_of_memory_while_replying_is_out_of_memory(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Array) -> tuple[str, bytes]:
        raise MemoryError

    _, channel = await start()
    monkeypatch.setattr(replies, "raw_from_array", fail)
    assert isinstance(await call(channel, 1.0).error(), OutOfMemory)


@pytest.mark.parametrize(
    "output",
    [
        np.broadcast_to(np.float32(1), (1, 1 << 40)),
        np.broadcast_to(np.array(["word"], object), (1, 1 << 30)),
    ],
)
async def test_outputs_that_are_too_large_are_refused_before_they_are_copied(start: Start, output: Array) -> None:
    _, channel = await start(lambda _: {"y": output})
    error = await call(channel, 1.0).error()
    assert isinstance(error, InferenceFailed)
    assert str(4 * output.size) in error.message
    assert str(256 << 20) in error.message


async def test_an_output_that_nobody_asked_for_may_be_as_large_as_it_likes(start: Start) -> None:
    huge = np.broadcast_to(np.float32(1), (1, 1 << 40))
    _, channel = await start(lambda inputs: {"huge": huge, "y": inputs["x"]})
    assert list(await call(channel, 1.0, outputs=("y",)).outputs()) == ["y"]
