import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.commands.spans import Operation, Span, from_chrome, operations, to_chrome


def test_an_operations_own_time_is_without_those_within() -> None:
    spans = [Span("t", "outer", 0, 10), Span("t", "inner", 1, 3), Span("t", "inner", 5, 4), Span("t", "leaf", 6, 1)]
    assert operations(spans) == [
        Operation("inner", 2, 6, 7),
        Operation("outer", 1, 3, 10),
        Operation("leaf", 1, 1, 1),
    ]


def test_what_begins_where_another_ends_is_beside_it() -> None:
    assert operations([Span("t", "a", 0, 5), Span("t", "b", 5, 5)]) == [
        Operation("a", 1, 5, 5),
        Operation("b", 1, 5, 5),
    ]


def test_what_begins_together_is_in_the_longer_one_and_threads_know_nothing_of_each_other() -> None:
    spans = [Span("t", "short", 0, 2), Span("t", "long", 0, 9), Span("u", "other", 0, 4)]
    assert operations(spans) == [Operation("long", 1, 7, 9), Operation("other", 1, 4, 4), Operation("short", 1, 2, 2)]


def test_deep_calls_are_added_up_in_no_time() -> None:
    """A trace comes from whoever answers; looking through all that is open for each call would take minutes."""
    deep = [Span("t", f"op{at}", float(at), 2.0 * (60_000 - at)) for at in range(60_000)]
    assert len(operations(deep)) == 60_000


def test_what_calls_itself_counts_once_in_the_total() -> None:
    spans = [Span("t", "f", 0, 8), Span("t", "f", 1, 5), Span("t", "f", 2, 1)]
    assert operations(spans) == [Operation("f", 3, 8, 8)]


NESTED = st.recursive(st.just([]), lambda inner: st.lists(inner, min_size=1, max_size=4), max_leaves=12)


@given(NESTED, st.randoms(use_true_random=False))
def test_own_times_add_up_to_the_time_of_the_outermost(tree: list[object], random: object) -> None:
    spans: list[Span] = []

    def lay(node: list[object], start: float, length: float, depth: int) -> None:
        spans.append(Span("t", f"level {depth % 3}", start, length))
        for place, child in enumerate(node):
            share = length / (len(node) + 1)
            lay(child, start + share * place, share, depth + 1)  # type: ignore[arg-type]

    lay(tree, 0.0, 1024.0, 0)
    random.shuffle(spans)  # type: ignore[attr-defined]
    assert sum(each.own for each in operations(spans)) == pytest.approx(1024.0)
    assert sum(each.calls for each in operations(spans)) == len(spans)


def test_a_trace_that_is_written_is_read_again() -> None:
    events = json.loads(to_chrome([Span("host python", "MatMul", 1.5, 0.25), Span("gpu", "MatMul", 2, 1)]))
    assert [each["dur"] for each in events["traceEvents"] if each["ph"] == "X"] == [0.25, 1]
    assert {each["args"]["name"] for each in events["traceEvents"] if each["ph"] == "M"} == {"host python", "gpu"}


def test_of_pytorchs_trace_only_what_computes_counts() -> None:
    op = {"ph": "X", "cat": "cpu_op", "name": "aten::mm", "pid": 1, "tid": 2, "ts": 10.5, "dur": 2.5}
    other = [{"ph": "M", "name": "process_name"}, op | {"cat": "Trace"}, {"ph": "i", "name": "end"}]
    trace = json.dumps({"traceEvents": [op, *other]}).encode()
    assert from_chrome(trace) == [Span("1/2", "aten::mm", 10.5, 2.5)]


@pytest.mark.parametrize(
    "trace",
    [
        b"",
        b"[]",
        b"{}",
        b'{"traceEvents": 1}',
        b'{"traceEvents": [1]}',
        b'{"traceEvents": [{"ph": "X", "cat": "cpu_op"}]}',
    ],
)
def test_what_is_no_trace_is_said_so(trace: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        from_chrome(trace)
