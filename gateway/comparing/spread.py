"""Figures that were measured several times in pairs: how they spread, and whether two of them differ. Pure functions.

A difference counts as clear if it is more than the noise by two criteria at once: the sign test over the paired rounds
says that chance alone would rarely put the same model ahead so often, and the middle halves of both models' rounds do
not overlap. Neither supposes anything about how the noise is distributed.
"""

from collections.abc import Sequence
from typing import Literal

import msgspec
import numpy as np

RARELY = 0.05
"""What happens by chance no more often than this is not put down to chance."""
FEWEST_ROUNDS = 6
"""With fewer paired rounds even one model ahead in all of them is not rare enough: 2 / 2**5 is more than RARELY."""
_DIGITS = 6


class Spread(msgspec.Struct, frozen=True):
    """One model's figure in each round, in their order, and what they come to."""

    rounds: list[float]
    median: float
    low: float
    """A quarter of the rounds are at or below."""
    high: float
    """Three quarters are."""
    least: float
    most: float


class Contrast(msgspec.Struct, frozen=True):
    """The same figure of both models."""

    a: Spread
    b: Spread
    ratio: float | None
    """Of the medians, b / a; None if a's is 0."""
    p: float
    """How often chance alone puts one model ahead in so many rounds (two-sided sign test)."""
    clear: bool
    """Whether they differ by more than the noise."""
    exact: bool = False
    """Not measured but known: any difference is one."""


class Histogram(msgspec.Struct, frozen=True):
    """How often what was seen, for both models over the same bounds."""

    bounds: list[float]
    """Rising; there is one more than there are counts."""
    a: list[int]
    b: list[int]


def rounded(value: float) -> float:
    """With as many digits as a measurement is worth."""
    return float(f"{value:.{_DIGITS}g}")


def spread(values: Sequence[float]) -> Spread:
    """What the figures of all rounds come to; there is at least one."""
    least, low, median, high, most = (rounded(float(each)) for each in np.percentile(values, (0, 25, 50, 75, 100)))
    return Spread([rounded(value) for value in values], median, low, high, least, most)


def sign_test(for_a: int, for_b: int) -> float:
    """How often a fair coin, tossed so many times, falls at least as unevenly as this."""
    tosses, ways, tail = for_a + for_b, 1, 0
    for number in range(min(for_a, for_b) + 1):
        tail += ways
        ways = ways * (tosses - number) // (number + 1)
    return float(min(1.0, 2 * tail / 2**tosses))


def contrast(a: Sequence[float], b: Sequence[float]) -> Contrast:
    """Two models' figures, those in the same place from the same round."""
    smaller = sum(x < y for x, y in zip(a, b, strict=True))
    larger = sum(x > y for x, y in zip(a, b, strict=True))
    p, one, other = sign_test(smaller, larger), spread(a), spread(b)
    apart = one.high < other.low or other.high < one.low
    return Contrast(one, other, _ratio(one.median, other.median), rounded(p), clear=apart and p <= RARELY)


def exactly(a: float, b: float) -> Contrast:
    """Two figures that are known and do not vary."""
    return Contrast(spread([a]), spread([b]), _ratio(a, b), 1.0, clear=a != b, exact=True)


def _ratio(a: float, b: float) -> float | None:
    return rounded(b / a) if a else None


def ahead(contrast: Contrast, better: Literal["less", "more"]) -> Literal["a", "b", ""]:
    """Which model is clearly better; empty if neither is."""
    if not contrast.clear:
        return ""
    return "a" if (contrast.a.median < contrast.b.median) == (better == "less") else "b"


def histogram(a: Sequence[float], b: Sequence[float], bins: int = 48) -> Histogram:
    """Two sets of positive figures over common bounds at equal ratios; the slowest thousandth is in the last bin."""
    both = np.concatenate([a, b])
    least, most = float(both.min()), float(np.percentile(both, 99.9))
    bounds = np.geomspace(least, max(most, least * 1.01), bins + 1)
    counts = [np.histogram(np.clip(each, bounds[0], bounds[-1]), bounds)[0].tolist() for each in (a, b)]
    return Histogram([rounded(float(each)) for each in bounds], *counts)
