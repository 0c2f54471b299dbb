"""An instance's one thread: poll, drain, drop the dead, batch, execute, reply."""

import select
import socket
import time
from collections import deque
from collections.abc import Callable

import msgspec

from gateway.errors import GatewayError, InferenceFailed, ProtocolError, RequestError
from gateway.instance.backend import LoadedModel
from gateway.instance.batching import (
    PendingRequest,
    Plan,
    join_inputs,
    part_outputs,
    plan_request,
    take_batch,
    wait_for_more,
)
from gateway.instance.connection import Connection
from gateway.ipc.framing import (
    CANCEL,
    FAILURE,
    INFER,
    RELEASE,
    RESULT,
    Failure,
    RequestHead,
    RequestHeader,
    ResultHeader,
    TensorHeader,
    encode,
    reply_frame,
)
from gateway.store.manifest import ModelConfig
from gateway.tensors import Array, Buffer, raw_from_array

PLANS = 4096
"""Distinct request headers remembered; more of them only costs decoding again."""


REST_SECONDS = 5.0
"""At the end, how long a worker may take to read the answers that its socket had no room for."""


class Server:
    """Answers the requests of one loaded model on one listening socket until told to stop."""

    def __init__(
        self,
        model: LoadedModel,
        config: ModelConfig,
        max_batch_size: int,
        listener: socket.socket,
        may_join: Callable[[RequestHeader], bool] = lambda _: True,
    ) -> None:
        self._may_join = may_join
        self._model = model
        self._max_rows = max_batch_size
        self._max_queue = config.max_queue_size
        self._delay = config.max_queue_delay_microseconds / 1e6
        self._listener = listener
        self._poll = select.epoll()
        self._connections: dict[int, Connection] = {}
        self._queue: deque[PendingRequest] = deque()
        self._plans: dict[bytes, Plan] = {}
        self._headers: dict[tuple[object, ...], bytes] = {}
        self._decode = msgspec.msgpack.Decoder(RequestHeader).decode
        self._stopping = False

    def run(self, control: socket.socket, on_control: Callable[[], bool]) -> None:
        """Serve until `on_control`, called when `control` is readable, returns False; then finish the queue."""
        self._listener.setblocking(False)
        self._poll.register(self._listener, select.EPOLLIN)
        self._poll.register(control, select.EPOLLIN)
        while not self._stopping or self._queue:
            for fd, events in self._poll.poll(self._patience()):
                if fd == self._listener.fileno():
                    self._accept()
                elif fd == control.fileno():
                    self._stopping = not on_control()
                else:
                    self._drain(self._connections[fd], events)
            if self._queue and (self._stopping or not self._patience()):
                self._run_batch(self._take())
        for connection in self._connections.values():
            connection.send_rest(REST_SECONDS)

    def _patience(self) -> float:
        """Seconds to wait for events: none with work at hand, for ever without, else until a batch is due."""
        if not self._queue:
            return -1
        return wait_for_more(self._queue, self._max_rows, self._delay, time.perf_counter())

    def _accept(self) -> None:
        sock, _ = self._listener.accept()
        sock.settimeout(1.0)  # the worker greets as it connects; nobody else can reach this socket
        connection = Connection(sock)
        try:
            connection.greet()
        except (OSError, ValueError):
            connection.close()
            return
        sock.setblocking(False)
        self._connections[sock.fileno()] = connection
        self._poll.register(sock, select.EPOLLIN)

    def _drain(self, connection: Connection, events: int) -> None:
        if events & select.EPOLLOUT:
            self._send(connection, [])
        if not events & ~select.EPOLLOUT:
            return
        try:
            frames = connection.receive()
            now = time.perf_counter()
            for frame in frames:
                self._take_in(connection, now, *frame)
        except (EOFError, ProtocolError, msgspec.DecodeError):
            # The worker is gone, or no longer makes sense: nobody waits for its answers.
            del self._connections[connection.sock.fileno()]
            self._poll.unregister(connection.sock)
            connection.close()

    def _take_in(self, connection: Connection, now: float, head: RequestHead, header: bytes, payload: bytes) -> None:
        kind, _, _, request_id, sent = head
        if kind == INFER:
            plan = self._plans.get(header) or self._plan(header)
            if len(self._queue) >= self._max_queue:
                message = f"the model's queue of {self._max_queue} requests is full"
                self._fail(connection, request_id, Failure("queue_full", message))
            else:
                # While the model computed, requests waited in the socket: that is queueing too.
                arrived = min(sent, now) if connection.arena is not None else now
                self._queue.append(PendingRequest(connection, request_id, plan, payload, arrived))
        elif kind == CANCEL:
            # One that is not queued any more gets its answer, which the worker drops.
            if any(waiting.request_id == request_id and waiting.connection is connection for waiting in self._queue):
                connection.cancelled.add(request_id)
        elif kind == RELEASE:
            connection.release(request_id)

    def _plan(self, header: bytes) -> Plan:
        if len(self._plans) >= PLANS:
            self._plans.clear()
        decoded = self._decode(header)
        plan = self._plans[header] = plan_request(decoded, self._max_rows > 1, self._may_join(decoded))
        return plan

    def _take(self) -> list[PendingRequest]:
        """The next batch, without the requests nobody waits for any more."""
        alive = []
        for request in take_batch(self._queue, self._max_rows):
            connection = request.connection
            if request.request_id in connection.cancelled:
                connection.cancelled.discard(request.request_id)
                self._fail(connection, request.request_id, Failure("cancelled", ""))
            elif not connection.closed:
                alive.append(request)
        return alive

    def _run_batch(self, batch: list[PendingRequest]) -> None:
        if not batch:
            return
        started = time.perf_counter()
        try:
            inputs = join_inputs(batch)
            called = time.perf_counter()
            outputs = self._model.execute(batch[0].plan.signature, inputs)
            seconds = time.perf_counter() - called
            parts = part_outputs(outputs, batch)
        except Exception as error:  # noqa: BLE001 - whatever a model does, its instance goes on serving
            self._answer_failure(batch, error)
            return
        self._reply(batch, parts, started, seconds)

    def _answer_failure(self, batch: list[PendingRequest], error: Exception) -> None:
        if len(batch) > 1:
            # One bad request must not spoil its neighbours: each gets the answer it would get alone.
            for request in batch:
                self._run_batch([request])
            return
        if not isinstance(error, GatewayError):
            error = InferenceFailed(f"the model raised {type(error).__name__}")
        self._fail(batch[0].connection, batch[0].request_id, Failure(error.code, error.message))

    def _reply(
        self, batch: list[PendingRequest], parts: list[dict[str, Array]], started: float, seconds: float
    ) -> None:
        rows = sum(request.plan.rows for request in batch)
        outgoing: dict[Connection, list[Buffer]] = {}
        for request, outputs in zip(batch, parts, strict=True):
            times = (started - request.arrived, seconds, rows)
            rows = 0  # only the first reply tells of the execution
            try:
                frame = self._result(request, outputs, times)
            except Exception as error:  # noqa: BLE001 - whatever a model returns, its instance goes on serving
                request.connection.take_back(request.request_id)
                message = error.message if isinstance(error, GatewayError) else f"an output cannot be sent: {error}"
                code = error.code if isinstance(error, RequestError) else InferenceFailed.code
                frame = reply_frame(FAILURE, request.request_id, b"", [encode(Failure(code, message))], times)
            outgoing.setdefault(request.connection, []).extend(frame)
        for connection, parts_out in outgoing.items():
            self._send(connection, parts_out)

    def _result(
        self, request: PendingRequest, outputs: dict[str, Array], times: tuple[float, float, int]
    ) -> list[Buffer]:
        names = request.plan.outputs or outputs.keys()
        tensors, payload = [], []
        for name in names:
            array = outputs.get(name)
            if array is None:
                known = ", ".join(f"'{output}'" for output in outputs)
                raise RequestError(f"the model has no output '{name}'; it has {known}")
            datatype, raw = raw_from_array(array)
            placed = request.connection.place(request.request_id, raw)
            tensors.append((name, datatype, array.shape, len(raw), placed is not None))
            payload.append(raw if placed is None else placed)
        return reply_frame(RESULT, request.request_id, self._header(tuple(tensors)), payload, times)

    def _header(self, tensors: tuple[tuple[str, str, tuple[int, ...], int, bool], ...]) -> bytes:
        header = self._headers.get(tensors)
        if header is None:
            if len(self._headers) >= PLANS:
                self._headers.clear()
            outputs = tuple(TensorHeader(*tensor) for tensor in tensors)
            header = self._headers[tensors] = encode(ResultHeader(outputs))
        return header

    def _fail(self, connection: Connection, request_id: int, failure: Failure) -> None:
        self._send(connection, reply_frame(FAILURE, request_id, b"", [encode(failure)]))

    def _send(self, connection: Connection, parts: list[Buffer]) -> None:
        if connection.closed:
            return
        blocked = not connection.send(parts)
        if blocked != connection.blocked:
            connection.blocked = blocked
            self._poll.modify(connection.sock, select.EPOLLIN | (select.EPOLLOUT if blocked else 0))
