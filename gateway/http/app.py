"""Everything that is not inference: health, metadata, repository, metrics and the documentation pages."""

import asyncio
import html
from typing import Any

import msgspec
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, PlainTextResponse, RedirectResponse
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException

from gateway import __version__
from gateway.errors import GatewayError, NotSupported, RequestError
from gateway.http import (
    compression,
    console,
    describe,
    metrics_filter,
    model_docs,
    openapi,
    profiling,
    tfserving_pages,
    torchserve_pages,
    triton,
)
from gateway.http.asgi import State, decoded, json_response, small_body
from gateway.http.openapi import responses
from gateway.http.responses import error_body, error_headers, status_of
from gateway.routing import pick

_READY = responses(openapi.MODEL_READY, *openapi.MODEL_ERRORS)
_METADATA = responses(openapi.MODEL_METADATA, *openapi.MODEL_ERRORS)
_CONFIG = responses(openapi.MODEL_CONFIG, *openapi.MODEL_ERRORS)
_DOCUMENT = responses({"type": "object"}, *openapi.MODEL_ERRORS)
_PAGE = {code: shown for code, shown in _DOCUMENT.items() if code != 200}
STATIC = "/static-offline-docs"
EXTENSIONS = [
    "binary_tensor_data",
    "classification",
    "generate",
    "model_configuration",
    "model_repository",
    "schedule_policy",
    "statistics",
]
router = APIRouter()
metrics_router = APIRouter()


class _IndexRequest(msgspec.Struct):
    ready: bool | None = False
    parameters: dict[str, Any] | None = None


class _LoadRequest(msgspec.Struct):
    parameters: dict[str, Any] | None = None


@router.get("/", include_in_schema=False)
async def front_door(request: Request) -> Response:
    """Who opens the address in a browser sees what there is."""
    return RedirectResponse(f"{request.scope.get('root_path', '')}/console")


@router.get("/v2", tags=["server"], summary="Server metadata", responses=responses(openapi.SERVER_METADATA))
async def server_metadata(state: State) -> Response:
    """Name, version and the protocol extensions that are served."""
    return json_response({"name": state.server_name, "version": __version__, "extensions": EXTENSIONS})


@router.get("/v2/health/live", tags=["server"], summary="Is the server alive?", responses=responses(openapi.LIVE))
async def live() -> Response:
    """200 while the process answers."""
    return json_response({"live": True})


@router.get(
    "/v2/health/ready",
    tags=["server"],
    summary="Can the server answer?",
    responses=responses(openapi.READY) | {503: responses(openapi.READY, description="not yet, or no more")[200]},
)
async def ready(state: State) -> Response:
    """200 when every model in the store has been tried and any of them answers; 503 otherwise.

    A failed or unloaded model makes only itself unready, unless the server runs with `--strict-readiness`: then it is
    ready only while every model is. A model that its first request loads counts as ready.
    """
    return json_response({"ready": state.ready}, 200 if state.ready else 503)


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


@router.get(
    "/v2/models/{model}/docs",
    tags=["models"],
    summary="The model's own page of this kind",
    response_class=HTMLResponse,
    responses=_PAGE,
)
@router.get(
    "/v2/models/{model}/versions/{version}/docs",
    tags=["models"],
    summary="The version's own page of this kind",
    response_class=HTMLResponse,
    responses=_PAGE,
)
async def model_page(request: Request, state: State, model: str, version: str | None = None) -> Response:
    """Its calls with its own names and shapes, and examples that can be sent."""
    target = await state.waiting.target((model, version), state.request_timeout)
    assets = f"{request.scope.get('root_path', '')}{STATIC}"
    return get_swagger_ui_html(
        openapi_url="openapi.json",
        title=html.escape(target.model),
        swagger_js_url=f"{assets}/swagger-ui-bundle.js",
        swagger_css_url=f"{assets}/swagger-ui.css",
        swagger_favicon_url=f"{assets}/favicon.png",
    )


@router.get("/v2/models/{model}/openapi.json", tags=["models"], summary="The same as a document", responses=_DOCUMENT)
@router.get(
    "/v2/models/{model}/versions/{version}/openapi.json",
    tags=["models"],
    summary="The same as a document",
    responses=_DOCUMENT,
)
async def model_document(state: State, model: str, version: str | None = None) -> Response:
    """OpenAPI 3.1."""
    target = await state.waiting.target((model, version), state.request_timeout)
    return json_response(model_docs.document(target, version))


