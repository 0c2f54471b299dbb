"""The console: a page in the browser that shows the gateway, its files, and what they are told once a second."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from functools import cache
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Response
from fastapi.responses import FileResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

from gateway.comparing import page
from gateway.http.asgi import State
from gateway.http.live import STREAM_SECONDS
from gateway.store.regular import open_regular

log = logging.getLogger("gateway.worker")

FILES = Path(__file__).parents[1] / "static"
LONGEST_SECONDS = STREAM_SECONDS + 30
REPORT = "report.html"
MOST_BYTES = 16 << 20
"""Of a report."""
router = APIRouter()


@cache
def _headers() -> dict[str, str]:
    """Nothing of any other host, no script but ours and those of a report, which a frame shows (CSP Level 3).

    uPlot sets sizes as inline styles.
    """
    scripts = " ".join(["'self'", *page.script_hashes()])
    return {
        "content-security-policy": f"default-src 'none'; script-src {scripts}; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
        "cache-control": "no-cache",
    }


class _Files(StaticFiles):
    """Files that a browser asks for again each time, for they change with the gateway."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        """Called by Starlette."""
        response = super().file_response(*args, **kwargs)
        response.headers["cache-control"] = "no-cache"
        response.headers["x-content-type-options"] = "nosniff"
        return response


class _Events(StreamingResponse):
    """Server-sent events that end with the connection, wherever they are."""

    def __init__(self, first: bytes, events: AsyncGenerator[bytes, None]) -> None:
        super().__init__(self._all(first), media_type="text/event-stream", headers={"cache-control": "no-store"})
        self._events = events

    async def _all(self, first: bytes) -> AsyncGenerator[bytes, None]:
        yield first
        async for event in self._events:
            yield event

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Called by Starlette."""
        try:
            async with asyncio.timeout(LONGEST_SECONDS):  # who does not read must not keep others out
                await super().__call__(scope, receive, send)
        except TimeoutError:
            log.warning("a browser that does not read the console's events is let go")
        finally:
            await self._events.aclose()


@router.get("/console", include_in_schema=False)
async def console() -> Response:
    """The page; what it shows it asks for with the key that is typed into it."""
    return FileResponse(FILES / "console" / "index.html", headers=_headers())


@router.get("/console/events", include_in_schema=False)
async def events(state: State) -> Response:
    """States, memory and counts of all versions (gateway/overview.py), as server-sent events."""
    stream = state.live.events()
    first = await anext(stream, b"")  # what is refused is refused before anything is sent
    return _Events(first, stream)


@router.get("/console/report", include_in_schema=False)
async def report(state: State) -> Response:
    """The last report of `gateway compare`; 204 if there is none, for a page must not find fault with that."""
    found = await run_in_threadpool(_report, Path(state.compare_report) / REPORT) if state.compare_report else None
    if found is None:
        return Response(status_code=204)
    return Response(found, headers={"content-security-policy": "sandbox"}, media_type="text/html")


def _report(path: Path) -> bytes | None:
    try:
        with open_regular(path) as file:
            found = file.read(MOST_BYTES + 1)
    except OSError:
        return None
    return found if len(found) <= MOST_BYTES else None


def serve(app: FastAPI) -> None:
    """Have an app serve the console."""
    app.include_router(router)
    app.mount("/console/static", _Files(directory=FILES))
