import asyncio
import contextlib
import gc
import os
import resource
import signal
import socket
import time
import weakref
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from gateway.errors import DeadlineExceeded, InstanceDied, QueueFull
from gateway.ipc import channel as module
from gateway.ipc.arena import NOTE_BYTES, THRESHOLD, ExecutionNote, map_readable
from gateway.ipc.channel import Channel
from gateway.ipc.framing import (
    CANCEL,
    FAILURE,
    INFER,
    MAX_REPLY,
    OFFSET,
    RELEASE,
    RELEASE_MEMORY,
    REPLY_HEAD,
    RESULT,
    Failure,
    RequestHead,
    ResultHeader,
    TensorHeader,
    encode,
    reply_frame,
    request_reader,
)
from gateway.ipc.reply import InstanceLost, Reply

PATIENCE = 5


class Peer:
    """An instance played by the test: it sees every frame and says what it is told to say."""

    def __init__(self, sock: socket.socket, descriptors: list[int]) -> None:
        self.sock = sock
        self.requests, self.replies = (map_readable(fd) for fd in descriptors)
        for fd in descriptors:
            os.close(fd)
        self._reader = request_reader()
        self._frames: list[tuple[RequestHead, bytes, bytes]] = []

    async def frame(self) -> tuple[RequestHead, bytes, bytes]:
        async with asyncio.timeout(PATIENCE):
            while not self._frames:
                data = await asyncio.get_running_loop().sock_recv(self.sock, 1 << 20)
                assert data, "the channel closed"
                self._frames += self._reader.feed(data)
        return self._frames.pop(0)

    def say(self, *parts: bytes | bytearray | memoryview) -> None:
        self.sock.sendall(b"".join(parts))

    def answer(self, number: int, payload: bytes = b"1234", *, in_arena: bool = False) -> None:
        size = 4 if in_arena else len(payload)
        header = ResultHeader((TensorHeader("y", "UINT8", (size,), size, in_arena),))
        self.say(*reply_frame(RESULT, number, encode(header), [payload], (0.25, 0.5, 3)))

    async def closed(self) -> bool:
        async with asyncio.timeout(PATIENCE):
            with contextlib.suppress(ConnectionError):
                while await asyncio.get_running_loop().sock_recv(self.sock, 1 << 20):
                    pass
        return True


class Line:
    """A channel, the peer at its other end, and what came back."""

    def __init__(self, channel: Channel, peer: Peer, lost: asyncio.Event, patience: float) -> None:
        self.patience = patience
        self.channel = channel
        self.peer = peer
        self.lost = lost

    def call(
        self, payload: bytes = b"", regions: list[int] | None = None, **load: int
    ) -> tuple[int, "asyncio.Future[Reply]"]:
        answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        now = time.perf_counter()
        deadline = now + self.patience
        number = self.channel.call(b"head", [payload], regions or [], answer.set_result, now, deadline, **load)
        return number, answer


@contextlib.asynccontextmanager
async def opened(path: Path, patience: float = PATIENCE, *, settle: bool = True) -> AsyncIterator[Line]:
    lost = asyncio.Event()

    def told(channel: Channel) -> None:
        lost.set()
        if settle:
            channel.settle()

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path / "i.sock"))
        listener.listen()
        channel = await Channel.connect("m/1#0", str(path / "i.sock"), patience, told)
        sock, _ = listener.accept()
    with sock:
        greeting, descriptors, _, _ = socket.recv_fds(sock, 16, 2)
        assert greeting == b"arenas"
        sock.setblocking(False)
        yield Line(channel, Peer(sock, descriptors), lost, patience)
        if not channel.closed:
            channel.close()
        await asyncio.wait_for(lost.wait(), PATIENCE)


@pytest.fixture
async def line(tmp_path: Path) -> AsyncIterator[Line]:
    async with opened(tmp_path) as line:
        yield line


async def soon(answer: "asyncio.Future[Reply]") -> Reply:
    return await asyncio.wait_for(answer, PATIENCE)


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 - what is waited for sets no event
            await asyncio.sleep(0.001)


