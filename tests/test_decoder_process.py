"""Large JSON bodies, decoded in a process of their own: answers as for small ones, whatever becomes of the process."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from gateway.errors import GatewayError, InstanceDied, PayloadTooLarge, QueueFull, RequestError
from gateway.http import decoder as decoder_module
from gateway.http.body import RequestBody
from gateway.http.calls import DIALECTS, Call
from gateway.http.condemned import Condemned
from gateway.http.decoder import FROM, Decoded, Decoder, Task
from gateway.http.decoding import Job, read_some, request_of
from gateway.http.large_body import LargeBody
from gateway.http.oip import INFER, OipRequest
from gateway.http.state import WorkerState
from gateway.http.wishes import Wishes
from gateway.ipc.arena import NOTE_BYTES
from gateway.ipc.batching import Batching
from gateway.ipc.channel import Channel
from gateway.ipc.framing import OFFSET, RequestHeader
from gateway.ipc.messages import Ready, VersionRoute
from gateway.metrics import VersionCounters
from gateway.routing import Target
from gateway.store.manifest import ModelConfig
from gateway.tensors import Signature, TensorSpec

TITLE = "body decoder"


# Answers

OIP, TFSERVING, TORCHSERVE = "/v2/models/{}/infer", "/v1/models/{}:predict", "/predictions/{}"
ROW = [0.5] * 16


def oip(**changes: Any) -> dict[str, Any]:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 16], "data": ROW} | changes
    return {"inputs": [tensor], "id": "one"}


BODIES: list[tuple[str, str, Any]] = [
    (OIP, "mlp", oip()),
    (OIP, "mlp", oip(shape=[1, 4, 4], data=[[ROW[:4]] * 4])),
    (OIP, "mlp", oip(data=ROW[1:])),
    (OIP, "mlp", oip(data=["a"] * 16)),
    (OIP, "mlp", oip(shape=[-1])),
    (OIP, "mlp", oip() | {"parameters": {"binary_data_output": True}}),
    (OIP, "mlp", oip() | {"parameters": {"version_label": "missing"}}),
    (OIP, "mlp", oip() | {"outputs": [{"name": "y", "parameters": {"classification": 2}}]}),
    (OIP, "mlp", oip() | {"outputs": [{"name": "output_0", "parameters": {"classification": 2}}]}),
    (OIP, "echo_strings", {"inputs": [{"name": "words", "datatype": "BYTES", "shape": [2], "data": ["a", "é"]}]}),
    (TFSERVING, "mlp", {"instances": [ROW, ROW]}),
    (TFSERVING, "mlp", {"inputs": [ROW]}),
    (TFSERVING, "mlp", {"instances": [ROW, ROW[1:]]}),
    (TFSERVING, "mlp", {"instances": [ROW], "signature_name": "missing"}),
    (TFSERVING, "mlp", {}),
    (TORCHSERVE, "mlp", [ROW]),
    (TORCHSERVE, "mlp", {"instances": [ROW, ROW]}),
    (TORCHSERVE, "mlp", {"data": ROW}),
    (TORCHSERVE, "mlp", {"unknown": 1}),
    ("/v2/models/{}/generate", "mlp", {"x": ROW, "id": "one"}),
    ("/v2/models/{}/generate", "mlp", {"x": ["a"]}),
    ("/v2/models/{}/generate_stream", "mlp", {"x": ROW}),
]


@pytest.mark.parametrize(("path", "model", "body"), BODIES)
def test_a_large_body_is_answered_as_one_that_is_decoded_in_the_worker(
    gateway: Any, path: str, model: str, body: Any
) -> None:
    text = json.dumps(body).encode()
    with gateway.connect() as connection:
        small, large = (
            connection.ask(gateway.request("POST", path.format(model), text + b" " * (size - len(text))))
            for size in (FROM, FROM + 1)
        )
    assert (large.status, large.body) == (small.status, small.body)
    assert large.headers.get("content-type") == small.headers.get("content-type")


@pytest.mark.parametrize("dialect", ["oip", "tfserving", "torchserve"])
def test_many_numbers_come_back_as_they_were_sent(gateway: Any, dialect: str) -> None:
    values = [float(number) for number in range(300_000)]
    body, path = {
        "oip": ({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 300_000], "data": values}]}, OIP),
        "tfserving": ({"inputs": [values]}, TFSERVING),
        "torchserve": ([values], TORCHSERVE),
    }[dialect]
    text = json.dumps(body).encode()
    assert len(text) > FROM
    with gateway.connect() as connection:
        answer = connection.ask(gateway.request("POST", path.format("identity_torch"), text))
    assert answer.status == 200, answer.body[:300]
    found = answer.json()
    if dialect == "oip":
        assert found["outputs"][0]["data"] == values
    else:
        assert (found["outputs"] if dialect == "tfserving" else found) == [values]


@pytest.mark.parametrize("how", ["chunked", "announced JSON", "behind another request"])
def test_a_large_body_may_come_in_any_way(gateway: Any, how: str) -> None:
    text = json.dumps(oip()).encode().ljust(FROM + 1)
    with gateway.connect() as connection:
        expected = connection.ask(gateway.good()).json()["outputs"]
        if how == "chunked":
            head = gateway.inference("mlp", b"", "Transfer-Encoding: chunked", length=False)
            connection.send(head, b"%x\r\n" % len(text), text, b"\r\n0\r\n\r\n")
        elif how == "announced JSON":
            connection.send(gateway.inference("mlp", text, f"Inference-Header-Content-Length: {len(text)}"))
        else:
            connection.send(gateway.good() + gateway.inference("mlp", text))
            assert connection.response().status == 200
        answer = connection.response()
        assert answer.status == 200, answer.body
        assert answer.json()["outputs"] == expected
        assert connection.ask(gateway.good()).status == 200


def stopped_decoder(gateway: Any) -> int:
    """The gateway's decoder, that hangs from now on."""
    large = gateway.inference("mlp", json.dumps(oip()).encode().ljust(FROM + 1))
    with gateway.connect() as connection:
        assert connection.ask(large).status == 200
    (pid,) = gateway.pids(TITLE)
    os.kill(pid, signal.SIGSTOP)
    return int(pid)


