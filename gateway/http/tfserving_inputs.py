"""The inputs of a predict request, given row by row or column by column, as one tensor each.

Source: tensorflow_serving/util/json_tensor.cc, whose wordings these are.
"""

import math
from typing import Any, NamedTuple

from gateway.errors import RequestError
from gateway.http.json_codec.numbers import Numbers, stacked
from gateway.http.json_datatypes import check_exact, datatype_of, datatype_of_unknown
from gateway.http.tfserving_json import all_listed, is_base64, listed, shape_of, shown, tensor_of
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


def from_instances(instances: Any, signature: Signature, *, rounded: bool = False) -> list[Tensor]:
    """The tensors of `instances`: a list with a value, or an object of named values, for each row.

    Whole numbers that a float does not hold are refused unless they are to be `rounded`.
    """
    if isinstance(instances, Numbers):
        what = "instances is a plain list, but expecting list of objects"
        return [_column(_only_input(signature, what), instances, rounded=rounded)]
    if not isinstance(instances, list):
        raise RequestError("JSON Value: Excepting 'instances' to be an list/array")
    if not instances:
        raise RequestError("JSON Value: No values in 'instances' array")
    if not _is_object(instances[0]):
        spec = _only_input(signature, "instances is a plain list, but expecting list of objects")
        return [_column(spec, instances, rounded=rounded)]
    specs = {spec.name: spec for spec in signature.inputs}
    columns: dict[str, list[Any]] = {}
    for row, values in enumerate(instances):
        _check_keys(row, values, signature, specs, columns)
        for name, value in values.items():
            columns.setdefault(name, []).append(value)
    return [_named(_spec(specs, name, column), column, rounded=rounded) for name, column in columns.items()]


def _named(spec: TensorSpec, column: list[Any], *, rounded: bool) -> Tensor:
    """The column of a named input: a tensor with its rows, or the one value that all rows have of a plain argument."""
    if not spec.plain:
        return _column(spec, column, spec.name, rounded=rounded)
    column = all_listed(column)
    if any(each != column[0] for each in column):
        raise RequestError(f"input '{spec.name}' is one value for all rows, which have different ones")
    return _whole(spec, column[0], rounded=rounded)


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
    """What is known of an input; of one that the signature leaves open, what its values tell."""
    return specs.get(name) or TensorSpec(name, datatype_of_unknown(value), None, strict=False)


def _column(spec: TensorSpec, values: "list[Any] | Numbers", key: str = "", *, rounded: bool) -> Tensor:
    """The values of all rows as one tensor, whose first dimension they are."""
    datatype = datatype_of(spec, values)
    if not rounded:
        check_exact(spec, datatype, values)
    if isinstance(values, list) and Numbers in set(map(type, values)):
        if (found := stacked(datatype, values)) is not None:
            return Tensor(spec.name, datatype, *found)
        values = all_listed(values)
    try:
        shape, raw = tensor_of(datatype, values)
    except RequestError as error:
        raise _what_is_wrong(datatype, listed(values), key) or error from None
    return Tensor(spec.name, datatype, shape, raw)


def _what_is_wrong(datatype: str, rows: list[Any], key: str) -> RequestError | None:
    """The first row that does not fit, or not to the first one."""
    first: tuple[int, ...] | None = None
    named = f" key: {key[:100]}" if key else ""
    for number, row in enumerate(rows[:SEARCHED_ROWS]):
        where = f"Failed to process element: {number}{named} of 'instances' list. Error: INVALID_ARGUMENT: "
        if not key and _is_object(row):
            return RequestError(f"Expecting value/list but got object at item {number} of input list")
        try:
            shape, _ = tensor_of(datatype, row)
        except RequestError as error:
            return RequestError(where + error.message)
        first = shape_of(row) if first is None else first
        if math.prod(shape) != math.prod(first):
            return RequestError(f"{where}Expecting tensor size: {math.prod(first)} but got: {math.prod(shape)}")
        if shape != first:
            return RequestError(f"{where}Expecting shape {_brief(first)} but got: {_brief(shape)}")
    return None


def _brief(shape: tuple[int, ...]) -> str:
    return f"[{','.join(map(str, shape))}]"


def from_inputs(inputs: Any, signature: Signature, *, rounded: bool = False) -> list[Tensor]:
    """The tensors of `inputs`: the value of the only input, or an object with the value of each; else as above."""
    if not _is_object(inputs):
        spec = _only_input(signature, "inputs is a plain value/list, but expecting an object")
        return [_whole(spec, inputs, rounded=rounded)]
    specs = {spec.name: spec for spec in signature.inputs}
    for name, spec in specs.items():
        if name not in inputs and not spec.optional:
            raise RequestError(f"Missing named input: {name} in 'inputs' object.")
    wanted = inputs if signature.open_inputs else [name for name in specs if name in inputs]
    return [_whole(_spec(specs, name, inputs[name]), inputs[name], rounded=rounded) for name in wanted]


def _whole(spec: TensorSpec, value: Any, *, rounded: bool) -> Tensor:
    datatype = datatype_of(spec, value)
    if not rounded:
        check_exact(spec, datatype, value)
    shape, raw = tensor_of(datatype, value)
    return Tensor(spec.name, datatype, shape, raw)
