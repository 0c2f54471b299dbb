"""A request under anything that client, instances, routes and time can do: real channels, a virtual clock."""

import asyncio
import json
import shutil
import socket
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from uvicorn.server import ServerState
from virtual_time import VirtualLoop

from gateway.errors import GatewayError, LoadFailed, ModelNotReady, QueueFull
from gateway.http import dispatch, inference
from gateway.http.app import create_app
from gateway.http.protocol import InferenceProtocol
from gateway.http.state import WorkerState
from gateway.ipc import channel as channel_module
from gateway.ipc.arena import ExecutionNote, map_readable
from gateway.ipc.channel import Channel
from gateway.ipc.framing import (
    CANCEL,
    FAILURE,
    INFER,
    RESULT,
    Failure,
    ResultHeader,
    TensorHeader,
    encode,
    reply_frame,
    request_reader,
)
from gateway.ipc.messages import Batching, Ready, VersionRoute
from gateway.routing import RoutingTable, Target
from gateway.store.manifest import ModelConfig
from gateway.tensors import Signature, TensorSpec

SECONDS = 30.0
"""What a request may take."""
SPEC = TensorSpec("x", "FP32", (-1,))
READY = Ready(
    pid=1,
    platform="p",
    signatures={"f": Signature("f", (SPEC,), (TensorSpec("y", "FP32", (-1,)),))},
    default_signature="f",
    batching=Batching(8, ""),
    notes=[],
    load_seconds=0.0,
)
LARGE = 40_000
"""Numbers of a tensor that travels in the arena."""


class Instance:
    """The other end of a channel: it has requests until it answers them, and confirms cancellations."""

    def __init__(self, number: int, channel: Channel, sock: socket.socket) -> None:
        self.name = f"m/1#{number}"
        self.channel = channel
        self.sock = sock
        _, descriptors, _, _ = socket.recv_fds(sock, 16, 2)
        self.requests, self.replies = (map_readable(fd) for fd in descriptors)
        for fd in descriptors:
            socket.close(fd)
        sock.setblocking(False)
        self.note = ExecutionNote(self.replies)
        self._reader = request_reader()
        self.has: list[int] = []

    def read(self) -> None:
        while True:
            try:
                data = self.sock.recv(1 << 20)
            except BlockingIOError:
                return
            if not data:
                return
            for head, _, _ in self._reader.feed(data):
                if head[0] == INFER:
                    self.has.append(head[3])
                elif head[0] == CANCEL and head[3] in self.has:
                    self.say(head[3], ModelNotReady("cancelled"))

    def say(self, number: int, error: GatewayError | None) -> None:
        self.has.remove(number)
        if error is None:
            header = encode(ResultHeader((TensorHeader("y", "FP32", (1,), 4),)))
            parts = reply_frame(RESULT, number, header, [b"1234"], (0.0, 0.0, 1))
        else:
            parts = reply_frame(FAILURE, number, b"", [encode(Failure(error.code, error.message))], (0.0, 0.0, 0))
        self.sock.sendall(b"".join(parts))


class Client:
    """A connection with one request, and what came back."""

    def __init__(self, config: uvicorn.Config) -> None:
        self.got = b""
        self.left = False
        self.rest = b""
        self.wire = Wire(self)
        self.wire.set_protocol(InferenceProtocol(config, ServerState(), {}))
        self.wire.get_protocol().connection_made(self.wire)

    def send(self, data: bytes) -> None:
        """Hand the connection's protocol, which may be exchanged under way, these bytes."""
        while data and not self.wire.closing:
            protocol: Any = self.wire.get_protocol()
            if isinstance(protocol, asyncio.BufferedProtocol):
                buffer = protocol.get_buffer(len(data))
                size = min(len(buffer), len(data))
                buffer[:size] = data[:size]  # type: ignore[index] # any buffer that can be written to
                protocol.buffer_updated(size)
            else:
                size = min(len(data), 1 << 16)
                protocol.data_received(data[:size])
            data = data[size:]

    def leave(self) -> None:
        if not self.left:
            self.left = True
            self.wire.closing = True
            self.wire.get_protocol().connection_lost(None)

    @property
    def answers(self) -> int:
        return self.got.count(b"HTTP/1.1 ")


