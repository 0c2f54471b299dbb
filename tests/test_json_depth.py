import json
import resource
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.http.json_depth import MAX_DEPTH, too_deep

quick = settings(max_examples=200, deadline=None)

texts = st.text('[]{}"\\ ab,:é', max_size=12)
json_values = st.recursive(
    st.none() | st.integers(0, 9) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=40,
)


def depth(value: Any) -> int:
    if isinstance(value, list):
        return 1 + max(map(depth, value), default=0)
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    return 0


@quick
@given(json_values, st.integers(0, 6), st.booleans(), st.sampled_from([bytes, bytearray, memoryview]))
def test_depth_is_what_recursion_says_whatever_the_strings_hold(
    value: Any, limit: int, escaped: bool, kind: Any
) -> None:
    text = json.dumps(value, ensure_ascii=escaped).encode()
    assert too_deep(kind(text), limit) == (depth(value) > limit)


@pytest.mark.parametrize(("start", "end"), [("[", "]"), ('{"a":', "}"), ('[{"]":', "}]")])
def test_the_limit_itself_is_allowed_and_one_more_is_not(start: str, end: str) -> None:
    levels = start.count("[") + start.count("{")
    times = MAX_DEPTH // levels
    text = (start * times + "1" + end * times).encode()
    assert not too_deep(text)
    assert too_deep(b"[" + text + b"]")


def test_many_brackets_side_by_side_are_not_deep() -> None:
    assert not too_deep(b"[" + b",".join([b"[]"] * 10_000) + b"]")


def test_a_deep_text_that_never_closes_is_deep() -> None:
    assert too_deep(b"[" * 250_000)
    assert too_deep(b'{"a":' * 250_000)


def test_an_unfinished_string_ends_with_the_text() -> None:
    assert not too_deep(b'["' + b"[" * 200)  # which no parser will take for brackets either


def test_time_grows_with_the_length_of_an_unfinished_string_and_no_faster() -> None:
    def seconds(length: int) -> float:
        text = b"[" * 101 + b"]" * 101 + b'"' + b'\\"' * length
        started = time.perf_counter()
        too_deep(text)
        return time.perf_counter() - started

    assert min(seconds(100_000) for _ in range(3)) < 40 * min(seconds(10_000) for _ in range(3))


@quick
@given(st.binary(max_size=100), st.integers(0, 5))
def test_any_bytes_have_an_answer(text: bytes, limit: int) -> None:
    assert too_deep(text, limit) in (True, False)


@pytest.mark.skipif(resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY, reason="memory is limited")
def test_a_long_string_does_not_cost_many_times_its_size_in_memory() -> None:
    text = b"[" + b"[]," * 200 + b'"' + b"a" * (2 << 20) + b'"]'
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert not too_deep(text)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown * 1024 < 16 * len(text)  # one pass of the regular expression took 120 times the string
