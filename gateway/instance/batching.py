"""How the tensors of requests that run together are joined and parted: pure functions."""

from collections.abc import Sequence

import numpy as np

from gateway.instance.queue import PendingRequest
from gateway.ipc.framing import split_payload
from gateway.tensors import DTYPES, Array, array_from_raw


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
