"""TorchServe's inference API: predictions by models of any framework.

Source: pytorch/serve docs inference_api.md, frontend InferenceRequestHandler.java, ts/torch_handler/base_handler.py.
"""

import re
from collections.abc import Iterator, Sequence

import orjson

from gateway.errors import GatewayError, RequestError
from gateway.http import torchserve_errors
from gateway.http.dialect import Body, InferenceRequest
from gateway.http.form import checked_form
from gateway.http.json_dialect import JsonDialect
from gateway.http.json_images import takes_images
from gateway.http.tfserving_outputs import array_of, pieces, text_of
from gateway.http.torchserve_inputs import read
from gateway.http.waiting import Wish
from gateway.ipc.channel import Channel
from gateway.ipc.framing import ResultHeader, TensorHeader
from gateway.routing import Target
from gateway.tensors import Array, Buffer

PATH = re.compile(rb"/predictions/([^/]+)(?:/(\d+(?=\.0/?$)|[^/]+)(?:\.0)?)?/?")
"""Versions are whole numbers here, and TorchServe's clients write them as 1.0."""
PAIRS = 1024
"""Of label and probability that are written at a time."""
_CLASSIFIED = {"labels", "probabilities"}


class PredictionRequest(InferenceRequest):
    """What the response must know of its request."""

    row: bool = False
    """It was one row."""
    predictions: bool = False
    """It came as `instances`."""


class Predictions(JsonDialect):
    """POST or PUT /predictions/{model}[/{version or label}]."""

    protocol = "torchserve"
    takes_put = True  # curl -T, the first command of TorchServe's documentation

    def decode(self, body: Body, target: Target, channel: Channel, regions: list[int]) -> PredictionRequest:
        """See Dialect."""
        signature = target.signature(None)
        found = read(body, signature, images=takes_images(target))
        forms = tuple([(tensor.name, tensor.datatype, tensor.shape) for tensor in found.tensors])
        form = checked_form(target, None, forms, ())
        request = PredictionRequest(b"", [], rows=form.rows, row=found.row, predictions=found.predictions)
        sizes = []
        for tensor in found.tensors:
            placed = channel.place(tensor.raw, regions)
            sizes.append((len(tensor.raw), placed is not None))
            request.payload.append(tensor.raw if placed is None else placed)
        request.header = form.header_for(sizes)
        return request

    def parts(self, request: InferenceRequest, header: ResultHeader, tensors: Sequence[Buffer]) -> Iterator[bytes]:
        """See JsonDialect."""
        return _parts(request, header, tensors)

    def error(self, error: GatewayError, wish: Wish) -> tuple[int, bytes]:
        """See Dialect."""
        return torchserve_errors.answer(error, *wish)


PREDICTIONS = Predictions()


def _array(tensor: TensorHeader, raw: Buffer) -> Array:
    """An output; strings that are no text are written as base64."""
    try:
        return array_of(tensor.name, tensor.datatype, tensor.shape, raw)
    except RequestError:
        return array_of("_bytes", tensor.datatype, tensor.shape, raw)


def _parts(request: InferenceRequest, header: ResultHeader, tensors: Sequence[Buffer]) -> Iterator[bytes]:
    """The JSON of a response, piece by piece."""
    assert isinstance(request, PredictionRequest)
    arrays = {tensor.name: _array(tensor, raw) for tensor, raw in zip(header.outputs, tensors, strict=True)}
    if request.predictions:
        yield b'{"predictions":'
        yield from _rows(arrays)
        yield b"}"
    elif _classifies(arrays):
        yield from _judged(arrays, row=request.row and len(arrays["labels"]) == 1)
    else:
        if request.row:
            arrays = {name: _only_row(array) for name, array in arrays.items()}
        yield from _whole(arrays)


def _classifies(arrays: dict[str, Array]) -> bool:
    """Whether the outputs are the labels of classes and how probable they are, as of an image classifier."""
    if arrays.keys() != _CLASSIFIED:
        return False
    labels, probabilities = arrays["labels"], arrays["probabilities"]
    return labels.dtype == object and labels.ndim == 2 and labels.shape == probabilities.shape


def _judged(arrays: dict[str, Array], *, row: bool) -> Iterator[bytes]:
    """For each row {label: probability, …}, as TorchServe's image_classifier has it, in a list unless it is one row."""
    yield b"" if row else b"["
    for number, (labels, probabilities) in enumerate(zip(arrays["labels"], arrays["probabilities"], strict=True)):
        yield b",{" if number else b"{"
        for start in range(0, len(labels), PAIRS):
            pairs = zip(labels[start : start + PAIRS], probabilities[start : start + PAIRS], strict=True)
            text = b",".join(orjson.dumps(str(label)) + b":" + text_of(value) for label, value in pairs)
            yield b"," + text if start else text
        yield b"}"
    yield b"" if row else b"]"


def _only_row(array: Array) -> Array:
    """An output of one row without its batch dimension."""
    return array.reshape(array.shape[1:]) if array.shape[:1] == (1,) else array


def _whole(arrays: dict[str, Array]) -> Iterator[bytes]:
    """The only output, or an object of all of them."""
    if len(arrays) == 1:
        yield from pieces(next(iter(arrays.values())))
        return
    separator = b"{"
    for name, array in arrays.items():
        yield separator + orjson.dumps(name) + b":"
        yield from pieces(array)
        separator = b","
    yield b"}" if arrays else b"{}"


def _rows(arrays: dict[str, Array]) -> Iterator[bytes]:
    """A list with the outputs of each row."""
    lengths = {array.shape[:1] for array in arrays.values()}
    if len(arrays) == 1 or len(lengths) != 1 or () in lengths:
        yield from _whole(arrays)  # which is a list of rows if each row has one output
        return
    if _classifies(arrays):
        yield from _judged(arrays, row=False)
        return
    separator = b"["
    for row in range(lengths.pop()[0]):
        yield separator
        yield from _whole({name: array[row : row + 1].reshape(array.shape[1:]) for name, array in arrays.items()})
        separator = b","
    yield b"]" if separator == b"," else b"[]"
