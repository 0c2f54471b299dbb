"""Large outputs as JSON: encoded a piece a turn of the event loop, for a long piece of work would hold up everybody."""

import asyncio
import math
from collections.abc import Sequence

from gateway.errors import RequestError
from gateway.http.tensor_json import json_from_raw, json_from_strings
from gateway.ipc.framing import ResultHeader, TensorHeader
from gateway.tensors import ITEMSIZES, Buffer, next_extents

FROM = 256 << 10
"""Outputs of more raw bytes than this are encoded here: 4 ms in one go."""
MOST = 64 << 20
"""More raw bytes are not sent as JSON, of which they would be five times as many."""
MOST_TEXT = 8 << 20
"""The same for BYTES, whose elements become Python objects."""
_PIECE = 32 << 10
"""Numbers a turn: about 2 ms."""
_STRINGS = 4 << 10
"""Elements of BYTES a turn: the same."""


def check_sizes(outputs: Sequence[TensorHeader]) -> None:
    """RequestError if these outputs are too large for JSON."""
    for tensor in outputs:
        most = MOST_TEXT if tensor.datatype == "BYTES" else MOST
        if tensor.size > most:
            raise RequestError(
                f"output '{tensor.name}' has {tensor.size} bytes, as JSON {most} are the most; "
                "ask for it with binary_data, or for all outputs with binary_data_output"
            )


async def encode_in_turns(header: ResultHeader, tensors: Sequence[Buffer], wanted: Sequence[bool]) -> list[Buffer]:
    """The tensors, with the JSON of their data in place of those that are wanted so."""
    return [
        await _text(tensor, raw) if json else raw
        for tensor, raw, json in zip(header.outputs, tensors, wanted, strict=True)
    ]


async def _text(tensor: TensorHeader, raw: Buffer) -> bytes:
    if tensor.datatype == "BYTES":
        return await _strings(tensor, bytes(raw))
    step = _PIECE * ITEMSIZES[tensor.datatype]
    parts = []
    for at in range(0, len(raw), step):
        piece = raw[at : at + step]
        parts.append(json_from_raw(tensor.name, tensor.datatype, (len(piece),), piece)[1:-1])
        await asyncio.sleep(0)
    return b"[" + b",".join(parts) + b"]"


async def _strings(tensor: TensorHeader, raw: bytes) -> bytes:
    parts, at, left = [], 0, math.prod(tensor.shape)
    while at < len(raw):
        extents, at = next_extents(raw, at, min(left, _STRINGS))
        if not extents:
            break
        left -= len(extents)
        parts.append(json_from_strings(tensor.name, (raw[start:end] for start, end in extents))[1:-1])
        await asyncio.sleep(0)
    if left or at != len(raw):
        raise RequestError(f"output '{tensor.name}' does not hold the strings that its shape says")
    return b"[" + b",".join(parts) + b"]"
