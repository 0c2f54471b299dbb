"""TorchScript values and named arrays: what forward takes, what it returns, and the way from one to the other."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from gateway.errors import InferenceFailed, LoadFailed, RequestError
from gateway.instance.backend import Tensors
from gateway.store.manifest import TensorConfig
from gateway.tensors import DTYPES, Array

_BF16 = DTYPES["BF16"]
_SCALARS = {"IntType": "int", "FloatType": "float", "BoolType": "bool", "StringType": "str", "NumberType": "float"}
_LISTS = {"int": "ints", "float": "floats", "bool": "bools", "str": "strs"}
SCALAR_DATATYPES = {"int": "INT64", "float": "FP64", "bool": "BOOL", "str": "BYTES"}
LIST_DATATYPES = {_LISTS[kind]: datatype for kind, datatype in SCALAR_DATATYPES.items()}
# numpy kinds that each scalar may be sent as; a whole number is a fine float.
_ACCEPTED = {"int": "iu", "float": "fiu", "bool": "b", "str": "OSU"}
_NOUNS = {"int": "an integer", "float": "a number", "bool": "a boolean", "str": "a string"}

TORCH_DATATYPES: dict[torch.dtype, str] = {
    torch.bool: "BOOL",
    torch.uint8: "UINT8",
    torch.uint16: "UINT16",
    torch.uint32: "UINT32",
    torch.uint64: "UINT64",
    torch.int8: "INT8",
    torch.int16: "INT16",
    torch.int32: "INT32",
    torch.int64: "INT64",
    torch.float16: "FP16",
    torch.bfloat16: "BF16",
    torch.float32: "FP32",
    torch.float64: "FP64",
}


@dataclasses.dataclass(frozen=True)
class Argument:
    """One argument of forward; `elements` are the declared names of a list's, a tuple's or a dictionary's tensors.

    Kinds: tensor · tensors (a list) · tuple (of tensors) · entries (a dictionary of tensors) · int, float, bool, str
    and lists of those (ints, floats, bools, strs) · default (a type no tensor can carry: its default is passed).
    """

    name: str
    kind: str
    optional: bool = False
    default: Any = None
    elements: tuple[str, ...] = ()

    @property
    def scalar(self) -> bool:
        """Whether one number, boolean or string is wanted."""
        return self.kind in SCALAR_DATATYPES


# --- What forward takes ---------------------------------------------------------------------------


def arguments_of(schema: Any) -> list[Argument]:
    """The arguments of forward after self; LoadFailed names one that no tensor can carry."""
    return [_argument(argument) for argument in schema.arguments[1:]]


def _argument(argument: Any) -> Argument:
    kind, count = _kind(argument.type)
    optional = argument.type.kind() == "OptionalType" or argument.has_default_value()
    default = argument.default_value if argument.has_default_value() else None
    if not kind and not optional:
        raise LoadFailed(
            f"forward takes '{argument.name}' of type {argument.type.annotation_str}, which cannot be sent as tensors; "
            "wrap the model in a module whose forward takes tensors, numbers or strings"
        )
    elements = tuple(f"{argument.name}_{index}" for index in range(count))
    return Argument(argument.name, kind or "default", optional, default, elements)


def _kind(declared: Any) -> tuple[str, int]:
    """(kind, number of tensors of a tuple) of a TorchScript type; an empty kind where tensors cannot carry it."""
    name = declared.kind()
    if name == "OptionalType":
        return _kind(declared.getElementType())
    if name == "TensorType":
        return "tensor", 0
    if name in _SCALARS:
        return _SCALARS[name], 0
    if name == "ListType":
        element = declared.getElementType().kind()
        return ("tensors" if element == "TensorType" else _LISTS.get(_SCALARS.get(element, ""), "")), 0
    if name == "DictType" and declared.annotation_str == "Dict[str, Tensor]":
        return "entries", 0
    if name == "TupleType" and all(element.kind() == "TensorType" for element in declared.elements()):
        return "tuple", len(declared.elements())
    return "", 0


def bind(arguments: list[Argument], declared: Sequence[TensorConfig]) -> list[Argument]:
    """The arguments under the names that model.yaml declares; LoadFailed if those cannot be meant for them."""
    names = [config.name for config in declared]
    takers = [argument for argument in arguments if argument.kind != "default"]
    claims = {name: next((a.name for a in takers if _claims(a, name)), None) for name in names}
    dictionary = next((argument for argument in takers if argument.kind == "entries"), None)
    if not names:
        return arguments
    if dictionary is not None:
        rest = tuple(name for name in names if claims[name] is None)
        return [dataclasses.replace(a, elements=rest) if a is dictionary else a for a in arguments]
    if all(claims.values()):
        return [_with_elements(argument, names) for argument in arguments]
    if len(takers) == 1 and takers[0].kind in ("tensors", "tuple"):
        if takers[0].kind == "tensors" or len(takers[0].elements) == len(names):
            return [dataclasses.replace(a, elements=tuple(names)) if a is takers[0] else a for a in arguments]
    elif sum(not argument.optional for argument in takers) <= len(names) <= len(takers):
        renamed = {argument.name: name for argument, name in zip(takers, names, strict=False)}
        return [dataclasses.replace(a, name=renamed.get(a.name, a.name)) for a in arguments]
    wanted = ", ".join(f"'{argument.name}'" for argument in takers)
    raise LoadFailed(f"model.yaml declares {len(names)} inputs ({', '.join(names)}), but forward takes {wanted}")


def _claims(argument: Argument, name: str) -> bool:
    if argument.kind == "tensors" and name.startswith(f"{argument.name}_"):
        return name[len(argument.name) + 1 :].isdigit()
    return name in argument.elements if argument.kind == "tuple" else name == argument.name


def _with_elements(argument: Argument, names: list[str]) -> Argument:
    if argument.kind != "tensors":
        return argument
    return dataclasses.replace(
        argument, elements=tuple(n for n in names if n != argument.name and _claims(argument, n))
    )


def joining_obstacle(argument: Argument) -> str | None:
    """Why requests with this argument cannot be joined along a leading dimension; None where they can."""
    if argument.kind in ("tensor", "entries", "tuple", "default") or (argument.kind == "tensors" and argument.elements):
        return None
    if argument.kind == "tensors":
        return f"input '{argument.name}' is a list of any number of tensors"
    what = "a single value" if argument.scalar else "a list of values"
    return f"input '{argument.name}' is {what}, which is not a tensor with rows"


# --- Arrays to values -----------------------------------------------------------------------------


def to_tensor(name: str, array: Array) -> torch.Tensor:
    """The array as a tensor on the same memory where PyTorch can use it; RequestError if it has no such datatype."""
    try:
        if array.dtype == _BF16:
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(array)
    except TypeError:
        sent = "BYTES" if array.dtype.kind in _ACCEPTED["str"] else str(array.dtype)
        raise RequestError(f"input '{name}' has datatype {sent}; the model takes a tensor of numbers") from None
    except (ValueError, RuntimeError):  # negative or odd strides
        return torch.from_numpy(np.ascontiguousarray(array))


def gather(arguments: Sequence[Argument], inputs: Tensors) -> list[Any]:
    """The values to call forward with; RequestError names an input that is missing, unknown or of the wrong kind."""
    unclaimed = dict(inputs)
    values = [None if a.kind == "entries" else _value(a, inputs, unclaimed) for a in arguments]
    for index, argument in enumerate(arguments):
        if argument.kind == "entries":
            entries = {name: to_tensor(name, array) for name, array in unclaimed.items()}
            unclaimed.clear()
            if not entries and not argument.optional:
                raise _missing(argument.elements[0] if argument.elements else argument.name)
            values[index] = entries or argument.default
    if unclaimed:
        known = ", ".join(f"'{argument.name}'" for argument in arguments if argument.kind != "default")
        raise RequestError(f"unknown input '{next(iter(unclaimed))}'; the model takes {known}")
    return values


def _value(argument: Argument, inputs: Tensors, unclaimed: dict[str, Array]) -> Any:
    if argument.kind in ("tensors", "tuple"):
        return _sequence(argument, inputs, unclaimed)
    array = unclaimed.pop(argument.name, None) if argument.kind != "default" else None
    if array is None:
        if not argument.optional:
            raise _missing(argument.name)
        return argument.default
    if argument.kind == "tensor":
        return to_tensor(argument.name, array)
    if argument.scalar:
        if array.size != 1:
            wanted = f"input '{argument.name}' must be {_NOUNS[argument.kind]}, one element"
            raise RequestError(f"{wanted}; it has shape {list(array.shape)}")
        return _elements(argument.name, argument.kind, array)[0]
    return _elements(argument.name, argument.kind[:-1], array)


def _sequence(argument: Argument, inputs: Tensors, unclaimed: dict[str, Array]) -> Any:
    names: Sequence[str] = argument.elements
    if argument.kind == "tensors" and argument.name in unclaimed:
        array = unclaimed.pop(argument.name)
        if not array.ndim:
            raise RequestError(f"input '{argument.name}' must have a leading dimension to be taken apart along")
        return list(to_tensor(argument.name, array).unbind(0))
    if not names:
        count = next(index for index in range(len(inputs) + 1) if f"{argument.name}_{index}" not in inputs)
        names = [f"{argument.name}_{index}" for index in range(count)]
    missing = next((name for name in names if name not in unclaimed), None)
    if missing is not None or not names:
        if argument.optional and not any(name in unclaimed for name in names):
            return argument.default
        if argument.kind == "tensors" and not argument.elements:
            raise RequestError(
                f"input '{argument.name}' is missing: send {argument.name}_0, {argument.name}_1, … or {argument.name}"
            )
        raise _missing(missing or argument.name)
    tensors = [to_tensor(name, unclaimed.pop(name)) for name in names]
    return tuple(tensors) if argument.kind == "tuple" else tensors


def _elements(name: str, kind: str, array: Array) -> list[Any]:
    """The array's elements as Python values; TorchScript strings are bytes, so those are handed on as they are."""
    if array.dtype.kind in _ACCEPTED[kind]:
        return array.ravel().tolist()
    if kind == "float" and array.dtype == _BF16:
        return array.astype(np.float32).ravel().tolist()
    sent = "BYTES" if array.dtype.kind in _ACCEPTED["str"] else str(array.dtype)
    raise RequestError(f"input '{name}' must be {_NOUNS[kind]}, its datatype is {sent}")


