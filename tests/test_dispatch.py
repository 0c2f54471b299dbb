"""The way of a request, with a real connection and instances that the test plays."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, cast

import msgspec
import pytest
import uvicorn
from uvicorn.server import ServerState

from gateway.errors import GatewayError, InferenceFailed, LoadFailed, OutOfMemory
from gateway.http import large_json
from gateway.http import protocol as protocol_module
from gateway.http.app import create_app
from gateway.http.protocol import InferenceProtocol
from gateway.http.state import WorkerState
from gateway.ipc.batching import Batching
from gateway.ipc.channel import Channel
from gateway.ipc.framing import ALONE, RequestHeader, ResultHeader, TensorHeader
from gateway.ipc.messages import Ready, VersionRoute
from gateway.ipc.reply import InstanceLost, Reply
from gateway.routing import RoutingTable, Target
from gateway.store.manifest import ModelConfig
from gateway.tensors import Signature, TensorSpec, pack_bytes

REQUEST_SECONDS = 30.0


class Call:
    """What an instance was sent."""

    def __init__(
        self, channel: "PlayedChannel", on_reply: Callable[[Reply], None], deadline: float, flags: int
    ) -> None:
        self.channel = channel
        self.on_reply = on_reply
        self.deadline = deadline
        self.flags = flags

    def answer(self, numbers: int = 1) -> None:
        header = ResultHeader((TensorHeader("y", "FP32", (numbers,), 4 * numbers),))
        self.on_reply(Reply(None, header, [memoryview(bytes(4 * numbers))], 0.0, 0.0, 1, 0.0))

    def answer_with(self, datatype: str, shape: tuple[int, ...], raw: bytes) -> None:
        header = ResultHeader((TensorHeader("y", datatype, shape, len(raw)),))
        self.on_reply(Reply(None, header, [memoryview(raw)], 0.0, 0.0, 1, 0.0))

    def fail(self, error: GatewayError) -> None:
        self.on_reply(Reply(error, None, (), 0.0, 0.0, 0, 0.0))

    def lose(self, **how: Any) -> None:
        """The instance is gone."""
        self.channel.closed = True
        self.fail(InstanceLost(**how))


class PlayedChannel(Channel):
    """A channel that sends nothing."""

    def __init__(self, name: str, calls: list[Call]) -> None:
        super().__init__(name, REQUEST_SECONDS, lambda _: None)
        self.calls = calls
        self.cancelled: list[int] = []

    def call(  # type: ignore[override] # the rest does not matter
        self, header: bytes, _payload: Any, _regions: Any, on_reply: Callable[[Reply], None], _now: float,
        deadline: float, flags: int, *_: Any,
    ) -> int:  # fmt: skip
        assert msgspec.msgpack.decode(header, type=RequestHeader).inputs
        self.calls.append(Call(self, on_reply, deadline, flags))
        return len(self.calls)

    def cancel(self, request_id: int) -> None:
        self.cancelled.append(request_id)


class Wire(asyncio.Transport):
    """A client's connection, and what it has got."""

    def __init__(self) -> None:
        super().__init__()
        self.got = b""
        self.closing = False

    def write(self, data: Any) -> None:
        self.got += data

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    def abort(self) -> None:
        self.closing = True

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 1) if name in ("peername", "sockname") else default


class Client:
    """One request on a connection of its own."""

    def __init__(self, bench: "Bench", data: bytes) -> None:
        self.wire = Wire()
        self.protocol = InferenceProtocol(bench.config, ServerState(), {})
        self.protocol.connection_made(self.wire)
        self.protocol.data_received(data)

    async def answer(self) -> tuple[int, Any, dict[str, str]]:
        async with asyncio.timeout(5):
            while b"\r\n\r\n" not in self.wire.got:  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.001)
        head, _, body = self.wire.got.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:])
        return int(lines[0].split()[1]), json.loads(body[: int(headers["content-length"])]), headers

    def leave(self) -> None:
        self.wire.closing = True
        self.protocol.connection_lost(None)


