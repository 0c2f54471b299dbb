"""The body of a TorchServe call as tensors: JSON, a form, or the bytes of one value; what is one row and what a batch.

Source: pytorch/serve ts/torch_handler/base_handler.py (`row.get("data") or row.get("body")`), ts/service.py and
ts/torch_handler/request_envelope/json.py, docs inference_api.md.
"""

import enum
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from gateway.errors import RequestError
from gateway.http import form_fields
from gateway.http.dialect import Body
from gateway.http.json_images import as_base64, image_rows
from gateway.http.oip import raw_shape
from gateway.http.tfserving_inputs import Tensor, from_inputs, from_instances
from gateway.http.tfserving_json import decoded, is_base64
from gateway.tensors import ITEMSIZES, Buffer, Signature, TensorSpec, check_raw, pack_bytes

VALUE = ("data", "body")
"""The fields of a form, and the keys of a JSON object, that hold the value of a model's only input."""
_WRAPPERS = frozenset(VALUE)
JSON = b"application/json"
_RAW = b"application/octet-stream"
_JSON_BEGINS = (b"{", b"[", b'"')
_SNIFFED = 256
"""Bytes of a body that are looked at for what it is."""
_NO_TEXT = bytes({*range(32), 127} - set(b"\t\n\r"))
"""Control characters, which no form and no JSON has."""


class _Form(enum.Enum):
    """How the value of an input is given."""

    ROW = enum.auto()
    """Without the batch dimension, which the gateway has made."""
    BATCH = enum.auto()
    ANY_RANK = enum.auto()
    """With or without: the model's rank is not known."""
    PLAIN = enum.auto()
    """A number, say, which has no rows."""


class Inputs(NamedTuple):
    """The tensors of a request; `row`: it was one row, whose batch the gateway has made."""

    tensors: list[Tensor]
    row: bool
    predictions: bool = False
    """It came as `instances`, and is answered as `predictions`."""


def read(body: Body, signature: Signature, *, images: bool = False) -> Inputs:
    """What a request asks of a model; RequestError says what does not fit.

    With `images` the only input takes encoded images: strings in JSON are base64, and a body that begins like JSON is.
    """
    kind, header = form_fields.content_type(body.headers)
    if not len(body.data):
        raise RequestError("the request has no body; it is a model's input, as JSON, a form, or as it is")
    if kind == form_fields.MULTIPART:
        return _from_form(form_fields.multipart(header, body.data), signature, images=images)
    begin = bytes(body.data[:_SNIFFED])
    json = begin.lstrip().startswith(_JSON_BEGINS)
    # curl -d and --data-binary say that they send a form, whatever they send.
    if kind == form_fields.URLENCODED and not json:
        if len(begin.translate(None, _NO_TEXT)) == len(begin):
            return _from_form(form_fields.urlencoded(body.data), signature, images=images)
        kind = _RAW
    elif kind == form_fields.URLENCODED or (images and json):
        kind = JSON
    return _from_value(body.data, kind, signature, images=images)


def _from_form(fields: Sequence[form_fields.Field], signature: Signature, *, images: bool) -> Inputs:
    named = {field.name: field for field in fields}
    specs = {spec.name: spec for spec in signature.inputs}
    for name in VALUE:
        if name in named and name not in specs:
            return _from_value(named[name].data, named[name].kind, signature, images=images)
    found = [name for name in named if name in specs]
    if not found:
        given = ", ".join(f"'{name[:40]}'" for name in list(named)[:4]) or "nothing"
        raise RequestError(f"the form has {given}; a model's input is its field 'data', or a field for each input")
    read = [_value(named[name].data, named[name].kind, specs[name]) for name in found]
    return _agreed([tensor for tensor, _ in read], [form for _, form in read])


