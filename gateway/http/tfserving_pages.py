"""TensorFlow Serving's other calls: the state of a model's versions, its metadata, and all else below /v1.

Source: tensorflow_serving/apis/get_model_status.proto, get_model_metadata.proto, http_rest_api_util.cc.
"""

import re
from typing import Any
from urllib.parse import unquote

import orjson
from fastapi import APIRouter, Request, Response

from gateway.errors import GatewayError, ModelNotFound, RequestError
from gateway.http import openapi
from gateway.http.state import WorkerState
from gateway.http.tfserving import NUMERIC_LABEL, answer_to, check_version, signatures_of
from gateway.ipc.messages import VersionRoute
from gateway.routing import Target
from gateway.tensors import Signature, TensorSpec

_STATUS_PATH = re.compile(
    r"/v1/models(?:/([^/:]+))?(?:/versions/(\d+)|/labels/([^/:]+))?(?:/(metadata))?", re.IGNORECASE
)
STATES = {
    "NEW": "START",
    "LOADING": "LOADING",
    "READY": "AVAILABLE",
    "COLD": "AVAILABLE",  # a request finds it as if it were loaded
    "DRAINING": "UNLOADING",
    "UNLOADED": "END",
    "FAILED": "END",
}
_TYPES = {
    "BOOL": "DT_BOOL", "UINT8": "DT_UINT8", "UINT16": "DT_UINT16", "UINT32": "DT_UINT32", "UINT64": "DT_UINT64",
    "INT8": "DT_INT8", "INT16": "DT_INT16", "INT32": "DT_INT32", "INT64": "DT_INT64", "FP16": "DT_HALF",
    "BF16": "DT_BFLOAT16", "FP32": "DT_FLOAT", "FP64": "DT_DOUBLE", "BYTES": "DT_STRING",
}  # fmt: skip
_METHODS = ["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"]
router = APIRouter()


def status(routes: list[VersionRoute]) -> dict[str, Any]:
    """GetModelStatusResponse, the highest version first."""
    return {
        "model_version_status": [
            {
                "version": str(route.version),
                "state": STATES[route.state],
                "status": {
                    "error_code": "UNKNOWN" if route.state == "FAILED" else "OK",
                    "error_message": route.reason if route.state == "FAILED" else "",
                },
            }
            for route in sorted(routes, key=lambda each: -each.version)
        ]
    }


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    dims = [{"size": str(size), "name": ""} for size in spec.shape or ()]
    return {
        "dtype": _TYPES[spec.datatype],
        "tensor_shape": {"dim": dims, "unknown_rank": spec.shape is None},
        "name": spec.name,
    }


def metadata(target: Target) -> dict[str, Any]:
    """GetModelMetadataResponse; of a model that is no SavedModel what the gateway knows of it."""
    signatures = {name: _signature_def(signature) for name, signature in signatures_of(target).items()}
    return {
        "model_spec": {"name": target.model, "signature_name": "", "version": target.version},
        "metadata": {"signature_def": {"signature_def": signatures}},
    }


def _signature_def(signature: Signature) -> Any:
    """The SignatureDef that the SavedModel has, with the graph's names of its tensors; else one with our names."""
    try:
        if signature.definition:
            return orjson.loads(signature.definition)
    except orjson.JSONDecodeError:  # which a model that took over its process may send
        pass
    return {
        "inputs": {spec.name: _tensor(spec) for spec in signature.inputs},
        "outputs": {spec.name: _tensor(spec) for spec in signature.outputs},
        "method_name": signature.method or "tensorflow/serving/predict",
        "defaults": {},
    }


def _answer(content: Any) -> Response:
    return Response(orjson.dumps(content, option=orjson.OPT_INDENT_2), media_type="application/json")


@router.get(
    "/v1/models/{model}",
    tags=["TensorFlow Serving"],
    summary="State of a model's versions",
    responses=openapi.responses(openapi.TFS_STATUS, 404),
)
@router.api_route("/v1", methods=_METHODS, include_in_schema=False)
@router.api_route("/v1/{rest:path}", methods=_METHODS, include_in_schema=False)
@router.api_route("/V1", methods=_METHODS, include_in_schema=False)
@router.api_route("/V1/{rest:path}", methods=_METHODS, include_in_schema=False)
async def call(request: Request, model: str = "") -> Response:  # noqa: ARG001 - for the documentation
    """States as TensorFlow Serving names them; `/versions/N`, `/labels/L` and `/metadata` may follow."""
    path = request.scope.get("raw_path", b"").decode("latin-1") or request.url.path
    found = _STATUS_PATH.fullmatch(path) if request.method == "GET" else None
    name, version, label, what = (unquote(each) if each else None for each in found.groups()) if found else [None] * 4
    if label is not None:
        version = NUMERIC_LABEL * label.isdigit() + label
    try:
        if found is None:
            raise RequestError(f"Malformed request: {request.method} {path[:200]}")
        if not name:
            raise RequestError("Missing model name in request.")
        check_version(version)
        state: WorkerState = request.app.state.worker
        if version == "0" and 0 not in state.table.models.get(name, {0}):
            version = None
        if what is not None:
            return _answer(metadata(await state.waiting.target((name, version), state.request_timeout)))
        return _answer(status(_routes(state, name, version)))
    except GatewayError as error:
        code, body = answer_to(error, name or "", version)
        return Response(body, code, media_type="application/json")


def _routes(state: WorkerState, name: str, version: str | None) -> list[VersionRoute]:
    versions = state.table.models.get(name)
    if not versions:
        raise NoVersions(f"Could not find any versions of model {name[:200]}")
    if version is None:
        return list(versions.values())
    if version.isdigit() and int(version) not in versions:
        raise NoVersions(f"Could not find version {version[:40]} of model {name[:200]}")
    return [state.table.find(name, version)]


class NoVersions(ModelNotFound):
    """There is nothing to tell the state of."""
