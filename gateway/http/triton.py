"""Calls of Triton's that are no part of the Open Inference Protocol: statistics, and what its clients ask by the way.

Sources: Triton's extension_statistics.md, extension_trace.md, extension_logging.md, extension_shared_memory.md. Shared
memory of clients is not used, and traces and logs are set when the server is started; what only asks is answered.
"""

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

from gateway.errors import ModelNotFound, NotSupported
from gateway.http import openapi
from gateway.http.asgi import State, json_response, small_body
from gateway.http.openapi import responses
from gateway.http.statistics import statistics

_STATS = responses(openapi.MODEL_STATS, *openapi.MODEL_ERRORS)
router = APIRouter()


@router.get(
    "/v2/models/stats",
    tags=["models"],
    summary="Statistics of all models",
    responses=responses(openapi.MODEL_STATS, 503, 504),
)
async def all_statistics(state: State) -> Response:
    """Requests and times of every version of every model since the start."""
    wanted = [(model, sorted(versions)) for model, versions in sorted(state.table.models.items())]
    return json_response(statistics(wanted, await state.supervisor.ask("counters")))


@router.get("/v2/models/{model}/stats", tags=["models"], summary="Model statistics", responses=_STATS)
@router.get(
    "/v2/models/{model}/versions/{version}/stats", tags=["models"], summary="Version statistics", responses=_STATS
)
async def model_statistics(state: State, model: str, version: str | None = None) -> Response:
    """Requests and times since the start, in the form of Triton's statistics extension."""
    route = state.table.find(model, version)
    wanted = [route.version] if version is not None else sorted(state.table.models[model])
    return json_response(statistics([(model, wanted)], await state.supervisor.ask("counters")))


@router.get("/v2/trace/setting", include_in_schema=False)
@router.get("/v2/models/{model}/trace/setting", include_in_schema=False)
async def trace_setting(state: State, model: str | None = None) -> Response:
    """Triton's traces, of which there are none."""
    if model is not None:
        state.table.find(model)
    return json_response({"trace_level": ["OFF"]})


@router.post("/v2/trace/setting", include_in_schema=False)
@router.post("/v2/models/{model}/trace/setting", include_in_schema=False)
async def set_trace(request: Request, model: str | None = None) -> Response:  # noqa: ARG001 - refused for all alike
    """Refused."""
    await small_body(request)
    raise NotSupported("traces are not set through the API; the server sends spans where --otlp-endpoint says")


@router.get("/v2/logging", include_in_schema=False)
async def logging_setting() -> Response:
    """What is logged, in Triton's words."""
    return json_response(
        {
            "log_file": "",
            "log_info": True,
            "log_warning": True,
            "log_error": True,
            "log_verbose_level": 0,
            "log_format": "default",
        }
    )


@router.post("/v2/logging", include_in_schema=False)
async def set_logging(request: Request) -> Response:
    """Refused."""
    await small_body(request)
    raise NotSupported("the log is not set through the API")


@router.get("/v2/{kind}sharedmemory/status", include_in_schema=False)
@router.get("/v2/{kind}sharedmemory/region/{region}/status", include_in_schema=False)
async def shared_memory(kind: str, region: str | None = None) -> Response:
    """The regions that clients have registered, of which there are none."""
    _check_kind(kind)
    if region is not None:
        raise ModelNotFound(f"Unable to find {kind} shared memory region: '{region[:200]}'")
    return json_response([])


@router.post("/v2/{kind}sharedmemory/{what}", include_in_schema=False)
@router.post("/v2/{kind}sharedmemory/region/{region}/{what}", include_in_schema=False)
async def change_shared_memory(request: Request, kind: str, what: str, region: str | None = None) -> Response:
    """Refused; but to take away what is not there is done."""
    _check_kind(kind)
    await small_body(request)
    if what == "unregister":
        return json_response({})
    if what != "register" or region is None:
        raise HTTPException(404)
    raise NotSupported("this server does not use shared memory of clients; send tensors in the body")


def _check_kind(kind: str) -> None:
    if kind not in ("system", "cuda"):
        raise HTTPException(404)