async def test_a_call_is_sent_and_its_reply_handed_over(line: Line) -> None:
    number, answer = line.call(b"payload")
    head, header, payload = await line.peer.frame()
    assert (head[0], head[3], header, payload) == (INFER, number, b"head", b"payload")
    line.peer.answer(number)
    reply = await soon(answer)
    assert reply.error is None
    assert reply.header is not None
    assert [tensor.name for tensor in reply.header.outputs] == ["y"]
    assert [bytes(raw) for raw in reply.tensors] == [b"1234"]
    assert (reply.queue_seconds, reply.compute_seconds, reply.batch_rows) == (0.25, 0.5, 3)
    assert not line.channel.pending


async def test_replies_find_their_calls_in_any_order(line: Line) -> None:
    calls = [line.call() for _ in range(4)]
    for number, _ in reversed(calls):
        line.peer.answer(number, str(number).encode())
    assert [bytes((await soon(answer)).tensors[0]) for _, answer in calls] == [str(n).encode() for n, _ in calls]


async def test_calls_of_one_turn_are_written_together(line: Line) -> None:
    for _ in range(10):
        line.call()
    await turns()
    assert len(request_reader().feed(line.peer.sock.recv(1 << 20))) == 10


async def test_a_failure_comes_back_as_the_error_it_names(line: Line) -> None:
    number, answer = line.call()
    line.peer.say(*reply_frame(FAILURE, number, b"", [encode(Failure("queue_full", "no room"))]))
    error = (await soon(answer)).error
    assert isinstance(error, QueueFull)
    assert error.message == "no room"


async def test_when_the_instance_dies_every_call_under_way_is_told(line: Line) -> None:
    answers = [line.call()[1] for _ in range(3)]
    await line.peer.frame()
    line.peer.sock.shutdown(socket.SHUT_RDWR)
    for answer in answers:
        assert isinstance((await soon(answer)).error, InstanceDied)
    assert line.lost.is_set()
    assert line.channel.closed


async def test_a_call_on_a_closed_channel_is_told_at_once(line: Line) -> None:
    line.channel.close()
    await asyncio.wait_for(line.lost.wait(), PATIENCE)
    _, answer = line.call()
    assert not answer.done()  # never from within the call
    assert isinstance((await soon(answer)).error, InstanceDied)
    line.channel.unreserve(0)


async def test_a_callback_that_fails_does_not_silence_the_others(line: Line) -> None:
    def fail(_: Reply) -> None:
        raise ValueError("a bug of the caller's")

    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    line.channel.call(b"", [], [], fail, 0.0, time.perf_counter() + PATIENCE)
    _, answer = line.call()
    line.channel.close()
    assert isinstance((await asyncio.wait_for(answer, 1)).error, InstanceDied)


async def test_a_call_that_takes_too_long_is_told_and_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SWEEP_SECONDS", 0.01)
    async with opened(tmp_path, patience=0.02) as line:
        number, answer = line.call()
        error = (await soon(answer)).error
        assert isinstance(error, DeadlineExceeded)
        assert "0.02 s" in error.message
        assert (await line.peer.frame())[0][0] == INFER
        assert (await line.peer.frame())[0][0:4:3] == (CANCEL, number)
        line.peer.answer(number)  # too late: nobody is told twice
        await eventually(lambda: not line.channel.pending)
        assert not line.channel.closed


async def test_a_call_within_its_time_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SWEEP_SECONDS", 0.001)
    async with opened(tmp_path) as line:
        number, answer = line.call()
        await line.peer.frame()
        before = line.channel._sweeper  # noqa: SLF001 - a sweep sets the next one
        await eventually(lambda: line.channel._sweeper is not before)  # noqa: SLF001 - as above
        assert not answer.done()
        line.peer.answer(number)
        assert (await soon(answer)).error is None