@pytest.fixture(scope="module")
def own(start_gateway: Any) -> Any:
    """A gateway with one worker, whose decoder may be harmed."""
    with start_gateway(["mlp"], "--workers", "1") as started:
        yield started


def test_a_hung_decoder_is_replaced_when_the_time_of_its_request_is_over(own: Any) -> None:
    pid = stopped_decoder(own)
    large = json.dumps(oip()).encode().ljust(FROM + 1)
    late = own.infer("mlp", large, "X-Request-Timeout: 0.3")
    assert late.status == 504
    assert late.json()["error"] == "the request was not answered within 0.3 s"
    assert own.infer("mlp", large).status == 200
    assert pid not in own.pids(TITLE)


def test_a_decoder_is_free_again_when_its_client_is_gone(own: Any) -> None:
    pid = stopped_decoder(own)
    large = json.dumps(oip()).encode().ljust(FROM + 1)
    with own.connect() as connection, own.connect() as other:
        connection.send(own.inference("mlp", large))
        for _ in range(40):  # turns of the worker's loop, so that the body is read and handed over
            assert other.ask(own.good()).status == 200
    assert own.infer("mlp", large).status == 200
    assert pid not in own.pids(TITLE)


def test_others_are_answered_while_the_decoder_works(own: Any) -> None:
    pid = stopped_decoder(own)
    with own.connect() as connection, own.connect() as other:
        connection.send(own.inference("mlp", json.dumps(oip()).encode().ljust(FROM + 1)))
        assert other.ask(own.good()).status == 200
        os.kill(pid, signal.SIGCONT)
        assert connection.response().status == 200


def test_nothing_stays_in_the_worker_of_large_bodies_and_of_those_that_were_refused(own: Any, helpers: Any) -> None:
    (worker,) = own.pids("http worker")

    def kept() -> list[str]:
        maps = Path(f"/proc/{worker}/maps").read_text().splitlines()
        files = [str(entry.readlink()) for entry in Path(f"/proc/{worker}/fd").iterdir() if entry.is_symlink()]
        return [each for each in maps + files if "gateway-body" in each or "gateway-decoded" in each]

    good = json.dumps(oip()).encode()
    for body, status in ((good, 200), (good[:-1], 400), (json.dumps(oip(data=[])).encode(), 400)):
        assert own.infer("mlp", body.ljust(FROM + 1)).status == status
    with own.connect() as connection:
        connection.send(own.inference("mlp", good.ljust(2 * FROM))[: FROM + 1])
        helpers.until(kept, 5)
    helpers.until(lambda: not kept(), 5)


def test_a_large_request_that_has_ended_two_processes_is_refused(start_gateway: Any, helpers: Any) -> None:
    def body(value: float) -> bytes:
        return json.dumps({"inputs": [helpers.tensor("x", "FP32", [1], [value])]}).encode().ljust(FROM + 1)

    with start_gateway(["crashes"], "--workers", "1") as own:

        def refused() -> bool:
            answer = own.infer("crashes", body(-1000.0))
            assert answer.status == 500
            assert "ended two processes" in answer.json()["error"]
            return bool(own.metrics().of("gateway_requests_dropped_total", reason="condemned"))

        helpers.until(refused, 30)
        assert own.infer("crashes", body(1.0)).status == 200


# The process

