"""What browsers that show the console are told once a second: one look at the gateway for all of them, none without."""

import asyncio
import functools
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import orjson

from gateway.errors import DeadlineExceeded, GatewayError, QueueFull

log = logging.getLogger("gateway.worker")

LOOK_SECONDS = 1.0
FIRST_SECONDS = 10.0
"""So long a browser waits for its first event."""
STREAM_SECONDS = 300.0
"""After that a stream ends, and the browser asks anew: with a key that may have been revoked meanwhile."""
MOST = 64
"""Browsers of one worker."""


class Live:
    """Looks while somebody watches. `look` brings the supervisor's overview (gateway/overview.py)."""

    def __init__(self, look: Callable[[], Awaitable[bytes]], seconds: float = LOOK_SECONDS) -> None:
        self._look = look
        self._seconds = seconds
        self._watching = 0
        self._looking: asyncio.Task[None] | None = None
        self._looked = asyncio.Condition()
        self._count = 0
        """Of looks so far."""
        self._frame: dict[str, Any] = {}
        """All of the overview but its versions."""
        self._versions: dict[str, tuple[int, Any]] = {}
        """Each version with the look at which it was first seen to be like this."""
        self._closed = False

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Server-sent events (HTML standard, 9.2), the first with all versions, those after it with what has changed.

        Their data are the overview's, and under `gone` the versions that are no more. A browser that is slow is told
        less often. QueueFull if too many watch, DeadlineExceeded if the first look takes too long. It ends after
        STREAM_SECONDS, and when the gateway does.
        """
        if self._watching >= MOST:
            raise QueueFull(f"{MOST} browsers watch this worker already")
        self._watching += 1
        if self._looking is None:
            self._looking = asyncio.create_task(self._go_on())
        seen, known = 0, set[str]()
        until = time.monotonic() + STREAM_SECONDS
        try:
            while time.monotonic() < until:
                async with self._looked, asyncio.timeout(None if seen else FIRST_SECONDS):
                    await self._looked.wait_for(functools.partial(self._has_news, seen))
                if self._closed:
                    break
                changed = {key: version for key, (since, version) in self._versions.items() if since > seen}
                gone = sorted(known - self._versions.keys())
                seen, known = self._count, set(self._versions)
                yield b"data: %b\n\n" % orjson.dumps(self._frame | {"versions": changed, "gone": gone})
        except TimeoutError:
            raise DeadlineExceeded(f"there was nothing to show within {FIRST_SECONDS:g} s") from None
        finally:
            self._watching -= 1
            if not self._watching and self._looking is not None:
                self._looking.cancel()
                self._looking, self._versions, self._count = None, {}, 0

    def _has_news(self, seen: int) -> bool:
        return self._count > seen or self._closed

    async def _go_on(self) -> None:
        while True:
            try:
                found = orjson.loads(await self._look())
            except GatewayError as error:
                log.warning("the console is not told anything new: %s", error)
            except Exception:  # the next look must not be lost with this one
                log.exception("the console is not told anything new")
            else:
                await self._tell(found)
            await asyncio.sleep(self._seconds)

    async def _tell(self, found: dict[str, Any]) -> None:
        versions = found.pop("versions")
        now = self._count + 1
        before = self._versions
        self._versions = {
            key: old if (old := before.get(key)) is not None and old[1] == version else (now, version)
            for key, version in versions.items()
        }
        self._frame = found
        async with self._looked:
            self._count = now
            self._looked.notify_all()

    async def close(self) -> None:
        """End all events: the gateway stops."""
        self._closed = True
        async with self._looked:
            self._looked.notify_all()
