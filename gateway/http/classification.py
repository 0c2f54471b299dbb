"""The classification extension: in place of an output, the highest of its values with their indices and labels.

Source: Triton's extension_classification.md.
"""

import asyncio
import math
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
import numpy.typing as npt
import orjson

from gateway.errors import RequestError
from gateway.http import large_json
from gateway.ipc.framing import ResultHeader, TensorHeader
from gateway.tensors import Array, Buffer, TensorSpec, array_from_raw, pack_bytes

MOST_CLASSES = 1 << 16
"""Of one output: each of them becomes a string, in about a microsecond."""
AT_ONCE = 4 << 10
"""So many strings are made in one turn of the event loop."""
_RANKED_AT_ONCE = 256 << 10
"""So many values, in whole rows, are ranked in one go, for it takes a few times their memory."""

Labels = Mapping[str, Sequence[str]]
"""The names of an output's classes, in their order."""


class Classes(msgspec.Struct, frozen=True):
    """What a request wants of an output: so many classes, of each row if it has rows."""

    count: int
    by_row: bool


def wanted_classes(name: str, value: object, spec: TensorSpec | None, *, batched: bool) -> Classes | None:
    """Read the parameter `classification` of an output; None if it wants none. RequestError if it makes no sense.

    An output has rows if its model is batched, as Triton has it, or if the signature leaves the first of several
    dimensions open: the values of several rows in one ranking would be of no use to anybody.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise RequestError(f"parameter classification of output '{name[:100]}' must be a number of classes")
    shape = (spec and spec.shape) or ()
    return Classes(value, batched or (len(shape) > 1 and shape[0] == -1)) if value else None


class _Ranking:
    """The classes of one output; RequestError if it has none, or too many."""

    def __init__(self, tensor: TensorHeader, wanted: Classes) -> None:
        if tensor.datatype in ("BYTES", "BOOL"):
            raise RequestError(f"output '{tensor.name}' is {tensor.datatype}, which has no classes")
        if tensor.size > large_json.MOST:
            raise RequestError(
                f"output '{tensor.name}' has {tensor.size} bytes, {large_json.MOST} are the most to be classified"
            )
        by_row = wanted.by_row and len(tensor.shape) > 1  # values in a row of their own would all come first
        self._tensor = tensor
        self._rows = tensor.shape[0] if by_row else 1
        self._classes = math.prod(tensor.shape[1:] if by_row else tensor.shape)
        count = min(wanted.count, self._classes)
        self.shape: tuple[int, ...] = (self._rows, count) if by_row else (count,)
        if math.prod(self.shape) > MOST_CLASSES:
            raise RequestError(
                f"{math.prod(self.shape)} classes are wanted of output '{tensor.name}', {MOST_CLASSES} are the most"
            )

    def ranked(self, raw: Buffer) -> tuple[Array, Array]:
        """The indices of the highest values, row after row, and the values: arrays of one dimension."""
        array = array_from_raw(self._tensor.datatype, self._tensor.shape, raw)
        if self._tensor.datatype == "BF16":
            array = array.astype(np.float32)
        array = array.reshape(self._rows, self._classes)
        count, step = self.shape[-1], max(1, _RANKED_AT_ONCE // max(1, self._classes))
        indices = np.empty((self._rows, count), np.int64)
        if count:
            for at in range(0, self._rows, step):
                indices[at : at + step] = highest(array[at : at + step], count)
        return indices.reshape(-1), np.take_along_axis(array, indices, axis=1).reshape(-1)

    def header(self, size: int) -> TensorHeader:
        """What stands in the place of the output's own."""
        return TensorHeader(self._tensor.name, "BYTES", self.shape, size)


def highest(rows: Array, count: int) -> npt.NDArray[np.int64]:
    """The indices of the `count` highest values of each row, the highest first; of equal ones the first in the row.

    NaN counts as the lowest.
    """
    if rows.dtype.kind == "f":
        low = np.negative(rows)
        low[np.isnan(low)] = np.inf
    else:
        low = np.invert(rows)  # of integers, signed or not, it turns the order round without an overflow
    if count < rows.shape[1]:
        last = np.partition(low, count - 1, axis=1)[:, count - 1 : count]
        higher, equal = low < last, low == last
        left = count - higher.sum(axis=1, keepdims=True)
        chosen = higher | (equal & (np.cumsum(equal, axis=1, dtype=np.int32) <= left))
        found = np.nonzero(chosen)[1].reshape(len(rows), count)
    else:
        found = np.tile(np.arange(count), (len(rows), 1))
    order = np.argsort(np.take_along_axis(low, found, axis=1), axis=1, kind="stable")
    return np.take_along_axis(found, order, axis=1)


def texts(indices: Array, values: Array, labels: Sequence[str]) -> bytes:
    """VALUE:INDEX or, where there is a label, VALUE:INDEX:LABEL of each, as the raw bytes of a BYTES tensor."""
    if not len(indices):
        return b""
    numbers = orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1].decode().split(",")
    known = len(labels)
    return pack_bytes(
        (
            f"{number if number != 'null' else float(values[at])}:{index}:{labels[index]}"
            if index < known and labels[index]
            else f"{number if number != 'null' else float(values[at])}:{index}"
        ).encode(errors="replace")
        for at, (number, index) in enumerate(zip(numbers, indices.tolist(), strict=True))
    )


def classify(
    header: ResultHeader, tensors: Sequence[Buffer], wanted: Mapping[str, Classes], labels: Labels
) -> tuple[ResultHeader, list[Buffer]]:
    """A result with the classes of those of its outputs that are wanted so in place of their values."""
    outputs, pieces = list(header.outputs), list(tensors)
    for at, tensor in enumerate(header.outputs):
        if tensor.name in wanted:
            ranking = _Ranking(tensor, wanted[tensor.name])
            raw = texts(*ranking.ranked(tensors[at]), labels.get(tensor.name, ()))
            outputs[at], pieces[at] = ranking.header(len(raw)), raw
    return ResultHeader(tuple(outputs)), pieces


async def classify_in_turns(
    header: ResultHeader, tensors: Sequence[Buffer], wanted: Mapping[str, Classes], labels: Labels
) -> tuple[ResultHeader, list[Buffer]]:
    """The same where it takes long: numpy ranks in a thread, the strings are made a piece a turn."""
    loop = asyncio.get_running_loop()
    outputs, pieces = list(header.outputs), list(tensors)
    for at, tensor in enumerate(header.outputs):
        if tensor.name in wanted:
            ranking = _Ranking(tensor, wanted[tensor.name])
            indices, values = await loop.run_in_executor(None, ranking.ranked, tensors[at])
            parts = []
            for start in range(0, len(indices), AT_ONCE):
                piece = slice(start, start + AT_ONCE)
                parts.append(texts(indices[piece], values[piece], labels.get(tensor.name, ())))
                await asyncio.sleep(0)
            raw = b"".join(parts)
            outputs[at], pieces[at] = ranking.header(len(raw)), raw
    return ResultHeader(tuple(outputs)), pieces


def takes_long(header: ResultHeader, wanted: Mapping[str, Classes]) -> bool:
    """Whether others must have their turns meanwhile; RequestError if there are too many classes."""
    rankings = [_Ranking(tensor, wanted[tensor.name]) for tensor in header.outputs if tensor.name in wanted]
    return header.size > large_json.FROM or sum(math.prod(ranking.shape) for ranking in rankings) > AT_ONCE
