"""Every error that a person or another process can be told about, in one tree that knows no HTTP.

GatewayError
├─ RequestError               the request is wrong; sending it again changes nothing
│  ├─ PayloadTooLarge         … because it is over a size limit
│  └─ UnsupportedEncoding     … because its Content-Encoding is one we do not read
├─ Unauthenticated            the call needs an API key, and has none that is good
├─ Forbidden                  the call is not for this key, or not for this listener
├─ RateLimited                the key has made all the requests that it may for now
├─ ModelNotFound              no model of that name is in the store
│  └─ VersionNotFound         … or it has no such version
├─ ModelNotReady              the model exists and cannot answer now
├─ InstanceDied               the process that held the request ended before it answered
├─ QueueFull                  the model's queue is at its bound
├─ DeadlineExceeded           the time allowed for the request is over
├─ OutOfMemory                the model needed more memory than its device has
├─ InferenceFailed            the model itself raised
│  └─ InputRefused            … and says that it is for what it was given
├─ Conflict                   what is asked for contradicts what is there
├─ NotSupported               a call that this gateway refuses to implement
├─ LoadFailed                 an artifact cannot be served; the text becomes the version's reason
├─ ConfigError                a setting or a model.yaml is wrong
├─ CallFailed                 a server that a command asked refused, or did not answer
└─ ProtocolError              two processes of the gateway disagree: our bug

Messages are written for the person who sent the request: one sentence, no path, no traceback.
"""

from typing import Self


class GatewayError(Exception):
    """Root of the tree; `code` names the kind on the wire between processes."""

    code = "internal"

    def __init__(self, message: str) -> None:
        # A name from a request may hold half a surrogate pair, which no encoder takes.
        message = message.encode("utf-8", "replace").decode()
        super().__init__(message)
        self.message = message

    def without_frames(self) -> Self:
        """The same error, which no longer refers to the frames that it passed through.

        A frame that holds the error, or a future with it, forms a cycle with the traceback. The garbage collector
        seldom runs in an HTTP worker, so the frames' other values, such as request bodies, would stay.
        """
        self.__traceback__ = self.__context__ = self.__cause__ = None
        return self


class RequestError(GatewayError):
    """The request is wrong; sending it again changes nothing."""

    code = "request"


class PayloadTooLarge(RequestError):
    """The request, packed or unpacked, is larger than the limit."""

    code = "too_large"


class UnsupportedEncoding(RequestError):
    """The request's Content-Encoding is none that the gateway reads."""

    code = "encoding"


class Unauthenticated(GatewayError):
    """The call needs an API key, and has none that is good."""

    code = "unauthenticated"


class Forbidden(GatewayError):
    """The call is not for this key, or not for this listener."""

    code = "forbidden"


class RateLimited(GatewayError):
    """The key has made all the requests that it may for now."""

    code = "rate_limited"
    retry_after = 1
    """Seconds after which it may make another."""


class ModelNotFound(GatewayError):
    """No model of that name is in the store."""

    code = "model_not_found"


class VersionNotFound(ModelNotFound):
    """The model has no such version."""

    code = "version_not_found"


class ModelNotReady(GatewayError):
    """The model exists and cannot answer now."""

    code = "not_ready"


class InstanceDied(GatewayError):
    """The process that held the request ended before it answered."""

    code = "instance_died"


class QueueFull(GatewayError):
    """The model's queue is at its bound; trying again later helps."""

    code = "queue_full"
    retry_after = 1
    """Seconds after which that is likely to."""


class DeadlineExceeded(GatewayError):
    """The time allowed for the request is over."""

    code = "deadline"


class OutOfMemory(GatewayError):
    """The model needed more memory than its device has."""

    code = "out_of_memory"


class InferenceFailed(GatewayError):
    """The model itself raised; the message is the framework's."""

    code = "inference_failed"


class InputRefused(InferenceFailed):
    """The model raised for what it was given, as TensorFlow tells with INVALID_ARGUMENT."""

    code = "input_refused"


class Conflict(GatewayError):
    """What is asked for contradicts what is there."""

    code = "conflict"


class NotSupported(GatewayError):
    """A call that this gateway refuses to implement."""

    code = "not_supported"


class LoadFailed(GatewayError):
    """An artifact cannot be served; the message becomes the version's reason."""

    code = "load_failed"


class ConfigError(GatewayError):
    """A setting or a model.yaml is wrong; the message names the key."""

    code = "config"


class CallFailed(GatewayError):
    """A server that a command of the command line asked refused, or did not answer."""

    code = "call_failed"

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        """HTTP status of the answer, if there was one."""


class ProtocolError(GatewayError):
    """Two processes of the gateway disagree: our bug."""

    code = "protocol"


def _tree(kind: type[GatewayError]) -> dict[str, type[GatewayError]]:
    found = {kind.code: kind}
    for child in kind.__subclasses__():
        found |= _tree(child)
    return found


_BY_CODE = _tree(GatewayError)


def from_code(code: str, message: str) -> GatewayError:
    """The error that another process sent as (code, message)."""
    return _BY_CODE.get(code, GatewayError)(message)
