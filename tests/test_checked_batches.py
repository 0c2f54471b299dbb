"""Batches of real requests are checked: a server whose requests are put into its queue, and what it answers to each."""

import socket
import time
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import InferenceFailed, OutOfMemory, RequestError
from gateway.instance import checked_batches
from gateway.instance.batch_checks import BatchChecks
from gateway.instance.checked_batches import CheckedBatches
from gateway.instance.serve import Server
from gateway.ipc.framing import INFER, RESULT, Failure, RequestHeader, TensorHeader, encode, reply_reader, result_header
from gateway.store.manifest import ModelConfig
from gateway.tensors import Array, array_from_raw

Execute = Callable[[Mapping[str, Array]], dict[str, Array]]


class Client:
    """In the place of a worker's connection."""

    arena = note = None
    closed = blocked = False

    def __init__(self) -> None:
        self.queued: dict[int, Any] = {}
        self.unwanted: set[int] = set()
        self.last_id = 0
        self.answers: dict[int, Any] = {}
        self._reader = reply_reader()

    def place(self, *_: object) -> None:
        return None

    def cancelled(self) -> list[Any]:
        return []

    def send(self, parts: list[Any]) -> bool:
        for head, header, payload in self._reader.feed(b"".join(parts)):
            assert head[3] not in self.answers, "a request was answered twice"
            if head[0] == RESULT:
                (output,) = result_header(header).outputs
                self.answers[head[3]] = array_from_raw(output.datatype, output.shape, payload).tolist()
            else:
                self.answers[head[3]] = msgspec.msgpack.decode(payload, type=Failure).code
        return True