def no_text(error: Exception, inputs: Tensors) -> RequestError | None:
    """The client's share in a string that PyTorch cannot give back, for want of being UTF-8; None if it has none."""
    if not isinstance(error, UnicodeDecodeError):
        return None
    for name, array in inputs.items():
        try:
            for element in array.ravel().tolist() if array.dtype.kind == "O" else ():
                element.decode()
        except UnicodeDecodeError:
            return RequestError(f"input '{name}' is not UTF-8, and the model's answer to it is no text")
    return None


def _missing(name: str) -> RequestError:
    return RequestError(f"input '{name}' is missing")


# --- Values to arrays -----------------------------------------------------------------------------


def to_array(name: str, tensor: torch.Tensor, *, copy: bool) -> Array:
    """The tensor as an array, of its own memory if `copy`; InferenceFailed if the protocol has no such datatype."""
    if tensor.dtype not in TORCH_DATATYPES:
        dtype = str(tensor.dtype).removeprefix("torch.")
        raise InferenceFailed(f"output '{name}' is {dtype}, for which the protocol has no datatype")
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    tensor = tensor.detach().cpu()
    if copy:
        tensor = tensor.clone()
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.int16).numpy().view(_BF16)
    return tensor.resolve_neg().numpy()


def leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(name, tensor, scalar or list of scalars) for everything that a result holds.

    Keys and field names are kept and joined with a dot. What has no name is counted: `output_0`, `output_1`, … A None
    counts without being yielded, so that the names of its neighbours do not depend on it.
    """
    if fields := getattr(value, "_fields", None):
        value = dict(zip(fields, value, strict=True))
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, f"{prefix}.{key}" if prefix else str(key))
    elif not isinstance(value, tuple | list) or _is_scalar_list(value):
        if value is not None:
            yield prefix or "output_0", value
    else:
        for index, item in enumerate(_flat(value)):
            yield from leaves(item, f"{prefix}.{index}" if prefix else f"output_{index}")


def _flat(value: Any) -> Iterator[Any]:
    for item in value:
        nested = isinstance(item, tuple | list) and not hasattr(item, "_fields") and not _is_scalar_list(item)
        if nested:
            yield from _flat(item)
        else:
            yield item


def _is_scalar_list(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, int | float | str) for item in value)


def plain_array(name: str, value: Any) -> Array:
    """A number, boolean or string, or a list of them, as an array."""
    if isinstance(value, str) or (isinstance(value, list) and isinstance(value[0], str)):
        items = [item.encode() for item in (value if isinstance(value, list) else [value])]
        array = np.empty(len(items), dtype=object)
        array[:] = items
        return array if isinstance(value, list) else array.reshape(())
    first = value[0] if isinstance(value, list) else value
    for kind, datatype in ((bool, "BOOL"), (int, "INT64"), (float, "FP64")):
        if isinstance(first, kind):
            return np.array(value, dtype=DTYPES[datatype])
    raise InferenceFailed(f"output '{name}' is a {type(value).__name__}, which no tensor can carry")


def empty_list(returns: Any) -> Array | None:
    """The array for an empty list returned by a forward of this type; None where lists hold tensors."""
    if returns.kind() != "ListType":
        return None
    datatype = SCALAR_DATATYPES.get(_SCALARS.get(returns.getElementType().kind(), ""))
    return None if datatype is None else np.empty(0, dtype=DTYPES[datatype])


def output_names(returns: Any) -> tuple[tuple[str, ...], bool]:
    """(names that forward's type promises, whether others may come)."""
    kind = returns.kind()
    if kind == "TupleType":
        elements = returns.elements()
        # A type that begins "NamedTuple(" names its fields in its printed form only.
        fields = [part.split(" : ")[0].strip() for part in _fields(returns.str())]
        names = fields if len(fields) == len(elements) else [f"output_{index}" for index in range(len(elements))]
        simple = all(element.kind() not in ("TupleType", "ListType", "DictType") for element in elements)
        return (tuple(names), False) if simple else ((), True)
    if kind == "ListType" and returns.getElementType().kind() in _SCALARS:
        return ("output_0",), False
    return ((), True) if kind in ("ListType", "DictType", "OptionalType", "AnyType") else (("output_0",), False)


def _fields(text: str) -> list[str]:
    """The fields of "NamedTuple(a : Tensor, b : Dict(str, Tensor))"; none for other types."""
    if not text.startswith("NamedTuple("):
        return []
    parts, depth = [""], 0
    for character in text.removeprefix("NamedTuple(")[:-1]:
        depth += (character in "([") - (character in ")]")
        if character == "," and not depth:
            parts.append("")
        else:
            parts[-1] += character
    return parts
