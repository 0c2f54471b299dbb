from collections import deque
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.instance.connection import Connection
from gateway.instance.queue import (
    MANY_DEAD,
    PendingRequest,
    Plan,
    RequestQueue,
    plan_request,
    take_batch,
    wait_for_more,
)
from gateway.ipc.framing import RequestHeader, TensorHeader

quick = settings(max_examples=200, deadline=None)


class FakeConnection:
    def __init__(self) -> None:
        self.queued: dict[int, PendingRequest] = {}


def waiting(
    rows: int, key: str | None, number: int = 0, arrived: float = 0.0, deadline: float = 0.0, priority: int = 50
) -> PendingRequest:
    plan = Plan("forward", (), (), rows, rows, 8 * rows, None if key is None else (key,))
    return PendingRequest(cast("Connection", FakeConnection()), number, plan, b"", arrived, deadline, priority)


queues = st.lists(st.tuples(st.integers(1, 6), st.sampled_from(["a", "b", None])), min_size=1, max_size=12).map(
    lambda items: [waiting(rows, key, number) for number, (rows, key) in enumerate(items)]
)


@quick
@given(queues, st.integers(1, 8))
def test_a_batch_takes_the_oldest_and_its_like_in_order_and_leaves_the_rest_in_order(
    requests: list[PendingRequest], max_rows: int
) -> None:
    queue = deque(requests)
    batch = take_batch(queue, max_rows)
    assert batch[0] is requests[0]
    assert [each.request_id for each in batch] == sorted(each.request_id for each in batch)
    assert [each.request_id for each in queue] == sorted(each.request_id for each in queue)
    assert sorted(each.request_id for each in [*batch, *queue]) == [each.request_id for each in requests]
    assert len({each.plan.key for each in batch}) == 1
    assert len(batch) == 1 or sum(each.plan.rows for each in batch) <= max_rows
    assert batch[0].plan.key is not None or len(batch) == 1


@quick
@given(queues, st.integers(1, 8))
def test_no_request_is_left_behind_that_would_have_fitted_nor_overtaken_by_its_like(
    requests: list[PendingRequest], max_rows: int
) -> None:
    queue = deque(requests)
    batch = take_batch(queue, max_rows)
    left = [each for each in queue if each.plan.key == batch[0].plan.key and each.plan.key is not None]
    if left:
        assert left[0].request_id > batch[-1].request_id
        assert sum(each.plan.rows for each in batch) + left[0].plan.rows > max_rows


@quick
@given(queues, st.integers(1, 8))
def test_taking_batch_after_batch_takes_everything_once(requests: list[PendingRequest], max_rows: int) -> None:
    queue, taken = deque(requests), []
    while queue:
        taken += take_batch(queue, max_rows)
    assert sorted(each.request_id for each in taken) == list(range(len(requests)))
    for key in ("a", "b"):
        like = [each.request_id for each in taken if each.plan.key == (key,)]
        assert like == sorted(like)


def test_one_larger_than_the_limit_goes_alone() -> None:
    queue = deque([waiting(9, "a", 0), waiting(1, "a", 1)])
    assert [each.request_id for each in take_batch(queue, 4)] == [0]
    assert [each.request_id for each in queue] == [1]


# wait_for_more


def test_without_a_delay_nothing_waits() -> None:
    assert wait_for_more(deque([waiting(1, "a")]), 8, 0.0, 0.0) == 0


def test_an_empty_queue_and_one_that_runs_alone_do_not_wait() -> None:
    assert wait_for_more(deque(), 8, 1.0, 0.0) == 0
    assert wait_for_more(deque([waiting(1, None)]), 8, 1.0, 0.0) == 0


def test_the_oldest_waits_until_its_delay_is_over() -> None:
    queue = deque([waiting(1, "a", arrived=10.0), waiting(1, "a", arrived=10.9)])
    assert wait_for_more(queue, 8, 1.0, 10.25) == pytest.approx(0.75)
    assert wait_for_more(queue, 8, 1.0, 11.0) == 0
    assert wait_for_more(queue, 8, 1.0, 99.0) == 0


def test_a_full_batch_does_not_wait() -> None:
    assert wait_for_more(deque([waiting(4, "a"), waiting(4, "a")]), 8, 1.0, 0.0) == 0
    assert wait_for_more(deque([waiting(9, "a")]), 8, 1.0, 0.0) == 0
    assert wait_for_more(deque([waiting(4, "a"), waiting(3, "a")]), 8, 1.0, 0.0) > 0


def test_requests_of_another_key_do_not_fill_a_batch() -> None:
    assert wait_for_more(deque([waiting(4, "a"), waiting(4, "b"), waiting(4, None)]), 8, 1.0, 0.0) == 1.0


# plan_request


def header(
    *tensors: tuple[str, str, tuple[int, ...]], signature: str = "f", outputs: Any = (), placed: bool = False
) -> RequestHeader:
    made = tuple(TensorHeader(name, datatype, shape, 0, placed) for name, datatype, shape in tensors)
    return RequestHeader(signature, made, outputs)


X = ("x", "FP32", (2, 3))


def test_requests_that_differ_in_rows_only_may_be_joined() -> None:
    first, second = plan_request(header(X), max_rows=8), plan_request(header(("x", "FP32", (5, 3))), max_rows=8)
    assert first.key == second.key is not None
    assert (first.rows, second.rows) == (2, 5)


