"""A request that a model has answered at load, to be shown to people.

Pure functions.
"""

from typing import Any

import msgspec
import numpy as np

from gateway import samples
from gateway.errors import RequestError
from gateway.http.generate import filled
from gateway.ipc.messages import ExampleInput, Ready
from gateway.tensors import DTYPES, ITEMSIZES, Signature, TensorSpec, array_from_raw, element_count

MOST_ELEMENTS = 4096
"""Of all inputs together: what people may be shown."""


class Given(msgspec.Struct, frozen=True):
    """One input of an example; `values` in row-major order, as JSON has them."""

    spec: TensorSpec
    shape: tuple[int, ...]
    values: list[Any]

    @property
    def nested(self) -> Any:
        """The values in lists as the shape says; one value without a list where it has no dimension."""
        return samples.nested(self.values, self.shape)


Example = list[Given]


def example_of(ready: Ready) -> Example | None:
    """The example for the default signature; None if it would be too long, or none was answered."""
    specs = {spec.name: spec for spec in ready.signatures[ready.default_signature].inputs}
    given = [_tested(specs.get(each.name), each) for each in ready.example]
    found = [each for each in given if each is not None]
    whole = len(found) == len(given) and sum(len(each.values) for each in found) <= MOST_ELEMENTS
    return found if found and whole else None


def zero_bytes(ready: Ready) -> int:
    """So many zero bytes are a raw request that the model has answered; 0 if none is known."""
    if len(ready.example) != 1 or ready.example[0].data:
        return 0
    (only,) = ready.example
    return _elements(only.shape) * ITEMSIZES.get(only.datatype, 0)


def _tested(spec: TensorSpec | None, example: ExampleInput) -> Given | None:
    """An input of the request that was tested, its numbers rounded for people."""
    spec = spec or TensorSpec(example.name, example.datatype, example.shape)
    if _elements(example.shape) > MOST_ELEMENTS:
        return None
    if not example.data:
        zero = "" if example.datatype == "BYTES" else DTYPES[example.datatype].type(0).item()
        return Given(spec, example.shape, [zero] * _elements(example.shape))
    try:
        array = array_from_raw(example.datatype, example.shape, example.data).reshape(-1)
        if example.datatype == "BYTES":
            return Given(spec, example.shape, [element.decode() for element in array.tolist()])
    except (RequestError, UnicodeDecodeError):
        return None
    if array.dtype.kind not in "biu":
        array = np.nan_to_num(array.astype(np.float64), posinf=0.0, neginf=0.0).round(3)
    return Given(spec, example.shape, array.tolist())


def _elements(shape: tuple[int, ...]) -> int:
    try:
        return element_count(shape)
    except RequestError:
        return MOST_ELEMENTS + 1


# In the words of each dialect


def infer(example: Example, *, binary: bool) -> dict[str, Any]:
    """The body of an inference request of the Open Inference Protocol; `binary`: its answer cannot be JSON."""
    inputs = [
        {"name": each.spec.name, "shape": each.shape, "datatype": each.spec.datatype, "data": each.values}
        for each in example
    ]
    return {"inputs": inputs} | ({"parameters": {"binary_data_output": True}} if binary else {})


def generate(example: Example) -> dict[str, Any]:
    """The body of a generate request: scalars and flat lists where they are enough."""
    return {each.spec.name: _flat(each) for each in example}


def _flat(given: Given) -> Any:
    try:
        enough = filled(given.spec, len(given.values)) == given.shape
    except RequestError:
        enough = False
    if not enough:
        return given.nested
    return given.values[0] if len(given.values) == 1 else given.values


def predict(example: Example, signature: Signature, *, named: bool, in_rows: bool) -> dict[str, Any]:
    """The body of a TensorFlow Serving request: by rows if the answer has as many of all outputs, else by inputs.

    `named`: the signature is not the one that requests without a name get.
    """
    body: dict[str, Any] = {"signature_name": signature.name} if named else {}
    if in_rows:
        return body | {"instances": rows(example)}
    inputs = example[0].nested if len(example) == 1 else {each.spec.name: each.nested for each in example}
    return body | {"inputs": inputs}


def rows(example: Example) -> list[Any]:
    """The example row by row: the values of the only input, or an object of all inputs by their names."""
    if len(example) == 1:
        nested: list[Any] = example[0].nested
        return nested
    return [{each.spec.name: each.nested[at] for each in example} for at in range(example[0].shape[0])]


def prediction(example: Example) -> Any:
    """The body of a TorchServe request: one row, or all inputs by their names where there are no rows."""
    if all(each.shape and each.shape[0] == 1 for each in example):
        return rows(example)[0]
    return {each.spec.name: each.nested for each in example}


def size_of(shape: tuple[int, ...] | None) -> str:
    """A shape of a signature for people."""
    return "any" if shape is None else str(list(shape)) + (" (-1: any size)" if -1 in shape else "")
