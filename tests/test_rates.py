"""A key's rate holds whatever comes when, and over processes."""

import os

from hypothesis import given
from hypothesis import strategies as st

from gateway.http.rates import own_memory, shared_memory, take
from gateway.keys import MAX_KEYS

steps = st.lists(st.floats(0, 10), max_size=60)


@given(steps, st.integers(1, 50), st.integers(1, 20))
def test_no_span_of_time_sees_more_than_its_rate_and_one_burst(waits: list[float], rate: int, burst: int) -> None:
    memory, now, taken = own_memory(), 1000.0, []
    for wait in waits:
        now += wait / rate
        if take(memory, 3, now, 1 / rate, (burst - 1) / rate) == 0.0:
            taken.append(now)
    for first, start in enumerate(taken):
        for last in range(first, len(taken)):
            assert last - first + 1 <= burst + (taken[last] - start) * rate + 1e-6


@given(steps, st.integers(1, 50), st.integers(1, 20))
def test_who_waits_as_long_as_told_is_served(waits: list[float], rate: int, burst: int) -> None:
    memory, now = own_memory(), 1000.0
    for step in waits:
        now += step / rate
        wait = take(memory, 0, now, 1 / rate, (burst - 1) / rate)
        if wait:
            assert take(memory, 0, now + wait + 1e-9, 1 / rate, (burst - 1) / rate) == 0.0
            now += wait + 1e-9


@given(st.integers(1, 50), st.integers(1, 20))
def test_a_key_that_has_rested_may_make_its_burst_at_once(rate: int, burst: int) -> None:
    memory = own_memory()
    answers = [take(memory, 0, 50.0, 1 / rate, (burst - 1) / rate + 1e-9) for _ in range(burst + 1)]
    assert answers[:-1] == [0.0] * burst
    assert answers[-1] > 0


def test_two_processes_count_together_and_keys_do_not() -> None:
    descriptor = os.memfd_create("rates")
    os.ftruncate(descriptor, MAX_KEYS * 8)
    one, other = shared_memory(descriptor), shared_memory(descriptor)
    os.close(descriptor)
    assert take(one, MAX_KEYS - 1, 10.0, 1.0, 0.0) == 0.0
    assert take(other, MAX_KEYS - 1, 10.0, 1.0, 0.0) == 1.0
    assert take(other, 0, 10.0, 1.0, 0.0) == 0.0