class Bench:
    """A worker without processes."""

    def __init__(self) -> None:
        self.state = WorkerState(self, 1 << 20, REQUEST_SECONDS)
        app = create_app()
        app.state.worker = self.state
        self.config = uvicorn.Config(app, http=InferenceProtocol, ws="none", lifespan="off", log_level="warning")
        self.config.load()
        self.calls: list[Call] = []
        self.asked: list[tuple[str, str, int]] = []
        self.wake: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.condemned: list[bytes] = []
        self.explained: list[str] = []
        self.clients: list[Client] = []
        self.routes: dict[int, VersionRoute] = {}

    async def ask(self, what: str, model: str = "", version: int = 0) -> bytes:
        self.asked.append((what, model, version))
        return await self.wake

    def condemn(self, digest: bytes) -> None:
        self.condemned.append(digest)
        self.state.condemned.add(digest)

    def explain(self, instances: Sequence[str]) -> None:
        self.explained += instances

    def serve(self, state: str = "READY", version: int = 1, instances: int = 1, **route: Any) -> list[PlayedChannel]:
        """New routes with this version so, and the others as they were."""
        spec = TensorSpec("x", "FP32", (-1,))
        signature = Signature("f", (spec,), (TensorSpec("y", "FP32", (-1,)),))
        ready = Ready(
            pid=1,
            platform="p",
            signatures={"f": signature},
            default_signature="f",
            batching=Batching(8, ""),
            notes=[],
            load_seconds=0.0,
        )
        config = ModelConfig(**route.pop("config", {}))
        self.routes[version] = VersionRoute(
            model="m",
            version=version,
            platform="p",
            framework="pytorch",
            state=state,
            reason=route.pop("reason", ""),
            config=config,
            ready=ready if state == "READY" else None,
            **route,
        )
        channels = [PlayedChannel(f"m/{version}#{index}", self.calls) for index in range(instances)]
        old = {int(target.version): target for target in self.state.table.targets}
        targets = [target for number, target in old.items() if number != version]
        if state == "READY":
            counters = self.state.counters.of("m", str(version), "pytorch")
            made = Target(self.routes[version], list(channels), counters, self.state.counters.timings_of(counters))
            targets.append(made)
        self.state.use(RoutingTable(self.routes.values(), targets, settled=True, before=self.state.table))
        self.state.waiting.look_again()
        return channels

    def send(self, *headers: str, path: str = "/v2/models/m/infer", value: float = 0.5, **parameters: Any) -> Client:
        body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [value]}], "parameters": parameters}
        return self.send_bytes(json.dumps(body).encode(), *headers, path=path)

    def send_bytes(self, body: bytes, *headers: str, path: str = "/v2/models/m/infer") -> Client:
        lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *headers, "", ""]
        client = Client(self, "\r\n".join(lines).encode() + body)
        self.clients.append(client)
        return client

    def dropped(self, reason: str, version: int = 1) -> int:
        return self.state.counters.of("m", str(version), "pytorch").dropped.get(reason, 0)

    def retries(self) -> int:
        return self.state.counters.of("m", "1", "pytorch").retries


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    yield bench
    if not bench.wake.done():
        bench.wake.set_exception(LoadFailed("the test is over"))
    for client in bench.clients:
        if client.protocol.transport is not None:
            client.leave()
    await asyncio.sleep(0)


# Retries


async def test_a_request_that_only_waited_at_a_dead_instance_goes_to_another_as_it_is(bench: Bench) -> None:
    first, second = bench.serve(instances=2)
    client = bench.send()
    bench.state.table.drop(first)
    bench.calls[0].lose()
    assert (bench.calls[1].channel, bench.calls[1].flags) == (second, 50)
    assert bench.calls[1].deadline == bench.calls[0].deadline
    bench.calls[1].answer()
    assert (await client.answer())[0] == 200
    assert bench.retries() == 1


