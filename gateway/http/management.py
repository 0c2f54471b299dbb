"""TorchServe's management API on its own listener: list, describe, register, scale, unregister, set the default.

Source: pytorch/serve docs management_api.md, frontend ManagementRequestHandler.java and ApiUtils.java.
"""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway import __version__
from gateway.errors import Conflict, GatewayError, ModelNotFound, PayloadTooLarge, RequestError, VersionNotFound
from gateway.http import torchserve_errors
from gateway.http.management_calls import (
    check_runtime,
    checked,
    description,
    flag,
    in_store,
    listing,
    number_of,
    page,
    registered,
    whole_number,
    workers_of,
)
from gateway.http.responses import error_headers
from gateway.http.state import WorkerState
from gateway.http.torchserve_errors import NOT_ALLOWED, NOT_FOUND
from gateway.http.torchserve_pages import json_of, refusal
from gateway.ipc import facts
from gateway.ipc.messages import ANY, VersionRoute

log = logging.getLogger("gateway.worker")

MAX_BODY = 64 << 10
MAX_BACKGROUND = 64
"""Changes that nobody waits for, at once."""
_PROCESSING = {"status": "Processing worker updates..."}
router = APIRouter()


def _state(request: Request) -> WorkerState:
    state: WorkerState = request.app.state.worker
    return state


State = Annotated[WorkerState, Depends(_state)]


@router.get("/models", summary="List models")
async def list_models(request: Request, state: State) -> Response:
    """The models that are registered; query `limit` (100 at most) and `next_page_token`."""
    names = sorted(name for name, versions in state.table.models.items() if registered(versions))
    limit = whole_number(request.query_params, "limit", 100)
    return json_of(listing(page(names, limit, whole_number(request.query_params, "next_page_token", 0))))


@router.get("/models/{model}", summary="Describe a model's default version")
@router.get("/models/{model}/{version}", summary="Describe a version, or `all`")
async def describe(state: State, model: str, version: str | None = None) -> Response:
    """Its instances with their processes and measured memory, and what is wanted of it."""
    found = registered(state.table.models.get(model, {}))
    if not found:
        raise ModelNotFound(model)
    if version != "all":
        number = _default(state, model, found) if version is None else _number(state, model, version)
        found = [route for route in found if route.version == number]
    if not found:
        raise VersionNotFound(model)
    known = {each.version: each for each in facts.unpack(await state.supervisor.ask("describe", model))}
    return json_of([description(route, known[route.version]) for route in found if route.version in known])


def _default(state: WorkerState, model: str, found: list[VersionRoute]) -> int:
    """The version that requests without one get, or if none answers the highest."""
    number = state.table.find(model).version
    return number if any(route.version == number for route in found) else found[-1].version


def _number(state: WorkerState, model: str, version: str | None) -> int:
    """The number of a version or label; ANY for None."""
    if version is None:
        return ANY
    if not registered(state.table.models.get(model, {})):
        raise ModelNotFound(model)
    number = number_of(version)
    return state.table.find(model, version).version if number is None else number


@router.post("/models", summary="Register a model in the store")
async def register(request: Request, state: State) -> Response:
    """Serve a model that lies in the model store; `url` is its name, or name/version."""
    parameters = await _parameters(request)
    if parameters.get("url"):
        check_runtime(parameters)
    model, number = in_store(parameters.get("url"), parameters.get("model_name"))
    workers = checked(whole_number(parameters, "initial_workers", 0), "initial_workers")
    waits = flag(parameters, "synchronous", default=True)
    first = workers if waits else 0
    version = int(await state.supervisor.ask("register", model, number, (first, first)))
    if workers and not waits:
        _in_background(request.app, state.supervisor.ask("scale", model, version, (workers, workers)), model)
        return json_of(_PROCESSING, 202)
    hint = "" if workers else ". Use scale workers API to add workers for the model."
    return json_of({"status": f'Model "{model}" Version: {version} registered with {workers} initial workers{hint}'})


