"""Which web pages may call the API: the answer's part of Cross-Origin Resource Sharing.

Source: the Fetch standard, section 3.3 (CORS protocol). Preflights, and all calls but inference, are Starlette's.
"""

from collections.abc import Iterable, Sequence

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

EXPOSED = ("Inference-Header-Content-Length", "X-Request-ID", "Retry-After")
"""What scripts on a page may read beside the headers that they always may."""
_EXPOSED = b"access-control-expose-headers: %b\r\n" % ", ".join(EXPOSED).encode()
_EVERYBODY = b"access-control-allow-origin: *\r\n" + _EXPOSED
_VARY = b"vary: origin\r\n"


class Cors:
    """The headers of an inference's response."""

    def __init__(self, origins: Iterable[str]) -> None:
        allowed = frozenset(origin.encode() for origin in origins)
        self._everybody = b"*" in allowed
        self._answers = {
            origin: b"access-control-allow-origin: %b\r\n" % origin + _EXPOSED + _VARY for origin in allowed
        }

    def headers(self, request: Sequence[tuple[bytes, bytes]]) -> bytes:
        """What a response to a request with these headers, names in lower case, says; with its line ends."""
        origin = next((value for name, value in request if name == b"origin"), None)
        if self._everybody:
            return b"" if origin is None else _EVERYBODY
        return self._answers.get(origin or b"", _VARY)  # also without an origin: a cache must not give it to one

    def pairs(self, request: Sequence[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """The same as names and values."""
        found = []
        for line in self.headers(request).splitlines():
            name, _, value = line.partition(b": ")
            found.append((name, value))
        return found


def allow(app: FastAPI, origins: Sequence[str]) -> None:
    """Have an app answer preflights, and say in its responses which pages may read them."""
    app.add_middleware(
        CORSMiddleware,
        allow_origins=list(origins),
        allow_methods=["GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD"],
        allow_headers=["*"],
        expose_headers=list(EXPOSED),
    )