async def test_a_request_that_is_sent_again_has_no_more_time_than_before(bench: Bench) -> None:
    bench.state.request_timeout = 0.05
    first, _ = bench.serve(instances=2)
    client = bench.send()
    bench.state.table.drop(first)
    bench.calls[0].lose()
    assert len(bench.calls) == 2
    assert (await client.answer())[0] == 504
    assert bench.calls[1].channel.cancelled


async def test_the_time_of_a_pipelined_request_begins_before_it_is_sent(bench: Bench) -> None:
    bench.state.request_timeout = 0.05
    bench.serve()
    body = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":[1]}]}'
    client = Client(bench, b"POST /v2/models/m/infer HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body) * 2)
    bench.clients.append(client)
    bench.calls[0].answer()
    assert (await client.answer())[0] == 200
    async with asyncio.timeout(5):
        while b"HTTP/1.1 504" not in client.wire.got:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.001)
    assert len(bench.calls) == 2


async def test_a_suspect_is_sent_again_alone_and_once(bench: Bench) -> None:
    bench.serve()
    client = bench.send()
    bench.calls[0].lose(executing=True)
    bench.serve()
    assert bench.calls[1].flags == 50 | ALONE
    bench.calls[1].lose(executing=True)
    status, body, _ = await client.answer()
    assert (status, body) == (500, {"error": "this request has ended two processes of the model"})
    assert len(bench.condemned) == 1
    assert len(bench.explained) == 2
    bench.serve()
    assert (await bench.send().answer())[:2] == (500, body)
    assert bench.dropped("condemned") == 1
    other = bench.send(value=0.25)
    bench.calls[2].answer()
    assert (await other.answer())[0] == 200


async def test_a_suspect_that_then_only_waits_is_not_accused_again(bench: Bench) -> None:
    bench.serve()
    client = bench.send()
    for executing in (True, False, False):
        bench.calls[-1].lose(executing=executing)
        bench.serve()
    assert bench.calls[-1].flags & ALONE
    bench.calls[-1].answer()
    assert (await client.answer())[0] == 200
    assert bench.retries() == 3


@pytest.mark.parametrize(("verdict", "status"), [("deadline", 504), ("out_of_memory", 507)])
async def test_a_request_that_took_too_much_is_told(bench: Bench, verdict: str, status: int) -> None:
    bench.serve()
    client = bench.send()
    bench.calls[0].lose(executing=True, verdict=verdict, reason="so it was")
    assert (await client.answer())[:2] == (status, {"error": "so it was"})


async def test_a_stateful_model_is_not_asked_twice(bench: Bench) -> None:
    bench.serve(config={"stateful": True})
    client = bench.send()
    bench.calls[0].lose()
    assert (await client.answer())[0] == 503
    assert len(bench.calls) == 1


async def test_a_request_without_an_instance_waits_for_the_next_one(bench: Bench) -> None:
    (channel,) = bench.serve()
    client = bench.send()
    bench.state.table.drop(channel)
    bench.calls[0].lose()
    assert (len(bench.calls), len(bench.state.waiting)) == (1, 1)
    bench.serve()
    bench.calls[1].answer()
    assert (await client.answer())[0] == 200
    assert bench.asked == []


# Cold models


async def test_a_request_for_a_cold_model_has_it_loaded_and_is_answered(bench: Bench) -> None:
    bench.serve("COLD")
    clients = [bench.send(value=float(number)) for number in range(3)]
    await asyncio.sleep(0)
    assert bench.asked == [("wake", "m", 1)]
    bench.serve("LOADING")
    assert (len(bench.calls), len(bench.state.waiting)) == (0, 3)
    bench.serve()
    assert len(bench.calls) == 3
    for call in bench.calls:
        call.answer()
    assert [(await client.answer())[0] for client in clients] == [200] * 3


