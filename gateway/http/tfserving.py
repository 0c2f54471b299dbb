"""TensorFlow Serving's REST API: predict, classify and regress, on models of any framework.

Source: tensorflow_serving/model_servers/http_rest_api_handler.cc and http_rest_api_util.cc, docs api_rest.md.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import orjson

from gateway.errors import GatewayError, ModelNotFound, RequestError, VersionNotFound
from gateway.http.dialect import Body, InferenceRequest
from gateway.http.form import checked_form
from gateway.http.json_dialect import JsonDialect
from gateway.http.json_images import as_base64, image_rows, takes_images
from gateway.http.responses import status_of
from gateway.http.tfserving_examples import example, features
from gateway.http.tfserving_inputs import Tensor, from_inputs, from_instances
from gateway.http.tfserving_json import listed, parse
from gateway.http.tfserving_outputs import array_of, pieces, text_of
from gateway.http.waiting import Wish
from gateway.ipc.channel import Channel
from gateway.ipc.framing import ResultHeader
from gateway.routing import NotServed, Target
from gateway.tensors import Array, Buffer, Signature, TensorSpec, pack_bytes

_PATH = rb"(?i:/v1/models/([^/:]+)(?:/versions/(\d+)|/labels/([^/:]+))?:%s)"
PREDICT_PATH = re.compile(_PATH % b"predict")
CLASSIFY_PATH = re.compile(_PATH % b"classify")
REGRESS_PATH = re.compile(_PATH % b"regress")
SERVING_DEFAULT = "serving_default"
LARGEST_VERSION = 2**63 - 1
LONGEST_VERSION = 1000
"""Digits, which may be zeros before the number."""
NUMERIC_LABEL = "label "
"""Before a label that is a number, which would be taken for a version."""
MOST_EXAMPLE_BYTES = 32 << 20
"""Of all serialized examples of a request; the context is in each of them."""
Inputs = list[Tensor]


class TensorFlowServing(JsonDialect):
    """What the three calls have in common."""

    protocol = "tfserving"
    zero_is_latest = True

    def error(self, error: GatewayError, wish: Wish) -> tuple[int, bytes]:
        """See Dialect."""
        return answer_to(error, *wish)

    def parts(self, request: InferenceRequest, header: ResultHeader, tensors: Sequence[Buffer]) -> Iterator[bytes]:
        """See JsonDialect."""
        return self._parts(request, self._outputs(header, tensors))

    @staticmethod
    def _outputs(header: ResultHeader, tensors: Sequence[Buffer]) -> dict[str, Array]:
        if not header.outputs:
            raise RequestError("Cannot convert empty tensor map to JSON")
        return {
            tensor.name: array_of(tensor.name, tensor.datatype, tensor.shape, raw)
            for tensor, raw in zip(header.outputs, tensors, strict=True)
        }

    def _parts(self, request: InferenceRequest, outputs: dict[str, Array]) -> Iterator[bytes]:
        """The JSON of a response, piece by piece."""
        raise NotImplementedError


class PredictRequest(InferenceRequest):
    """What the response must know of its request: whether it came row by row."""

    by_row: bool = True


class Predict(TensorFlowServing):
    """POST …:predict: `instances` → `predictions`, or `inputs` → `outputs`."""

    def decode(self, body: Body, target: Target, channel: Channel, regions: list[int]) -> PredictRequest:
        """See Dialect."""
        document = parse(body.data)
        signature = _signature(document, target)
        by_row = "instances" in document
        if by_row == ("inputs" in document):
            if by_row:
                raise RequestError(
                    "JSON Value: Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist"
                )
            raise RequestError("Missing 'inputs' or 'instances' key")
        if takes_images(target) and signature is target.signature(None):
            document = _with_images(document, signature.inputs[0].name)
        if by_row:
            inputs = from_instances(document["instances"], signature, rounded=is_savedmodel(target))
        else:
            inputs = from_inputs(document["inputs"], signature, rounded=is_savedmodel(target))
        request = PredictRequest(b"", [], by_row=by_row)
        _send(request, target, signature.name, inputs, channel, regions)
        return request

    def _parts(self, request: InferenceRequest, outputs: dict[str, Array]) -> Iterator[bytes]:
        assert isinstance(request, PredictRequest)
        return _row_by_row(outputs) if request.by_row else _whole(outputs)


def _with_images(document: dict[str, Any], name: str) -> dict[str, Any]:
    """The request with its images as bytes for the input of this name."""
    if "instances" in document:
        return {"instances": image_rows(document["instances"], name)}
    return {"inputs": as_base64(document["inputs"])}


def _signature(document: dict[str, Any], target: Target) -> Signature:
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise RequestError("JSON Value not formatted correctly. 'signature_name' key must be a string value.")
    name = name or SERVING_DEFAULT
    signature = signatures_of(target).get(name)
    if signature is None:
        raise RequestError(f'Serving signature name: "{name[:100]}" not found in signature def')
    return signature


def signatures_of(target: Target) -> Mapping[str, Signature]:
    """The signatures by name; the one of a TorchScript model, which has another name, also as serving_default."""
    if is_savedmodel(target) or SERVING_DEFAULT in target.signatures:
        return target.signatures
    return {**target.signatures, SERVING_DEFAULT: target.signatures[target.default_signature]}


def is_savedmodel(target: Target) -> bool:
    """Whether TensorFlow itself says what fits its signatures."""
    return target.route.framework == "tensorflow"


def _send(
    request: InferenceRequest, target: Target, name: str, inputs: Inputs, channel: Channel, regions: list[int]
) -> None:
    """Put the tensors into a request to this signature."""
    forms = tuple([(tensor.name, tensor.datatype, tensor.shape) for tensor in inputs])
    form = checked_form(target, name, forms, (), shapes=not is_savedmodel(target))
    sizes = []
    for tensor in inputs:
        placed = channel.place(tensor.raw, regions)
        sizes.append((len(tensor.raw), placed is not None))
        request.payload.append(tensor.raw if placed is None else placed)
    request.header = form.header_for(sizes)
    request.rows = form.rows


def _row_by_row(outputs: dict[str, Array]) -> Iterator[bytes]:
    _check_rows(outputs)
    yield b'{"predictions":'
    if len(outputs) == 1:
        yield from pieces(next(iter(outputs.values())))
    else:
        keys = [orjson.dumps(name) for name in outputs]
        arrays = list(outputs.values())
        yield b"["
        for row in range(len(arrays[0])):
            separator = b",{" if row else b"{"
            for key, array in zip(keys, arrays, strict=True):
                yield separator + key + b":"
                yield from pieces(array[row : row + 1].reshape(array.shape[1:]))
                separator = b","
            yield b"}"
        yield b"]"
    yield b"}"


def _check_rows(outputs: dict[str, Array]) -> None:
    """Every output must have a row for each instance."""
    rows = -1
    for name, array in outputs.items():
        if not array.ndim:
            raise RequestError(f"Tensor name: {name} has no shape information")
        if rows >= 0 and len(array) != rows:
            raise RequestError(f"Tensor name: {name} has inconsistent batch size: {len(array)} expecting: {rows}")
        rows = len(array)


def _whole(outputs: dict[str, Array]) -> Iterator[bytes]:
    yield b'{"outputs":'
    if len(outputs) == 1:
        yield from pieces(next(iter(outputs.values())))
    else:
        separator = b"{"
        for name, array in outputs.items():
            yield separator + orjson.dumps(name) + b":"
            yield from pieces(array)
            separator = b","
        yield b"}"
    yield b"}"


class Judge(TensorFlowServing):
    """What classify and regress have in common: `examples` in, `results` out."""

    def decode(self, body: Body, target: Target, channel: Channel, regions: list[int]) -> InferenceRequest:
        """See Dialect."""
        document = parse(body.data)
        signature = _signature(document, target)
        common = features(document["context"]) if "context" in document else {}
        examples = document.get("examples")
        if examples is None:
            raise RequestError("JSON Value: When method is classify, key 'examples' is expected and was not found")
        examples = listed(examples)
        if not isinstance(examples, list):
            raise RequestError("JSON Value: Expecting 'examples' value to be an list/array")
        if not examples:
            raise RequestError("JSON Value: 'examples' value is an empty array")
        raw = pack_bytes(_serialized(common, examples))
        inputs = [Tensor(_examples_input(signature).name, "BYTES", (len(examples),), raw)]
        request = InferenceRequest(b"", [])
        _send(request, target, signature.name, inputs, channel, regions)
        return request


def _serialized(common: dict[str, bytes], examples: list[Any]) -> Iterator[bytes]:
    """Each example with the features of the context; RequestError if they come to too much."""
    in_each, size = sum(map(len, common.values())), 0
    for left, each in zip(range(len(examples), 0, -1), examples, strict=True):
        if size + in_each * left > MOST_EXAMPLE_BYTES:
            raise RequestError(
                f"the examples, each with the context, come to more than {MOST_EXAMPLE_BYTES} bytes; send fewer"
            )
        serialized = example(common | features(each))
        size += len(serialized)
        yield serialized


def _examples_input(signature: Signature) -> TensorSpec:
    """The input that takes serialized examples."""
    if len(signature.inputs) == 1 and signature.inputs[0].datatype == "BYTES":
        return signature.inputs[0]
    raise RequestError(
        f"signature '{signature.name}' does not take examples: its only input would have to be strings, "
        "each a serialized tf.Example; :predict takes tensors"
    )


PAIRS = 1024
"""Of label and score that are written at a time."""


class Classify(Judge):
    """POST …:classify: for each example its classes, as pairs of label and score."""

    def _parts(self, request: InferenceRequest, outputs: dict[str, Array]) -> Iterator[bytes]:  # noqa: ARG002 - Judge's
        classes, scores = outputs.get("classes"), outputs.get("scores")
        if scores is None and classes is None and len(outputs) == 1:
            scores = next(iter(outputs.values()))
        found = scores if scores is not None else classes
        if found is None:
            raise RequestError("Expected classification signature outputs to contain at least one of classes, scores")
        for array in (classes, scores):
            if array is not None and array.ndim != 2:
                raise RequestError(f"Expected Tensor shape: [batch_size num_classes] but got {list(array.shape)}")
        if classes is not None and scores is not None and classes.shape != scores.shape:
            raise RequestError("Tensors class and score should match in all dimensions")
        yield b'{"results":['
        for row in range(len(found)):
            yield b",[" if row else b"["
            for start in range(0, found.shape[1], PAIRS):
                pairs = []
                for column in range(start, min(start + PAIRS, found.shape[1])):
                    label = orjson.dumps(str(classes[row, column])) if classes is not None else b'""'
                    score = text_of(np.asarray(scores[row, column])) if scores is not None else b"0.0"
                    pairs.append(b"[" + label + b"," + score + b"]")
                yield (b"," if start else b"") + b",".join(pairs)
            yield b"]"
        yield b"]}"


class Regress(Judge):
    """POST …:regress: for each example a number."""

    def _parts(self, request: InferenceRequest, outputs: dict[str, Array]) -> Iterator[bytes]:  # noqa: ARG002 - Judge's
        found = outputs.get("outputs")
        if found is None and len(outputs) == 1:
            found = next(iter(outputs.values()))
        if found is None or found.dtype == object:
            raise RequestError("Expected regression signature outputs to contain a tensor of numbers named outputs")
        if found.ndim > 2 or not found.ndim or found.shape[1:] not in {(), (1,)}:
            raise RequestError(f"Expected Tensor shape: [batch_size] or [batch_size 1] but got {list(found.shape)}")
        yield b'{"results":'
        yield from pieces(found.reshape(-1))
        yield b"}"


PREDICT, CLASSIFY, REGRESS = Predict(), Classify(), Regress()


def answer_to(error: GatewayError, model: str, version: str | None) -> tuple[int, bytes]:
    """Status and body of an error, as TensorFlow Serving words it where it has a word."""
    status, message = status_of(error), error.message
    if isinstance(error, VersionNotFound) and version is not None and not version.isdigit():
        status, message = 400, f"Unrecognized servable version label: {version.removeprefix(NUMERIC_LABEL)}"
    elif type(error) in {ModelNotFound, VersionNotFound} and _is_too_large(version):
        status, message = 400, _no_number(version)
    elif type(error) in {ModelNotFound, VersionNotFound} or isinstance(error, NotServed):
        status = 404
        which = f"Latest({model})" if version is None else f"Specific({model}, {version})"
        message = f"Servable not found for request: {which}"
    return status, orjson.dumps({"error": message})


def check_version(version: str | None) -> None:
    """RequestError if a version is no number of 64 bits, whatever models there are."""
    if _is_too_large(version):
        raise RequestError(_no_number(version))


def _is_too_large(version: str | None) -> bool:
    if version is None or not version.isdigit():
        return False
    return len(version) > LONGEST_VERSION or int(version) > LARGEST_VERSION


def _no_number(version: str | None) -> str:
    return f"Failed to convert version: {(version or '')[:40]} to numeric."
