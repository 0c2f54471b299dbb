"""Heads of requests: how large one may be, the one that a connection repeats, and offers to change the protocol."""

from collections.abc import Iterable, Sized

import msgspec

from gateway.http.body import LARGE

MAX_HEAD_BYTES = 64 << 10
MAX_HEADERS = 1000
MAX_REPEATED_BYTES = 4 << 10
"""Longer heads are parsed each time: each connection keeps one."""
_END = b"\r\n\r\n"


class HeadRefused(Exception):
    """A request whose head alone is reason to refuse it."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence


def check_head(size: int, headers: Sized) -> None:
    """HeadRefused if a head has more bytes or headers than a request needs."""
    if size > MAX_HEAD_BYTES or len(headers) > MAX_HEADERS:
        raise HeadRefused(431, "the head of the request is too large")


class RepeatedHead(msgspec.Struct, frozen=True, gc=False):
    """The head of an inference call with a small body of announced size, on a connection that stays open."""

    head: bytes
    length: int
    """In bytes, of head and body."""
    path: bytes
    url: bytes
    headers: list[tuple[bytes, bytes]]
    method: bytes = b"POST"


def learned(
    request: bytes, body_size: int, url: bytes, headers: Iterable[tuple[bytes, bytes]], method: bytes = b"POST"
) -> RepeatedHead | None:
    """What may be remembered of a segment that begins with this request; None if that is nothing.

    The segment must be that request and nothing else: its head ends where the first empty line does, and the rest is
    as long as the body that was announced (-1: none was).
    """
    end = request.find(_END, 0, MAX_REPEATED_BYTES) + len(_END)
    if not 0 <= body_size <= LARGE or end < len(_END) or end + body_size != len(request):
        return None
    return RepeatedHead(request[:end], len(request), url.partition(b"?")[0], url, list(headers), method)


def head_without_offer(method: bytes, url: bytes, version: str, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A request's head, as the parser has read it, without its offer to change the protocol (RFC 9110, section 7.8).

    HeadRefused for CONNECT, which wants another protocol and nothing else.
    """
    if method == b"CONNECT":
        raise HeadRefused(400, "CONNECT is not served here: this server is not a proxy")
    lines = [b"%b %b HTTP/%b" % (method, url, version.encode())]
    lines += [b"%b: %b" % header for header in headers if header[0] != b"upgrade"]
    return b"\r\n".join([*lines, b"", b""])