def _from_value(data: Buffer, kind: bytes, signature: Signature, *, images: bool) -> Inputs:
    """One value: JSON, or the bytes of the only input."""
    only = _only_input(signature)
    if kind == JSON or kind.endswith(b"+json") or only is None:
        document = document_of(data)
        if images and only is not None:
            document = _with_images(document, only.name)
        return from_json(document, signature)
    if only.datatype != "BYTES" and kind != _RAW and not kind.startswith(b"image/"):
        try:
            document = document_of(data)
        except RequestError:
            if kind.startswith(b"text/"):
                raise
        else:
            return from_json(document, signature)
    tensor, form = _raw(data, only)
    return Inputs([tensor], row=form is _Form.ROW)


def _with_images(document: Any, name: str) -> Any:
    """The document with its images as bytes for the input of this name."""
    if isinstance(document, dict) and "instances" in document:
        return {"instances": image_rows(document["instances"], name)}
    return as_base64(document)


def _value(data: Buffer, kind: bytes, spec: TensorSpec) -> tuple[Tensor, _Form]:
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
    return decoded(bytes(data) if isinstance(data, memoryview) else data)


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
    found = [_batched(each, specs.get(each.name)) for each in from_inputs(value, signature)]
    return _agreed([tensor for tensor, _ in found], [form for _, form in found])


def _unwrapped(rows: list[Any], names: Collection[str]) -> list[Any]:
    """Rows as TorchServe's handlers get them, {"data": value} or {"body": value}, as the values."""
    if _WRAPPERS.isdisjoint(names) and all(
        isinstance(row, dict) and len(row) == 1 and row.keys() <= _WRAPPERS for row in rows
    ):
        return [next(iter(row.values())) for row in rows]
    return rows


def _agreed(tensors: Sequence[Tensor], forms: Sequence[_Form]) -> Inputs:
    """All inputs are of one row, or all of a batch; those that may be of any rank are what the others are."""
    if _Form.ROW in forms and _Form.BATCH in forms:
        row, batch = tensors[forms.index(_Form.ROW)].name, tensors[forms.index(_Form.BATCH)].name
        raise RequestError(f"input '{row}' is given as one row and input '{batch}' as a batch; give both in one way")
    if _Form.ROW not in forms:
        return Inputs(list(tensors), row=False)
    return Inputs(
        [
            tensor._replace(shape=(1, *tensor.shape)) if form is _Form.ANY_RANK else tensor
            for tensor, form in zip(tensors, forms, strict=True)
        ],
        row=True,
    )


def _batched(tensor: Tensor, spec: TensorSpec | None) -> tuple[Tensor, _Form]:
    """The tensor with its batch dimension, and how it was given."""
    if spec is not None and (spec.plain or spec.shape == ()):
        return tensor, _Form.PLAIN
    shape = spec.shape if spec is not None else None
    if shape is None:
        return tensor, _Form.ANY_RANK
    if shape and len(tensor.shape) == len(shape) - 1 and shape[0] in (-1, 1):
        return tensor._replace(shape=(1, *tensor.shape)), _Form.ROW
    return tensor, _Form.BATCH


def _raw(data: Buffer, spec: TensorSpec) -> tuple[Tensor, _Form]:
    """Bytes that are one string, or exactly one tensor."""
    if spec.datatype == "BYTES":
        shape = raw_shape(spec, 1)
        form = _Form.PLAIN if spec.plain else _Form.ROW
        return Tensor(spec.name, "BYTES", shape, pack_bytes([bytes(data)])), form
    count, rest = divmod(len(data), ITEMSIZES[spec.datatype])
    if rest:
        raise RequestError(
            f"the body is neither JSON nor a raw tensor: {len(data)} bytes are no whole number of "
            f"{spec.datatype} elements"
        )
    shape = raw_shape(spec, count)
    check_raw(spec.name, spec.datatype, shape, data)
    row = bool(spec.shape) and shape[:1] == (1,)
    return Tensor(spec.name, spec.datatype, shape, data), _Form.ROW if row else _Form.BATCH
