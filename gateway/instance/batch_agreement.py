"""Whether two answers of a model are the same but for rounding, and by how much they differ: pure functions."""

from collections.abc import Callable, Mapping

import numpy as np

from gateway.errors import GatewayError
from gateway.tensors import Array

Tensors = dict[str, Array]
_COARSE, _FINE = 1e-2, 1e-4
"""Relative tolerance of numbers of less than 32 bits, and of others."""


def agree(left: Array, right: Array) -> bool:
    """Whether two answers are the same but for the rounding that another batch size may bring; NaN equals NaN."""
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    if left.dtype == object or left.dtype.kind in "biuSU":
        return bool(np.array_equal(left, right))
    if np.array_equal(left, right):
        return True
    coarse = _COARSE if left.dtype.itemsize < 4 else _FINE
    a, b = left.astype(np.float64), right.astype(np.float64)
    scale = float(np.max(np.abs(a[np.isfinite(a)]), initial=0.0))
    return bool(np.allclose(a, b, rtol=coarse, atol=coarse * 0.1 * scale, equal_nan=True))


def disagreement(alone: Mapping[str, Array], together: Mapping[str, Array]) -> str | None:
    """How two answers to one request differ, as the end of a sentence; None if they agree."""
    if alone.keys() != together.keys():
        return "the names of the outputs differ"
    for name, left in alone.items():
        right = together[name]
        if agree(left, right):
            continue
        if left.shape != right.shape:
            return f"output '{name}' has shape {list(right.shape)} instead of {list(left.shape)}"
        return f"output '{name}' differs{_by_how_much(left, right)}"
    return None


def _by_how_much(left: Array, right: Array) -> str:
    """The largest absolute difference of two arrays of numbers of one shape, as the end of a sentence."""
    if left.dtype == object or left.dtype.kind in "bSU" or left.dtype != right.dtype:
        return ""
    with np.errstate(all="ignore"):
        gaps = np.abs(left.astype(np.float64) - right.astype(np.float64))
    finite = gaps[np.isfinite(gaps)]
    return f" by up to {float(finite.max()):.3g}" if finite.size else ""


def is_sensitive(execute: Callable[[Tensors], Tensors], inputs: Tensors, answer: Mapping[str, Array]) -> bool:
    """Whether a change of the inputs as small as rounding changes the answer beyond what `agree` allows.

    A difference in such an answer says nothing of the rows next to it. Inputs without floating point numbers cannot
    be changed so little: False.
    """
    rng = np.random.default_rng(0)
    moved, any_moved = dict(inputs), False
    for name, array in inputs.items():
        if array.dtype == object or array.dtype.kind in "biuSU":
            continue
        step = 1e-6 if array.dtype.itemsize >= 4 else 1e-3
        factor = 1.0 + step * rng.choice((-1.0, 1.0), array.shape)
        with np.errstate(all="ignore"):
            moved[name] = (array.astype(np.float64) * factor).astype(array.dtype)
        any_moved = True
    if not any_moved:
        return False
    try:
        other = execute(moved)
    except GatewayError:
        return False
    return disagreement(answer, other) is not None
