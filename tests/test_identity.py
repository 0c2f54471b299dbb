"""Ids and trace parents come from strangers."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.http.identity import LONGEST, request_id, traceparent

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@given(st.binary(max_size=200))
def test_an_id_goes_back_as_it_came_or_not_at_all(value: bytes) -> None:
    found = request_id(value)
    assert found in (b"", value)
    assert len(found) <= LONGEST
    assert not re.search(rb"[\s\x00-\x20\x7f-\xff\"\\{};<>]", found)


@pytest.mark.parametrize("value", [b"a", b"x" * 128, b"7f3e-4a_b.c:d/e@f+g=h,i~j"])
def test_the_usual_ids_are_safe(value: bytes) -> None:
    assert request_id(value) == value


@given(st.binary(min_size=16, max_size=16), st.binary(min_size=8, max_size=8), st.integers(0, 255))
def test_a_trace_parent_is_read_as_it_is_written(trace: bytes, span: bytes, flags: int) -> None:
    found = traceparent(f"00-{trace.hex()}-{span.hex()}-{flags:02x}".encode())
    expected = (trace.hex(), span.hex(), flags) if any(trace) and any(span) else None
    assert found == expected


@pytest.mark.parametrize(
    "bad",
    [
        "",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-01-more",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE}-{SPAN}-1",
        f" 00-{TRACE}-{SPAN}-01",
    ],
)
def test_what_is_no_trace_parent_begins_a_new_trace(bad: str) -> None:
    assert traceparent(bad.encode()) is None


def test_a_later_version_may_say_more() -> None:
    assert traceparent(f"01-{TRACE}-{SPAN}-01-more".encode()) == (TRACE, SPAN, 1)
