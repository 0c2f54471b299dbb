"""A request's form: everything but its values. Clients repeat it, so it is checked once and looked up after that."""

from collections.abc import Sequence

import msgspec

from gateway.errors import RequestError
from gateway.ipc.framing import MAX_HEADER, REMEMBERED_BYTES, RequestHeader, TensorHeader, encode
from gateway.routing import Target
from gateway.tensors import DTYPES, ITEMSIZES, MAX_STRINGS, Signature, TensorSpec, element_count, rows_of

MAX_INPUTS = 4096
FORMS = 1024
"""Distinct forms remembered per model version; more of them, or larger ones, only cost checking again."""

InputForm = tuple[str, str, tuple[int, ...]]
"""Name, datatype, shape of an input."""


class FormInput(msgspec.Struct, frozen=True, gc=False):
    """One input of a checked form; `size` in raw bytes, -1 for BYTES, whose size its values decide."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    count: int
    size: int


class Form(msgspec.Struct, frozen=True):
    """A form that fits the model; `header` is ready to send if all its tensors travel inline and none is BYTES."""

    signature: str
    inputs: tuple[FormInput, ...]
    outputs: tuple[str, ...]
    header: bytes
    rows: int
    """What it counts for in the model's queue: no more than a full batch."""

    def header_for(self, tensors: Sequence[tuple[int, bool]]) -> bytes:
        """The frame header when the tensors have these sizes and lie in the arena or not."""
        for each, (size, placed) in zip(self.inputs, tensors, strict=True):
            if placed or size != each.size:
                return _header(self.signature, self.inputs, self.outputs, tensors)
        return self.header


def _header(
    signature: str, inputs: Sequence[FormInput], outputs: tuple[str, ...], tensors: Sequence[tuple[int, bool]]
) -> bytes:
    headers = tuple(
        TensorHeader(each.name, each.datatype, each.shape, size, placed)
        for each, (size, placed) in zip(inputs, tensors, strict=True)
    )
    header = encode(RequestHeader(signature, headers, outputs))
    if len(header) > MAX_HEADER:
        raise RequestError("the request has too many inputs or outputs, or their names are too long")
    return header


def checked_form(
    target: Target,
    signature_name: str | None,
    inputs: tuple[InputForm, ...],
    outputs: tuple[str, ...],
    *,
    shapes: bool = True,
) -> Form:
    """The form of a request for this model version; RequestError says what does not fit.

    Without `shapes` any shape does, as TensorFlow Serving has it: the model may take more than its signature says.
    """
    key = (signature_name, inputs, outputs, shapes)
    form = target.forms.get(key)
    if isinstance(form, Form):
        return form
    signature = target.signature(signature_name)
    if len(inputs) > MAX_INPUTS:
        raise RequestError(f"the request has {len(inputs)} inputs, {MAX_INPUTS} are the most")
    checked: list[FormInput] = []
    names: set[str] = set()
    for name, datatype, shape in inputs:
        _check_input(target, signature, name, datatype, shape if shapes else None)
        if name in names:
            raise RequestError(f"input '{name[:100]}' is given twice")
        names.add(name)
        count = element_count(shape)
        size = -1 if datatype == "BYTES" else count * ITEMSIZES[datatype]
        checked.append(FormInput(name, datatype, shape, count, size))
    strings = sum(each.count for each in checked if each.datatype == "BYTES")
    if strings > MAX_STRINGS:
        raise RequestError(f"the request has {strings} strings in its BYTES inputs, {MAX_STRINGS} are the most")
    missing = target.required[signature.name].difference(names)
    if missing:
        raise RequestError(f"input '{min(missing)}' of model '{target.model}' is missing")
    _check_outputs(signature, outputs)
    header = _header(signature.name, checked, outputs, [(max(each.size, 0), False) for each in checked])
    rows = rows_of(shape for _, _, shape in inputs) if target.max_rows > 1 else None
    form = Form(signature.name, tuple(checked), outputs, header, min(rows or 1, target.max_rows))
    if len(header) <= REMEMBERED_BYTES:
        if len(target.forms) >= FORMS:
            target.forms.clear()
        target.forms[key] = form
    return form


def _check_input(target: Target, signature: Signature, name: str, datatype: str, shape: tuple[int, ...] | None) -> None:
    if datatype not in DTYPES:
        raise RequestError(f"input '{name[:100]}' has datatype '{datatype[:40]}'; known are {', '.join(DTYPES)}")
    spec = target.specs[signature.name].get(name)
    if spec is None:
        if not signature.open_inputs:
            known = ", ".join(f"'{known.name}'" for known in signature.inputs) or "none"
            raise RequestError(f"model '{target.model}' has no input '{name[:100]}'; its inputs are {known}")
    elif spec.strict:
        _check_against(spec, datatype, shape)


def _check_against(spec: TensorSpec, datatype: str, shape: tuple[int, ...] | None) -> None:
    if spec.datatype != datatype:
        raise RequestError(f"input '{spec.name}' is {spec.datatype}, the request says {datatype}")
    want = spec.shape
    if (
        want is not None
        and shape is not None
        and (len(shape) != len(want) or any(w not in (-1, h) for h, w in zip(shape, want, strict=True)))
    ):
        raise RequestError(f"input '{spec.name}' has shape {list(shape[:8])}, the model takes {list(want)}")


def _check_outputs(signature: Signature, names: tuple[str, ...]) -> None:
    if len(set(names)) != len(names):
        raise RequestError("an output is requested twice")
    if signature.open_outputs:
        return
    known = [spec.name for spec in signature.outputs]
    for name in names:
        if name not in known:
            raise RequestError(f"the model has no output '{name[:100]}'; it has {', '.join(map(repr, known))}")
