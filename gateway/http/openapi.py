"""What /docs says of the calls whose bodies FastAPI does not see."""

from typing import Any

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
            "description": "signature_name chooses a SavedModel signature; binary_data_output asks for binary outputs",
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
_RESPONSE: dict[str, Any] = {
    "type": "object",
    "required": ["model_name", "model_version", "outputs"],
    "properties": {
        "model_name": {"type": "string"},
        "model_version": {"type": "string"},
        "id": {"type": "string"},
        "outputs": {"type": "array", "items": {"type": "object", "properties": _TENSOR}},
    },
}
_ERROR: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"type": "string"}},
}
_ERRORS = {
    "400": "the request is wrong",
    "404": "no such model or version",
    "413": "the body is over the limit",
    "415": "a Content-Encoding that is not read",
    "429": "the model's queue is full",
    "500": "the model raised",
    "503": "the model cannot answer now",
    "504": "the model took too long",
    "507": "the model ran out of memory",
}
_BINARY = {"schema": {"type": "string", "format": "binary"}}

INFER_OPERATION: dict[str, Any] = {
    "parameters": [
        {
            "name": "Inference-Header-Content-Length",
            "in": "header",
            "required": False,
            "schema": {"type": "integer", "minimum": 0},
            "description": "bytes of JSON before the binary tensor data; 0: the body is one raw tensor",
        }
    ],
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": _REQUEST,
                "example": {
                    "inputs": [{"name": "image", "shape": [1, 4], "datatype": "FP32", "data": [0.0, 0.5, 1.0, 0.5]}]
                },
            },
            "application/octet-stream": _BINARY,
        },
    },
    "responses": {
        "200": {
            "description": "the outputs",
            "content": {"application/json": {"schema": _RESPONSE}, "application/octet-stream": _BINARY},
        },
        **{
            code: {"description": text, "content": {"application/json": {"schema": _ERROR}}}
            for code, text in _ERRORS.items()
        },
    },
}
INDEX_BODY: dict[str, Any] = {
    "requestBody": {
        "required": False,
        "content": {
            "application/json": {"schema": {"type": "object", "properties": {"ready": {"type": "boolean"}}}},
        },
    }
}
EMPTY_BODY: dict[str, Any] = {
    "requestBody": {"required": False, "content": {"application/json": {"schema": {"type": "object"}}}}
}
