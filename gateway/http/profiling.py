"""The call that records what a model computes; it manages, and so it stands with those of the repository."""

import math

import msgspec
from fastapi import APIRouter, Request, Response

from gateway.errors import RequestError
from gateway.http import openapi
from gateway.http.asgi import State, decoded, small_body

MOST_SECONDS = 60.0
router = APIRouter()


class _ProfileRequest(msgspec.Struct, forbid_unknown_fields=True):
    seconds: float = 5.0
    instance: int = 0


@router.post(
    "/v2/repository/models/{model}/profile",
    tags=["repository"],
    summary="Record what a model computes",
    openapi_extra=openapi.PROFILE_BODY,
    responses=openapi.PROFILE_RESPONSES,
    response_class=Response,
)
@router.post(
    "/v2/repository/models/{model}/versions/{version}/profile",
    tags=["repository"],
    summary="Record what a version computes",
    openapi_extra=openapi.PROFILE_BODY,
    responses=openapi.PROFILE_RESPONSES,
    response_class=Response,
)
async def profile(request: Request, state: State, model: str, version: str | None = None) -> Response:
    """One instance records for so many seconds (60 at most), or until its trace is full, while it answers requests.

    A zip archive: `recording.json` says what it is, `trace` is the framework's trace, `graph` the model's GraphDef.
    """
    wanted = decoded(await small_body(request), _ProfileRequest)
    if not (math.isfinite(wanted.seconds) and 0 < wanted.seconds <= MOST_SECONDS):
        raise RequestError(f"'seconds' must be more than 0 and no more than {MOST_SECONDS:g}")
    target = await state.waiting.target((model, version), state.request_timeout)
    archive = await state.supervisor.ask(
        "profile", target.model, int(target.version), seconds=wanted.seconds, instance=wanted.instance
    )
    return Response(archive, media_type="application/zip")
