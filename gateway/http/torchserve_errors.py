"""Errors as TorchServe words them: {code, type, message}, with the names of its exceptions.

Source: pytorch/serve frontend, HttpRequestHandler.java and the exceptions that it catches; its ModelServerTest.java.
"""

from typing import Any

import orjson

from gateway import errors
from gateway.errors import GatewayError
from gateway.http.responses import status_of
from gateway.routing import Unloaded

NOT_FOUND = "Requested resource is not found, please refer to API document."
NOT_ALLOWED = "Requested method is not allowed, please refer to API document."
_TYPES: dict[type[GatewayError], str] = {
    errors.PayloadTooLarge: "PayloadTooLargeException",
    errors.UnsupportedEncoding: "UnsupportedEncodingException",
    errors.RequestError: "BadRequestException",
    errors.Unauthenticated: "InvalidKeyException",
    errors.Forbidden: "ForbiddenException",
    errors.RateLimited: "ServiceUnavailableException",
    errors.VersionNotFound: "ModelVersionNotFoundException",
    errors.ModelNotFound: "ModelNotFoundException",
    errors.ModelNotReady: "ServiceUnavailableException",
    errors.InstanceDied: "ServiceUnavailableException",
    errors.QueueFull: "ServiceUnavailableException",
    errors.DeadlineExceeded: "RequestTimeoutException",
    errors.InputRefused: "BadRequestException",
    errors.Conflict: "ConflictStatusException",
    errors.NotSupported: "NotSupportedException",
}
_OTHER = "InternalServerException"
SHOWN = 200
"""Characters of what a client sent that its error shows."""


def body(code: int, kind: str, message: str) -> bytes:
    """The body of an error."""
    return orjson.dumps({"code": code, "type": kind, "message": message})


def answer(error: Exception, model: str, version: str | None) -> tuple[int, bytes]:
    """Status and body of an error of a call that was about this model and version; an empty one: the error says it."""
    if isinstance(error, Unloaded):  # which TorchServe does not know any more
        error = errors.ModelNotFound("") if version is None else errors.VersionNotFound("")
    kind = next((_TYPES[each] for each in type(error).__mro__ if each in _TYPES), _OTHER)
    message = error.message if isinstance(error, GatewayError) else "internal error"
    if not model:
        pass
    elif kind == "ModelVersionNotFoundException":
        message = f"Model version: {(version or '')[:SHOWN]} does not exist for model: {model[:SHOWN]}"
    elif kind == "ModelNotFoundException":
        message = no_model(model)
    status = 500 if kind == _OTHER else status_of(error)
    return status, body(status, kind, message)


def no_model(model: str) -> str:
    """What is said of a model that is not there."""
    return f"Model not found: {model[:SHOWN]}"


SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["code", "type", "message"],
    "properties": {"code": {"type": "integer"}, "type": {"type": "string"}, "message": {"type": "string"}},
}
