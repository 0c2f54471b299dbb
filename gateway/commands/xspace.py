"""Reads TensorFlow's XSpace, in which its profiler writes (tsl/profiler/protobuf/xplane.proto), without TensorFlow."""

import functools
from collections.abc import Iterator
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from gateway.commands.spans import Span

_FIELD = descriptor_pb2.FieldDescriptorProto
_NUMBER, _TEXT = _FIELD.TYPE_INT64, _FIELD.TYPE_BYTES
# Message → field → (number, type). Those of other messages are repeated; a map is a repeated pair of key and value.
_FIELDS: dict[str, dict[str, tuple[int, int | str]]] = {
    "Event": {"metadata_id": (1, _NUMBER), "offset_ps": (2, _NUMBER), "duration_ps": (3, _NUMBER)},
    "Line": {"id": (1, _NUMBER), "name": (2, _TEXT), "timestamp_ns": (3, _NUMBER), "events": (4, "Event")},
    "Metadata": {"name": (2, _TEXT), "display_name": (4, _TEXT)},
    "Named": {"key": (1, _NUMBER), "value": (2, "Metadata")},
    "Plane": {"name": (2, _TEXT), "lines": (3, "Line"), "event_metadata": (4, "Named")},
    "Space": {"planes": (1, "Plane")},
}


def spans(data: bytes) -> Iterator[Span]:
    """All events, as they come; ValueError if this is no XSpace."""
    space = _space()()
    try:
        space.ParseFromString(data)
    except DecodeError as error:
        raise ValueError(str(error)) from None
    for plane in space.planes:
        names = {
            named.key: _text(named.value[0].display_name or named.value[0].name)
            for named in plane.event_metadata
            if named.value
        }
        for line in plane.lines:
            title, begin = f"{_text(plane.name)} {_text(line.name) or line.id}", line.timestamp_ns / 1e3
            for event in line.events:
                name = names.get(event.metadata_id, "?")
                yield Span(title, name, begin + event.offset_ps / 1e6, event.duration_ps / 1e6)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


@functools.cache
def _space() -> Any:
    """The class of an XSpace, with the fields that are read here, in a pool of its own."""
    file = descriptor_pb2.FileDescriptorProto(name="xspace.proto", package="gateway", syntax="proto3")
    for name, fields in _FIELDS.items():
        message = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            added = message.field.add(name=field, number=number, label=_FIELD.LABEL_OPTIONAL)
            if isinstance(kind, str):
                added.label, added.type, added.type_name = (
                    _FIELD.LABEL_REPEATED,
                    _FIELD.TYPE_MESSAGE,
                    f".gateway.{kind}",
                )
            else:
                added.type = kind
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("gateway.Space"))
