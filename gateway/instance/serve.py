"""An instance's one thread: poll, drain, drop the dead, batch, execute, reply."""

import select
import signal
import socket
import time
from collections.abc import Callable

import msgspec

from gateway.errors import ProtocolError
from gateway.instance import heap
from gateway.instance.backend import LoadedModel
from gateway.instance.batching import join_inputs, part_outputs
from gateway.instance.checked_batches import CheckedBatches
from gateway.instance.connection import Connection
from gateway.instance.queue import PendingRequest, Plan, RequestQueue, plan_request
from gateway.instance.replies import failure_frame, failure_of, result_frame
from gateway.ipc.framing import ALONE, CANCEL, INFER, LEVEL, RELEASE, Failure, RequestHead, RequestHeader
from gateway.store.manifest import ModelConfig
from gateway.tensors import Array, Buffer

Execute = Callable[[str, dict[str, Array]], dict[str, Array]]
PLANS = 4096
"""Distinct request headers remembered; more of them only costs decoding again."""


IDLE_SECONDS = 1.0
"""After so long without work the memory that the last batches have left in the heap is given back."""
REST_SECONDS = 5.0
"""At the end, how long a worker may take to read the answers that its socket had no room for."""
_CANCELLED = Failure("cancelled", "")
_TOO_LATE = Failure("deadline", "the time allowed for the request was over before the model was free")


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
        self._batch_rows = max_batch_size
        self.checked: CheckedBatches | None = None
        """Checks batches of real requests; None: they are not checked."""
        self._max_queue = config.max_queue_size
        self._max_bytes = config.queue_bytes
        self._execution_timeout = config.execution_timeout
        self._delay = config.max_queue_delay_microseconds / 1e6
        self._listener = listener
        self._poll = select.epoll()
        self._connections: dict[int, Connection] = {}
        self._queue = RequestQueue()
        self._plans: dict[bytes, Plan] = {}
        self._outgoing: dict[Connection, list[Buffer]] = {}
        self._executions = 0
        self._untidy = False
        """Whether something was computed since the heap was last trimmed."""
        self._noted: list[Connection] = []
        """The connections whose note says that requests are being executed."""
        self._decode = msgspec.msgpack.Decoder(RequestHeader).decode
        self._stopping = False
        self.execute: Execute = self._execute
        """What calls the model; something else stands here while that is recorded (recording.py)."""

    def run(self, control: socket.socket, on_control: Callable[[], bool]) -> None:
        """Serve until `on_control`, called when `control` is readable, returns False; then finish the queue."""
        self._listener.setblocking(False)
        self._poll.register(self._listener, select.EPOLLIN)
        self._poll.register(control, select.EPOLLIN)
        while not self._stopping or self._queue.rows:
            patience = self._patience()
            ready = self._poll.poll(patience)
            if not ready and patience == IDLE_SECONDS:
                self._untidy = False
                heap.trim()
            for fd, events in ready:
                if fd == self._listener.fileno():
                    self._accept()
                elif fd == control.fileno():
                    self._stopping = not on_control()
                else:
                    self._drain(self._connections[fd], events)
            self._drop_cancelled()
            if self._queue.rows and (self._stopping or not self._patience()):
                self._run_batch(self._take())
                self._flush()
                self._note([])
            elif self.checked is not None and self.checked.has_work and not self._queue.rows:
                self.checked.step()
        for connection in self._connections.values():
            connection.send_rest(REST_SECONDS)

    def _patience(self) -> float:
        """Seconds to wait for events: none with work at hand, else until a batch is due or the model wants to rest."""
        if not self._queue.rows:
            return 0.0 if self.checked is not None and self.checked.has_work else self._rest()
        if not self._delay:
            return 0.0
        return self._queue.patience(self._batch_rows, self._delay, time.perf_counter())

    def run_alone(self) -> None:
        """Join no requests any more; what is said of the model's rows stays."""
        self._batch_rows = 1
        if self.checked is not None:
            self.checked.stop()

    def _rest(self) -> float:
        """Seconds to wait for events when there is nothing to compute, until memory may be given back; below 0: any."""
        left = self._model.rest()
        if self._untidy:
            return min(left, IDLE_SECONDS) if left >= 0.0 else IDLE_SECONDS
        return left

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
        except (EOFError, ProtocolError, msgspec.DecodeError, MemoryError):
            # The worker is gone, or makes no sense, or sent more than there is memory for: it is not answered any more.
            del self._connections[connection.sock.fileno()]
            self._poll.unregister(connection.sock)
            for request in list(connection.queued.values()):
                self._queue.remove(request)
            connection.close()
        self._flush()

    def _take_in(self, connection: Connection, now: float, head: RequestHead, header: bytes, payload: bytes) -> None:
        kind, _, _, request_id, sent, deadline, flags = head
        if kind == INFER:
            plan = self._plans.get(header) or self._plan(header)
            queue = self._queue
            connection.last_id = request_id
            if connection.unwanted and request_id in connection.unwanted:
                self._fail(connection, request_id, _CANCELLED)
                return
            if queue.rows and (queue.rows + plan.load > self._max_queue or queue.size + plan.size > self._max_bytes):
                message = f"the model's queue is full: {queue.rows} rows of {queue.size} bytes wait"
                self._fail(connection, request_id, Failure("queue_full", message))
                return
            if flags & ALONE:
                plan = plan.alone()
            # While the model computed, requests waited in the socket: that is queueing too.
            arrived = min(sent, now) if connection.arena is not None else now
            queue.push(PendingRequest(connection, request_id, plan, payload, arrived, deadline, flags & LEVEL))
        elif kind == CANCEL:
            connection.unwanted.discard(request_id)
            request = connection.queued.get(request_id)
            if request is not None:  # one that is not queued any more gets its answer, which the worker drops
                self._queue.remove(request)
                self._fail(connection, request_id, _CANCELLED)
        elif kind == RELEASE:
            connection.release(request_id)

    def _plan(self, header: bytes) -> Plan:
        if len(self._plans) >= PLANS:
            self._plans.clear()
        decoded = self._decode(header)
        trust = None if self.checked is None else self.checked.checks.trust_of(decoded)
        plan = self._plans[header] = plan_request(decoded, self._max_rows, self._may_join(decoded), trust)
        return plan

    def _drop_cancelled(self) -> None:
        """Drop what nobody waits for any more, also where the word of it is still behind other requests."""
        for connection in self._connections.values():
            for request in connection.cancelled():
                self._queue.remove(request)
                self._fail(connection, request.request_id, _CANCELLED)
        self._flush()

    def _take(self) -> list[PendingRequest]:
        """The next batch, without the requests whose time is over."""
        batch, late = self._queue.take(self._batch_rows, time.perf_counter())
        for request in late:
            self._fail(request.connection, request.request_id, _TOO_LATE)
        return batch

    def _run_batch(self, batch: list[PendingRequest]) -> dict[str, Array] | None:
        """Compute requests and answer them; the outputs, if they were computed together."""
        if not batch:
            return None
        started = time.perf_counter()
        trust = batch[0].plan.trust if len(batch) > 1 else None
        equal = False
        if trust is not None:
            trust.left -= 1
            if trust.left < 0 and not trust.proven and self.checked is not None:
                equal = self.checked.are_equal(batch)
                if not equal:
                    self.checked.prove(batch, self._run_one)
                    return None
        self._note(batch)
        try:
            inputs = join_inputs(batch[:1] if equal else batch)
            called = time.perf_counter()
            outputs = self.execute(batch[0].plan.signature, inputs)
            seconds = time.perf_counter() - called
            parts = [outputs] * len(batch) if equal else part_outputs(outputs, batch)
        except Exception as error:  # noqa: BLE001 - whatever a model does, its instance goes on serving
            self._answer_failure(batch, error)
            return None
        rows = sum([request.plan.rows for request in batch])
        for request, mine in zip(batch, parts, strict=True):
            self._answer(request.connection, result_frame(request, mine, (started - request.arrived, seconds, rows)))
            rows = 0  # only the first reply tells of the execution
        if trust is not None and trust.left < 0 and not equal:
            self._sample(batch, inputs, outputs)
        return outputs

    def _run_one(self, request: PendingRequest) -> dict[str, Array] | None:
        """Compute and answer a request by itself at once, if there is still time for it; its outputs."""
        outputs = None
        if 0.0 < request.deadline < time.perf_counter():
            self._fail(request.connection, request.request_id, _TOO_LATE)
        else:
            outputs = self._run_batch([request])
        self._flush()
        self._note([])
        return outputs

    def _sample(self, batch: list[PendingRequest], inputs: dict[str, Array], outputs: dict[str, Array]) -> None:
        """A batch was answered that is due for a check."""
        self._flush()
        self._note([])
        if self.checked is not None:
            self.checked.sample(batch, inputs, outputs)

    def _execute(self, signature: str, inputs: dict[str, Array]) -> dict[str, Array]:
        """Call the model. If that takes too long the kernel ends this process, wherever the model is stuck."""
        signal.setitimer(signal.ITIMER_REAL, self._execution_timeout)
        try:
            return self._model.execute(signature, inputs)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0.0)

    def _note(self, batch: list[PendingRequest]) -> None:
        """Write down which requests are being executed, for the workers to read if this process dies of it."""
        for connection in self._noted:
            if connection.note is not None:  # for the type checker
                connection.note.clear()
        self._noted = []
        self._executions += 1
        self._untidy = True
        connections = {request.connection for request in batch}
        for connection in connections:
            if connection.note is not None:
                ids = [each.request_id for each in batch if len(connections) == 1 or each.connection is connection]
                connection.note.write(ids, self._executions, len(batch))
                self._noted.append(connection)

    def _answer_failure(self, batch: list[PendingRequest], error: Exception) -> None:
        if len(batch) > 1:
            # One bad request must not spoil its neighbours: each gets the answer it would get alone.
            answers = [self._run_one(request) for request in batch]
            if self.checked is not None and None not in answers and not self.checked.are_equal(batch):
                self.checked.refused_together(error)
            return
        self._fail(batch[0].connection, batch[0].request_id, failure_of(error))

    def _fail(self, connection: Connection, request_id: int, failure: Failure) -> None:
        self._answer(connection, failure_frame(request_id, failure))

    def _answer(self, connection: Connection, frame: list[Buffer]) -> None:
        """Have a frame sent with the next flush, together with its like."""
        parts = self._outgoing.get(connection)
        if parts is None:
            self._outgoing[connection] = frame
        else:
            parts += frame

    def _flush(self) -> None:
        if not self._outgoing:
            return
        outgoing, self._outgoing = self._outgoing, {}
        for connection, parts in outgoing.items():
            self._send(connection, parts)

    def _send(self, connection: Connection, parts: list[Buffer]) -> None:
        if connection.closed:
            return
        blocked = not connection.send(parts)
        if blocked != connection.blocked:
            connection.blocked = blocked
            self._poll.modify(connection.sock, select.EPOLLIN | (select.EPOLLOUT if blocked else 0))
