"""The frames between an HTTP worker and an instance, as bytes and nothing else (no sockets here).

A frame is a fixed head, a small msgpack header and a payload. The payload is, tensor after tensor,
either the tensor's raw bytes or the 8-byte offset at which they lie in a shared-memory arena. Headers
of equal requests are equal bytes, so that both sides decode each kind of request once.
"""

import struct
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import msgspec

from gateway.errors import ProtocolError
from gateway.tensors import Buffer

MAX_HEADER = 0xFFFF
MAX_PAYLOAD = 1 << 31
MAX_OUTPUT = 256 << 20
"""Raw bytes of one response's outputs; an instance refuses to send more."""
MAX_REPLY = MAX_OUTPUT + (1 << 20)
"""Payload of one frame from an instance: a worker lets go of one that announces more."""
OFFSET = struct.Struct("<Q")

INFER, CANCEL, RELEASE = 1, 2, 3
RELEASE_MEMORY = 0
"""In place of a request id in a RELEASE: there will be no large replies for a while."""
RESULT, FAILURE = 1, 2

LEVEL, ALONE = 0x7F, 0x80
"""Flags of a request: its priority, 1 (first) to 100, and whether it must not be joined with others."""
DEFAULT_PRIORITY = 50


class TensorHeader(msgspec.Struct, frozen=True, array_like=True):
    """One tensor of a frame; `in_arena` says that the payload holds its offset instead of its bytes."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    size: int
    in_arena: bool = False


class RequestHeader(msgspec.Struct, frozen=True, array_like=True):
    """What an INFER frame asks for; `outputs` empty means all of them."""

    signature: str
    inputs: tuple[TensorHeader, ...]
    outputs: tuple[str, ...] = ()


class ResultHeader(msgspec.Struct, array_like=True, eq=False):
    """What a RESULT frame brings; one object per distinct header (see `result_header`), compared by identity."""

    outputs: tuple[TensorHeader, ...]
    lent: bool = False
    """Whether some output lies in the arena and has to be released; follows from `outputs`."""
    size: int = 0
    """Raw bytes of all outputs; follows too."""

    def __post_init__(self) -> None:
        """Called by msgspec."""
        self.size = sum(tensor.size for tensor in self.outputs)
        self.lent = any(tensor.in_arena for tensor in self.outputs)


class Failure(msgspec.Struct, frozen=True, array_like=True):
    """What a FAILURE frame says: `code` of a class in gateway.errors, or "cancelled"."""

    code: str
    message: str


RequestHead = tuple[int, int, int, int, float, float, int]
"""Fixed head of a frame to an instance: kind, header size, payload size, request id, time of sending, deadline, flags.

The times are of the monotonic clock, which all processes of a machine share; a deadline of 0 is none.
"""
ReplyHead = tuple[int, int, int, int, float, float, int]
"""Fixed head of a frame from an instance: the first four, then queue seconds, compute seconds and batch rows.