@pytest.mark.parametrize(
    "other",
    [
        header(("x", "FP32", (2, 4))),
        header(("x", "FP64", (2, 3))),
        header(("z", "FP32", (2, 3))),
        header(("x", "FP32", (2, 3, 1))),
        header(X, ("w", "FP32", (2,))),
        header(X, signature="g"),
        header(X, outputs=("y",)),
        header(X, placed=True),
    ],
)
def test_requests_that_differ_in_anything_else_may_not(other: RequestHeader) -> None:
    assert plan_request(other, max_rows=8).key != plan_request(header(X), max_rows=8).key


@pytest.mark.parametrize(
    "alone",
    [
        header(),
        header(("x", "FP32", ())),
        header(("x", "FP32", (0, 3))),
        header(X, ("w", "FP32", (3,))),
        header(X, ("w", "FP32", ())),
    ],
)
def test_a_request_without_a_common_number_of_rows_runs_alone(alone: RequestHeader) -> None:
    plan = plan_request(alone, max_rows=8)
    assert plan.key is None
    assert plan.rows == 1


def test_a_request_of_many_rows_counts_for_a_full_batch_and_no_more() -> None:
    plans = [plan_request(header(("x", "FP32", (rows, 3))), max_rows=8) for rows in (1, 8, 5000)]
    assert [(plan.rows, plan.load) for plan in plans] == [(1, 1), (8, 8), (5000, 8)]


def test_a_request_of_a_signature_that_must_not_be_joined_runs_alone() -> None:
    assert plan_request(header(X), max_rows=1).key is None


# RequestQueue


def numbers(requests: list[PendingRequest]) -> list[int]:
    return [each.request_id for each in requests]


def test_smaller_priorities_come_first_and_equal_ones_in_order_of_arrival() -> None:
    queue = RequestQueue()
    for number, priority in enumerate([50, 100, 1, 50, 1, 7]):
        queue.push(waiting(1, None, number, priority=priority))
    taken = [numbers(queue.take(8, 0.0)[0]) for _ in range(6)]
    assert taken == [[2], [4], [5], [0], [3], [1]]
    assert (queue.rows, queue.size) == (0, 0)


def test_requests_of_different_priorities_are_not_joined() -> None:
    queue = RequestQueue()
    for number, priority in enumerate([50, 9, 50, 9]):
        queue.push(waiting(1, "a", number, priority=priority))
    assert [numbers(queue.take(8, 0.0)[0]) for _ in range(2)] == [[1, 3], [0, 2]]


def test_a_request_whose_time_is_over_is_handed_out_apart_and_not_run() -> None:
    queue = RequestQueue()
    for number, deadline in enumerate([5.0, 0.0, 20.0, 9.9]):
        queue.push(waiting(1, "a", number, deadline=deadline))
    batch, late = queue.take(8, 10.0)
    assert (numbers(batch), numbers(late)) == ([1, 2], [0, 3])
    assert (queue.rows, queue.size) == (0, 0)


def test_a_queue_of_nothing_but_late_requests_gives_no_batch() -> None:
    queue = RequestQueue()
    for number in range(3):
        queue.push(waiting(1, "a", number, deadline=1.0, priority=number + 1))
    batch, late = queue.take(8, 10.0)
    assert (numbers(batch), numbers(late)) == ([], [0, 1, 2])
    assert queue.take(8, 10.0) == ([], [])


def test_a_removed_request_leaves_its_connection_and_keeps_no_payload() -> None:
    queue = RequestQueue()
    kept, removed = waiting(1, "a", 1), waiting(3, "a", 2)
    removed.payload = b"large"
    for each in (removed, kept):
        queue.push(each)
    queue.remove(removed)
    assert (removed.payload, removed.connection.queued) == (b"", {})
    assert (queue.rows, queue.size) == (1, 8)
    assert queue.patience(8, 1.0, 0.0) == 1.0
    assert numbers(queue.take(8, 0.0)[0]) == [1]


def test_places_of_removed_requests_do_not_pile_up_behind_more_urgent_ones() -> None:
    queue = RequestQueue()
    queue.push(waiting(1, None, 0, priority=1))
    for number in range(1, 5 * MANY_DEAD):
        request = waiting(1, "a", number)
        queue.push(request)
        queue.remove(request)
        assert sum(map(len, queue._levels.values())) <= MANY_DEAD + 2  # noqa: SLF001 - what is kept is the point
    assert numbers(queue.take(8, 0.0)[0]) == [0]
    assert queue.take(8, 0.0) == ([], [])


actions = st.lists(
    st.tuples(st.sampled_from(["push", "push", "remove", "take"]), st.integers(1, 5), st.sampled_from([1, 50, 100])),
    max_size=60,
)


@quick
@given(actions)
def test_whatever_is_pushed_comes_out_once_or_is_removed_and_rows_and_bytes_are_always_right(
    steps: list[tuple[str, int, int]],
) -> None:
    queue, inside, out = RequestQueue(), dict[int, PendingRequest](), list[int]()
    for number, (what, rows, priority) in enumerate(steps):
        if what == "push":
            inside[number] = waiting(rows, "a", number, priority=priority)
            queue.push(inside[number])
        elif what == "remove" and inside:
            queue.remove(inside.pop(sorted(inside)[rows % len(inside)]))
        elif what == "take":
            batch, _ = queue.take(4, 0.0)
            assert bool(batch) == bool(inside)
            if batch:
                urgent = min(each.priority for each in inside.values())
                assert {each.priority for each in batch} == {urgent}
                oldest = min(number for number, each in inside.items() if each.priority == urgent)
                assert batch[0].request_id == oldest
            for each in batch:
                del inside[each.request_id]
                out.append(each.request_id)
        assert queue.rows == sum(each.plan.rows for each in inside.values())
        assert queue.size == sum(each.plan.size for each in inside.values())
        for request_id, each in inside.items():
            assert each.connection.queued == {request_id: each}
    assert len(out) == len(set(out))
