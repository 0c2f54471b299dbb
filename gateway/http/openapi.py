"""What /docs says of the calls, whose bodies FastAPI does not see: requests, responses and errors."""

from typing import Any

from fastapi import FastAPI

DESCRIPTION = """PyTorch and TensorFlow models behind one API: the
[Open Inference Protocol](https://github.com/kserve/open-inference-protocol) v2."""

_PARAMETERS: dict[str, Any] = {"type": "object", "additionalProperties": True}
_DATATYPES = [
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "BF16", "FP32", "FP64",
    "BYTES",
]  # fmt: skip
_TENSOR: dict[str, Any] = {
    "name": {"type": "string"},
    "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
    "datatype": {"type": "string", "enum": _DATATYPES},
    "parameters": _PARAMETERS,
    "data": {"type": "array", "items": {}, "description": "flat in row-major order, or nested as the shape says"},
}
_REQUEST: dict[str, Any] = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": {"type": "string", "description": "echoed in the response"},
        "parameters": {
            **_PARAMETERS,
            "properties": {
                "signature_name": {"type": "string", "description": "the SavedModel signature to run"},
                "binary_data_output": {"type": "boolean", "description": "outputs as binary data behind the JSON"},
                "timeout": {
                    "type": "integer",
                    "minimum": 0,
                    "description": "microseconds that the request may take; it is answered 504 after them",
                },
                "priority": {
                    "type": "integer",
                    "minimum": 0,
                    "maximum": 100,
                    "description": "1 comes first in the queue, 100 last; 0: the default",
                },
                "version_label": {"type": "string", "description": "the version with this label in model.yaml"},
            },
        },
        "inputs": {
            "type": "array",
            "items": {"type": "object", "required": ["name", "shape", "datatype"], "properties": _TENSOR},
        },
        "outputs": {
            "type": "array",
            "description": "the outputs wanted, in this order; all of them if left out",
            "items": {
                "type": "object",
                "required": ["name"],
                "properties": {"name": {"type": "string"}, "parameters": _PARAMETERS},
            },
        },
    },
}


def _object(required: dict[str, Any], optional: dict[str, Any] | None = None) -> dict[str, Any]:
    """The schema of an object with these properties."""
    return {"type": "object", "required": list(required), "properties": required | (optional or {})}