Batch rows are 0 except in the first reply of each execution, so that executions can be counted.
"""

REQUEST_HEAD = struct.Struct("<BHIQddB")
REPLY_HEAD = struct.Struct("<BxHIQffI")

encode = msgspec.msgpack.Encoder().encode


def request_frame(
    kind: int,
    request_id: int,
    header: bytes = b"",
    payload: Sequence[Buffer] = (),
    now: float = 0.0,
    deadline: float = 0.0,
    flags: int = DEFAULT_PRIORITY,
) -> list[Buffer]:
    """The parts of a frame to an instance, to be written one after another; ProtocolError if it is too large."""
    size = sum(map(len, payload))
    _check_sizes(len(header), size)
    return [REQUEST_HEAD.pack(kind, len(header), size, request_id, now, deadline, flags), header, *payload]


def reply_frame(
    kind: int,
    request_id: int,
    header: bytes,
    payload: Sequence[Buffer] = (),
    times: tuple[float, float, int] = (0.0, 0.0, 0),
) -> list[Buffer]:
    """The parts of a frame from an instance; `times` are queue seconds, compute seconds, batch rows."""
    size = sum(map(len, payload))
    _check_sizes(len(header), size)
    return [REPLY_HEAD.pack(kind, len(header), size, request_id, *times), header, *payload]


def _check_sizes(header: int, payload: int) -> None:
    if header > MAX_HEADER or payload > MAX_PAYLOAD:
        raise ProtocolError(f"a frame of {header} + {payload} bytes is over the limit")


Head = TypeVar("Head", RequestHead, ReplyHead)


class FrameReader(Generic[Head]):
    """Cuts a stream of bytes into frames, however the bytes arrive."""

    def __init__(
        self, layout: struct.Struct, max_payload: int, awaited: Callable[[int], bool] = lambda _: True
    ) -> None:
        self._layout = layout
        self._max_payload = max_payload
        self._awaited = awaited
        """Whether a frame of this request id may come: one that is not complete is kept only then."""
        self._begun = bytearray()  # of a frame that is not complete yet
        self._need = 0

    def feed(self, data: bytes) -> list[tuple[Head, bytes, bytes]]:
        """The frames that `data` completes, each as head, header, payload; ProtocolError if they make no sense."""
        if self._begun:
            self._begun += data
            if len(self._begun) < self._need:
                return []
            data = bytes(self._begun)
            self._begun = bytearray()
        frames = []
        layout, at, end = self._layout, 0, len(data)
        need = layout.size
        while end - at >= layout.size:
            head: Head = layout.unpack_from(data, at)
            if head[0] not in (1, 2, 3) or head[2] > self._max_payload:
                raise ProtocolError(f"no frame starts with kind {head[0]} and {head[2]} bytes")
            header_at = at + layout.size
            payload_at = header_at + head[1]
            stop = payload_at + head[2]
            if stop > end:
                if not self._awaited(head[3]):
                    raise ProtocolError("a frame begins that nobody waits for")
                need = stop - at
                break
            frames.append((head, data[header_at:payload_at], data[payload_at:stop]))
            at = stop
        if at < end:
            self._begun += data[at:]
            self._need = need
        return frames


def request_reader() -> FrameReader[RequestHead]:
    """A reader of the frames that an instance receives."""
    return FrameReader(REQUEST_HEAD, MAX_PAYLOAD)


def reply_reader(awaited: Callable[[int], bool] = lambda _: True) -> FrameReader[ReplyHead]:
    """A reader of the frames that a worker receives; `awaited` says of a request id whether it has no reply yet."""
    return FrameReader(REPLY_HEAD, MAX_REPLY, awaited)


HEADERS = 4096
"""Distinct result headers remembered; more of them only costs decoding again."""
REMEMBERED_BYTES = 2048
"""Only headers of so many bytes are: a model that names its outputs anew each time must not fill the memory."""
_result_headers: dict[bytes, ResultHeader] = {}
_decode_result = msgspec.msgpack.Decoder(ResultHeader).decode


def result_header(raw: bytes) -> ResultHeader:
    """The header of a RESULT frame, the same object for the same few bytes; msgspec.DecodeError if it is none."""
    header = _result_headers.get(raw)
    if header is None:
        header = _decode_result(raw)
        if len(raw) <= REMEMBERED_BYTES:
            if len(_result_headers) >= HEADERS:
                _result_headers.clear()
            _result_headers[raw] = header
    return header


def split_payload(tensors: Sequence[TensorHeader], payload: bytes, arena: memoryview | None) -> list[memoryview]:
    """Each tensor's raw bytes, in the payload or in the arena; ProtocolError if they are not there."""
    if len(tensors) == 1 and not tensors[0].in_arena and tensors[0].size == len(payload):
        return [memoryview(payload)]
    view, at, pieces = memoryview(payload), 0, []
    for tensor in tensors:
        if tensor.size < 0 or (tensor.in_arena and len(view) - at < OFFSET.size):
            raise ProtocolError("a tensor has no place in its frame")
        if tensor.in_arena:
            (offset,) = OFFSET.unpack_from(view, at)
            at += OFFSET.size
            if arena is None or offset + tensor.size > len(arena):
                raise ProtocolError("a tensor lies outside the arena")
            pieces.append(arena[offset : offset + tensor.size])
        else:
            pieces.append(view[at : at + tensor.size])
            at += tensor.size
    if at != len(view):
        raise ProtocolError(f"a frame of {len(view)} bytes holds tensors of {at}")
    return pieces
