"""TensorFlow's GraphDef and the event files in which TensorBoard looks for one, written without TensorFlow.

https://protobuf.dev/programming-guides/encoding, tensorflow/core/framework/graph.proto, util/event.proto,
lib/io/record_writer.cc.
"""

import struct
from collections.abc import Iterable
from typing import NamedTuple

MOST_BYTES = 8 << 20
_VARINT, _FIXED64, _BYTES = 0, 1, 2
_PRODUCER = 21
"""Version of the format in which attributes may be left out (TF_GRAPH_DEF_VERSION)."""


class Node(NamedTuple):
    """One operation; `inputs` are names of other nodes, `NAME:1` being the second output of one."""

    name: str
    op: str
    inputs: tuple[str, ...] = ()


def graph(nodes: Iterable[Node]) -> bytes:
    """The nodes as a GraphDef."""
    body = b"".join(_field(1, _node(node)) for node in nodes)
    return body + _field(4, _key(1, _VARINT) + _varint(_PRODUCER))


def event_file(graph_def: bytes, seconds: float) -> bytes:
    """A whole event file with one graph, of that time since 1970."""
    time = _key(1, _FIXED64) + struct.pack("<d", seconds)
    events = (time + _field(3, b"brain.Event:2"), time + _field(4, graph_def))
    return b"".join(map(_record, events))


def _node(node: Node) -> bytes:
    inputs = b"".join(_field(3, each.encode()) for each in node.inputs)
    return _field(1, node.name.encode()) + _field(2, node.op.encode()) + inputs


def _key(number: int, kind: int) -> bytes:
    return _varint(number << 3 | kind)


def _field(number: int, data: bytes) -> bytes:
    return _key(number, _BYTES) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


# TFRecord: length, its checksum, the data, their checksum


def _record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + _masked(length) + data + _masked(data)


def _masked(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _table() -> tuple[int, ...]:
    made = []
    for number in range(256):
        crc = number
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
        made.append(crc)
    return tuple(made)


_TABLE = _table()


def crc32c(data: bytes) -> int:
    """CRC-32C (RFC 3720, appendix B.4), which zlib has not; 60 ns a byte."""
    crc, table = 0xFFFFFFFF, _TABLE
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF
