"""The body of a TorchServe call as tensors: JSON, a form, or the bytes of one value; what is one row and what a batch.

Source: pytorch/serve ts/torch_handler/base_handler.py (`row.get("data") or row.get("body")`), ts/service.py and
ts/torch_handler/request_envelope/json.py, docs inference_api.md.
"""

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import msgspec

from gateway.errors import RequestError
from gateway.http import form_fields
from gateway.http.dialect import Body
from gateway.http.json_depth import MAX_DEPTH, too_deep
from gateway.http.oip import raw_shape
from gateway.http.tfserving_inputs import Tensor, from_inputs, from_instances
from gateway.http.tfserving_json import check_pieces, check_strings, is_base64, parse
from gateway.tensors import ITEMSIZES, Buffer, Signature, TensorSpec, check_raw, pack_bytes

VALUE = ("data", "body")
"""The fields of a form, and the keys of a JSON object, that hold the value of a model's only input."""
_WRAPPERS = frozenset(VALUE)
JSON = b"application/json"
_RAW = b"application/octet-stream"
_decode = msgspec.json.Decoder().decode


class Inputs(NamedTuple):
    """The tensors of a request; `row`: it was one row, whose batch the gateway has made."""

    tensors: list[Tensor]
    row: bool
    predictions: bool = False
    """It came as `instances`, and is answered as `predictions`."""


def read(body: Body, signature: Signature) -> Inputs:
    """What a request asks of a model; RequestError says what does not fit."""
    kind, header = form_fields.content_type(body.headers)
    if not len(body.data):
        raise RequestError("the request has no body; it is a model's input, as JSON, a form, or as it is")
    if kind == form_fields.MULTIPART:
        return _from_form(form_fields.multipart(header, body.data), signature)
    # curl -d says that it sends a form, whatever it sends.
    if kind == form_fields.URLENCODED and not bytes(body.data[:64]).lstrip().startswith((b"{", b"[")):
        return _from_form(form_fields.urlencoded(body.data), signature)
    return _from_value(body.data, JSON if kind == form_fields.URLENCODED else kind, signature)


def _from_form(fields: Sequence[form_fields.Field], signature: Signature) -> Inputs:
    named = {field.name: field for field in fields}
    specs = {spec.name: spec for spec in signature.inputs}
    for name in VALUE:
        if name in named and name not in specs:
            return _from_value(named[name].data, named[name].kind, signature)
    found = [name for name in named if name in specs]
    if not found:
        given = ", ".join(f"'{name[:40]}'" for name in list(named)[:4]) or "nothing"
        raise RequestError(f"the form has {given}; a model's input is its field 'data', or a field for each input")
    tensors, rows = [], []
    for name in found:
        tensor, row = _value(named[name].data, named[name].kind, specs[name])
        tensors.append(tensor)
        rows.append(row)
    return _agreed(tensors, rows)


def _from_value(data: Buffer, kind: bytes, signature: Signature) -> Inputs:
    """One value: JSON, or the bytes of the only input."""
    only = _only_input(signature)
    if kind == JSON or kind.endswith(b"+json") or only is None:
        return from_json(document_of(data), signature)
    if only.datatype != "BYTES" and kind != _RAW and not kind.startswith(b"image/"):
        try:
            document = document_of(data)
        except RequestError:
            if kind.startswith(b"text/"):
                raise
        else:
            return from_json(document, signature)
    tensor, row = _raw(data, only)
    return Inputs([tensor], row)


def _value(data: Buffer, kind: bytes, spec: TensorSpec) -> tuple[Tensor, bool | None]:
    """The value of one of several inputs."""
    if kind == _RAW or (spec.datatype == "BYTES" and kind != JSON):
        return _raw(data, spec)
    only = Signature("", (spec,), ())
    return _batched(from_inputs(document_of(data), only)[0], spec)


def _only_input(signature: Signature) -> TensorSpec | None:
    required = [spec for spec in signature.inputs if not spec.optional] or list(signature.inputs)
    return required[0] if len(required) == 1 and not signature.open_inputs else None