async def test_when_a_cold_model_cannot_be_loaded_its_requests_hear_why(bench: Bench) -> None:
    bench.serve("COLD")
    client = bench.send()
    bench.wake.set_exception(OutOfMemory("it needs 3 GB of 2 GB"))
    assert (await client.answer())[:2] == (507, {"error": "it needs 3 GB of 2 GB"})
    failed = bench.send()
    bench.serve("FAILED", reason="no layer fits")
    status, body, _ = await failed.answer()
    assert (status, "no layer fits" in body["error"]) == (503, True)


async def test_waiting_counts_and_is_over_in_time(bench: Bench) -> None:
    bench.serve("COLD")
    for client in (bench.send("X-Request-Timeout: 0.02"), bench.send(timeout=20_000)):
        status, body, _ = await client.answer()
        assert (status, "0.02 s" in body["error"]) == (504, True)
    assert len(bench.state.waiting) == 0
    assert bench.dropped("deadline") == 2


async def test_a_client_that_leaves_waits_no_more(bench: Bench) -> None:
    bench.serve("COLD")
    client = bench.send()
    assert len(bench.state.waiting) == 1
    client.leave()
    assert len(bench.state.waiting) == 0
    bench.serve()
    assert bench.calls == []
    assert bench.dropped("disconnected") == 1


async def test_what_is_wrong_with_a_request_is_said_before_its_model_is_loaded(bench: Bench) -> None:
    bench.serve("COLD")
    for client in (bench.send_bytes(b"{"), bench.send(priority=1000)):
        assert (await client.answer())[0] == 400
    await asyncio.sleep(0)
    assert bench.asked == []


async def test_too_many_may_not_wait(bench: Bench) -> None:
    bench.serve("COLD", config={"max_queue_size": 2})
    for _ in range(2):
        bench.send()
    status, _, headers = await bench.send().answer()
    assert (status, headers["retry-after"]) == (429, "1")
    assert bench.dropped("queue_full") == 1


# Load, time, order


async def test_a_full_queue_refuses_before_it_looks_at_the_body(bench: Bench) -> None:
    (channel,) = bench.serve()
    channel.rows, channel.max_rows, channel.row_seconds = 10, 10, 0.35
    status, body, headers = await bench.send_bytes(b"not even JSON").answer()
    assert (status, headers["retry-after"]) == (429, "4")
    assert "queue is full" in body["error"]
    channel.rows = 9
    assert (await bench.send_bytes(b"not even JSON").answer())[0] == 400


async def test_what_an_instance_refuses_has_a_time_too(bench: Bench) -> None:
    (channel,) = bench.serve()
    channel.rows, channel.row_seconds = 10, 0.35
    client = bench.send()
    bench.calls[0].fail(channel.queue_full())
    assert (await client.answer())[2]["retry-after"] == "4"


async def test_the_shortest_time_counts_from_the_end_of_the_body(bench: Bench) -> None:
    bench.serve()
    bench.send()
    bench.send("X-Request-Timeout: 20")
    bench.send("X-Request-Timeout: 20", timeout=10_000_000)
    bench.send("X-Request-Timeout: 5", "X-Envoy-Expected-Rq-Timeout-Ms: 20000", timeout=10_000_000)
    bench.send("X-Request-Timeout: 99999", "X-Envoy-Expected-Rq-Timeout-Ms: 0")
    base = bench.calls[0].deadline
    assert [round(call.deadline - base, 0) for call in bench.calls] == [0, -10, -20, -25, 0]


async def test_when_its_time_is_over_a_request_is_answered_and_taken_back(bench: Bench) -> None:
    (channel,) = bench.serve()
    client = bench.send(timeout=10_000)
    assert (await client.answer())[0] == 504
    assert channel.cancelled == [1]
    bench.calls[0].answer()  # too late
    assert client.wire.got.count(b"HTTP/1.1") == 1


async def test_an_answer_in_time_stops_the_clock(bench: Bench) -> None:
    (channel,) = bench.serve()
    client = bench.send(timeout=20_000)
    bench.calls[0].answer()
    assert (await client.answer())[0] == 200
    await asyncio.sleep(0.05)
    assert channel.cancelled == []


