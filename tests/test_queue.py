from collections import deque
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.instance import queue as module
from gateway.instance.connection import Connection
from gateway.instance.queue import PendingRequest, Plan, RequestQueue, plan_request, take_batch, wait_for_more
from gateway.ipc.framing import RequestHeader, TensorHeader

quick = settings(max_examples=200, deadline=None)


class FakeConnection:
    def __init__(self) -> None:
        self.queued: dict[int, PendingRequest] = {}


def waiting(
    rows: int, key: str | None, number: int = 0, arrived: float = 0.0, deadline: float = 0.0, priority: int = 50
) -> PendingRequest:
    plan = Plan("forward", (), (), rows, 8 * rows, None if key is None else (key,))
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
    first, second = plan_request(header(X), batchable=True), plan_request(header(("x", "FP32", (5, 3))), batchable=True)
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
    assert plan_request(other, batchable=True).key != plan_request(header(X), batchable=True).key


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
    plan = plan_request(alone, batchable=True)
    assert plan.key is None
    assert plan.rows == 1


def test_a_request_of_a_signature_that_must_not_be_joined_runs_alone() -> None:
    assert plan_request(header(X), batchable=False).key is None