SPEC = TensorSpec("x", "FP32", (-1, -1))
ROUTE = VersionRoute(
    model="m",
    version=1,
    platform="p",
    framework="pytorch",
    state="READY",
    reason="",
    config=ModelConfig(),
    ready=Ready(
        pid=1,
        platform="p",
        signatures={"f": Signature("f", (SPEC,), (TensorSpec("y", "FP32", (-1,)),))},
        default_signature="f",
        batching=Batching(8, ""),
        notes=[],
        load_seconds=0.0,
    ),
)
Outcome = Decoded | GatewayError


class Bench:
    """A decoder and what comes of what it is given."""

    def __init__(self) -> None:
        self.decoder = Decoder(1 << 20)
        self.tasks: list[tuple[Task, asyncio.Future[Outcome]]] = []

    def give(self, body: bytes = b"") -> "asyncio.Future[Outcome]":
        done: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        job = Job(DIALECTS.index(INFER), None, [], msgspec.msgpack.encode(ROUTE))
        task = Task(job, body or self.body(20_000), None, done.set_result)
        self.tasks.append((task, done))
        self.decoder.submit(task)
        return done

    @staticmethod
    def body(count: int) -> bytes:
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, count], "data": [1.5] * count}
        return json.dumps({"inputs": [tensor], "id": "some"}).encode()

    async def works(self) -> bool:
        outcome = await asyncio.wait_for(self.give(), 20)
        assert isinstance(outcome, Decoded), outcome
        ((number, at, size),) = outcome.answer.placed
        assert (number, size) == (0, 80_000)
        assert read_some(outcome.fd, at, 4) == b"\x00\x00\xc0\x3f"
        request = request_of(outcome.answer, [b""])
        outcome.close()
        return isinstance(request, OipRequest) and request.id == "some"

    async def stop_process(self) -> int:
        """The process hangs and has something to do."""
        assert await self.works()
        pid = self.decoder.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        return pid

    async def until(self, what: Any) -> None:
        async with asyncio.timeout(20):
            while not what():  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.005)