def _array(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


_STRING, _BOOLEAN, _NATURAL = {"type": "string"}, {"type": "boolean"}, {"type": "integer", "minimum": 0}
_STRINGS = _array(_STRING)
_ANY_SIZE = _array({"type": "integer", "minimum": -1})
_OUTPUT = _object({key: _TENSOR[key] for key in ("name", "shape", "datatype")}, _TENSOR)
_RESPONSE = _object({"model_name": _STRING, "model_version": _STRING, "outputs": _array(_OUTPUT)}, {"id": _STRING})
_SPEC = _object(
    {"name": _STRING, "datatype": _TENSOR["datatype"], "shape": _ANY_SIZE},
    {"optional": _BOOLEAN, "guessed": _BOOLEAN},
)
_SPECS = _array(_SPEC)
SERVER_METADATA = _object({"name": _STRING, "version": _STRING, "extensions": _STRINGS})
LIVE = _object({"live": _BOOLEAN})
READY = _object({"ready": _BOOLEAN})
MODEL_READY = _object({"name": _STRING, "version": _STRING, "ready": _BOOLEAN})
MODEL_METADATA = _object(
    {
        "name": _STRING,
        "versions": _STRINGS,
        "platform": _STRING,
        "inputs": _SPECS,
        "outputs": _SPECS,
        "parameters": _PARAMETERS,
    }
)
_DIMS = _array(_object({"name": _STRING, "data_type": _STRING, "dims": _ANY_SIZE}))
MODEL_CONFIG = _object(
    {
        "name": _STRING,
        "platform": _STRING,
        "backend": _STRING,
        "max_batch_size": _NATURAL,
        "input": _DIMS,
        "output": _DIMS,
        "instance_group": _array({"type": "object"}),
        "version_policy": {"type": "object"},
        "default_model_filename": _STRING,
    },
    {"dynamic_batching": {"type": "object"}},
)
_DURATION = _object({"count": _NATURAL, "ns": _NATURAL})
_DURATIONS = (
    "success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss",
)  # fmt: skip
_OF_BATCH = ("compute_input", "compute_infer", "compute_output")
MODEL_STATS = _object(
    {
        "model_stats": _array(
            _object(
                {
                    "name": _STRING,
                    "version": _STRING,
                    "last_inference": {**_NATURAL, "description": "in milliseconds since the epoch"},
                    "inference_count": _NATURAL,
                    "execution_count": _NATURAL,
                    "inference_stats": _object(dict.fromkeys(_DURATIONS, _DURATION)),
                    "response_stats": {"type": "object"},
                    "batch_stats": _array(_object({"batch_size": _NATURAL, **dict.fromkeys(_OF_BATCH, _DURATION)})),
                }
            )
        )
    }
)
TFS_STATUS = _object(
    {"model_version_status": _array(_object({"version": _STRING, "state": _STRING, "status": {"type": "object"}}))}
)
INDEX = _array(_object({"name": _STRING, "version": _STRING, "state": _STRING, "reason": _STRING}))
NOTHING = {"type": "object"}
_ERROR = _object({"error": _STRING})
_ERRORS = {
    400: "the request is wrong",
    404: "no such model, version or path",
    409: "it is being done already",
    413: "the body is over the limit",
    415: "a Content-Encoding that is not read",
    429: "the model's queue is full",
    500: "the model raised",
    501: "refused: models are configured in the model store alone",
    503: "it cannot answer now",
    504: "it took too long",
    507: "there is not enough memory",
}
_RETRY_AFTER = {"Retry-After": {"description": "seconds until trying again helps", "schema": {"type": "integer"}}}
_INFER_ERRORS = (400, 404, 413, 415, 429, 500, 503, 504, 507)
MODEL_ERRORS = (404, 503, 504, 507)
"""Of the calls about one model, which may have to load it."""
CONTROL_ERRORS = (400, 404, 413, 501, 503, 504, 507)


def responses(schema: dict[str, Any], *errors: int, description: str = "done") -> dict[int | str, dict[str, Any]]:
    """A call's responses as FastAPI takes them: the JSON of success, and these errors."""
    found: dict[int | str, dict[str, Any]] = {code: _error(code) for code in errors}
    found[200] = {"description": description, "content": {"application/json": {"schema": schema}}}
    return found


def _error(code: int) -> dict[str, Any]:
    shown: dict[str, Any] = {"description": _ERRORS[code], "content": {"application/json": {"schema": _ERROR}}}
    return shown | ({"headers": _RETRY_AFTER} if code == 429 else {})


def inference_errors() -> dict[str, dict[str, Any]]:
    """The errors that an inference call may be answered with."""
    return {str(code): _error(code) for code in _INFER_ERRORS}


def _header(name: str, schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": False, "schema": schema, "description": description}


_BINARY = {"schema": {"type": "string", "format": "binary"}}
_EXAMPLE = {"inputs": [{"name": "image", "shape": [1, 64], "datatype": "FP32", "data": [0.0] * 64}]}

INFER_OPERATION: dict[str, Any] = {
    "parameters": [
        _header(
            "Inference-Header-Content-Length",
            _NATURAL,
            "bytes of JSON before the binary tensor data; 0: the body is one raw tensor",
        ),
        _header(
            "X-Request-Timeout",
            {"type": "number", "exclusiveMinimum": 0, "maximum": 1e12},
            "seconds that the request may take; it is answered 504 after them",
        ),
        _header(
            "X-Envoy-Expected-Rq-Timeout-Ms",
            {"type": "number", "exclusiveMinimum": 0, "maximum": 1e15},
            "the same in milliseconds, as Envoy and Istio send it",
        ),
    ],
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": _REQUEST, "example": _EXAMPLE},
            "application/octet-stream": _BINARY,
        },
    },
    "responses": {
        "200": {
            "description": "the outputs",
            "content": {"application/json": {"schema": _RESPONSE}, "application/octet-stream": _BINARY},
        },
        **inference_errors(),
    },
}


GENERATE_OPERATION: dict[str, Any] = {
    "parameters": INFER_OPERATION["parameters"][1:],
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "description": "inputs by their names, as scalars, flat or nested lists; all else is a parameter",
                    "properties": {"id": _STRING, "parameters": _PARAMETERS},
                    "additionalProperties": True,
                },
                "example": {"n": 27},
            }
        },
    },
    "responses": {
        "200": {
            "description": "the outputs by their names; one of one element is that element",
            "content": {
                "application/json": {
                    "schema": _object({"model_name": _STRING, "model_version": _STRING}, {"id": _STRING})
                }
            },
        },
        **inference_errors(),
    },
}


def _body(schema: dict[str, Any]) -> dict[str, Any]:
    return {"requestBody": {"required": False, "content": {"application/json": {"schema": schema}}}}


INDEX_BODY = _body({"type": "object", "properties": {"ready": _BOOLEAN}})
CONTROL_OPERATION = _body({"type": "object", "properties": {"parameters": _PARAMETERS}})
PROFILE_BODY = _body(
    {
        "type": "object",
        "properties": {
            "seconds": {"type": "number", "exclusiveMinimum": 0, "maximum": 60, "default": 5},
            "instance": {"type": "integer", "minimum": 0, "default": 0},
        },
        "additionalProperties": False,
    }
)
PROFILE_RESPONSES = responses({}, 400, 404, 409, 413, 500, 503, 504, 507) | {
    200: {"description": "the recording", "content": {"application/zip": _BINARY}}
}


def describe_truly(app: FastAPI) -> None:
    """Take out of the document what FastAPI finds in it and this gateway does not have.

    That is 422 with its schemas, and a query parameter `version` of the calls whose path names none.
    """
    document = app.openapi()  # which FastAPI makes once and keeps
    for operations in document["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)
            operation["parameters"] = [each for each in operation.get("parameters", []) if each["in"] != "query"]
    document.pop("components", None)
