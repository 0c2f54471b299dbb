from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from gateway.comparing.schedule import Step, order, steps


@given(st.integers(0, 100), st.integers(1, 20))
def test_both_models_follow_each_other_in_every_place(number: int, places: int) -> None:
    found = list(steps(number, places))
    assert [step.place for step in found] == [place for place in range(places) for _ in "ab"]
    assert all({one.model, other.model} == {0, 1} for one, other in zip(found[::2], found[1::2], strict=True))


@given(st.integers(1, 10), st.integers(1, 20))
def test_over_an_even_number_of_rounds_each_is_first_as_often_in_every_place(half: int, places: int) -> None:
    firsts = Counter(step for number in range(2 * half) for step in list(steps(number, places))[::2])
    assert firsts == {Step(place, model): half for place in range(places) for model in (0, 1)}


def test_loads_change_their_order_too() -> None:
    assert [order(number) for number in range(3)] == [(0, 1), (1, 0), (0, 1)]
