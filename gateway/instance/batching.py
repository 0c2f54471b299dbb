"""Which waiting requests run together, and how their tensors are joined and parted: pure functions."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gateway.ipc.framing import RequestHeader, TensorHeader, split_payload
from gateway.tensors import DTYPES, Array, array_from_raw, rows_of

if TYPE_CHECKING:
    from gateway.instance.connection import Connection

Key = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """What can be known of a request from its header alone; made once per distinct header."""

    signature: str
    inputs: tuple[TensorHeader, ...]
    outputs: tuple[str, ...]
    rows: int
    key: Key | None
    """Requests of equal keys may be joined; None: this one runs alone."""


@dataclass(slots=True)
class PendingRequest:
    """One request on its way through the instance."""

    connection: "Connection"
    request_id: int
    plan: Plan
    payload: bytes
    arrived: float


def plan_request(header: RequestHeader, batchable: bool, may_join: bool = True) -> Plan:
    """Read a header once.

    `batchable` says whether the model takes rows that are independent, so that they are counted; `may_join` whether
    this request may be joined with its like.
    """
    rows = rows_of(tensor.shape for tensor in header.inputs) if batchable else None
    key: Key | None = None
    if rows and may_join:
        tails = tuple((t.name, t.datatype, t.shape[1:], t.in_arena) for t in header.inputs)
        key = (header.signature, header.outputs, tails)
    return Plan(header.signature, header.inputs, header.outputs, rows or 1, key)


def take_batch(queue: deque[PendingRequest], max_rows: int) -> list[PendingRequest]:
    """Remove and return the oldest request and those that may join it, in order of arrival.

    A request that does not fit ends the batch, so that none is overtaken by its like; a request of
    another key stays where it is. The oldest one goes alone if it is larger than `max_rows`.
    """
    first = queue.popleft()
    batch, rows, key = [first], first.plan.rows, first.plan.key
    if key is None or rows >= max_rows:
        return batch
    passed: list[PendingRequest] = []
    while queue:
        request = queue.popleft()
        if request.plan.key != key:
            passed.append(request)
            continue
        rows += request.plan.rows
        if rows > max_rows:
            queue.appendleft(request)
            break
        batch.append(request)
    queue.extendleft(reversed(passed))
    return batch


def wait_for_more(queue: deque[PendingRequest], max_rows: int, delay: float, now: float) -> float:
    """Seconds to wait for a fuller batch before running the oldest request; 0 to run now."""
    if not delay or not queue or queue[0].plan.key is None:
        return 0.0
    key = queue[0].plan.key
    rows = 0
    for request in queue:
        rows += request.plan.rows if request.plan.key == key else 0
        if rows >= max_rows:
            return 0.0
    return max(0.0, queue[0].arrived + delay - now)


def join_inputs(batch: Sequence[PendingRequest]) -> dict[str, Array]:
    """The inputs of a batch: its requests' tensors row after row.

    A single request's large tensors are views of the arena; everything else is a copy that may be written to.
    """
    plan = batch[0].plan
    if len(batch) == 1:
        return _inputs_of(batch[0])
    if len(plan.inputs) == 1 and not plan.inputs[0].in_arena and plan.inputs[0].datatype != "BYTES":
        # One small tensor a request: the payloads laid end to end are the batch.
        tensor = plan.inputs[0]
        raw = bytearray().join([request.payload for request in batch])
        rows = sum(request.plan.rows for request in batch)
        return {tensor.name: np.frombuffer(raw, DTYPES[tensor.datatype]).reshape(rows, *tensor.shape[1:])}
    parts = [_inputs_of(request) for request in batch]
    return {tensor.name: np.concatenate([part[tensor.name] for part in parts]) for tensor in plan.inputs}


def _inputs_of(request: PendingRequest) -> dict[str, Array]:
    inputs = request.plan.inputs
    pieces = split_payload(inputs, request.payload, request.connection.arena)
    return {
        tensor.name: array_from_raw(tensor.datatype, tensor.shape, piece if tensor.in_arena else bytearray(piece))
        for tensor, piece in zip(inputs, pieces, strict=True)
    }


def part_outputs(outputs: dict[str, Array], batch: Sequence[PendingRequest]) -> list[dict[str, Array]]:
    """Each request's rows of the outputs, as views; ValueError if an output has not one row for each input row."""
    if len(batch) == 1:
        return [outputs]
    total = sum(request.plan.rows for request in batch)
    for name, array in outputs.items():
        if not array.ndim or len(array) != total:
            raise ValueError(f"output '{name}' has shape {list(array.shape)} for {total} input rows")
    parts, row = [], 0
    for request in batch:
        stop = row + request.plan.rows
        parts.append({name: array[row:stop] for name, array in outputs.items()})
        row = stop
    return parts
