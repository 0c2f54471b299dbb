"""The request that people are shown for a model: one that it has answered with just these values."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from gateway.errors import GatewayError
from gateway.instance.backend import LoadedModel
from gateway.ipc.messages import EXAMPLE_BYTES, ExampleInput
from gateway.store.manifest import ModelConfig
from gateway.tensors import Array, raw_from_array


class ShownExample(NamedTuple):
    """A request that was answered, and in which forms its answer can be told."""

    inputs: list[ExampleInput]
    """Without data where they are many; then all elements are zero. Empty if nothing was answered."""
    in_binary: bool = False
    """Whether the answer holds strings that are no text, which only binary data can carry."""
    in_rows: bool = False
    """Whether inputs and outputs all have the same number of rows."""


def shown_example(model: LoadedModel, config: ModelConfig) -> ShownExample:
    """The request that the model was tested with, if it also answers it with the values that are shown."""
    if config.stateful or config.warmup.iterations == 0:
        return ShownExample([])
    example = model.example(model.default_signature)
    if not example:
        return ShownExample([])
    small = sum(len(raw_from_array(array)[1]) for array in example.values()) <= EXAMPLE_BYTES
    shown = {name: _rounded(array) if small else _zeros(array) for name, array in example.items()}
    try:
        answer = model.execute(model.default_signature, {name: array.copy() for name, array in shown.items()})
    except GatewayError:
        return ShownExample([])
    found = []
    for name, array in shown.items():
        datatype, raw = raw_from_array(array)
        found.append(ExampleInput(name, datatype, array.shape, bytes(raw) if small else b""))
    rows = {array.shape[:1] for array in (*shown.values(), *answer.values())}
    return ShownExample(found, not _is_text(answer), len(rows) == 1 and () not in rows)


def _rounded(array: Array) -> Array:
    """Numbers as short as people like them."""
    if array.dtype == object or array.dtype.kind in "biu":
        return array
    return np.nan_to_num(array.astype(np.float64), posinf=0.0, neginf=0.0).round(3).astype(array.dtype)


def _zeros(array: Array) -> Array:
    """The same shape and datatype with values that need not be told."""
    return np.full(array.shape, b"", dtype=object) if array.dtype == object else np.zeros(array.shape, array.dtype)


def _is_text(answer: Mapping[str, Array]) -> bool:
    """Whether all strings of an answer are UTF-8."""
    try:
        for array in answer.values():
            for element in array.ravel().tolist() if array.dtype == object else ():
                element.decode()
    except UnicodeDecodeError:
        return False
    return True
