"""Requests that have ended two processes of their model: remembered for a while, and refused when they come again."""

import functools
import time
from collections import Counter
from hashlib import blake2b

from gateway.ipc.messages import VersionRoute
from gateway.tensors import Buffer

REMEMBER_SECONDS = 300.0
MOST = 1024
"""So many are remembered; the oldest go first."""
_SIZE_BYTES = 8
_VERSION_BYTES = 8
_KEY_BYTES = _VERSION_BYTES + _SIZE_BYTES


def digest_of(route: VersionRoute, body: Buffer) -> bytes:
    """What a request is known by: its key, and a hash of its whole body."""
    return _key_of(route, body) + blake2b(body, digest_size=16).digest()


def _key_of(route: VersionRoute, body: Buffer) -> bytes:
    """Its model version, with the files that this had, and the size of its body, so that few others need a hash."""
    return _version_key(route.model, route.version, route.stamp) + len(body).to_bytes(_SIZE_BYTES, "big")


@functools.lru_cache(maxsize=1024)
def _version_key(model: str, version: int, stamp: int) -> bytes:
    return blake2b(f"{model}\0{version}\0{stamp}".encode(), digest_size=_VERSION_BYTES).digest()


class Condemned:
    """The digests remembered by a worker."""

    def __init__(self) -> None:
        self.digests: dict[bytes, float] = {}
        """Until when each is, the oldest first; empty nearly always."""
        self._keys: Counter[bytes] = Counter()

    def add(self, digest: bytes) -> None:
        """Remember a request from now on."""
        self._forget_old()
        if digest in self.digests:
            self._forget(digest)
        elif len(self.digests) >= MOST:
            self._forget(next(iter(self.digests)))
        self.digests[digest] = time.monotonic() + REMEMBER_SECONDS
        self._keys[digest[:_KEY_BYTES]] += 1

    def has(self, route: VersionRoute, body: Buffer) -> bool:
        """Whether this request is remembered; those whose time is over are forgotten."""
        return self.may_have(route, body) and digest_of(route, body) in self.digests

    def may_have(self, route: VersionRoute, body: Buffer) -> bool:
        """Whether one of its model version and size is remembered, which takes no hash to tell."""
        self._forget_old()
        return _key_of(route, body) in self._keys

    def _forget_old(self) -> None:
        now = time.monotonic()
        while self.digests and self.digests[oldest := next(iter(self.digests))] <= now:
            self._forget(oldest)

    def _forget(self, digest: bytes) -> None:
        del self.digests[digest]
        key = digest[:_KEY_BYTES]
        self._keys[key] -= 1
        if not self._keys[key]:
            del self._keys[key]
