import pytest

from gateway.commands import xspace
from gateway.commands.spans import Span


def field(number: int, data: bytes) -> bytes:
    return bytes([number << 3 | 2, len(data)]) + data


def test_spans_have_the_names_and_the_times_of_their_lines() -> None:
    # tsl/profiler/protobuf/xplane.proto by hand, with fields in it that are not read.
    named = field(4, b"\x08\x07" + field(2, b"\x08\x07" + field(2, b"op")))
    event = field(4, b"\x08\x07" + b"\x10\x80\x89\x7a" + b"\x18\xc0\x84\x3d" + b"\x28\x01")
    line = field(3, b"\x08\x05" + field(2, b"t") + b"\x18\x64" + event + field(4, b"\x08\x09") + b"\x50\x01")
    space = field(1, b"\x08\x01" + field(2, b"/cpu") + line + named) + field(4, b"vm")
    assert list(xspace.spans(space)) == [Span("/cpu t", "op", 2.1, 1.0), Span("/cpu t", "?", 0.1, 0.0)]


def test_nothing_is_an_empty_one_and_what_is_none_is_said_so() -> None:
    assert list(xspace.spans(b"")) == []
    for data in (b"\x0a", b"\x0a\x05\x08", b"\xff" * 20):
        with pytest.raises(ValueError, match=r"."):
            list(xspace.spans(data))