async def _parameters(request: Request) -> dict[str, Any]:
    """Those of the query, or of a JSON body."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        return dict(request.query_params)
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise PayloadTooLarge(f"the body of this call is limited to {MAX_BODY} bytes")
    try:
        found = orjson.loads(body) if body.strip() else {}
    except orjson.JSONDecodeError:
        raise RequestError("the body is no JSON") from None
    if not isinstance(found, dict):
        raise RequestError("the body must be a JSON object")
    return dict(request.query_params) | found


@router.put("/models/{model}", summary="Scale the default version")
@router.put("/models/{model}/{version}", summary="Scale a version")
async def scale(request: Request, state: State, model: str, version: str | None = None) -> Response:
    """Have it run by `min_worker` to `max_worker` instances; 0: by none until a request needs one."""
    parameters = request.query_params
    least, most = workers_of(parameters)
    version = version or parameters.get("model_version")
    number = _number(state, model, version)
    versions = registered(state.table.models.get(model, {}))
    if not versions:
        raise ModelNotFound(model)
    if number != ANY and all(route.version != number for route in versions):
        raise VersionNotFound(model)
    asked = state.supervisor.ask("scale", model, number, (least, most))
    if not flag(parameters, "synchronous"):
        _in_background(request.app, asked, model)
        return json_of(_PROCESSING, 202)
    await asked
    which = f", version: {version}" if version else ""
    return json_of({"status": f"Workers scaled to {least} for model: {model}{which}"})


def _in_background(app: FastAPI, work: Coroutine[Any, Any, bytes], model: str) -> None:
    """Do what nobody waits for; its failure is logged, and a description tells what there is."""
    tasks: set[asyncio.Task[None]] = app.state.tasks
    if len(tasks) >= MAX_BACKGROUND:
        work.close()
        raise GatewayError("too many changes are under way; try again soon")

    async def do() -> None:
        try:
            await work
        except GatewayError as error:
            log.warning("%s could not be scaled: %s", model, error.message)

    task = asyncio.get_running_loop().create_task(do())
    tasks.add(task)
    task.add_done_callback(tasks.discard)


@router.put("/models/{model}/{version}/set-default", summary="Set the default version")
async def set_default(state: State, model: str, version: str) -> Response:
    """Have requests that name no version answered by this one."""
    await state.supervisor.ask("default", model, _number(state, model, version))
    return json_of({"status": f'Default version successfully updated for model "{model}" to "{version}"'})


@router.delete("/models/{model}", summary="Unregister a model's only version")
@router.delete("/models/{model}/{version}", summary="Unregister a version")
async def unregister(state: State, model: str, version: str | None = None) -> Response:
    """End its processes when they have answered what they have, and serve it no more."""
    try:
        await state.supervisor.ask("unregister", model, _number(state, model, version))
    except Conflict as error:
        return refusal(403, "InvalidModelVersionException", error.message)
    return json_of({"status": f'Model "{model}" unregistered'})


@router.options("/", include_in_schema=False)
@router.get("/api-description", include_in_schema=False)
async def describe_api(request: Request) -> Response:
    """The OpenAPI document of this listener."""
    return json_of(request.app.openapi())


async def _gateway_error(request: Request, error: Exception) -> Response:
    names = request.path_params
    status, body = torchserve_errors.answer(error, names.get("model", ""), names.get("version"))
    return Response(body, status, error_headers(error), "application/json")


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        return refusal(405, "MethodNotAllowedException", NOT_ALLOWED)
    return refusal(error.status_code, "ResourceNotFoundException", NOT_FOUND)


async def _invalid(_: Request, __: Exception) -> Response:
    return refusal(400, "BadRequestException", "a parameter is wrong")


class _NoTrailingSlash:
    """ASGI middleware: TorchServe takes a path apart, so that a slash at its end says nothing."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Called by Starlette."""
        if scope["type"] == "http":
            scope["path"] = scope["path"].rstrip("/") or "/"
        await self._app(scope, receive, send)


def create_management_app() -> FastAPI:
    """The ASGI app of the management listener."""
    app = FastAPI(title="Management of the model serving gateway", version=__version__, docs_url=None, redoc_url=None)
    app.state.tasks = set()
    app.include_router(router)
    app.router.redirect_slashes = False
    app.add_middleware(_NoTrailingSlash)
    app.add_exception_handler(GatewayError, _gateway_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    return app
