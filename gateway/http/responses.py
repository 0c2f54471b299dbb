"""HTTP statuses and response bytes: the one place where an error becomes a status."""

import http

import orjson

from gateway import errors

STATUS: dict[type[errors.GatewayError], int] = {
    errors.RequestError: 400,
    errors.PayloadTooLarge: 413,
    errors.UnsupportedEncoding: 415,
    errors.Unauthenticated: 401,
    errors.Forbidden: 403,
    errors.InputRefused: 400,
    errors.ModelNotFound: 404,
    errors.Conflict: 409,
    errors.RateLimited: 429,
    errors.QueueFull: 429,
    errors.ModelNotReady: 503,
    errors.InstanceDied: 503,
    errors.DeadlineExceeded: 504,
    errors.OutOfMemory: 507,
    errors.NotSupported: 501,
    errors.LoadFailed: 400,
}
_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in http.HTTPStatus}


def status_of(error: Exception) -> int:
    """The HTTP status of an error; 500 for one that has none of its own."""
    return next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), 500)


def error_headers(error: Exception) -> dict[str, str]:
    """The headers that go with an error beside those of its body."""
    if isinstance(error, errors.QueueFull | errors.RateLimited):
        return {"retry-after": str(error.retry_after)}
    if isinstance(error, errors.Unauthenticated):
        return {"www-authenticate": "Bearer"}
    if isinstance(error, errors.UnsupportedEncoding):
        return {"accept-encoding": "gzip, deflate"}
    return {}


def error_body(error: Exception) -> bytes:
    """The body of an error in the Open Inference Protocol; nothing of an error that is not ours is shown."""
    message = error.message if isinstance(error, errors.GatewayError) else "internal error"
    return orjson.dumps({"error": message})


def response_head(
    status: int, size: int, content_type: str = "application/json", headers: dict[str, str] | None = None
) -> bytes:
    """Status line and headers of a response, up to the blank line but without it."""
    more = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
    return _STATUS_LINES[status] + f"content-type: {content_type}\r\ncontent-length: {size}\r\n{more}".encode()