async def test_the_priority_goes_along(bench: Bench) -> None:
    bench.serve()
    for priority in (0, 1, 100):
        bench.send(priority=priority)
    assert [call.flags for call in bench.calls] == [50, 1, 100]


async def test_a_failure_of_the_model_is_not_tried_again(bench: Bench) -> None:
    bench.serve()
    client = bench.send()
    bench.calls[0].fail(InferenceFailed("index out of range"))
    assert (await client.answer())[:2] == (500, {"error": "index out of range"})
    assert len(bench.calls) == 1


# Labels


async def test_a_label_in_the_path_or_in_the_parameters_chooses_the_version(bench: Bench) -> None:
    bench.serve(version=1, labels=["stable"])
    bench.serve(version=2, labels=["canary"])
    clients = [
        bench.send(path="/v2/models/m/versions/stable/infer"),
        bench.send(version_label="stable"),
        bench.send(version_label="canary"),
        bench.send(path="/v2/models/m/versions/1/infer", version_label="stable"),
    ]
    for client, call in zip(clients, bench.calls, strict=True):
        call.answer()
        assert (await client.answer())[0] == 200
    assert [call.channel.instance for call in bench.calls] == ["m/1#0", "m/1#0", "m/2#0", "m/1#0"]


async def test_a_label_that_nobody_has_or_that_contradicts_the_path_is_refused(bench: Bench) -> None:
    bench.serve(version=1, labels=["stable"])
    bench.serve(version=2)
    assert (await bench.send(version_label="nobody").answer())[0] == 404
    status, body, _ = await bench.send(path="/v2/models/m/versions/2/infer", version_label="stable").answer()
    assert (status, "'stable'" in body["error"]) == (400, True)


async def test_a_cold_version_is_loaded_for_its_label(bench: Bench) -> None:
    bench.serve(version=1)
    bench.serve("COLD", version=2, labels=["canary"])
    client = bench.send(version_label="canary")
    await asyncio.sleep(0)
    assert bench.asked == [("wake", "m", 2)]
    bench.serve(version=2, labels=["canary"])
    bench.calls[0].answer()
    assert (await client.answer())[0] == 200


async def test_of_two_cold_versions_the_one_with_the_label_is_loaded(bench: Bench) -> None:
    bench.serve("COLD", version=1, labels=["stable"])
    bench.serve("COLD", version=2)
    bench.send(version_label="stable")
    await asyncio.sleep(0)
    assert bench.asked == [("wake", "m", 1)]


# Large answers


async def test_a_large_answer_is_encoded_in_turns_and_is_whole(bench: Bench) -> None:
    bench.serve()
    client = bench.send()
    count = large_json.FROM // 4 + 12_345
    bench.calls[0].answer(count)
    await asyncio.sleep(0)
    assert client.wire.got == b""
    status, body, _ = await client.answer()
    assert (status, body["outputs"][0]["shape"]) == (200, [count])
    assert body["outputs"][0]["data"] == [0.0] * count


async def test_an_answer_too_large_for_json_says_how_to_ask_for_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(large_json, "MOST", large_json.FROM)
    bench.serve()
    client = bench.send()
    bench.calls[0].answer(large_json.FROM)
    status, body, _ = await client.answer()
    assert (status, "binary_data" in body["error"]) == (400, True)


async def test_many_strings_are_encoded_in_turns_and_are_whole(bench: Bench) -> None:
    bench.serve()
    client = bench.send()
    words = [f"{number}" for number in range(100_000)]
    bench.calls[0].answer_with("BYTES", (len(words),), pack_bytes(word.encode() for word in words))
    turns = 0
    while not client.wire.got:
        await asyncio.sleep(0)
        turns += 1
    assert turns > len(words) // 10_000
    assert (await client.answer())[1]["outputs"][0]["data"] == words