@pytest.fixture
async def bench(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    bench = Bench()
    yield bench
    for task, _ in bench.tasks:
        bench.decoder.cancel(task)
    await bench.until(lambda: not bench.decoder.busy or bench.decoder.pid is None)
    monkeypatch.setattr(decoder_module, "IDLE_SECONDS", 0.0)
    bench.decoder.submit(Task(Job(0, 0, [], b""), b"{}", None, lambda _: None))
    await bench.until(lambda: bench.decoder.pid is None)
    await asyncio.get_running_loop().shutdown_default_executor()


async def test_a_body_is_tried_again_when_the_process_ends_and_no_third_time(bench: Bench) -> None:
    pid = await bench.stop_process()
    done = bench.give()
    await bench.until(lambda: bench.decoder.busy)
    os.kill(pid, signal.SIGKILL)
    outcome = await asyncio.wait_for(done, 20)
    assert isinstance(outcome, Decoded)
    outcome.close()
    assert bench.decoder.pid != pid
    assert bench.decoder.pid is not None
    os.kill(bench.decoder.pid, signal.SIGSTOP)
    done = bench.give()
    await bench.until(lambda: bench.decoder.busy)
    first = bench.decoder.pid
    os.kill(first, signal.SIGKILL)
    await bench.until(lambda: bench.decoder.pid not in (None, first))
    assert bench.decoder.pid is not None
    os.kill(bench.decoder.pid, signal.SIGKILL)
    outcome = await asyncio.wait_for(done, 20)
    assert isinstance(outcome, InstanceDied)
    assert outcome.message == "the process that read this body ended before it was done"
    assert await bench.works()


async def test_a_process_that_hangs_is_replaced(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder_module, "GRACE_SECONDS", 0.01)
    pid = await bench.stop_process()
    bench.give()
    await bench.until(lambda: bench.decoder.busy)
    bench.decoder.cancel(bench.tasks[-1][0])
    assert await bench.works()
    assert bench.decoder.pid != pid
    await bench.until(lambda: not Path(f"/proc/{pid}").exists())


async def test_an_idle_process_ends(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder_module, "IDLE_SECONDS", 0.05)
    assert await bench.works()
    pid = bench.decoder.pid
    await bench.until(lambda: bench.decoder.pid is None)
    await bench.until(lambda: not Path(f"/proc/{pid}").exists())
    assert await bench.works()


async def test_only_so_many_bodies_wait(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder_module, "MOST_WAITING", 1)
    pid = await bench.stop_process()
    running, waiting = bench.give(), bench.give()
    with pytest.raises(QueueFull, match="too many large bodies wait"):
        bench.give()
    bench.decoder.cancel(bench.tasks[1 + 1][0])
    os.kill(pid, signal.SIGCONT)
    outcome = await asyncio.wait_for(running, 20)
    assert isinstance(outcome, Decoded)
    outcome.close()
    assert not waiting.done(), "what is cancelled is not decoded"


async def test_no_body_is_decoded_while_tensors_wait_for_their_place(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder_module, "ROOM_BYTES", 1)
    first = await asyncio.wait_for(bench.give(), 20)
    second = bench.give()
    assert isinstance(first, Decoded)
    await asyncio.sleep(0)
    assert not bench.decoder.busy
    first.close()
    outcome = await asyncio.wait_for(second, 20)
    assert isinstance(outcome, Decoded)
    outcome.close()


async def test_what_is_wrong_with_a_body_is_told(bench: Bench) -> None:
    outcome = await asyncio.wait_for(bench.give(b'{"inputs": [}'), 20)
    assert type(outcome) is RequestError
    assert outcome.message.startswith("the body is not valid JSON")


async def test_a_body_that_takes_too_much_memory_is_refused(monkeypatch: pytest.MonkeyPatch, bench: Bench) -> None:
    monkeypatch.setattr(bench.decoder, "_limit", 160 << 20)
    outcome = await asyncio.wait_for(bench.give(b'{"inputs":[' + b"[0]," * 8_000_000 + b"0]}"), 60)
    assert isinstance(outcome, PayloadTooLarge | RequestError | InstanceDied)
    assert await bench.works()


# The request


class State:
    """What a request needs of its worker."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self.condemned = Condemned()


async def test_wishes_are_read_elsewhere_too(bench: Bench) -> None:
    body = RequestBody(1 << 20)
    body.data = b'{"inputs":[],"parameters":{"timeout":5000000,"version_label":"new"}}'
    changed = asyncio.Event()
    large = LargeBody(cast("WorkerState", State(bench.decoder)), changed.set)
    call = Call(INFER, ("m", None), RequestError("no target"))
    assert large.wishes(call, body) is None
    await asyncio.wait_for(changed.wait(), 20)
    assert large.wishes(call, body) == Wishes(timeout=5.0, label="new")


async def test_tensors_wait_for_room_in_the_arena_and_what_never_fits_is_sent_inline(bench: Bench) -> None:
    counters = VersionCounters("m", "1", "pytorch")
    target = Target(ROUTE, [], counters)
    channel = Channel("m/1#0", 30.0, lambda _: None)
    body = RequestBody(1 << 20)
    body.data = bench.body(20_000)
    changed = asyncio.Event()
    large = LargeBody(cast("WorkerState", State(bench.decoder)), changed.set)
    call = Call(INFER, ("m", None), target)

    async def next_change() -> None:
        await asyncio.wait_for(changed.wait(), 20)
        changed.clear()

    room = channel.arena.regions.capacity - NOTE_BYTES
    region = channel.allocate(room)
    assert region is not None
    regions: list[int] = []
    assert large.request(call, body, target, channel, regions) is None
    await next_change()
    assert large.request(call, body, target, channel, regions) is None
    channel.unreserve(region)
    await next_change()
    request = large.request(call, body, target, channel, regions)
    assert request is not None
    (placed,) = regions
    assert request.payload == [OFFSET.pack(placed)]
    assert channel.arena.view[placed : placed + 80_000].cast("f").tolist() == [1.5] * 20_000
    channel.unreserve(placed)

    channel.arena.regions.capacity = NOTE_BYTES + 1000
    large = LargeBody(cast("WorkerState", State(bench.decoder)), changed.set)
    regions = []
    for _ in range(2):
        assert large.request(call, body, target, channel, regions) is None
        await next_change()
    request = large.request(call, body, target, channel, regions)
    assert request is not None
    assert (regions, [len(piece) for piece in request.payload]) == ([], [80_000])
    assert not msgspec.msgpack.decode(request.header, type=RequestHeader).inputs[0].in_arena
    channel.connection_lost(None)


async def test_a_request_that_is_dropped_while_its_tensors_are_copied_leaves_nothing(bench: Bench) -> None:
    target = Target(ROUTE, [], VersionCounters("m", "1", "pytorch"))
    channel = Channel("m/1#0", 30.0, lambda _: None)
    body = RequestBody(1 << 20)
    body.data = bench.body(20_000)
    changed = asyncio.Event()
    large = LargeBody(cast("WorkerState", State(bench.decoder)), changed.set)
    call = Call(INFER, ("m", None), target)
    assert large.request(call, body, target, channel, []) is None
    await asyncio.wait_for(changed.wait(), 20)
    assert large.request(call, body, target, channel, []) is None
    assert len(channel.arena.regions) == 1
    large.drop()
    await bench.until(lambda: not channel.arena.regions)
    assert await bench.works()
    channel.connection_lost(None)
