"""Requests that have ended two processes of their model: remembered for a while, and refused when they come again."""

import time
from hashlib import blake2b

from gateway.tensors import Buffer

REMEMBER_SECONDS = 300.0
MOST = 1024
"""So many are remembered; the oldest go first."""
_SIZE_BYTES = 8


def digest_of(model: str, version: str, body: Buffer) -> bytes:
    """What a request is known by: a hash of all of it, and the size of its body, so that few others need a hash."""
    found = blake2b(f"{model}\0{version}\0".encode(), digest_size=16)
    found.update(body)
    return found.digest() + len(body).to_bytes(_SIZE_BYTES, "big")


class Condemned:
    """The digests remembered by a worker."""

    def __init__(self) -> None:
        self.digests: dict[bytes, float] = {}
        """Until when each is; empty nearly always."""

    def add(self, digest: bytes) -> None:
        """Remember a request from now on."""
        self.digests.pop(digest, None)
        if len(self.digests) >= MOST:
            del self.digests[next(iter(self.digests))]
        self.digests[digest] = time.monotonic() + REMEMBER_SECONDS

    def has(self, model: str, version: str, body: Buffer) -> bool:
        """Whether this request is remembered; those whose time is over are forgotten."""
        now = time.monotonic()
        for digest in [digest for digest, until in self.digests.items() if until <= now]:
            del self.digests[digest]
        size = len(body).to_bytes(_SIZE_BYTES, "big")
        if not any(digest.endswith(size) for digest in self.digests):
            return False
        return digest_of(model, version, body) in self.digests
