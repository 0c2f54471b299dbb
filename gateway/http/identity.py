"""What a request is called: its id, and its place in the caller's trace."""

import re
from typing import NamedTuple

LONGEST = 128
_ID = re.compile(rb"[A-Za-z0-9._:/@+=,~-]{1,128}")
_PARENT = re.compile(rb"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


class TraceParent(NamedTuple):
    """The caller's span (W3C Trace Context, 3.2)."""

    trace_id: str
    span_id: str
    flags: int


def request_id(value: bytes) -> bytes:
    """An X-Request-ID that can be sent back and written down as it is; empty if it cannot."""
    return value if _ID.fullmatch(value) else b""


def traceparent(value: bytes) -> TraceParent | None:
    """What a traceparent header says; None if it says nothing."""
    found = _PARENT.fullmatch(value)
    if found is None or (found[1] == b"00" and found[5]):
        return None
    return TraceParent(found[2].decode(), found[3].decode(), int(found[4], 16))
