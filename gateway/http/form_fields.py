"""The fields of an HTML form: multipart/form-data (RFC 7578) and application/x-www-form-urlencoded.

All of a body is there, so it is cut at its boundaries in one go: a parser of streams looks at every byte that may begin
one, which a hostile body can make all of them.
"""

from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from python_multipart.multipart import parse_options_header

from gateway.errors import RequestError
from gateway.tensors import Buffer

MAX_FIELDS = 128
MAX_BOUNDARY = 70  # RFC 2046, section 5.1.1
MAX_HEAD = 8 << 10
"""Bytes of all headers of a field."""
MAX_URLENCODED = 256 << 10
"""Escapes are looked at one by one."""
MULTIPART, URLENCODED = b"multipart/form-data", b"application/x-www-form-urlencoded"
_TORN = "the body is not multipart/form-data as its Content-Type says"


class Field(NamedTuple):
    """One field; `kind` is its own media type in lower case, empty if it has none."""

    name: str
    kind: bytes
    data: Buffer


def content_type(headers: Sequence[tuple[bytes, bytes]]) -> tuple[bytes, bytes]:
    """The media type of a request's Content-Type in lower case, and all of the header; empty if there is none."""
    for name, value in headers:
        if name == b"content-type":
            return value.partition(b";")[0].strip().lower(), value
    return b"", b""


def multipart(header: bytes, body: Buffer) -> list[Field]:
    """The fields of a multipart body, with the Content-Type header of the request.

    RequestError if it is torn, or has more than MAX_FIELDS.
    """
    boundary = parse_options_header(header)[1].get(b"boundary", b"")
    if not 0 < len(boundary) <= MAX_BOUNDARY:
        raise RequestError("the Content-Type multipart/form-data has no boundary")
    first = b"--" + boundary
    pieces = bytes(body).split(b"\r\n" + first, MAX_FIELDS + 1)
    # What comes before the first boundary is no field, unless that is where the body begins.
    parts = [pieces[0].removeprefix(first), *pieces[1:]] if pieces[0].startswith(first) else pieces[1:]
    if len(parts) > MAX_FIELDS + 1:  # the last one is the end
        raise RequestError(f"the form has more than {MAX_FIELDS} fields")
    if not parts or not parts[-1].startswith(b"--"):
        raise RequestError(_TORN)
    return [_field(part) for part in parts[:-1]]


def _field(part: bytes) -> Field:
    """One part, from behind its boundary to before the next one."""
    at = part.find(b"\r\n\r\n", 0, MAX_HEAD)
    padding, _, head = part[: max(at, 0)].partition(b"\r\n")
    if at < 0 or padding.strip(b" \t"):
        raise RequestError(_TORN)
    headers = {}
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        headers[name.strip().lower()] = value.strip()
    _, options = parse_options_header(headers.get(b"content-disposition", b""))
    kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    return Field(options.get(b"name", b"").decode("utf-8", "replace"), kind, part[at + 4 :])


def urlencoded(body: Buffer) -> list[Field]:
    """The fields of a urlencoded body; RequestError if it is too large, or has more than MAX_FIELDS."""
    if len(body) > MAX_URLENCODED:
        raise RequestError(f"a urlencoded form of more than {MAX_URLENCODED} bytes must be multipart/form-data")
    pairs = bytes(body).split(b"&", MAX_FIELDS)
    if len(pairs) > MAX_FIELDS:
        raise RequestError(f"the form has more than {MAX_FIELDS} fields")
    fields = []
    for pair in filter(None, pairs):
        name, _, value = pair.replace(b"+", b" ").partition(b"=")
        fields.append(Field(unquote_to_bytes(name).decode("utf-8", "replace"), b"", unquote_to_bytes(value)))
    return fields
