"""A request that a model answers, to be shown: the one that it was tested with at load, else one of plausible values.

Pure functions.
"""

from typing import Any

import msgspec
import numpy as np

from gateway import samples
from gateway.errors import RequestError
from gateway.http.generate import filled
from gateway.ipc.messages import ExampleInput
from gateway.routing import Target
from gateway.tensors import Signature, TensorSpec, array_from_raw, element_count

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


def example_of(target: Target) -> Example | None:
    """An example for the default signature; None if it would be too long, or a search at load found none."""
    ready, config = target.route.ready, target.route.config
    assert ready is not None
    signature = target.signature(None)
    if ready.example:
        specs = target.specs[signature.name]
        given = [_tested(specs.get(each.name), each) for each in ready.example]
    elif config.stateful or config.warmup.iterations == 0:  # nobody has tried
        given = [_plausible(spec) for spec in signature.inputs if not spec.optional]
    else:
        return None
    found = [each for each in given if each is not None]
    whole = len(found) == len(given) and sum(len(each.values) for each in found) <= MOST_ELEMENTS
    return found if found and whole else None


def _tested(spec: TensorSpec | None, example: ExampleInput) -> Given | None:
    """An input of the request that was tested, its numbers rounded for people."""
    spec = spec or TensorSpec(example.name, example.datatype, example.shape)
    if _elements(example.shape) > MOST_ELEMENTS:
        return None
    if not example.data:
        return Given(spec, example.shape, [samples.plausible(example.datatype)] * _elements(example.shape))
    try:
        array = array_from_raw(example.datatype, example.shape, example.data).reshape(-1)
        if example.datatype == "BYTES":
            return Given(spec, example.shape, [element.decode() for element in array.tolist()])
    except (RequestError, UnicodeDecodeError):
        return None
    if array.dtype.kind not in "biu":
        array = np.nan_to_num(array.astype(np.float64), posinf=0.0, neginf=0.0).round(3)
    return Given(spec, example.shape, array.tolist())


def _plausible(spec: TensorSpec) -> Given | None:
    shape = samples.smallest(spec)
    count = _elements(shape)
    return Given(spec, shape, [samples.plausible(spec.datatype)] * count) if count <= MOST_ELEMENTS else None


def _elements(shape: tuple[int, ...]) -> int:
    try:
        return element_count(shape)
    except RequestError:
        return MOST_ELEMENTS + 1


# In the words of each dialect


def infer(example: Example) -> dict[str, Any]:
    """The body of an inference request of the Open Inference Protocol."""
    return {
        "inputs": [
            {"name": each.spec.name, "shape": each.shape, "datatype": each.spec.datatype, "data": each.values}
            for each in example
        ]
    }


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


def predict(example: Example, signature: Signature, *, named: bool) -> dict[str, Any]:
    """The body of a TensorFlow Serving request: by rows if there are as many of all inputs and outputs, else by inputs.

    `named`: the signature is not the one that requests without a name get.
    """
    body: dict[str, Any] = {"signature_name": signature.name} if named else {}
    lengths = {each.shape[:1] for each in example}
    lengths |= {spec.shape[:1] for spec in signature.outputs if spec.shape is not None and spec.shape[:1] != (-1,)}
    if len(lengths) == 1 and () not in lengths:
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
