"""Tensors as the Open Inference Protocol names them, and their raw bytes.

Raw bytes are those of the protocol's binary tensor data extension: little-endian, row-major; an
element of a BYTES tensor is a 4-byte length and that many bytes.
"""

import itertools
import math
import struct
from collections.abc import Iterable, Sequence

import ml_dtypes
import msgspec
import numpy as np
import numpy.typing as npt

from gateway.errors import RequestError

Array = npt.NDArray[np.generic]
Buffer = bytes | bytearray | memoryview

DTYPES: dict[str, np.dtype[np.generic]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BYTES": np.dtype(object),
}
DATATYPES = {dtype: name for name, dtype in DTYPES.items()}
ITEMSIZES = {name: dtype.itemsize for name, dtype in DTYPES.items() if name != "BYTES"}

COPIED = 4096
"""Arrays of so few bytes are copied: that takes a fifth of the time that a view does."""
MAX_RANK = 64  # numpy's own limit
MAX_ELEMENTS = (1 << 31) - 1
"""Of a tensor, with its empty axes taken for one element; so its rows fit into a frame, too."""
MAX_EMPTY_ELEMENTS, MAX_EMPTY_ROWS = 1 << 26, 1 << 16
"""The same of a tensor without elements, and of its axes before the first empty one: no data vouch for them, a model
may make outputs of their size, and JSON has a list for each row."""
MAX_STRINGS = 1 << 16
"""Elements of all BYTES inputs of a request: each is looked at in Python, a thousand in a quarter of a millisecond."""
DEFINITION_BYTES = 64 << 10
"""Of all SignatureDefs of a model as JSON; what is longer is not kept."""
_LENGTH = struct.Struct("<I")


class TensorSpec(msgspec.Struct, frozen=True, array_like=True):
    """What a model says of one of its inputs or outputs.

    `shape` holds -1 where a dimension may be any size and is None where even the rank may vary.
    `strict` is False where the model takes whatever its code accepts (a TorchScript argument that
    nobody declared): then `datatype` and `shape` are what it probably wants, and are not enforced.
    `guessed` is True where they were not even seen in a trace or in forward's types.
    """

    name: str
    datatype: str
    shape: tuple[int, ...] | None
    optional: bool = False
    strict: bool = True
    guessed: bool = False
    integers: bool = False
    """Of a guessed input of floats: the model takes whole numbers as they are, INT64, and answers them the same."""
    plain: bool = False
    """Forward takes a number, a boolean or a string, or a list of those, and no tensor with rows."""


class Signature(msgspec.Struct, frozen=True, array_like=True):
    """One way to call a model: its named inputs and outputs.

    `open_inputs` means that names beyond `inputs` are handed on (a TorchScript argument that is a
    dict or a list of tensors); `open_outputs` that more names than `outputs` may come back.
    """

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    open_inputs: bool = False
    open_outputs: bool = False
    method: str = ""
    """Of a SavedModel's signature its method_name, such as tensorflow/serving/classify."""
    definition: bytes = b""
    """Of a SavedModel's signature its SignatureDef as JSON; empty where the gateway has changed it."""


def element_count(shape: Sequence[int]) -> int:
    """Number of elements of a tensor of this shape; RequestError if a dimension or the product is absurd."""
    if len(shape) > MAX_RANK:
        raise RequestError(f"a tensor of {len(shape)} dimensions is more than this server takes ({MAX_RANK})")
    extent = 1  # with empty dimensions taken for one element: frameworks multiply the others too
    for size in shape:
        if size < 0:
            raise RequestError(f"shape {_brief(shape)} has a negative dimension")
        extent *= size or 1
    empty = 0 in shape
    if extent > (MAX_EMPTY_ELEMENTS if empty else MAX_ELEMENTS) or (
        empty and math.prod(shape[: shape.index(0)]) > MAX_EMPTY_ROWS
    ):
        raise RequestError(f"a tensor of shape {_brief(shape)} is larger than this server takes")
    return 0 if empty else extent


