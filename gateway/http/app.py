"""Everything that is not inference: health, metadata, repository, metrics and the documentation pages."""

from typing import Annotated, Any

import msgspec
import orjson
from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException

from gateway import __version__
from gateway.errors import GatewayError, NotSupported, PayloadTooLarge, RequestError
from gateway.http import describe, openapi
from gateway.http.openapi import responses
from gateway.http.responses import error_body, error_headers, status_of
from gateway.http.state import WorkerState
from gateway.routing import pick

MAX_SMALL_BODY = 64 << 10
_READY = responses(openapi.MODEL_READY, *openapi.MODEL_ERRORS)
_METADATA = responses(openapi.MODEL_METADATA, *openapi.MODEL_ERRORS)
_CONFIG = responses(openapi.MODEL_CONFIG, *openapi.MODEL_ERRORS)
_STATS = responses(openapi.MODEL_STATS, *openapi.MODEL_ERRORS)
router = APIRouter()
metrics_router = APIRouter()


def _state(request: Request) -> WorkerState:
    state: WorkerState = request.app.state.worker
    return state


State = Annotated[WorkerState, Depends(_state)]


def json_response(content: Any, status: int = 200) -> Response:
    """Any JSON value as a response."""
    return Response(orjson.dumps(content), status, media_type="application/json")


class _IndexRequest(msgspec.Struct):
    ready: bool = False
    parameters: dict[str, Any] = {}


class _LoadRequest(msgspec.Struct):
    parameters: dict[str, Any] = {}


async def small_body(request: Request) -> bytes:
    """The body of a call that needs little; PayloadTooLarge beyond that."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_SMALL_BODY:
            raise PayloadTooLarge(f"the body of this call is limited to {MAX_SMALL_BODY} bytes")
    return body


def _decoded(body: bytes, kind: Any) -> Any:
    try:
        return msgspec.json.decode(body, type=kind) if body.strip() else kind()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(f"the body is not what this call takes: {error}") from None


@router.get("/v2", tags=["server"], summary="Server metadata", responses=responses(openapi.SERVER_METADATA))
async def server_metadata() -> Response:
    """Name, version and the protocol extensions that are served."""
    extensions = ["binary_tensor_data", "model_repository", "model_configuration", "statistics"]
    return json_response({"name": "gateway", "version": __version__, "extensions": extensions})


@router.get("/v2/health/live", tags=["server"], summary="Is the server alive?", responses=responses(openapi.LIVE))
async def live() -> Response:
    """200 while the process answers."""
    return json_response({"live": True})


@router.get(
    "/v2/health/ready",
    tags=["server"],
    summary="Has the server what it was started with?",
    responses=responses(openapi.READY) | {503: responses(openapi.READY, description="not yet, or no more")[200]},
)
async def ready(state: State) -> Response:
    """200 when every model in the store has been loaded or has failed, 503 before.

    A failed or unloaded model makes only itself unready.
    """
    return json_response({"ready": state.table.ready}, 200 if state.table.ready else 503)


@router.get("/v2/models/{model}/ready", tags=["models"], summary="Can this model answer?", responses=_READY)
@router.get(
    "/v2/models/{model}/versions/{version}/ready", tags=["models"], summary="Can this version answer?", responses=_READY
)
async def model_ready(state: State, model: str, version: str | None = None) -> Response:
    """200 if it answers requests, also if the first of them loads it; else 404 or 503 with the reason."""
    route = state.table.find(model, version)
    if not state.table.answers_soon(route.model, route.version):
        pick(state.table.target(model, version))  # a version whose instances are all gone says so
    return json_response({"name": route.model, "version": str(route.version), "ready": True})


@router.get("/v2/models/{model}", tags=["models"], summary="Model metadata", responses=_METADATA)
@router.get("/v2/models/{model}/versions/{version}", tags=["models"], summary="Version metadata", responses=_METADATA)
async def model_metadata(state: State, model: str, version: str | None = None) -> Response:
    """Inputs, outputs and, under `parameters`, signatures, the batching decision and what the loader decided."""
    target = await state.waiting.target((model, version), state.request_timeout)
    return json_response(describe.metadata(target, sorted(state.table.models[target.model])))


@router.get("/v2/models/{model}/config", tags=["models"], summary="Model configuration", responses=_CONFIG)
@router.get(
    "/v2/models/{model}/versions/{version}/config", tags=["models"], summary="Version configuration", responses=_CONFIG
)
async def model_config(state: State, model: str, version: str | None = None) -> Response:
    """The configuration in force, in the words of Triton's model configuration extension."""
    target = await state.waiting.target((model, version), state.request_timeout)
    return json_response(describe.configuration(target))


