"""Turns what a model returned, or why it did not, into the frame that answers a request."""

import numpy as np

from gateway.errors import GatewayError, InferenceFailed, OutOfMemory, RequestError
from gateway.instance.queue import PendingRequest
from gateway.ipc.framing import FAILURE, MAX_OUTPUT, RESULT, Failure, ResultHeader, TensorHeader, encode, reply_frame
from gateway.tensors import Array, Buffer, raw_from_array

HEADERS = 4096
"""Distinct result headers remembered; more of them only costs encoding again."""
Times = tuple[float, float, int]
"""Queue seconds, compute seconds, rows of the execution."""

_headers: dict[tuple[object, ...], bytes] = {}


def failure_of(error: Exception) -> Failure:
    """What the client is told of an exception that a model caused."""
    if isinstance(error, MemoryError):
        error = OutOfMemory("the model needed more memory than its process may take; send a smaller request")
    if not isinstance(error, GatewayError):
        error = InferenceFailed(f"the model raised {type(error).__name__}")
    return Failure(error.code, error.message)


def failure_frame(request_id: int, failure: Failure) -> list[Buffer]:
    """The answer to a request that has no outputs: without times, which nobody counts."""
    return reply_frame(FAILURE, request_id, b"", [encode(failure)])


def result_frame(request: PendingRequest, outputs: dict[str, Array], times: Times) -> list[Buffer]:
    """The answer to a request: its outputs, or why they cannot be sent."""
    try:
        return _result(request, outputs, times)
    except Exception as error:  # noqa: BLE001 - whatever a model returns, its instance goes on serving
        request.connection.take_back(request.request_id)
        if isinstance(error, MemoryError | RequestError | InferenceFailed):
            failure = failure_of(error)
        else:
            message = error.message if isinstance(error, GatewayError) else f"an output cannot be sent: {error}"
            failure = Failure(InferenceFailed.code, message)
        return failure_frame(request.request_id, failure)


def _result(request: PendingRequest, outputs: dict[str, Array], times: Times) -> list[Buffer]:
    if request.plan.outputs:
        outputs = _chosen(outputs, request.plan.outputs)
    total = 0
    for array in outputs.values():
        total += _text_size(array) if array.dtype.hasobject else array.nbytes
    if total > MAX_OUTPUT:  # before anything of it is copied: an expanded view may claim far more than there is
        raise InferenceFailed(f"the outputs take {total} bytes, one response may take {MAX_OUTPUT}")
    tensors, payload = [], []
    for name, array in outputs.items():
        datatype, raw = raw_from_array(array)
        placed = request.connection.place(request.request_id, raw)
        tensors.append((name, datatype, array.shape, len(raw), placed is not None))
        payload.append(raw if placed is None else placed)
    return reply_frame(RESULT, request.request_id, _header(tuple(tensors)), payload, times)


def _chosen(outputs: dict[str, Array], names: tuple[str, ...]) -> dict[str, Array]:
    chosen = {}
    for name in names:
        array = outputs.get(name)
        if array is None:
            known = ", ".join(f"'{output}'" for output in outputs)
            raise RequestError(f"the model has no output '{name}'; it has {known}")
        chosen[name] = array
    return chosen


def _text_size(array: Array) -> int:
    """Raw bytes of a BYTES tensor, nearly."""
    if 0 in array.strides and array.size > MAX_OUTPUT // 4:
        return 4 * array.size  # a view of one element: its list would be long
    return sum(4 + (len(item) if isinstance(item, bytes | str) else 0) for item in np.asarray(array).ravel().tolist())


def _header(tensors: tuple[tuple[str, str, tuple[int, ...], int, bool], ...]) -> bytes:
    header = _headers.get(tensors)
    if header is None:
        if len(_headers) >= HEADERS:
            _headers.clear()
        header = _headers[tensors] = encode(ResultHeader(tuple(TensorHeader(*tensor) for tensor in tensors)))
    return header