async def test_a_cancelled_call_is_never_answered_and_keeps_its_region_until_confirmed(line: Line) -> None:
    regions: list[int] = []
    placed = line.channel.place(bytes(THRESHOLD + 1), regions)
    assert placed is not None
    number, answer = line.call(bytes(placed), regions)
    line.channel.cancel(number)
    line.channel.cancel(number)
    assert [(await line.peer.frame())[0][0] for _ in range(2)] == [INFER, CANCEL]
    assert len(line.channel.arena.regions) == 1
    line.peer.say(*reply_frame(FAILURE, number, b"", [encode(Failure("cancelled", ""))]))
    await eventually(lambda: not line.channel.pending)
    assert not line.channel.arena.regions
    assert not answer.done()
    line.channel.cancel(number)  # unknown by now: nothing happens


async def test_a_large_tensor_is_placed_where_the_instance_reads_it(line: Line) -> None:
    raw = bytes(range(256)) * 300
    regions: list[int] = []
    placed = line.channel.place(raw, regions)
    assert placed is not None
    number, answer = line.call(bytes(placed), regions)
    _, _, payload = await line.peer.frame()
    (offset,) = OFFSET.unpack(payload)
    assert bytes(line.peer.requests[offset : offset + len(raw)]) == raw
    line.peer.answer(number)
    await soon(answer)
    assert not line.channel.arena.regions


async def test_a_small_tensor_and_one_too_large_are_not_placed(line: Line) -> None:
    assert line.channel.place(bytes(THRESHOLD), []) is None
    line.channel.arena.regions.capacity = THRESHOLD
    regions: list[int] = []
    assert line.channel.place(bytes(THRESHOLD + 1), regions) is None
    assert regions == []


async def test_an_output_in_the_arena_is_read_there_and_released(line: Line) -> None:
    number, answer = line.call()
    await line.peer.frame()
    line.peer.replies[64:68] = b"abcd"
    line.peer.answer(number, OFFSET.pack(64), in_arena=True)
    assert bytes((await soon(answer)).tensors[0]) == b"abcd"
    assert (await line.peer.frame())[0][0:4:3] == (RELEASE, number)


async def test_an_output_nobody_waits_for_is_released_too(line: Line) -> None:
    number, answer = line.call()
    line.channel.cancel(number)
    line.peer.answer(number, OFFSET.pack(0), in_arena=True)
    assert [(await line.peer.frame())[0][0] for _ in range(3)] == [INFER, CANCEL, RELEASE]
    assert not answer.done()


async def test_bodies_on_their_way_leave_half_of_the_arena_to_others(line: Line) -> None:
    half = line.channel.arena.regions.capacity // 2
    region = line.channel.reserve(half)
    assert region is not None
    assert line.channel.reserve(1) is None
    regions: list[int] = []
    assert line.channel.place(b"x" * 100_000, regions) is not None
    line.channel.unreserve(region)
    assert line.channel.reserve(1) is not None