@router.get("/v2/models/{model}/stats", tags=["models"], summary="Model statistics", responses=_STATS)
@router.get(
    "/v2/models/{model}/versions/{version}/stats", tags=["models"], summary="Version statistics", responses=_STATS
)
async def model_stats(state: State, model: str, version: str | None = None) -> Response:
    """Requests and times since the start, in the form of Triton's statistics extension."""
    route = state.table.find(model, version)
    wanted = [route.version] if version is not None else sorted(state.table.models[model])
    return json_response(describe.statistics(model, wanted, await state.supervisor.ask("counters")))


@router.post(
    "/v2/repository/index",
    tags=["repository"],
    summary="What is in the model store?",
    openapi_extra=openapi.INDEX_BODY,
    responses=responses(openapi.INDEX, 400, 413),
)
async def repository_index(request: Request, state: State) -> Response:
    """Every model version with its state and, if it failed, the reason; `{"ready": true}` leaves only ready ones.

    With `{"parameters": {"details": true}}` also its platform, framework, labels, devices and largest batch.
    """
    wanted = _decoded(await small_body(request), _IndexRequest)
    details = wanted.parameters.get("details") is True
    return json_response(describe.index(state.table, only_ready=wanted.ready, details=details))


@router.post(
    "/v2/repository/models/{model}/{action}",
    tags=["repository"],
    summary="Load or unload",
    openapi_extra=openapi.CONTROL_OPERATION,
    responses=responses(openapi.NOTHING, *openapi.CONTROL_ERRORS),
)
async def repository_control(request: Request, state: State, model: str, action: str) -> Response:
    """`load` reads the model from the store again and answers when it is ready; `unload` ends its processes."""
    parameters = _decoded(await small_body(request), _LoadRequest).parameters
    if action not in ("load", "unload"):
        raise HTTPException(404)
    if any(key == "config" or key.startswith("file:") for key in parameters):
        raise NotSupported("models are configured in the model store; overrides through the API are refused")
    await state.supervisor.ask(action, model)
    return json_response({})


@router.post("/v2/models/{model}/infer", tags=["inference"], summary="Infer", openapi_extra=openapi.INFER_OPERATION)
@router.post(
    "/v2/models/{model}/versions/{version}/infer",
    tags=["inference"],
    summary="Infer with one version",
    openapi_extra=openapi.INFER_OPERATION,
)
async def infer(model: str, version: str | None = None) -> Response:  # noqa: ARG001 - for the documentation
    """Run the model on the given inputs."""
    # Requests of this form are answered by the connection itself (http/protocol.py) and never get here.
    raise HTTPException(404)


@metrics_router.get(
    "/metrics",
    tags=["server"],
    summary="Prometheus metrics",
    response_class=PlainTextResponse,
    responses={code: response for code, response in responses({}, 503, 504).items() if code != 200},
)
async def metrics(state: State) -> Response:
    """Counters, latencies and measured memory in Prometheus text format."""
    text = await state.supervisor.ask("metrics")
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


async def _gateway_error(_: Request, error: Exception) -> Response:
    return Response(error_body(error), status_of(error), error_headers(error), "application/json")


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        message = f"Request for unknown path: '{request.url.path[:200]}' is not served here; /docs lists what is"
    elif error.status_code == 405:
        message = f"{request.method} is not allowed here"
    else:
        message = str(error.detail)
    headers = dict(error.headers or {})
    return Response(error_body(GatewayError(message)), error.status_code, headers, "application/json")


async def _invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    return Response(error_body(RequestError(f"{place}: {first['msg']}")), 400, media_type="application/json")


def create_app() -> FastAPI:
    """The ASGI app that uvicorn calls for every request but inference."""
    app = FastAPIOffline(
        title="Model serving gateway", version=__version__, description=openapi.DESCRIPTION, redoc_url=None
    )
    app.include_router(router)
    app.include_router(metrics_router)
    _answer_errors(app)
    openapi.describe_truly(app)
    return app


def create_metrics_app() -> FastAPI:
    """The ASGI app of the metrics' own listener."""
    app = FastAPI(title="Metrics of the model serving gateway", version=__version__, openapi_url=None)
    app.include_router(metrics_router)
    _answer_errors(app)
    return app


def _answer_errors(app: FastAPI) -> None:
    app.router.redirect_slashes = False
    app.add_exception_handler(GatewayError, _gateway_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _invalid)
