"""What a worker and its decoder process say to each other: a large body to decode, and what became of it."""

import functools
import os
import struct
from collections.abc import Sequence
from typing import Any

import msgspec

from gateway.errors import GatewayError, ProtocolError, from_code
from gateway.http.dialect import InferenceRequest
from gateway.http.wishes import OtherVersion, Wishes
from gateway.ipc.framing import OFFSET
from gateway.tensors import Buffer

EXTENT = struct.Struct("<QQ")
"""The packet in either direction: where a message lies in the memory that comes with it, and its bytes."""
DESCRIPTORS = 3
"""Memory that comes with a job: the body, the job, and room for tensors and the answer."""
MAX_ANSWER = 1 << 29
"""Bytes of an answer; no body gives longer ones."""


class Job(msgspec.Struct, frozen=True, array_like=True):
    """What is to be decoded, and for which model."""

    dialect: int
    """Index in `calls.DIALECTS`."""
    json_size: int | None
    headers: list[tuple[bytes, bytes]]
    route: bytes
    """A VersionRoute; empty if only the request's wishes are wanted."""


class Refusal(msgspec.Struct, frozen=True, array_like=True):
    """An error as it passes between the processes."""

    code: str
    message: str
    label: str | None = None
    """Of OtherVersion."""


class Answer(msgspec.Struct, frozen=True, array_like=True):
    """What a body is."""

    kind: str = ""
    """Name of the class of InferenceRequest."""
    fields: dict[str, Any] = {}
    """Of the request, without its payload."""
    pieces: list[bytes] = []
    """Its payload; empty ones for the tensors that lie in the memory."""
    placed: list[tuple[int, int, int]] = []
    """Of each of these: which piece, where it lies, and its bytes."""
    wishes: Wishes | None = None
    refusal: Refusal | None = None


class Room:
    """Takes a channel's place where a body is decoded: large tensors go to memory that the worker reads."""

    def __init__(self, fd: int, threshold: int) -> None:
        self._fd = fd
        self._threshold = threshold
        self._placed: list[tuple[bytes, int, int]] = []
        self.end = 0

    def place(self, raw: Buffer, regions: list[int]) -> Buffer | None:  # noqa: ARG002 - Channel's signature
        """As `Channel.place`; the offsets are replaced by those of the arena."""
        if len(raw) <= self._threshold:
            return None
        self.end += write_all(self._fd, raw, self.end)
        mark = bytes(bytearray(OFFSET.size))  # an object of its own, by which it is found in the payload
        self._placed.append((mark, self.end - len(raw), len(raw)))
        return mark

    def answer(self, request: InferenceRequest) -> Answer:
        """The request as a message."""
        marks = {id(mark): (at, size) for mark, at, size in self._placed}
        pieces, placed = [], []
        for number, piece in enumerate(request.payload):
            if (found := marks.get(id(piece))) is not None:
                placed.append((number, *found))
                pieces.append(b"")
            else:
                pieces.append(bytes(piece))
        kind = type(request)
        return Answer(kind.__name__, {name: getattr(request, name) for name in _fields(kind)}, pieces, placed)


def request_of(answer: Answer, payload: Sequence[Buffer]) -> InferenceRequest:
    """The request that an answer tells of; ProtocolError if it makes no sense."""
    kind = _kinds().get(answer.kind)
    if kind is None:
        raise ProtocolError("the decoder has answered with no request")
    try:
        fields = {name: msgspec.convert(answer.fields[name], wanted) for name, wanted in _fields(kind).items()}
    except (msgspec.ValidationError, KeyError) as error:
        raise ProtocolError("the decoder has answered with half a request") from error
    return kind(payload=list(payload), **fields)


def refusal_of(error: GatewayError) -> Refusal:
    """The error as a message."""
    return Refusal(error.code, error.message, error.label if isinstance(error, OtherVersion) else None)


def error_of(refusal: Refusal) -> GatewayError:
    """The error that a message tells of."""
    return from_code(refusal.code, refusal.message) if refusal.label is None else OtherVersion(refusal.label)


@functools.cache
def _fields(kind: type[InferenceRequest]) -> dict[str, Any]:
    return {field.name: field.type for field in msgspec.structs.fields(kind) if field.name != "payload"}


def _kinds() -> dict[str, type[InferenceRequest]]:
    kinds: list[type[InferenceRequest]] = [InferenceRequest, *InferenceRequest.__subclasses__()]
    return {kind.__name__: kind for kind in kinds}


def write_all(fd: int, data: Buffer, at: int = 0) -> int:
    """Write to memory, without holding up other threads; the bytes written."""
    view = memoryview(data).cast("B")
    done = 0
    while done < len(view):
        done += os.pwrite(fd, view[done:], at + done)
    return done


def read_into(fd: int, view: memoryview, at: int) -> None:
    """Fill a buffer from memory, without holding up other threads; ProtocolError if there is less."""
    done = 0
    while done < len(view):
        count = os.preadv(fd, [view[done:]], at + done)
        if count == 0:
            raise ProtocolError("the decoder has left less than it said")
        done += count


def read_some(fd: int, at: int, size: int) -> bytes:
    """Bytes from memory; ProtocolError if there are fewer, or too many."""
    if size > MAX_ANSWER:
        raise ProtocolError(f"a message of {size} bytes is over the limit")
    found = bytearray(size)
    read_into(fd, memoryview(found), at)
    return bytes(found)
