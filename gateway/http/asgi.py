"""What the calls that are no inference share: the worker's state, small bodies, JSON."""

from typing import Annotated, Any

import msgspec
import orjson
from fastapi import Depends, Request, Response

from gateway.errors import PayloadTooLarge, RequestError
from gateway.http.state import WorkerState

MAX_SMALL_BODY = 64 << 10


def _state(request: Request) -> WorkerState:
    state: WorkerState = request.app.state.worker
    return state


State = Annotated[WorkerState, Depends(_state)]


def json_response(content: Any, status: int = 200) -> Response:
    """Any JSON value as a response."""
    return Response(orjson.dumps(content), status, media_type="application/json")


async def small_body(request: Request) -> bytes:
    """The body of a call that needs little; PayloadTooLarge beyond that."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_SMALL_BODY:
            raise PayloadTooLarge(f"the body of this call is limited to {MAX_SMALL_BODY} bytes")
    return body


def decoded(body: bytes, kind: Any) -> Any:
    """A body as this kind of struct; RequestError if it is none."""
    try:
        return msgspec.json.decode(body, type=kind) if body.strip() else kind()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(f"the body is not what this call takes: {error}") from None