def document_of(data: Buffer) -> Any:
    """The JSON of a body, arrays of many numbers unconverted; RequestError if it is none."""
    text = bytes(data)
    if text.lstrip()[:1] == b"{":
        return parse(text)
    if b'"' not in text:  # without a quote no key can follow it, and nothing but one value
        found = parse(b'{"data":' + text + b"}")
        return found["data"]
    check_strings(text)
    if too_deep(text):
        raise RequestError(f"JSON Parse error: nested more than {MAX_DEPTH} deep")
    check_pieces(text)
    try:
        return _decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise RequestError("JSON Parse error: Invalid value.") from None


def from_json(document: Any, signature: Signature) -> Inputs:
    """The tensors of a JSON value: of the only input, of inputs by name, or in one of TorchServe's envelopes."""
    names = {spec.name for spec in signature.inputs}
    if isinstance(document, dict) and not names.intersection(document) and not is_base64(document):
        if "instances" in document:
            rows = document["instances"]
            rows = _unwrapped(rows, names) if isinstance(rows, list) and rows else rows
            return Inputs(from_instances(rows, signature), row=False, predictions=True)
        for key in (*VALUE, "inputs"):
            if key in document:
                return _named_or_only(document[key], signature)
    return _named_or_only(document, signature)


def _named_or_only(value: Any, signature: Signature) -> Inputs:
    specs = {spec.name: spec for spec in signature.inputs}
    if isinstance(value, list) and value and isinstance(value[0], dict) and not is_base64(value[0]):
        return Inputs(from_instances(_unwrapped(value, specs), signature), row=False)
    if isinstance(value, dict) and not is_base64(value) and not signature.open_inputs:
        for name in value:
            if name not in specs:
                known = ", ".join(f"'{known}'" for known in specs)
                raise RequestError(f"the model has no input '{name[:100]}'; its inputs are {known}")
    tensors, rows = [], []
    for each in from_inputs(value, signature):
        tensor, row = _batched(each, specs.get(each.name))
        tensors.append(tensor)
        rows.append(row)
    return _agreed(tensors, rows)


def _unwrapped(rows: list[Any], names: Collection[str]) -> list[Any]:
    """Rows as TorchServe's handlers get them, {"data": value} or {"body": value}, as the values."""
    if _WRAPPERS.isdisjoint(names) and all(
        isinstance(row, dict) and len(row) == 1 and row.keys() <= _WRAPPERS for row in rows
    ):
        return [next(iter(row.values())) for row in rows]
    return rows


def _agreed(tensors: list[Tensor], rows: list[bool | None]) -> Inputs:
    """All inputs are of one row, or all of a batch; those that may be of any rank are what the others are."""
    known = {row for row in rows if row is not None}
    if len(known) > 1:
        row, batch = tensors[rows.index(True)].name, tensors[rows.index(False)].name
        raise RequestError(f"input '{row}' is given as one row and input '{batch}' as a batch; give both in one way")
    if not known or False in known:
        return Inputs(tensors, row=False)
    return Inputs(
        [
            tensor._replace(shape=(1, *tensor.shape)) if row is None else tensor
            for tensor, row in zip(tensors, rows, strict=True)
        ],
        row=True,
    )


def _batched(tensor: Tensor, spec: TensorSpec | None) -> tuple[Tensor, bool | None]:
    """The tensor with its batch dimension, and whether it had none; None if nobody knows."""
    shape = spec.shape if spec is not None else None
    if shape is None:
        return tensor, None
    if shape and len(tensor.shape) == len(shape) - 1 and shape[0] in (-1, 1):
        return tensor._replace(shape=(1, *tensor.shape)), True
    return tensor, False


def _raw(data: Buffer, spec: TensorSpec) -> tuple[Tensor, bool]:
    """Bytes that are one string, or exactly one tensor."""
    if spec.datatype == "BYTES":
        shape = raw_shape(spec, 1)
        return Tensor(spec.name, "BYTES", shape, pack_bytes([bytes(data)])), True
    count, rest = divmod(len(data), ITEMSIZES[spec.datatype])
    if rest:
        raise RequestError(
            f"the body is neither JSON nor a raw tensor: {len(data)} bytes are no whole number of "
            f"{spec.datatype} elements"
        )
    shape = raw_shape(spec, count)
    check_raw(spec.name, spec.datatype, shape, data)
    return Tensor(spec.name, spec.datatype, shape, data), bool(spec.shape) and shape[:1] == (1,)