class Wire(asyncio.Transport):
    """The client's end."""

    def __init__(self, client: Client) -> None:
        super().__init__()
        self._client = client
        self._protocol: asyncio.BaseProtocol
        self.closing = False

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def write(self, data: Any) -> None:
        self._client.got += bytes(data)

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    abort = close

    def pause_reading(self) -> None:
        pass

    resume_reading = pause_reading

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 1) if name in ("peername", "sockname") else default


def request(numbers: int, timeout: float | None) -> bytes:
    parameters = {} if timeout is None else {"timeout": int(timeout * 1e6)}
    tensor = {"name": "x", "datatype": "FP32", "shape": [numbers], "parameters": {"binary_data_size": 4 * numbers}}
    head = json.dumps({"inputs": [tensor], "parameters": parameters}).encode()
    body = head + bytes(4 * numbers)
    lines = ["POST /v2/models/m/infer HTTP/1.1", "Host: x", f"Content-Length: {len(body)}"]
    lines += [f"Inference-Header-Content-Length: {len(head)}", "", ""]
    return "\r\n".join(lines).encode() + body


class RequestStates(RuleBasedStateMachine):
    """Whatever happens, each request is answered once or its client has left, and nothing of it stays."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualLoop()
        self.patch = pytest.MonkeyPatch()
        clock = SimpleNamespace(perf_counter=self.loop.time, monotonic=self.loop.time)
        for module in (channel_module, dispatch, inference):
            self.patch.setattr(module, "time", clock)
        self.folder = Path(tempfile.mkdtemp(prefix="requests-"))
        self.instances: list[Instance] = []
        self.clients: list[Client] = []
        self.numbers = 0
        self.state_of_version = "READY"
        self.route = self._route()
        self.wake: list[asyncio.Future[bytes]] = []
        self._run(self._set_up)
        self._use_routes()
        self.an_instance_is_ready()

    def _set_up(self) -> None:
        self.state = WorkerState(self, 1 << 20, SECONDS)
        self.counters = self.state.counters.of("m", "1", "pytorch")
        app = create_app() if not APP else APP[0]
        APP[:] = [app]
        app.state.worker = self.state
        self.config = uvicorn.Config(app, http=InferenceProtocol, ws="none", lifespan="off", log_level="warning")
        self.config.load()

    # As the worker

    async def ask(self, *_: Any) -> bytes:
        self.wake.append(asyncio.get_running_loop().create_future())
        return await self.wake[-1]

    def explain(self, instances: list[str]) -> None:
        """A request has ended these instances."""

    def condemn(self, digest: bytes) -> None:
        pass

    def _route(self) -> VersionRoute:
        state = self.state_of_version
        ready = READY if state == "READY" else None
        return VersionRoute("m", 1, "p", "pytorch", state, "", ModelConfig(max_queue_size=3), ready=ready)

    def _use_routes(self) -> None:
        def use() -> None:
            route = self._route()
            channels = [each.channel for each in self.instances if not each.channel.closed]
            targets = []
            if route.ready is not None:
                targets = [Target(route, channels, self.counters, self.state.counters.timings_of(self.counters))]
            self.state.use(RoutingTable([route], targets, settled=True, before=self.state.table))
            self.state.waiting.look_again()

        self._run(use)

    def _drop(self, channel: Channel) -> None:
        self.state.table.drop(channel)

    # Running things

    def _run(self, action: Any, *arguments: Any) -> Any:
        async def act() -> Any:
            found = action(*arguments)
            for _ in range(8):
                await asyncio.sleep(0)
            return found

        return self.loop.run_until_complete(act())

    def _instance(self, which: int) -> Instance | None:
        alive = [each for each in self.instances if not each.channel.closed]
        return alive[which % len(alive)] if alive else None

    # What may happen

    @rule()
    def an_instance_is_ready(self) -> None:
        if sum(not each.channel.closed for each in self.instances) >= 2:
            return
        self.numbers += 1
        path = str(self.folder / f"{self.numbers}.sock")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen()
            channel = self.loop.run_until_complete(Channel.connect(f"m/1#{self.numbers}", path, SECONDS, self._drop))
            channel.max_rows = 3
            sock, _ = listener.accept()
        self.instances.append(Instance(self.numbers, channel, sock))
        self._use_routes()

    @rule(
        which=st.integers(0, 1),
        verdict=st.sampled_from(["instance_died", "deadline", "out_of_memory"]),
        n=st.integers(0, 3),
    )
    def an_instance_ends(self, which: int, verdict: str, n: int) -> None:
        if instance := self._instance(which):
            instance.read()
            instance.note.write(instance.has[:n])
            instance.sock.close()
            self._run(lambda: None)
            assert instance.channel.closed
            self._run(lambda: instance.channel.settle(verdict, "so it was"))

    @rule(
        numbers=st.sampled_from([1, 1, LARGE]),
        timeout=st.sampled_from([None, None, 0.5, 5.0]),
        part=st.sampled_from([1.0, 1.0, 0.001, 0.5]),
    )
    def a_request_comes(self, numbers: int, timeout: float | None, part: float) -> None:
        data = request(numbers, timeout)
        client = self._run(Client, self.config)
        self.clients.append(client)
        cut = max(1, int(len(data) * part))
        client.rest = data[cut:]
        self._run(client.send, data[:cut])

    @rule(which=st.integers(0, 9))
    def the_rest_of_a_body_comes(self, which: int) -> None:
        waiting = [each for each in self.clients if each.rest and not each.left and not each.wire.closing]
        if waiting:
            client = waiting[which % len(waiting)]
            data, client.rest = client.rest, b""
            self._run(client.send, data)

    @rule(which=st.integers(0, 9))
    def a_client_leaves(self, which: int) -> None:
        if self.clients:
            self._run(self.clients[which % len(self.clients)].leave)

    @rule(
        which=st.integers(0, 1),
        n=st.integers(0, 9),
        error=st.sampled_from([None, None, ModelNotReady("no"), QueueFull("full")]),
    )
    def an_instance_answers(self, which: int, n: int, error: GatewayError | None) -> None:
        if instance := self._instance(which):
            instance.read()
            if instance.has:
                instance.say(instance.has[n % len(instance.has)], error)
            self._run(lambda: None)

    @rule(state=st.sampled_from(["READY", "READY", "COLD", "LOADING", "FAILED", "UNLOADED"]))
    def the_routes_change(self, state: str) -> None:
        self.state_of_version = state
        self._use_routes()

    @rule(refused=st.booleans())
    def a_load_ends(self, refused: bool) -> None:
        for future in [each for each in self.wake if not each.done()]:
            if refused:
                future.set_exception(LoadFailed("no layer fits"))
            else:
                future.set_result(b"")
        self._run(lambda: None)

    @rule(seconds=st.sampled_from([0.1, 1.0, 6.0, 40.0]))
    def time_passes(self, seconds: float) -> None:
        self.loop.run_until_complete(asyncio.sleep(seconds))

    # What must hold

    @invariant()
    def no_request_is_answered_twice(self) -> None:
        assert all(client.answers <= 1 for client in self.clients)
        assert not self.loop.errors

    @invariant()
    def every_region_belongs_to_a_request(self) -> None:
        for instance in self.instances:
            channel = instance.channel
            if not channel.closed:
                assert channel.rows == sum(call.rows for call in channel.pending.values())
                assert channel.bytes == sum(call.size for call in channel.pending.values())

    def teardown(self) -> None:
        try:
            self._nothing_stays()
        finally:
            for instance in self.instances:
                if not instance.channel.closed:
                    self._run(instance.channel.close)
                    self._run(instance.channel.settle)
                instance.sock.close()
            self.patch.undo()
            self.loop.close()
            shutil.rmtree(self.folder)

    def _nothing_stays(self) -> None:
        self.a_load_ends(refused=True)
        self.time_passes(3 * SECONDS)
        for client in self.clients:
            if not client.left and not client.rest:
                assert client.answers == 1, "its time is over, and it was not answered"
            self._run(client.leave)
        for instance in self.instances:
            if not instance.channel.closed:
                instance.read()
                for number in list(instance.has):
                    instance.say(number, None)
                self._run(lambda: None)
                channel = instance.channel
                assert (len(channel.pending), channel.rows, channel.bytes) == (0, 0, 0)
                assert len(channel.arena.regions) == 0
        assert len(self.state.waiting) == 0
        assert self.state.arriving == 0
        left = [each for each in self.loop.timers() if "_expire" in repr(each)]
        assert not left
        self.no_request_is_answered_twice()


APP: list[Any] = []
"""Built once: it takes longer than all the rest."""

PHASES = (Phase.generate, Phase.shrink)
"""Tracing lines to explain a failure takes longer than all the rest."""

RequestStates.TestCase.settings = settings(
    max_examples=100,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    database=None,
    phases=PHASES,
)
test_a_request_is_answered_once_whatever_happens = RequestStates.TestCase