@pytest.mark.parametrize("spoilt", [-1, 1])
async def test_a_large_answer_with_more_or_fewer_strings_than_it_says_is_an_error(bench: Bench, spoilt: int) -> None:
    bench.serve()
    client = bench.send()
    count = large_json.FROM // 4 + 1
    bench.calls[0].answer_with("BYTES", (count + spoilt,), bytes(4 * count))
    assert (await client.answer())[0] == 400


@pytest.mark.parametrize(("datatype", "more"), [("WAT", 4), ("FP32", 1)])
async def test_a_large_answer_that_is_none_is_an_error(bench: Bench, datatype: str, more: int) -> None:
    bench.serve()
    client = bench.send()
    bench.calls[0].answer_with(datatype, (1,), bytes(large_json.FROM + more))
    assert (await client.answer())[:2] == (500, {"error": "internal error"})


# Bodies on their way


def arriving(bench: Bench, *, chunked: bool) -> Client:
    """A request of which 100,000 bytes, of 200,000, are there."""
    length = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: 200000"
    head = b"POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\n%b\r\n\r\n" % length
    client = Client(bench, head)
    client.protocol.data_received((b"186a0\r\n" if chunked else b"") + b" " * 100_000)
    bench.clients.append(client)
    return client


@pytest.mark.parametrize("chunked", [False, True])
async def test_no_more_large_bodies_are_received_than_the_memory_is_for(bench: Bench, chunked: bool) -> None:
    bench.serve()
    bench.state.max_arriving = 400_000
    count = bench.state.max_arriving // (100_000 if chunked else 200_000)
    clients = [arriving(bench, chunked=chunked) for _ in range(count)]
    assert bench.state.arriving == bench.state.max_arriving
    last = arriving(bench, chunked=chunked)
    last.protocol.data_received(b"\r\n0\r\n\r\n" if chunked else b" " * 100_000)
    status, _, headers = await last.answer()
    assert (status, "retry-after" in headers) == (429, True)
    assert bench.state.arriving == bench.state.max_arriving
    clients[0].leave()
    clients[1].protocol.data_received(b"\r\n0\r\n\r\n" if chunked else b" " * 100_000)
    assert (await clients[1].answer())[0] == 400
    for client in clients[2:]:
        client.leave()
    assert bench.state.arriving == 0
    bench.send()
    assert len(bench.calls) == 1


# Slow bodies


HEAD = b"POST /v2/models/m/infer HTTP/1.1\r\nHost: "
ASGI = b"POST /v2/repository/index HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"


@pytest.mark.parametrize(("before", "piece"), [(HEAD, b"x"), (b"\r\n", b"\r\n"), (ASGI, b" ")])
@pytest.mark.parametrize("kept_alive", [False, True])
async def test_a_request_that_trickles_in_is_cut_off(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, before: bytes, piece: bytes, kept_alive: bool
) -> None:
    monkeypatch.setattr(protocol_module, "WATCH_SECONDS", 0.01)
    monkeypatch.setattr(protocol_module, "RECEIVE_SECONDS", 0.1)
    bench.serve()
    if kept_alive:
        client = bench.send()
        bench.calls[0].answer()
        assert (await client.answer())[0] == 200
        client.protocol.data_received(before)
    else:
        client = Client(bench, before)
        bench.clients.append(client)
    sent = 0
    async with asyncio.timeout(5):
        while not client.wire.closing:
            client.protocol.data_received(piece)
            sent += 1
            await asyncio.sleep(0.005)
    assert 1 < sent < 900


async def test_a_body_that_trickles_in_is_cut_off(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol_module, "WATCH_SECONDS", 0.01)
    bench.state.request_timeout = 0.05
    bench.serve()
    head = b"POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
    client = Client(bench, head)
    bench.clients.append(client)
    sent = 0
    async with asyncio.timeout(5):
        while not client.wire.closing:
            client.protocol.data_received(b" ")
            sent += 1
            await asyncio.sleep(0.005)
    assert 1 < sent < 900
    assert cast("Any", bench.calls) == []
