"""In which order two models are measured. Pure functions."""

from collections.abc import Iterator
from typing import NamedTuple


class Step(NamedTuple):
    """Measure one of the models, 0 or 1, in one place of the table."""

    place: int
    model: int


def order(number: int) -> tuple[int, int]:
    """Both models: which one is first changes from each number to the next."""
    return (0, 1) if number % 2 == 0 else (1, 0)


def steps(number: int, places: int) -> Iterator[Step]:
    """All of one round.

    Both models follow each other at once in each place, so that whatever else the machine does meets both; which one
    is first changes from place to place, and in each place from round to round.
    """
    for place in range(places):
        for model in order(number + place):
            yield Step(place, model)