async def test_the_memory_of_an_idle_arena_goes_back(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TRIM_SECONDS", 0.0)
    regions: list[int] = []
    line.channel.place(b"x" * 100_000, regions)
    line.channel.unreserve(regions[0])
    await eventually(lambda: bytes(line.channel.arena.view[NOTE_BYTES : NOTE_BYTES + 1]) == b"\0")
    assert not line.channel.arena.regions


async def test_an_arena_that_is_used_again_is_not_trimmed(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TRIM_SECONDS", 0.0)
    regions: list[int] = []
    line.channel.place(b"x" * 100_000, regions)
    line.channel.unreserve(regions.pop())
    line.channel.place(b"y" * 100_000, regions)
    await turns(20)
    assert bytes(line.channel.arena.view[NOTE_BYTES : NOTE_BYTES + 3]) == b"yyy"


async def test_when_large_replies_have_ceased_the_instance_is_told(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TRIM_SECONDS", 0.01)
    for _ in range(3):
        number, answer = line.call()
        line.peer.answer(number, OFFSET.pack(64), in_arena=True)
        await soon(answer)
    frames = [(await line.peer.frame())[0][0:4:3] for _ in range(7)]
    assert frames[-1] == (RELEASE, RELEASE_MEMORY)
    assert frames[:-1].count((RELEASE, number)) == 1


async def test_a_channel_closes_when_it_is_idle(line: Line) -> None:
    number, answer = line.call()
    line.channel.close_when_idle()
    await turns()
    assert not line.channel.closed
    line.peer.answer(number)
    assert (await soon(answer)).error is None
    await asyncio.wait_for(line.lost.wait(), PATIENCE)


async def test_an_idle_channel_closes_at_once(line: Line) -> None:
    line.channel.close_when_idle()
    await asyncio.wait_for(line.lost.wait(), PATIENCE)
    assert await line.peer.closed()


def bad_frames(number: int) -> dict[str, bytes]:
    tensor = TensorHeader("y", "FP32", (1,), 4)

    def result(*tensors: TensorHeader, payload: bytes = b"1234") -> bytes:
        return b"".join(reply_frame(RESULT, number, encode(ResultHeader(tensors)), [payload]))

    return {
        "noise": b"\xff" * 100,
        "a reply to no request": b"".join(reply_frame(RESULT, 99, encode(ResultHeader(())))),
        "too large": REPLY_HEAD.pack(RESULT, 0, MAX_REPLY + 1, number, 0.0, 0.0, 0),
        "a header that is none": b"".join(reply_frame(RESULT, number, b"\xc1\xc1")),
        "a header of another kind": b"".join(reply_frame(RESULT, number, encode(["y"]))),
        "a failure that is none": b"".join(reply_frame(FAILURE, number, b"", [b"\xc1"])),
        "more tensors than bytes": result(tensor, tensor),
        "fewer tensors than bytes": result(),
        "outside the arena": result(TensorHeader("y", "FP32", (1,), 4, in_arena=True), payload=OFFSET.pack(2**63)),
        "a torn offset": result(TensorHeader("y", "FP32", (1,), 4, in_arena=True), payload=b"123"),
        "no time": b"".join(reply_frame(RESULT, number, encode(ResultHeader(())), [], (0.0, float("nan"), 1))),
        "less than no time": b"".join(reply_frame(RESULT, number, encode(ResultHeader(())), [], (-1.0, 0.0, 1))),
        "for ever": b"".join(reply_frame(RESULT, number, encode(ResultHeader(())), [], (float("inf"), 0.0, 1))),
        "the beginning of a reply to no request": REPLY_HEAD.pack(RESULT, 0, 1 << 20, 99, 0.0, 0.0, 0),
        "a negative size": result(TensorHeader("y", "FP32", (1,), 5), TensorHeader("z", "FP32", (1,), -1)),
    }


@pytest.mark.parametrize("what", bad_frames(1))
async def test_an_instance_that_speaks_nonsense_loses_its_channel_and_every_call_is_told(line: Line, what: str) -> None:
    unhandled: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
    number, answer = line.call()
    _, other = line.call()
    line.peer.say(bad_frames(number)[what])
    await asyncio.wait_for(line.lost.wait(), 1)
    await turns()
    assert isinstance((await soon(other)).error, InstanceDied)
    assert answer.done(), "the call whose reply made no sense was forgotten"
    assert isinstance(answer.result().error, InstanceDied)
    assert not unhandled


async def test_an_instance_that_is_not_there_is_an_os_error_and_leaves_nothing_open(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        await Channel.connect("m/1#0", str(tmp_path / "nobody.sock"), PATIENCE, lambda _: None)


def held_up(*_: object) -> None:
    raise AssertionError("everybody is held up")


async def test_an_instance_that_accepts_no_more_lines_is_an_os_error_and_holds_up_nobody(tmp_path: Path) -> None:
    path = str(tmp_path / "i.sock")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as other:
        listener.bind(path)
        listener.listen(0)
        other.connect(path)
        before = signal.signal(signal.SIGALRM, held_up)
        signal.setitimer(signal.ITIMER_REAL, PATIENCE)
        try:
            with pytest.raises(BlockingIOError):
                await Channel.connect("m/1#0", path, PATIENCE, lambda _: None)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            signal.signal(signal.SIGALRM, before)


# What is known of a death


async def test_no_more_calls_are_believed_to_be_computed_than_can_be(tmp_path: Path) -> None:
    async with opened(tmp_path, settle=False) as line:
        line.channel.max_executing = 2
        calls = [line.call() for _ in range(5)]
        await line.peer.frame()
        ExecutionNote(line.peer.replies).write([number for number, _ in calls])
        line.peer.sock.shutdown(socket.SHUT_RDWR)
        await asyncio.wait_for(line.lost.wait(), PATIENCE)
        line.channel.settle()
        errors = [(await soon(answer)).error for _, answer in calls]
    assert [isinstance(error, InstanceLost) and error.executing for error in errors] == [True] * 2 + [False] * 3


async def test_the_calls_of_a_lost_instance_are_told_when_it_is_known_why(tmp_path: Path) -> None:
    async with opened(tmp_path, settle=False) as line:
        calls = [line.call() for _ in range(3)]
        await line.peer.frame()
        ExecutionNote(line.peer.replies).write([calls[1][0], 10**9])
        line.peer.sock.shutdown(socket.SHUT_RDWR)
        await asyncio.wait_for(line.lost.wait(), PATIENCE)
        await turns()
        assert not any(answer.done() for _, answer in calls)
        line.channel.settle("deadline", "too slow")
        errors = [(await soon(answer)).error for _, answer in calls]
    assert all(isinstance(error, InstanceLost) for error in errors)
    found = [(error.executing, error.verdict, error.reason) for error in errors if isinstance(error, InstanceLost)]
    assert found == [(False, "deadline", "too slow"), (True, "deadline", "too slow"), (False, "deadline", "too slow")]


async def test_no_call_is_to_blame_if_only_the_line_was_cut(tmp_path: Path) -> None:
    async with opened(tmp_path, settle=False) as line:
        number, answer = line.call()
        await line.peer.frame()
        ExecutionNote(line.peer.replies).write([number])
        line.peer.sock.shutdown(socket.SHUT_RDWR)
        await asyncio.wait_for(line.lost.wait(), PATIENCE)
        line.channel.settle(blameless=True)
        error = (await soon(answer)).error
    assert isinstance(error, InstanceLost)
    assert not error.executing


async def test_a_call_that_is_cancelled_after_the_death_is_not_told(tmp_path: Path) -> None:
    async with opened(tmp_path, settle=False) as line:
        number, answer = line.call()
        line.peer.sock.shutdown(socket.SHUT_RDWR)
        await asyncio.wait_for(line.lost.wait(), PATIENCE)
        line.channel.cancel(number)
        line.channel.settle()
        await turns()
    assert not answer.done()


async def test_a_call_whose_time_is_over_is_told_even_if_nobody_says_why_its_instance_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SWEEP_SECONDS", 0.01)
    async with opened(tmp_path, patience=0.02, settle=False) as line:
        _, answer = line.call()
        line.peer.sock.shutdown(socket.SHUT_RDWR)
        assert isinstance((await soon(answer)).error, DeadlineExceeded)
        line.channel.settle()


async def test_nonsense_in_a_note_is_bounded(line: Line) -> None:
    _, answer = line.call()
    await line.peer.frame()
    line.peer.replies[:NOTE_BYTES] = b"\xff" * NOTE_BYTES
    line.peer.sock.shutdown(socket.SHUT_RDWR)
    error = (await soon(answer)).error
    assert isinstance(error, InstanceLost)
    assert not error.executing


# Load


async def test_what_is_under_way_is_counted_until_it_is_answered(line: Line) -> None:
    first, answer = line.call(rows=3, size=100)
    second, _ = line.call(rows=2, size=50)
    assert (line.channel.rows, line.channel.bytes) == (5, 150)
    line.channel.cancel(second)
    assert line.channel.rows == 5  # it may be computed yet
    line.peer.answer(first)
    await soon(answer)
    assert (line.channel.rows, line.channel.bytes) == (2, 50)


async def test_there_is_room_for_so_many_rows_and_bytes_and_always_for_one(line: Line) -> None:
    channel = line.channel
    channel.max_rows, channel.max_bytes = 2, 100
    assert channel.has_room(1000)
    number, answer = line.call(rows=1, size=60)
    assert channel.has_room(40)
    assert not channel.has_room(41)
    line.call(rows=5, size=1)
    assert not channel.has_room(1)
    line.peer.answer(number)
    await soon(answer)
    assert not channel.has_room(1)


async def test_a_full_queue_says_when_it_will_probably_have_room(line: Line) -> None:
    channel = line.channel
    assert channel.retry_after() == 1
    number, answer = line.call(rows=3)
    line.peer.answer(number)  # in 0.5 s for 3 rows
    await soon(answer)
    assert channel.row_seconds == pytest.approx(1 / 6)
    line.call(rows=10)
    assert channel.retry_after() == 2
    assert channel.queue_full().retry_after == 2
    line.call(rows=100_000)
    assert channel.retry_after() == 60


@pytest.mark.parametrize("seconds", [0.0, 1e-30, 9e5])
async def test_whatever_times_an_instance_reports_the_seconds_are_within_bounds(line: Line, seconds: float) -> None:
    number, answer = line.call(rows=3)
    header = encode(ResultHeader(()))
    line.peer.say(*reply_frame(RESULT, number, header, [], (seconds, seconds, 1)))
    await soon(answer)
    line.call(rows=10)
    assert 1 <= line.channel.retry_after() <= 60


async def test_lines_that_are_gone_leave_no_descriptor_and_no_mapping_behind(tmp_path: Path) -> None:
    """Whoever else still knows of them: instances come and go faster than the garbage collector."""

    def held() -> tuple[int, int]:
        maps = Path("/proc/self/maps").read_text().count("gateway-re")
        return len(list(Path("/proc/self/fd").iterdir())), maps

    gc.disable()
    kept = []
    try:
        before = held()
        for number in range(20):
            path = tmp_path / str(number)
            path.mkdir()
            async with opened(path) as line:
                kept.append(line.channel)
                line.call(b"1234")
                line.peer.requests.release()
                line.peer.replies.release()
            await asyncio.wait_for(line.lost.wait(), PATIENCE)
        descriptors, maps = held()
        assert maps - before[1] <= 2
        assert descriptors - before[0] <= 4
        assert all(channel.closed for channel in kept)
    finally:
        gc.enable()


async def test_nobody_who_was_told_of_a_loss_is_kept(tmp_path: Path) -> None:
    """As a request does that is sent again, its owner holds the channel of before."""

    class Owner:
        def __init__(self, channel: Channel) -> None:
            self.channel = channel
            channel.call(b"", [], [], self.on_reply, time.perf_counter(), time.perf_counter() + PATIENCE)

        def on_reply(self, reply: Reply) -> None:
            assert isinstance(reply.error, InstanceLost)

    async with opened(tmp_path, settle=False) as line:
        owner = weakref.ref(Owner(line.channel))
        line.peer.sock.shutdown(socket.SHUT_RDWR)
        await asyncio.wait_for(line.lost.wait(), PATIENCE)
        line.channel.settle()
        await turns()
        assert not line.channel.pending
        assert owner() is None


def open_descriptors() -> set[int]:
    return {int(each.name) for each in Path("/proc/self/fd").iterdir()}


@pytest.mark.parametrize("left", range(8))
async def test_a_connect_that_finds_no_descriptors_leaves_none(tmp_path: Path, left: int) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        before = open_descriptors()
        top = max(before) + 1
        fillers = [os.dup(0) for _ in range(top)]  # all numbers below are taken
        highest = max(fillers)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1 + left, hard))
            for _ in range(3):
                with contextlib.suppress(OSError):
                    channel = await Channel.connect("i", path, PATIENCE, Channel.settle)
                    channel.close()
                    await asyncio.sleep(0)
                    await asyncio.sleep(0)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for fd in fillers:
                os.close(fd)
    after = open_descriptors()
    assert len(after) <= len(before)