def _brief(shape: Sequence[int]) -> str:
    return str(list(shape)) if len(shape) <= 8 else f"[{', '.join(map(str, shape[:8]))}, …]"


def pack_bytes(elements: Iterable[bytes]) -> bytes:
    """Raw bytes of a BYTES tensor."""
    parts: list[bytes] = []
    for element in elements:
        parts += (struct.pack("<I", len(element)), element)
    return b"".join(parts)


def unpack_bytes(raw: Buffer, count: int) -> list[bytes]:
    """The `count` elements of a BYTES tensor; RequestError if the bytes hold fewer, more or torn ones."""
    data = bytes(raw)  # cutting bytes takes a fifth of the time that cutting a view does
    return [data[start:end] for start, end in _extents(data, count)]


def _extents(raw: Buffer, count: int) -> list[tuple[int, int]]:
    """Where the elements of a BYTES tensor begin and end; RequestError as above."""
    extents, at = next_extents(raw, 0, count)
    if len(extents) != count or at != len(raw):
        raise RequestError(
            f"expected {count} string elements, the data hold {len(extents)} in {at} of {len(raw)} bytes"
        )
    return extents


def next_extents(raw: Buffer, at: int, most: int) -> tuple[list[tuple[int, int]], int]:
    """Where the next so many elements of a BYTES tensor begin and end, and where they are over."""
    size, extents, length_at = len(raw), [], _LENGTH.unpack_from
    for _ in range(min(most, (size - at) // 4)):
        start = at + 4
        if start > size:
            break
        end = start + length_at(raw, at)[0]
        if end > size:
            raise RequestError("a BYTES element runs past the end of its tensor")
        extents.append((start, end))
        at = end
    return extents, at


def check_raw(name: str, datatype: str, shape: Sequence[int], raw: Buffer) -> None:
    """RequestError unless `raw` is exactly the bytes of a tensor of this datatype and shape."""
    count = element_count(shape)
    if datatype == "BYTES":
        _extents(raw, count)
    elif datatype == "BOOL" and np.any(np.frombuffer(raw, np.uint8) > 1):
        raise RequestError(f"input '{name}' is BOOL and holds bytes other than 0 and 1")
    elif (wanted := count * ITEMSIZES[datatype]) != len(raw):
        raise RequestError(
            f"input '{name}' has {len(raw)} bytes of data, its shape {_brief(shape)} of {datatype} needs {wanted}"
        )


def array_from_raw(datatype: str, shape: Sequence[int], raw: Buffer) -> Array:
    """The tensor as a numpy array: a view of `raw`, except BYTES, which becomes an object array of bytes.

    RequestError if `raw` does not hold exactly this tensor.
    """
    if datatype == "BYTES":
        unpacked = unpack_bytes(raw, math.prod(shape))
        elements = np.empty(len(unpacked), dtype=object)
        elements[:] = unpacked
        return elements.reshape(shape)
    try:
        return np.frombuffer(raw, DTYPES[datatype]).reshape(shape)
    except ValueError:
        raise RequestError(f"{len(raw)} bytes are no {datatype} tensor of shape {_brief(shape)}") from None


def raw_from_array(array: Array) -> tuple[str, Buffer]:
    """(datatype, raw bytes) of an array; the bytes of a large one are a view where the array allows it.

    TypeError if the array's dtype is none the protocol has.
    """
    if array.dtype == object or array.dtype.kind in "SU":
        return "BYTES", pack_bytes(_as_bytes(item) for item in array.ravel().tolist())
    datatype = DATATYPES.get(array.dtype)
    if datatype is None:
        raise TypeError(f"the protocol has no datatype for {array.dtype}")
    if array.nbytes <= COPIED:
        return datatype, array.tobytes()
    return datatype, np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _as_bytes(item: object) -> bytes:
    return item if isinstance(item, bytes) else str(item).encode()


def rows_of(shapes: Iterable[Sequence[int]]) -> int | None:
    """The leading dimension that all shapes share, or None."""
    first, rest = itertools.tee(shapes)
    sizes = {shape[0] if shape else None for shape in first}
    return sizes.pop() if len(sizes) == 1 and all(rest) else None