@router.post(
    "/v2/repository/index",
    tags=["repository"],
    summary="What is in the model store?",
    openapi_extra=openapi.INDEX_BODY,
    responses=responses(openapi.INDEX, 400, 413),
)
async def repository_index(request: Request, state: State) -> Response:
    """Every model version with its state and, if it failed, the reason; `{"ready": true}` leaves only ready ones.

    With `{"parameters": {"details": true}}` also its platform, framework, labels, devices, largest batch, file size.
    """
    wanted = decoded(await small_body(request), _IndexRequest)
    details = (wanted.parameters or {}).get("details") is True
    return json_response(describe.index(state.table, only_ready=wanted.ready is True, details=details))


@router.post(
    "/v2/repository/models/{model}/{action}",
    tags=["repository"],
    summary="Load or unload",
    openapi_extra=openapi.CONTROL_OPERATION,
    responses=responses(openapi.NOTHING, *openapi.CONTROL_ERRORS),
)
async def repository_control(request: Request, state: State, model: str, action: str) -> Response:
    """`load` reads the model from the store again and answers when it is ready; `unload` ends its processes."""
    parameters = decoded(await small_body(request), _LoadRequest).parameters or {}
    if action not in ("load", "unload"):
        raise HTTPException(404)
    if any(key == "config" or key.startswith("file:") for key in parameters):
        raise NotSupported("models are configured in the model store; overrides through the API are refused")
    await state.supervisor.ask(action, model)
    return json_response({})


@router.post(
    "/v2/repository/models/{model}/versions/{version}/default",
    tags=["repository"],
    summary="Choose the version that requests without one get",
    responses=responses(openapi.NOTHING, *openapi.CONTROL_ERRORS),
)
async def repository_default(request: Request, state: State, model: str, version: str) -> Response:
    """Until it is chosen anew, or the version no longer serves: then it is the highest that does."""
    await small_body(request)
    await state.supervisor.ask("default", model, state.table.find(model, version).version)
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


@router.post(
    "/v2/models/{model}/generate", tags=["inference"], summary="Generate", openapi_extra=openapi.GENERATE_OPERATION
)
@router.post(
    "/v2/models/{model}/versions/{version}/generate",
    tags=["inference"],
    summary="Generate with one version",
    openapi_extra=openapi.GENERATE_OPERATION,
)
async def generate(model: str, version: str | None = None) -> Response:  # noqa: ARG001 - for the documentation
    """Run the model on plain JSON: each key is an input, each key of the answer an output.

    `…/generate_stream` answers the same as a server-sent event.
    """
    raise HTTPException(404)  # as above


@metrics_router.get("/monitoring/prometheus/metrics", include_in_schema=False)
@metrics_router.get(
    "/metrics",
    tags=["server"],
    summary="Prometheus metrics",
    response_class=PlainTextResponse,
    responses={code: response for code, response in responses({}, 503, 504).items() if code != 200},
)
async def metrics(request: Request, state: State) -> Response:
    """Counters, latencies and measured memory in Prometheus text format; `name[]` asks for single metrics."""
    text = await state.supervisor.ask("metrics")
    if names := request.query_params.getlist("name[]"):
        text = metrics_filter.only(text, names)
    headers = {"Vary": "Accept-Encoding"}
    if encoding := compression.chosen_encoding(request.headers.get("accept-encoding", "").encode("latin-1")):
        headers["Content-Encoding"] = encoding
        text = await asyncio.to_thread(compression.compress, text, encoding)
    return Response(text, headers=headers, media_type="text/plain; version=0.0.4; charset=utf-8")


async def _gateway_error(_: Request, error: Exception) -> Response:
    if isinstance(error, GatewayError):
        error.without_frames()
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
        title="Model serving gateway",
        version=__version__,
        description=openapi.DESCRIPTION,
        redoc_url=None,
        static_url=STATIC,
    )
    app.include_router(triton.router)  # first, for `stats` is no model's name in /v2/models/stats
    app.include_router(profiling.router)  # before {action}
    app.include_router(router)
    app.include_router(metrics_router)
    console.serve(app)
    app.include_router(tfserving_pages.router)
    app.include_router(torchserve_pages.router)
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
