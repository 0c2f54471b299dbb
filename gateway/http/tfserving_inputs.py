"""The inputs of a predict request, given row by row or column by column, as one tensor each.

Source: tensorflow_serving/util/json_tensor.cc, whose wordings these are.
"""

from typing import Any, NamedTuple

import simdjson

from gateway.errors import RequestError
from gateway.http.tfserving_json import is_base64, listed, shape_of, shown, tensor_of
from gateway.http.tfserving_numbers import Numbers, stacked
from gateway.tensors import Buffer, Signature, TensorSpec

SEARCHED_ROWS = 4096
"""So many are looked at for the one that does not fit."""


class Tensor(NamedTuple):
    """One input, ready to be sent."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    raw: Buffer


def _only_input(signature: Signature, what: str) -> TensorSpec:
    """The input that values without a name are for."""
    required = [spec for spec in signature.inputs if not spec.optional] or list(signature.inputs)
    if len(required) == 1:
        return required[0]
    if not required:
        raise RequestError(f"Failed to get input map for signature: {signature.name}")
    raise RequestError(f"{what} as multiple input tensors required as per tensorinfo_map")


def _is_object(value: Any) -> bool:
    return isinstance(value, dict) and not is_base64(value)


def from_instances(instances: Any, signature: Signature) -> list[Tensor]:
    """The tensors of `instances`: a list with a value, or an object of named values, for each row."""
    if isinstance(instances, Numbers):
        what = "instances is a plain list, but expecting list of objects"
        return [_column(_only_input(signature, what), instances)]
    if not isinstance(instances, list):
        raise RequestError("JSON Value: Excepting 'instances' to be an list/array")
    if not instances:
        raise RequestError("JSON Value: No values in 'instances' array")
    if not _is_object(instances[0]):
        spec = _only_input(signature, "instances is a plain list, but expecting list of objects")
        return [_column(spec, instances)]
    specs = {spec.name: spec for spec in signature.inputs}
    columns: dict[str, list[Any]] = {}
    for row, values in enumerate(instances):
        _check_keys(row, values, signature, specs, columns)
        for name, value in values.items():
            columns.setdefault(name, []).append(value)
    return [_column(_spec(specs, name, column[0]), column, name) for name, column in columns.items()]


def _check_keys(
    row: int, values: Any, signature: Signature, specs: dict[str, TensorSpec], columns: dict[str, list[Any]]
) -> None:
    """RequestError unless a row is an object with a value for each input, and the same ones as the rows before."""
    if not _is_object(values):
        raise RequestError(f"Expecting object but got list at item {row} of input list")
    for name in values:
        if name not in specs and not signature.open_inputs:
            raise RequestError(
                f"Failed to process element: {row} key: {name[:100]} of 'instances' list. Error: INVALID_ARGUMENT: "
                f"JSON object: does not have named input: {name[:100]}"
            )
    required = {name for name, spec in specs.items() if not spec.optional}
    if not required.issubset(values) or (columns and columns.keys() != values.keys()):
        raise RequestError(
            f"Failed to process element: {row} of 'instances' list. JSON object: {shown(values)} "
            f"keys must be equal to: {','.join(sorted(columns or specs))}"
        )


def _spec(specs: dict[str, TensorSpec], name: str, value: Any) -> TensorSpec:
    """What is known of an input; of one that the signature leaves open, what its first value tells."""
    if name in specs:
        return specs[name]
    value = value.array if isinstance(value, Numbers) else value
    while isinstance(value, list | simdjson.Array) and len(value):
        value = value[0]
    kinds = {bool: "BOOL", int: "INT64", float: "FP32"}
    return TensorSpec(name, kinds.get(type(value), "BYTES"), None, strict=False)


def _column(spec: TensorSpec, values: "list[Any] | Numbers", key: str = "") -> Tensor:
    """The values of all rows as one tensor, whose first dimension they are."""
    if isinstance(values, list) and isinstance(values[0], Numbers):
        if (found := stacked(spec.datatype, values)) is not None:
            return Tensor(spec.name, spec.datatype, *found)
        values = [listed(each) if isinstance(each, Numbers) else each for each in values]
    try:
        shape, raw = tensor_of(spec.datatype, values)
    except RequestError as error:
        rows = listed(values) if isinstance(values, Numbers) else values
        raise _what_is_wrong(spec, rows, key) or error from None
    return Tensor(spec.name, spec.datatype, shape, raw)


def _what_is_wrong(spec: TensorSpec, rows: list[Any], key: str) -> RequestError | None:
    """The first row that does not fit, or not to the first one."""
    first: tuple[int, ...] | None = None
    named = f" key: {key[:100]}" if key else ""
    for number, row in enumerate(rows[:SEARCHED_ROWS]):
        where = f"Failed to process element: {number}{named} of 'instances' list. Error: INVALID_ARGUMENT: "
        if not key and _is_object(row):
            return RequestError(f"Expecting value/list but got object at item {number} of input list")
        try:
            shape, _ = tensor_of(spec.datatype, row)
        except RequestError as error:
            return RequestError(where + error.message)
        first = shape_of(row) if first is None else first
        if shape != first:
            return RequestError(f"{where}Expecting shape {_brief(first)} but got: {_brief(shape)}")
    return None


def _brief(shape: tuple[int, ...]) -> str:
    return f"[{','.join(map(str, shape))}]"


def from_inputs(inputs: Any, signature: Signature) -> list[Tensor]:
    """The tensors of `inputs`: the value of the only input, or an object with the value of each."""
    if not _is_object(inputs):
        spec = _only_input(signature, "inputs is a plain value/list, but expecting an object")
        return [_whole(spec, inputs)]
    specs = {spec.name: spec for spec in signature.inputs}
    for name, spec in specs.items():
        if name not in inputs and not spec.optional:
            raise RequestError(f"Missing named input: {name} in 'inputs' object.")
    wanted = inputs if signature.open_inputs else [name for name in specs if name in inputs]
    return [_whole(_spec(specs, name, inputs[name]), inputs[name]) for name in wanted]


def _whole(spec: TensorSpec, value: Any) -> Tensor:
    shape, raw = tensor_of(spec.datatype, value)
    return Tensor(spec.name, spec.datatype, shape, raw)
