"""A request's body on its way in: a small one in pieces from the parser, a large one straight into its place."""

import re
from collections.abc import Sequence

from gateway.errors import GatewayError, PayloadTooLarge, RequestError
from gateway.http import compression
from gateway.http.decoder import FROM
from gateway.http.dialect import Body
from gateway.http.identity import request_id
from gateway.http.large_body import BodyMemory
from gateway.tensors import Buffer

DISCARD_TIMES = 8
"""Of a body over the limit up to this many times the limit are read and dropped, so that the client hears why."""
LARGE = 64 << 10
"""Bodies of more bytes count while they are on their way in."""
SLOWEST_BYTES_PER_SECOND = 64 << 10
"""A body may take the time of one request, and longer only while it comes at least as fast as this."""
_TIMEOUT, _ENVOY_TIMEOUT = b"x-request-timeout", b"x-envoy-expected-rq-timeout-ms"
_DECIMAL = re.compile(rb"\d{1,12}(?:\.\d{0,12})?")
_HEADERS = frozenset(
    {
        b"content-length", b"content-encoding", b"accept-encoding", b"inference-header-content-length",
        _TIMEOUT, _ENVOY_TIMEOUT, b"x-request-id",
    }
)  # fmt: skip


class RequestBody:
    """What the head says of the body, and the body itself. What is wrong with it is kept until all of it is in."""

    # Defaults, so that a plain small request sets little.
    size = -1
    """In bytes, as announced; -1: not announced."""
    json_size: int | None = None
    """From Inference-Header-Content-Length."""
    encoding = ""
    """Its Content-Encoding; empty for none."""
    accept: str | None = None
    """The encoding that the response may have."""
    timeout: float | None = None
    """Seconds that the client gives the request, by its headers."""
    request_id = b""
    """X-Request-ID, which goes back to the client."""
    complete = False
    error: GatewayError | None = None
    data: Buffer = b""
    """The body as far as it is there; all of it when `complete`."""
    headers: Sequence[tuple[bytes, bytes]] = ()
    memory: BodyMemory | None = None
    """Where `data` is, if another process may have to read it."""
    _received = 0

    def __init__(self, limit: int) -> None:
        self._limit = limit

    def read_headers(self, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """Take what matters from the request's head."""
        self.headers = headers
        for name, value in headers:
            if name in _HEADERS:
                self._read_header(name, value.strip())
        if self.size > self._limit:
            self._refuse()

    def _read_header(self, name: bytes, value: bytes) -> None:
        if name == b"content-length":
            self.size = int(value)  # the parser has checked that it is a number
        elif name == b"content-encoding":
            encoding = value.lower().decode("latin-1")
            self.encoding = "" if encoding == "identity" else encoding
        elif name == b"accept-encoding":
            self.accept = compression.chosen_encoding(value)
        elif name in (_TIMEOUT, _ENVOY_TIMEOUT):
            self._read_timeout(name, value)
        elif name == b"x-request-id":
            self.request_id = request_id(value)
        elif value.isdigit() and len(value) <= 18:
            self.json_size = int(value)
        else:
            self.error = RequestError("Inference-Header-Content-Length must be a number of bytes")

    def _read_timeout(self, name: bytes, value: bytes) -> None:
        """The shortest of what the headers allow counts."""
        seconds = float(value) if _DECIMAL.fullmatch(value) else -1.0
        if name == _ENVOY_TIMEOUT:
            seconds /= 1000
        if name == _ENVOY_TIMEOUT and seconds == 0:
            return  # Envoy's word for no timeout
        if seconds <= 0:
            wanted = "seconds" if name == _TIMEOUT else "milliseconds"
            self.error = RequestError(f"{name.decode().title()} must be a number of {wanted} greater than 0")
        elif self.timeout is None or seconds < self.timeout:
            self.timeout = seconds

    def _refuse(self) -> None:
        self.refuse(PayloadTooLarge(f"the body is larger than the limit of {self._limit} bytes"))

    def refuse(self, error: GatewayError) -> None:
        """Keep nothing of the body, but read it to its end, so that the client hears why."""
        self.error = error
        self.data = b""

    def seconds_allowed(self, request_timeout: float) -> float:
        """How long it may have taken to get so far."""
        return request_timeout + self._received / SLOWEST_BYTES_PER_SECOND

    @property
    def hopeless(self) -> bool:
        """Whether so much is announced that nobody will read to its end."""
        return self.size > DISCARD_TIMES * self._limit

    def take(self, piece: bytes) -> bool:
        """The next piece from the parser; False if so much has come over the limit that nobody needs to listen on."""
        self._received += len(piece)
        if self.error is None:
            if self._received > self._limit:
                self._refuse()
            elif not self.data:
                self.data = piece
            elif isinstance(self.data, bytearray):
                self.data += piece
            else:
                self.data = bytearray(self.data) + piece
        return self._received <= DISCARD_TIMES * self._limit

    def continue_in(self, buffer: memoryview) -> None:
        """Have the rest written into `buffer`, which is as large as the whole body."""
        buffer[: len(self.data)] = self.data
        self.data = buffer

    def continue_in_memory(self) -> None:
        """Have the rest written to memory that another process can read."""
        self.memory = BodyMemory(self.size)
        self.continue_in(self.memory.view)

    @property
    def received(self) -> int:
        """Bytes that have come so far."""
        return self._received

    def unread(self) -> memoryview:
        """The part of the buffer that is still to be filled."""
        assert isinstance(self.data, memoryview)
        return self.data[self._received :]

    def filled(self, count: int) -> bool:
        """So many more bytes of the buffer are filled; True if that is all."""
        self._received += count
        return self._received == self.size

    def whole(self, region: int | None = None) -> Body:
        """What a dialect reads, when all of it is there."""
        return Body(self.data, self.json_size, region, self.headers)

    def unpacked(self) -> bytes:
        """The whole body without its encoding; RequestError or PayloadTooLarge if it cannot be."""
        return compression.decompress(bytes(self.data), self.encoding, self._limit)

    def unpack(self, data: bytes) -> None:
        """The body is this, without its encoding."""
        self.data, self.encoding = data, ""

    @property
    def takes_long(self) -> bool:
        """Whether so much of it is JSON that decoding it here would hold up others."""
        return (len(self.data) if self.json_size is None else self.json_size) > FROM

    def drop(self) -> None:
        """Let go of the memory."""
        self.data = b""
        if self.memory is not None:
            memory, self.memory = self.memory, None
            memory.give_back()
