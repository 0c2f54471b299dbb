"""TorchServe's other calls on the main listener: its health, its description, and all that it refuses.

Source: pytorch/serve docs inference_api.md, frontend InferenceRequestHandler.java, ApiUtils.getWorkerStatus.
"""

from typing import Any

import orjson
from fastapi import APIRouter, Request, Response

from gateway.errors import GatewayError, NotSupported
from gateway.http import torchserve_errors
from gateway.http.state import WorkerState
from gateway.http.torchserve_errors import NOT_ALLOWED, NOT_FOUND
from gateway.routing import RoutingTable

_METHODS = ["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"]
_ANY: dict[str, Any] = {"description": "the outputs: a value, or an object by name; without the batch dimension"}
_BODIES = ("application/json", "application/octet-stream", "multipart/form-data", "application/x-www-form-urlencoded")
_REFUSED = {
    400: "the request is wrong",
    404: "no such model or version",
    413: "the body is over the limit",
    429: "the model's queue is full",
    500: "the model raised",
    503: "it cannot answer now",
    504: "it took too long",
    507: "there is not enough memory",
}
PREDICTIONS_OPERATION: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "one row of the model's input, or a batch: JSON, a form's field `data`, or the bytes themselves",
        "content": {
            kind: {"schema": {} if "json" in kind else {"type": "string", "format": "binary"}} for kind in _BODIES
        },
    },
    "responses": {
        "200": {"description": "the outputs", "content": {"application/json": {"schema": _ANY}}},
        **{
            str(code): {
                "description": said,
                "content": {"application/json": {"schema": torchserve_errors.SCHEMA}},
                **(
                    {"headers": {"Retry-After": {"description": "seconds", "schema": {"type": "integer"}}}}
                    if code == 429
                    else {}
                ),
            }
            for code, said in _REFUSED.items()
        },
    },
}
_PING = {
    "description": "Healthy, Partial Healthy or Unhealthy",
    "content": {
        "application/json": {
            "schema": {"type": "object", "required": ["status"], "properties": {"status": {"type": "string"}}}
        }
    },
}
_DESCRIPTION = {
    "description": "this document",
    "content": {"application/json": {"schema": {"type": "object", "required": ["openapi", "paths"]}}},
}
router = APIRouter()


def json_of(content: Any, status: int = 200) -> Response:
    """Any JSON value as a response."""
    return Response(orjson.dumps(content), status, media_type="application/json")


def refusal(code: int, kind: str, message: str) -> Response:
    """An error as TorchServe words it."""
    return Response(torchserve_errors.body(code, kind, message), code, media_type="application/json")


def health(table: RoutingTable) -> str:
    """Whether the instances of the versions that requests get by default run; Unhealthy if no model can answer.

    A server without any registered model is Healthy, as TorchServe is before its first registration.
    """
    wanted = running = 0
    for model in table.models:
        route = table.find(model)
        if route.state in ("LOADING", "READY"):
            wanted += max(route.wanted, 1)
            running += len(route.instances)
    registered = any(route.state != "UNLOADED" for versions in table.models.values() for route in versions.values())
    if registered and not table.ready:
        return "Unhealthy"
    if running >= wanted:
        return "Healthy"
    return "Partial Healthy" if running else "Unhealthy"


@router.api_route("/ping", methods=["POST", "PUT", "DELETE", "OPTIONS", "HEAD"], include_in_schema=False)
@router.get("/ping", tags=["TorchServe"], summary="Health", responses={200: _PING})
async def ping(request: Request) -> Response:
    """Whether all instances run that should, through the TorchServe API: 500 if the server is Unhealthy.

    Models that are cold or failed do not count as long as any model answers.
    """
    state: WorkerState = request.app.state.worker
    status = health(state.table)
    return json_of({"status": status}, 500 if status == "Unhealthy" else 200)


@router.get("/api-description", tags=["TorchServe"], summary="Description", responses={200: _DESCRIPTION})
@router.options("/", include_in_schema=False)
async def description(request: Request) -> Response:
    """This document."""
    return json_of(request.app.openapi())


@router.put("/predictions/{model}", tags=["TorchServe"], summary="Predict", openapi_extra=PREDICTIONS_OPERATION)
@router.post("/predictions/{model}", tags=["TorchServe"], summary="Predict", openapi_extra=PREDICTIONS_OPERATION)
@router.put(
    "/predictions/{model}/{version}",
    tags=["TorchServe"],
    summary="Predict with one version",
    openapi_extra=PREDICTIONS_OPERATION,
)
@router.post(
    "/predictions/{model}/{version}",
    tags=["TorchServe"],
    summary="Predict with one version",
    openapi_extra=PREDICTIONS_OPERATION,
)
async def predictions(model: str, version: str | None = None) -> Response:  # noqa: ARG001 - for the documentation
    """Run the model on one row, or on a batch."""
    # Requests of this form are answered by the connection itself (http/protocol.py) and never get here.
    return refusal(404, "ResourceNotFoundException", NOT_FOUND)


@router.api_route("/predictions", methods=_METHODS, include_in_schema=False)
@router.api_route("/predictions/{model}", methods=_METHODS, include_in_schema=False)
@router.api_route("/predictions/{model}/{version}", methods=_METHODS, include_in_schema=False)
async def other_methods(request: Request, model: str = "", version: str | None = None) -> Response:
    """A description of one model's call, and no other methods."""
    state: WorkerState = request.app.state.worker
    if not model:
        return refusal(404, "ResourceNotFoundException", NOT_FOUND)
    if request.method != "OPTIONS":
        return refusal(405, "MethodNotAllowedException", NOT_ALLOWED)
    try:
        state.table.find(model, version)
    except GatewayError as error:
        code, body = torchserve_errors.answer(error, model, version)
        return Response(body, code, media_type="application/json")
    path = f"/predictions/{model}" + (f"/{version}" if version else "")
    return json_of(
        {
            "openapi": "3.0.1",
            "info": {"title": f"RESTful API for: {model}", "version": "1.0.0"},
            "paths": {
                path: {
                    "post": {"operationId": "predictions", **PREDICTIONS_OPERATION},
                    "put": {"operationId": "predictions_put", **PREDICTIONS_OPERATION},
                }
            },
        }
    )


@router.api_route("/explanations/{rest:path}", methods=["POST"], include_in_schema=False)
async def explanations(rest: str) -> Response:
    """Refused: an explanation is a handler's code, and none is run here."""
    error = NotSupported("explanations are not supported: this gateway runs models and no handlers, which explain them")
    code, body = torchserve_errors.answer(error, rest, None)
    return Response(body, code, media_type="application/json")
