"""The console: a page in the browser that shows the gateway, its files, and what they are told once a second."""

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Response
from fastapi.responses import FileResponse, StreamingResponse
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

from gateway.http.asgi import State

FILES = Path(__file__).parents[1] / "static"
_HEADERS = {
    # Nothing of any other host, no script but ours (CSP Level 3); uPlot sets sizes as inline styles.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",
}
router = APIRouter()


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
            await super().__call__(scope, receive, send)
        finally:
            await self._events.aclose()


@router.get("/console", include_in_schema=False)
async def console() -> Response:
    """The page; what it shows it asks for with the key that is typed into it."""
    return FileResponse(FILES / "console" / "index.html", headers=_HEADERS)


@router.get("/console/events", include_in_schema=False)
async def events(state: State) -> Response:
    """States, memory and counts of all versions (gateway/overview.py), as server-sent events."""
    stream = state.live.events()
    return _Events(await anext(stream), stream)  # what is refused is refused before anything is sent


def serve(app: FastAPI) -> None:
    """Have an app serve the console."""
    app.include_router(router)
    app.mount("/console/static", _Files(directory=FILES))
