"""Large outputs as JSON: encoded a piece a turn of the event loop, for a long piece of work would hold up everybody."""

import asyncio
from collections.abc import Sequence

from gateway.errors import RequestError
from gateway.http.tensor_json import json_from_raw
from gateway.ipc.framing import ResultHeader, TensorHeader
from gateway.tensors import ITEMSIZES, Buffer

FROM = 256 << 10
"""Outputs of more raw bytes than this are encoded here: 4 ms in one go."""
MOST = 64 << 20
"""More raw bytes are not sent as JSON, of which they would be five times as many."""
MOST_TEXT = 8 << 20
"""The same for BYTES, whose elements become Python objects all at once."""
_PIECE = 32 << 10
"""Elements a turn: about 2 ms."""


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
    step = _PIECE * ITEMSIZES.get(tensor.datatype, MOST_TEXT)
    parts = []
    for at in range(0, len(raw), step):
        piece = raw[at : at + step]
        shape = tensor.shape if tensor.datatype == "BYTES" else (len(piece),)
        parts.append(json_from_raw(tensor.name, tensor.datatype, shape, piece)[1:-1])
        await asyncio.sleep(0)
    return b"[" + b",".join(parts) + b"]"
