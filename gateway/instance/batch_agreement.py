"""Whether two answers of a model are the same but for rounding, and by how much they differ: pure functions."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from gateway.errors import GatewayError, OutOfMemory
from gateway.tensors import Array

Tensors = dict[str, Array]
Scales = Mapping[str, Array]
"""Of each output the largest magnitude at each position of its last axis (see `magnitudes`)."""
_COARSE, _FINE = 1e-2, 1e-4
"""Relative tolerance of numbers of less than 32 bits, and of others."""
MAX_COLUMNS = 4096
"""Where the last axis is longer, its positions are no columns of different kinds."""
_CHUNK = 1 << 16
"""Elements that are compared at a time: a large output is not copied as a whole into wider numbers."""


def is_exact(array: Array) -> bool:
    """Whether its elements are equal or different, and nothing between: text, truth values, integers."""
    return array.dtype == object or array.dtype.kind in "biuSU"


def magnitudes(array: Array) -> Array:
    """The largest finite magnitude at each position of the last axis (FP64, shape [C]), or of all (shape [1]).

    The columns of an output may be of different kinds, such as an id next to a probability: what is rounding in one is
    not in another.
    """
    table = _table(array)
    found = np.zeros(table.shape[1])
    for part in _parts(table):
        wide = np.abs(table[part].astype(np.float64))
        wide[~np.isfinite(wide)] = 0.0
        np.maximum(found, wide.max(axis=0, initial=0.0), out=found)
    return found


def _table(array: Array) -> Array:
    columns = array.shape[-1] if array.ndim > 1 and array.size else 1
    return array.reshape(-1, columns if columns <= MAX_COLUMNS else 1)


def _parts(table: Array) -> list[slice]:
    rows = max(1, _CHUNK // table.shape[1])
    return [slice(start, start + rows) for start in range(0, len(table), rows)]


def agree(left: Array, right: Array, scale: Array | None = None, floor: float | None = None) -> bool:
    """Whether two answers are the same but for the rounding that another batch size may bring; NaN equals NaN.

    `scale` are the `magnitudes` of a whole batch of such answers, for one answer alone tells less: a number near zero
    may be the difference of large ones. Of the largest magnitude of all, `floor` is always allowed: by default the
    precision of the datatype.
    """
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    if is_exact(left):
        return bool(np.array_equal(left, right))
    if np.array_equal(left, right):
        return True
    coarse = _COARSE if left.dtype.itemsize < 4 else _FINE
    if floor is None:
        floor = 2.0**-52 if left.dtype.itemsize > 4 else 2.0**-23
    found: Any = magnitudes(left) if scale is None else scale
    allowed = coarse * 0.1 * found + floor * float(found.max(initial=0.0))
    one, other = _table(left), _table(right)
    return all(
        np.allclose(one[part].astype(np.float64), other[part].astype(np.float64), coarse, allowed, equal_nan=True)
        for part in _parts(one)
    )


def scales_of(outputs: Mapping[str, Array]) -> dict[str, Array]:
    """The `magnitudes` of all outputs of a batch that have any."""
    return {name: magnitudes(array) for name, array in outputs.items() if not is_exact(array)}


def disagreement(alone: Mapping[str, Array], together: Mapping[str, Array], scales: Scales | None = None) -> str | None:
    """How two answers to one request differ, as the end of a sentence; None if they agree.

    `scales` are those of the batch that one of them comes from.
    """
    if alone.keys() != together.keys():
        return "the names of the outputs differ"
    for name, left in alone.items():
        right = together[name]
        if agree(left, right, None if scales is None else scales.get(name)):
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


def is_sensitive(
    execute: Callable[[Tensors], Tensors],
    inputs: Tensors,
    answer: Mapping[str, Array],
    scales: Scales | None = None,
) -> bool:
    """Whether a change of the inputs as small as rounding changes the answer beyond what `agree` allows.

    A difference in such an answer says nothing of the rows next to it. Inputs without floating point numbers cannot
    be changed so little: False. OutOfMemory if it cannot be found out.
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
    except OutOfMemory:
        raise
    except GatewayError:
        return False
    return disagreement(answer, other, scales) is not None
