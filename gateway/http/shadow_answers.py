"""Whether two models have answered the same: their outputs beside each other, as frames bring them."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gateway.errors import RequestError
from gateway.ipc.framing import TensorHeader
from gateway.tensors import DTYPES, ITEMSIZES, Buffer, element_count

Outputs = Sequence[tuple[TensorHeader, Buffer]]
Numbers = npt.NDArray[np.float64]


class Agreement(NamedTuple):
    """How far two answers agree."""

    agrees: bool
    difference: float | None = None
    """The largest of numbers in the same place; None where nothing can be subtracted."""
    same: int = 0
    other: int = 0
    """Rows of scores whose highest is the same class, and another."""


def counterparts(names: Sequence[str], mine: Sequence[str], theirs: Sequence[str]) -> list[str] | None:
    """What the other model calls each of `names`: the same if it knows all of them, else what has the same place.

    `mine` and `theirs` are all that there are, in order. None if neither is possible.
    """
    if set(names) <= set(theirs):
        return list(names)
    if len(mine) != len(theirs) or not set(names) <= set(mine):
        return None
    by_place = dict(zip(mine, theirs, strict=True))
    return [by_place[name] for name in names]


def compare(mine: Outputs, theirs: Outputs, tolerance: float) -> Agreement:
    """How far the outputs agree; those of the second are in the order of the first.

    Numbers agree if they differ by no more than `tolerance` x (1 + the first),
    whole numbers and strings if they are equal.
    """
    agrees, differences, same, other = True, [], 0, 0
    for (header, raw), (their_header, their_raw) in zip(mine, theirs, strict=True):
        if not _comparable(header, their_header):
            agrees = False
        elif not _is_score(header.datatype):
            agrees = agrees and bytes(raw) == bytes(their_raw)
        elif not (_is_whole(header, raw) and _is_whole(their_header, their_raw)):
            agrees = False
        elif count := element_count(header.shape):
            one, two = _numbers(header, raw), _numbers(their_header, their_raw)
            near, difference = _apart(one, two, tolerance)
            agrees = agrees and near
            differences.append(difference)
            if len(header.shape) > 1 and header.shape[-1] > 1:
                alike = int(np.count_nonzero(one.argmax(axis=-1) == two.argmax(axis=-1)))
                same, other = same + alike, other + count // header.shape[-1] - alike
    return Agreement(agrees, max(differences, default=None), same, other)


def _comparable(one: TensorHeader, two: TensorHeader) -> bool:
    scores = _is_score(one.datatype) and _is_score(two.datatype)
    return one.shape == two.shape and (scores or one.datatype == two.datatype)


def _is_whole(header: TensorHeader, raw: Buffer) -> bool:
    """Whether there are as many bytes as the shape says: an instance may say anything."""
    try:
        return element_count(header.shape) * ITEMSIZES.get(header.datatype, 0) == len(raw)
    except RequestError:
        return False


def _is_score(datatype: str) -> bool:
    return datatype in ("FP16", "BF16", "FP32", "FP64")


def _numbers(header: TensorHeader, raw: Buffer) -> Numbers:
    return np.frombuffer(raw, DTYPES[header.datatype]).astype(np.float64).reshape(header.shape)


def _apart(one: Numbers, two: Numbers, tolerance: float) -> tuple[bool, float]:
    """Whether all numbers are near each other, and the largest difference.

    np.allclose says the same of finite numbers and takes three times as long.
    """
    with np.errstate(invalid="ignore"):
        apart = np.abs(one - two)
    most = float(apart.max())
    if math.isfinite(most):
        return bool((apart <= tolerance * (1.0 + np.abs(one))).all()), most
    apart[np.isnan(one) & np.isnan(two) | (one == two)] = 0.0  # infinities among them
    near = bool(np.allclose(two, one, rtol=tolerance, atol=tolerance, equal_nan=True))
    return near, float(np.nan_to_num(apart, nan=np.inf).max())
