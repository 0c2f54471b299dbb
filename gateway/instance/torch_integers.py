"""Which inputs of floats take whole numbers as they are: a TorchScript model that declares nothing is asked."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from gateway.instance.torch_inputs import Example, Guess
from gateway.tensors import DTYPES, Array

Answer = Callable[[Example], Example | None]
"""What the model answers to a request; None if it refuses it."""
HIGHEST = 4
"""Whole numbers up to this are tried: floats of every datatype hold them and their squares."""


def floats_only(answer: Answer, example: Example | None, weighed: Mapping[str, Sequence[Guess]]) -> frozenset[str]:
    """The inputs that whole numbers must be made floats for, because forward refuses INT64 or answers it otherwise.

    Inputs that meet a weight of floats are not asked about. Without an example nothing else is known.
    """
    names = {name for name, guesses in weighed.items() if guesses and _floating(DTYPES[guesses[0].datatype])}
    if example is None:
        return frozenset(names)
    asked = [name for name, array in example.items() if _floating(array.dtype) and name not in names]
    refused = {name for name in asked if not _same_for(answer, example, [name])}
    left = [name for name in asked if name not in refused]
    if len(left) > 1 and not _same_for(answer, example, left):
        refused.update(left)
    return frozenset(names | refused)


def _floating(dtype: np.dtype[np.generic]) -> bool:
    return dtype.kind == "f" or dtype == DTYPES["BF16"]


def _same_for(answer: Answer, example: Example, names: Iterable[str]) -> bool:
    """Whether the model answers whole numbers in these inputs as it answers the same numbers as floats."""
    generator = np.random.default_rng(0)
    whole = {name: np.asarray(generator.integers(1, HIGHEST + 1, example[name].shape)) for name in names}
    given = answer(example | whole)
    if given is None:
        return False
    wanted = answer(example | {name: array.astype(example[name].dtype) for name, array in whole.items()})
    if wanted is None or wanted.keys() != given.keys():
        return False
    return all(_agree(wanted[name], given[name]) for name in wanted)


def _agree(left: Array, right: Array) -> bool:
    if left.shape != right.shape or "O" in (left.dtype.kind, right.dtype.kind):
        return False
    a, b = left.astype(np.float64), right.astype(np.float64)
    return bool(np.allclose(a, b, rtol=1e-3, atol=1e-5, equal_nan=True))
