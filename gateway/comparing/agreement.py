"""How far the answers of two models agree with each other and with labels. Pure functions."""

from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from gateway.comparing.pairing import Pair, kind
from gateway.comparing.spread import rounded, sign_test
from gateway.errors import RequestError
from gateway.tensors import Array


class OutputAgreement(msgspec.Struct, frozen=True):
    """How far one output of both models agrees over all rows."""

    a: str
    b: str
    rows: int
    elements: int
    unequal: int
    """Elements that differ: at all, or of floats in that one is a number and the other is not."""
    max_difference: float | None
    """The largest absolute difference of two numbers; None for what is no number."""
    mean_difference: float | None
    same_class: float | None
    """The share of rows in which the highest of the row stands in the same place; None if a row is no list."""


class Accuracy(msgspec.Struct, frozen=True):
    """How often the models say what the labels say."""

    output: str
    rows: int
    a: float
    b: float
    only_a: int
    """Rows in which a alone is right."""
    only_b: int
    p: float
    """How often chance alone divides the rows in which one is right so unevenly (two-sided sign test)."""


def agreement(pair: Pair, datatype: str, a: Array, b: Array) -> OutputAgreement:
    """Compare one output of the same rows; RequestError if the shapes differ."""
    a = np.transpose(a, pair.axes) if pair.axes else a
    if a.shape != b.shape:
        raise RequestError(
            f"the models cannot be compared: output '{pair.a}' has shape {list(a.shape)}, '{pair.b}' {list(b.shape)}"
        )
    rows = len(a) if a.ndim else 1
    if kind(datatype) not in ("float", "integer"):
        return OutputAgreement(pair.a, pair.b, rows, a.size, int(np.sum(a != b)), None, None, None)
    integer = kind(datatype) == "integer"
    exact = np.longdouble if integer else np.float64  # INT64 needs more digits than a float64 has
    x, y = a.astype(exact), b.astype(exact)
    numbers = np.isfinite(x) & np.isfinite(y)
    apart = np.abs(x[numbers] - y[numbers])
    same = (x == y) | (np.isnan(x) & np.isnan(y))
    return OutputAgreement(
        pair.a,
        pair.b,
        rows,
        a.size,
        int(np.sum(a != b)) if integer else int(np.sum(~same & ~numbers)),
        rounded(float(apart.max())) if apart.size else 0.0,
        rounded(float(apart.mean())) if apart.size else 0.0,
        rounded(float(np.mean(x.argmax(-1) == y.argmax(-1)))) if not integer and _are_scores(a) else None,
    )


def _are_scores(array: Array) -> bool:
    """Whether each row may be scores of classes."""
    return array.ndim == 2 and array.shape[-1] >= 2 and array.size > 0


def classes(array: Array) -> Array | None:
    """The class that each row of an output says; None if it says none."""
    numeric = array.dtype.kind in "fV"
    if numeric:
        return array.astype(np.float64).argmax(-1) if _are_scores(array) else None
    return array.reshape(-1) if array.ndim and array.size == len(array) else None


def accuracy(outputs: Sequence[tuple[str, Array, Array]], labels: Array) -> Accuracy | None:
    """How often the first output that says classes, of the labels' kind, says the label's; None if none does."""
    for name, a, b in outputs:
        ours, theirs = classes(a), classes(b)
        if ours is not None and theirs is not None and _comparable(ours, labels) and _comparable(theirs, labels):
            return _accuracy(name, _right(ours, labels), _right(theirs, labels))
    return None


def _accuracy(name: str, a: npt.NDArray[np.bool_], b: npt.NDArray[np.bool_]) -> Accuracy:
    only_a, only_b = int(np.sum(a & ~b)), int(np.sum(b & ~a))
    p = rounded(sign_test(only_a, only_b))
    return Accuracy(name, len(a), rounded(float(a.mean())), rounded(float(b.mean())), only_a, only_b, p)


def _comparable(said: Array, labels: Array) -> bool:
    return (said.dtype == object) == (labels.dtype.kind in "US")


def _right(said: Array, labels: Array) -> npt.NDArray[np.bool_]:
    if said.dtype == object:
        wanted = [each.encode() if isinstance(each, str) else bytes(each) for each in labels.tolist()]
        return np.array([one == other for one, other in zip(said.tolist(), wanted, strict=True)], np.bool_)
    return np.asarray(said == labels, np.bool_)
