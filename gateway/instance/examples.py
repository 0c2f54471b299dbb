"""The request that people are shown for a model: one that it has answered with just these values."""

from collections.abc import Mapping

import numpy as np

from gateway import samples
from gateway.errors import GatewayError
from gateway.instance.backend import LoadedModel
from gateway.ipc.messages import EXAMPLE_BYTES, ExampleInput
from gateway.store.manifest import ModelConfig
from gateway.tensors import DTYPES, Array, raw_from_array

MOST_ELEMENTS = 4096
"""Of all inputs together: nobody reads more."""


def shown_example(model: LoadedModel, config: ModelConfig) -> tuple[list[ExampleInput], bool]:
    """The inputs, and whether the answer holds strings that are no text, which only binary data can carry.

    Without values for an input if they are many; then all are the same plausible one. Empty if nothing was answered.
    """
    if config.stateful or config.warmup.iterations == 0:
        return [], False
    example = model.example(model.default_signature)
    if not example:
        return [], False
    small = sum(len(raw_from_array(array)[1]) for array in example.values()) <= EXAMPLE_BYTES
    if not small and sum(array.size for array in example.values()) > MOST_ELEMENTS:
        return [ExampleInput(name, raw_from_array(array)[0], array.shape) for name, array in example.items()], False
    shown = {name: _rounded(array) if small else _constant(array) for name, array in example.items()}
    try:
        answer = model.execute(model.default_signature, {name: array.copy() for name, array in shown.items()})
    except GatewayError:
        return [], False
    found = []
    for name, array in shown.items():
        datatype, raw = raw_from_array(array)
        found.append(ExampleInput(name, datatype, array.shape, bytes(raw) if small else b""))
    return found, not _is_text(answer)


def _rounded(array: Array) -> Array:
    """Numbers as short as people like them."""
    if array.dtype == object or array.dtype.kind in "biu":
        return array
    return np.nan_to_num(array.astype(np.float64), posinf=0.0, neginf=0.0).round(3).astype(array.dtype)


def _constant(array: Array) -> Array:
    datatype = raw_from_array(array)[0]
    value = samples.plausible(datatype)
    return np.full(array.shape, value.encode() if isinstance(value, str) else value, DTYPES[datatype])


def _is_text(answer: Mapping[str, Array]) -> bool:
    """Whether all strings of an answer are UTF-8."""
    try:
        for array in answer.values():
            for element in array.ravel().tolist() if array.dtype == object else ():
                element.decode()
    except UnicodeDecodeError:
        return False
    return True