class Setup:
    """A server of a model of numpy, with checks of its batches; `calls` are the first elements of what it computed."""

    def __init__(self, function: Execute, needed: int = 2, every: int = 5, repeatable: str = "", **config: Any) -> None:
        self.calls: list[list[float]] = []
        self.function = function
        model = SimpleNamespace(execute=self._execute)
        settings = ModelConfig(**config)
        self.listener = socket.socket()
        self.server = Server(model, settings, 8, self.listener)  # type: ignore[arg-type] # as much of a model as is used
        self.trusted: list[int] = []
        self.violations: list[str] = []

        def violated(difference: str) -> None:
            self.server.run_alone()
            self.violations.append(difference)

        self.checked = self.server.checked = CheckedBatches(
            BatchChecks(needed, every),
            self.server.execute,
            settings.execution_timeout,
            self.trusted.append,
            violated,
            repeatable,
        )
        self.client = Client()
        self._next = 0

    def _execute(self, _: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self.calls.append([float(value) for value in inputs["x"][:, 0]])
        return self.function(inputs)

    def close(self) -> None:
        self.listener.close()
        self.server._poll.close()  # noqa: SLF001 - the process ends here; a test goes on

    def ask(self, *rows: float, deadline: float = 0.0) -> int:
        """Queue a request of these rows; its number."""
        self._next += 1
        array = np.array([[row, 1.0] for row in rows], np.float32)
        header = encode(RequestHeader("forward", (TensorHeader("x", "FP32", array.shape, array.nbytes),)))
        head = (INFER, 0, 0, self._next, 0.0, deadline, 0)
        self.server._take_in(self.client, 0.0, head, header, array.tobytes())  # type: ignore[arg-type] # noqa: SLF001
        return self._next

    def run(self, *requests: float | tuple[float, ...]) -> list[Any]:
        """Have these requests run as they arrived together, and their answers."""
        asked = [self.ask(*(each if isinstance(each, tuple) else (each,))) for each in requests]
        while self.server._queue.rows:  # noqa: SLF001 - as the server's own loop
            self.server._run_batch(self.server._take())  # noqa: SLF001
            self.server._flush()  # noqa: SLF001
        return [self.client.answers[number] for number in asked]


Begin = Callable[..., Setup]


@pytest.fixture
def begin() -> Iterator[Begin]:
    started: list[Setup] = []

    def start(function: Execute, **options: Any) -> Setup:
        started.append(Setup(function, **options))
        return started[-1]

    yield start
    for each in started:
        each.close()


def double(inputs: Mapping[str, Array]) -> dict[str, Array]:
    return {"y": inputs["x"][:, :1] * 2}


def centred(inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Each row less the mean of all: alone, always 0."""
    return {"y": inputs["x"][:, :1] - inputs["x"][:, :1].mean()}


def test_the_first_batches_are_answered_with_what_each_request_gets_alone(begin: Begin) -> None:
    here = begin(double)
    assert here.run(1, 2, 3) == [[[2.0]], [[4.0]], [[6.0]]]
    assert here.calls == [[1], [2], [3], [1, 2, 3]]
    assert not here.trusted


def test_after_enough_batches_agreed_requests_are_joined_and_that_is_told_once(begin: Begin) -> None:
    here = begin(double, needed=2)
    here.run(1, 2)
    here.run((3, 4), 5)
    assert here.trusted == [2]
    here.calls.clear()
    assert here.run((1, 2), 3) == [[[2.0], [4.0]], [[6.0]]]
    assert here.calls == [[1, 2, 3]]
    assert here.trusted == [2]


def test_a_model_that_mixes_rows_never_gives_a_wrong_answer_and_is_not_batched_any_more(begin: Begin) -> None:
    here = begin(centred)
    for _ in range(20):
        assert here.run(1, 2, 3) == [[[0.0]]] * 3
    assert here.violations == ["output 'y' differs by up to 1"]
    here.calls.clear()
    here.run(1, 2, (3, 4))
    assert here.calls == [[1], [2], [3, 4]]


def test_equal_requests_prove_nothing(begin: Begin) -> None:
    here = begin(centred)
    for _ in range(10):
        here.run(1, 1, 1)
    assert not here.trusted
    assert not here.violations
    assert here.calls == [[1]] * 30


def test_equal_requests_share_one_computation_where_the_model_is_known_to_repeat_its_answers(begin: Begin) -> None:
    here = begin(centred, repeatable="forward")
    assert here.run(1, 1, 1) == [[[0.0]]] * 3
    assert here.calls == [[1]]
    assert here.run(1, 1, 2) == [[[0.0]]] * 3
    assert here.violations


def test_a_request_that_fails_alone_spoils_the_check_and_not_its_neighbours(begin: Begin) -> None:
    def picky(inputs: Mapping[str, Array]) -> dict[str, Array]:
        if (inputs["x"] < 0).any():
            raise RequestError("negative")
        return double(inputs)

    here = begin(picky)
    for _ in range(5):
        assert here.run(1, -1, 2) == [[[2.0]], RequestError.code, [[4.0]]]
    assert not here.trusted
    assert not here.violations


@pytest.mark.parametrize("needed", [1, 0])
def test_requests_that_are_refused_together_and_answered_alone_are_a_violation(begin: Begin, needed: int) -> None:
    def one_row(inputs: Mapping[str, Array]) -> dict[str, Array]:
        if len(inputs["x"]) > 1:
            raise InferenceFailed("secret: one row only")
        return double(inputs)

    here = begin(one_row, needed=needed)
    assert here.run(1, 2) == [[[2.0]], [[4.0]]]
    assert here.violations == ["the model refuses requests together that it answers alone"]


def test_equal_requests_that_fail_once_are_no_violation(begin: Begin) -> None:
    failures = iter([InferenceFailed("once")])

    def flaky(inputs: Mapping[str, Array]) -> dict[str, Array]:
        for error in failures:
            raise error
        return double(inputs)

    here = begin(flaky, repeatable="forward")
    assert here.run(1, 1) == [[[2.0]], [[2.0]]]
    assert not here.violations


def test_an_output_with_too_few_rows_is_a_violation(begin: Begin) -> None:
    here = begin(lambda inputs: {"y": inputs["x"].sum(keepdims=True)})
    here.run(1, 2)
    assert "has shape [1, 1] for 2 input rows" in here.violations[0]


@pytest.mark.parametrize("error", [MemoryError(), OutOfMemory("no room")])
def test_a_lack_of_memory_for_rows_together_is_no_violation(begin: Begin, error: Exception) -> None:
    def greedy(inputs: Mapping[str, Array]) -> dict[str, Array]:
        if len(inputs["x"]) > 1:
            raise error
        return double(inputs)

    here = begin(greedy, needed=1)
    assert here.run(1, 2) == [[[2.0]], [[4.0]]]
    assert not here.violations
    assert not here.trusted


def test_a_request_whose_time_is_over_is_not_computed_in_a_check(begin: Begin) -> None:
    here = begin(double)
    slow = time.perf_counter() + 0.02

    def until_late(inputs: Mapping[str, Array]) -> dict[str, Array]:
        while time.perf_counter() < slow:
            pass
        return double(inputs)

    here.function = until_late
    first, second = here.ask(1), here.ask(2, deadline=slow)
    here.run(3)
    assert here.client.answers[first] == [[2.0]]
    assert here.client.answers[second] == "deadline"
    assert [2] not in here.calls


def test_of_requests_that_are_slow_alone_only_few_are_computed_together(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checked_batches, "BEARABLE_SECONDS", 0.0)
    monkeypatch.setattr(checked_batches, "FEW_REQUESTS", 3)
    here = begin(double)
    here.run(1, 2, 3, 4, 5)
    assert here.calls[5:] == [[1, 2, 3]]


def test_requests_that_take_near_their_timeout_alone_are_not_computed_together(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checked_batches, "BEARABLE_SECONDS", 0.0)
    monkeypatch.setattr(checked_batches, "SHARE_OF_TIMEOUT", 0.0)
    here = begin(double)
    here.run(1, 2, 3)
    assert here.calls == [[1], [2], [3]]
    assert not here.trusted


# --- After that -----------------------------------------------------------------------------------


def trusted(begin: Begin, function: Execute = double, every: int = 2) -> Setup:
    here = begin(double, needed=1, every=every)
    here.run(1, 2)
    assert here.trusted == [1]
    here.function = function
    here.calls.clear()
    return here


def test_one_batch_of_so_many_is_kept_and_checked_when_the_instance_is_idle(begin: Begin) -> None:
    here = trusted(begin, every=2)
    for _ in range(2):
        here.run(1, 2)
    assert not here.checked.has_work
    assert here.run(3, 4) == [[[6.0]], [[8.0]]]
    assert here.checked.has_work
    assert here.calls == [[1, 2], [1, 2], [3, 4]]
    while here.checked.has_work:
        here.checked.step()
    assert sorted(here.calls[3:]) == [[3], [4]]
    assert not here.violations


def test_what_waits_for_an_idle_moment_is_computed_in_a_busy_one_before_the_next_sample(begin: Begin) -> None:
    here = trusted(begin, every=2)
    for _ in range(7):
        here.run(1, 2)
    together = [1, 2]
    assert here.calls[:6] == [together] * 6
    assert here.calls[7] == together
    assert sorted([here.calls[6], here.calls[8]]) == [[1], [2]]


def test_a_model_that_begins_to_mix_rows_is_found_out_later(begin: Begin) -> None:
    here = trusted(begin, centred, every=1)
    here.run(1, 2)
    here.run(1, 2)
    while here.checked.has_work:
        here.checked.step()
    assert here.violations == ["output 'y' differs by up to 0.5"]
    here.calls.clear()
    assert here.run(1, 2) == [[[0.0]], [[0.0]]]
    assert here.calls == [[1], [2]]


def test_later_checks_skip_equal_rows_and_come_again_soon(begin: Begin) -> None:
    here = trusted(begin, every=1)
    here.run(1, 1)
    here.run(1, 1)
    assert not here.checked.has_work
    here.run(1, 2)
    here.run(1, 2)
    assert here.checked.has_work


def test_a_large_sample_is_of_one_request(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checked_batches, "SAMPLE_BYTES", 1)
    here = trusted(begin, every=1)
    here.run(1, 2, 3)
    here.run(1, 2, 3)
    here.checked.step()
    assert not here.checked.has_work


def test_a_request_that_is_refused_alone_and_was_answered_together_is_a_violation(begin: Begin) -> None:
    here = trusted(begin, every=1)
    here.run(1, 2)
    here.run(1, 2)

    def fails(_: Mapping[str, Array]) -> dict[str, Array]:
        raise InferenceFailed("secret")

    here.function = fails
    here.checked.step()
    assert here.violations == ["the model refuses a request alone that it answers together with others"]
    assert not here.checked.has_work


def test_rounding_is_no_violation(begin: Begin) -> None:
    """An answer that a change of the inputs in the seventh digit moves as much as its neighbours do."""

    def chaotic(inputs: Mapping[str, Array]) -> dict[str, Array]:
        return {"y": np.sin(inputs["x"].astype(np.float64) * 1e9 + len(inputs["x"]))[:, :1].astype(np.float32)}

    here = begin(chaotic)
    for _ in range(3):
        here.run(0.3, 0.7)
    assert not here.violations
    assert not here.trusted


def test_told_by_another_instance_no_request_is_joined_any_more(begin: Begin) -> None:
    here = trusted(begin, every=1)
    here.run(1, 2)
    here.run(1, 2)
    first, second = here.ask(5), here.ask(6)
    here.server.run_alone()
    here.calls.clear()
    here.run(7)
    assert here.calls == [[5], [6], [7]]
    assert (here.client.answers[first], here.client.answers[second]) == ([[10.0]], [[12.0]])
    assert not here.checked.has_work


@given(
    st.integers(0, 3),
    st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=9), min_size=1, max_size=30),
    st.sampled_from([double, centred]),
)
def test_whatever_arrives_together_before_trust_everybody_gets_the_answer_of_a_request_alone(
    needed: int, batches: list[list[int]], function: Execute
) -> None:
    here = Setup(function, needed=100 if function is centred else needed, every=3, repeatable="forward")
    try:
        for batch in batches:
            answers = here.run(*map(float, batch))
            assert answers == [function({"x": np.array([[each, 1.0]], np.float32)})["y"].tolist() for each in batch]
            while here.checked.has_work:
                here.checked.step()
        assert not here.violations or function is centred
    finally:
        here.close()
