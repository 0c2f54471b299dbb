"""What waits for the model, in which order it is served, and which requests run together: no input or output here."""

from bisect import insort
from collections import deque
from typing import TYPE_CHECKING

import msgspec

from gateway.ipc.framing import DEFAULT_PRIORITY, RequestHeader, TensorHeader
from gateway.tensors import rows_of

if TYPE_CHECKING:
    from gateway.instance.batch_checks import Trust
    from gateway.instance.connection import Connection

Key = tuple[object, ...]
MANY_DEAD = 1024
"""So many requests that nobody waits for any more may stay in the queue, however few others are in it."""


class Plan(msgspec.Struct, frozen=True, gc=False):
    """What can be known of a request from its header alone; made once per distinct header."""

    signature: str
    inputs: tuple[TensorHeader, ...]
    outputs: tuple[str, ...]
    rows: int
    load: int
    """Rows that it counts for in the queue: no more than a full batch."""
    size: int
    """Raw bytes of its inputs."""
    key: Key | None
    """Requests of equal keys may be joined; None: this one runs alone."""
    trust: "Trust | None" = None
    """Counts down to the next check of a batch of such requests; None: they are not checked."""

    def alone(self) -> "Plan":
        """The same for a request that must not be joined with others."""
        return Plan(self.signature, self.inputs, self.outputs, self.rows, self.load, self.size, None)


class PendingRequest(msgspec.Struct, eq=False, gc=False):
    """One request on its way through the instance."""

    connection: "Connection"
    request_id: int
    plan: Plan
    payload: bytes
    arrived: float
    deadline: float = 0.0
    """0: it may wait for ever."""
    priority: int = DEFAULT_PRIORITY
    dead: bool = False
    """Nobody waits for it any more."""


def plan_request(header: RequestHeader, max_rows: int, may_join: bool = True, trust: "Trust | None" = None) -> Plan:
    """Read a header once.

    `max_rows` are those of a batch: if more than one, the model takes rows that are independent, so that they are
    counted; `may_join` says whether this request may be joined with its like, `trust` how far that was checked.
    """
    rows = rows_of(tensor.shape for tensor in header.inputs) if max_rows > 1 else None
    key: Key | None = None
    if rows and may_join:
        tails = tuple((t.name, t.datatype, t.shape[1:], t.in_arena) for t in header.inputs)
        key = (header.signature, header.outputs, tails)
    size = sum(max(tensor.size, 0) for tensor in header.inputs)
    rows = rows or 1
    return Plan(header.signature, header.inputs, header.outputs, rows, min(rows, max_rows), size, key, trust)


def take_batch(
    waiting: deque[PendingRequest], max_rows: int, now: float = 0.0, late: list[PendingRequest] | None = None
) -> list[PendingRequest]:
    """Remove and return the oldest request and those that may join it, in order of arrival.

    A request that does not fit ends the batch, so that none is overtaken by its like; a request of another key stays
    where it is. The oldest one goes alone if it is larger than `max_rows`. Dead requests are dropped, and those whose
    time is over go to `late`.
    """
    batch: list[PendingRequest] = []
    passed: list[PendingRequest] = []
    rows, key = 0, None
    while waiting and rows < max_rows:
        request = waiting.popleft()
        if request.dead:
            continue
        if 0.0 < request.deadline < now:
            if late is not None:
                late.append(request)
            continue
        plan = request.plan
        if not batch:
            batch.append(request)
            rows, key = plan.rows, plan.key
            if key is None:
                break
        elif plan.key is not key and plan.key != key:
            passed.append(request)
        elif rows + plan.rows > max_rows:
            waiting.appendleft(request)
            break
        else:
            rows += plan.rows
            batch.append(request)
    waiting.extendleft(reversed(passed))
    return batch


def wait_for_more(waiting: deque[PendingRequest], max_rows: int, delay: float, now: float) -> float:
    """Seconds to wait for a fuller batch before running the oldest request; 0 to run now."""
    while waiting and waiting[0].dead:
        waiting.popleft()
    if not delay or not waiting or waiting[0].plan.key is None:
        return 0.0
    key = waiting[0].plan.key
    rows = 0
    for request in waiting:
        rows += request.plan.rows if request.plan.key == key and not request.dead else 0
        if rows >= max_rows:
            return 0.0
    return max(0.0, waiting[0].arrived + delay - now)


class RequestQueue:
    """Requests by priority, the oldest first; strictly all of a priority before any of the next.

    Each connection's `queued` finds its requests by id, so that one is cancelled without a search.
    """

    def __init__(self) -> None:
        self.rows = 0
        """Of all that waits: 0 when nothing does."""
        self.size = 0
        self._levels: dict[int, deque[PendingRequest]] = {}
        self._order: list[int] = []
        self._cancelled = 0
        """At most so many dead requests are still in their places."""

    def push(self, request: PendingRequest) -> None:
        """Put a request in."""
        level = self._levels.get(request.priority)
        if level is None:
            level = self._levels[request.priority] = deque()
            insort(self._order, request.priority)
        level.append(request)
        plan = request.plan
        self.rows += plan.load
        self.size += plan.size
        request.connection.queued[request.request_id] = request

    def remove(self, request: PendingRequest) -> None:
        """Take out a request that waits: its place stays until it is reached."""
        self.rows -= request.plan.load
        self.size -= request.plan.size
        request.connection.queued.pop(request.request_id, None)
        request.dead = True
        request.payload = b""
        self._cancelled += 1
        if not self.rows:
            self._levels.clear()
            self._order.clear()
            self._cancelled = 0
        elif self._cancelled > MANY_DEAD and self._cancelled > 2 * self.rows:
            self._sweep_out()

    def _sweep_out(self) -> None:
        for level in self._levels.values():
            living = [request for request in level if not request.dead]
            level.clear()
            level.extend(living)
        self._cancelled = 0

    def take(self, max_rows: int, now: float) -> tuple[list[PendingRequest], list[PendingRequest]]:
        """The next batch, and the requests that were met on the way and whose time is over."""
        late: list[PendingRequest] = []
        batch: list[PendingRequest] = []
        while self._order and not batch:
            first = self._order[0]
            batch = take_batch(self._levels[first], max_rows, now, late)
            if not self._levels[first]:
                del self._levels[first], self._order[0]
        rows = size = 0
        for request in batch + late if late else batch:
            plan = request.plan
            rows += plan.load
            size += plan.size
            request.connection.queued.pop(request.request_id, None)
        self.rows -= rows
        self.size -= size
        return batch, late

    def patience(self, max_rows: int, delay: float, now: float) -> float:
        """Seconds to wait for a fuller batch before taking one; 0 to take it now."""
        while self._order:
            level = self._levels[self._order[0]]
            patience = wait_for_more(level, max_rows, delay, now)
            if level:
                return patience
            del self._levels[self._order.pop(0)]
        return 0.0
