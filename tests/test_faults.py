"""What becomes of requests when an instance dies, hangs or is overwhelmed, with real processes."""

import contextlib
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.lifecycle.keeper import QUICK_DEATHS

MODELS = ["mlp", "slow", "crashes", "hangs"]
QUEUE = 3


def narrow(store: Path) -> None:
    """The model `slow` once more, with a short queue."""
    shutil.copytree(store / "slow", store / "narrow")
    with (store / "narrow" / "model.yaml").open("a") as config:
        config.write(f"max_queue_size: {QUEUE}\nmax_batch_size: 1\n")


@pytest.fixture(scope="module")
def own(start_gateway: Callable[..., Any]) -> Iterator[Any]:
    """A gateway whose instances may die."""
    with start_gateway(MODELS, "--workers", "2", "--keep-alive-seconds", "60", prepare=narrow) as gateway:
        yield gateway


class Together:
    """Requests sent at the same time, each on a connection of its own."""

    def __init__(self, gateway: Any, requests: list[bytes]) -> None:
        self.connections = [gateway.connect() for _ in requests]
        for connection, request in zip(self.connections, requests, strict=True):
            connection.send(request)

    def answers(self) -> list[Any]:
        answers = [connection.response() for connection in self.connections]
        self.close()
        return answers

    def close(self) -> None:
        for connection in self.connections:
            connection.sock.close()


def numbers(own: Any, helpers: Any, model: str, value: float, *headers: str, **parameters: Any) -> bytes:
    request: bytes = own.inference(
        model, {"inputs": [helpers.tensor("x", "FP32", [1], [value])], "parameters": parameters}, *headers
    )
    return request


def rounds(helpers: Any, own: Any, model: str, **parameters: Any) -> bytes:
    """A request for `slow` or its like, which does not take long."""
    tensor = helpers.tensor("rounds", "INT64", [1], [10])
    request: bytes = own.inference(model, {"inputs": [tensor], "parameters": parameters})
    return request


@contextlib.contextmanager
def held(own: Any, title: str) -> Iterator[None]:
    """A process that does nothing for a while."""
    pid = own.pid(title)
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def of(own: Any, name: str, model: str, **labels: str) -> float:
    found: float = own.metrics().of(name, model=model, **labels)
    return found


def restarts(own: Any, model: str) -> float:
    found: float = own.metrics().of("gateway_instance_restarts_total", model=model)
    return found


def test_no_request_fails_when_an_instance_is_killed_again_and_again(own: Any, helpers: Any) -> None:
    statuses: list[int] = []
    done = threading.Event()

    def client() -> None:
        with own.connect() as connection:
            while not done.is_set():
                statuses.append(connection.ask(own.good()).status)

    clients = [threading.Thread(target=client) for _ in range(8)]
    for each in clients:
        each.start()
    try:
        for _ in range(4):
            old, answered = own.pid("instance mlp/"), len(statuses)
            helpers.until(lambda answered=answered: len(statuses) > answered + 100, 20)
            os.kill(old, signal.SIGKILL)
            helpers.until(lambda old=old: own.pids("instance mlp/") - {old}, 20)
    finally:
        done.set()
        for each in clients:
            each.join(30)
    assert set(statuses) == {200}
    assert restarts(own, "mlp") == 4


def test_a_request_that_kills_is_found_out_refused_and_harms_no_neighbour(own: Any, helpers: Any) -> None:
    poison = numbers(own, helpers, "crashes", -1000.0)
    good = [numbers(own, helpers, "crashes", float(number)) for number in range(1, 9)]
    *neighbours, guilty = Together(own, [*good, poison]).answers()
    assert [(each.status, each.json()["outputs"][0]["data"]) for each in neighbours] == [
        (200, [number + 1.0]) for number in range(1, 9)
    ]
    assert guilty.status == 500
    assert guilty.json() == {"error": "this request has ended two processes of the model"}
    before = restarts(own, "crashes")
    assert before == 3  # the optimised form's is blamed on no request
    for _ in range(6):  # by whichever worker
        again = Together(own, [poison]).answers()[0]
        assert (again.status, again.body) == (500, guilty.body)
    assert restarts(own, "crashes") == before
    assert own.metrics().of("gateway_requests_dropped_total", model="crashes", reason="condemned") == 6
    assert Together(own, [good[0]]).answers()[0].status == 200


def test_many_requests_that_kill_do_not_fail_their_version(own: Any, helpers: Any) -> None:
    killers = [numbers(own, helpers, "crashes", -1000.0 - number) for number in range(1, QUICK_DEATHS + 2)]
    answers = Together(own, killers).answers()
    assert {each.status for each in answers} == {500}
    assert Together(own, [numbers(own, helpers, "crashes", 1.0)]).answers()[0].status == 200
    assert own.versions()["crashes"] == "READY"


def test_a_request_that_hangs_is_cut_off_alone(own: Any, helpers: Any) -> None:
    with own.connect() as hanging:
        hanging.send(numbers(own, helpers, "hangs", -1000.0))
        helpers.until(lambda: of(own, "gateway_pending_requests", "hangs"), 10)
        others = Together(own, [numbers(own, helpers, "hangs", float(number)) for number in range(3)])
        answer = hanging.response()
        assert answer.status == 504
        assert "execution_timeout" in answer.json()["error"]
        assert [each.status for each in others.answers()] == [200] * 3
    assert own.metrics().of("gateway_instance_restarts_total", model="hangs", reason="signal 14") == 1


def test_a_crash_of_the_optimised_form_is_blamed_on_no_request_and_the_plain_one_answers(
    own: Any, helpers: Any
) -> None:
    notes = own.http.get("/v2/models/slow").json()["parameters"]["notes"]
    assert "optimize_for_inference: same answers, used" in notes
    old = own.pid("instance slow/")
    with Together(own, [own.slow(3.0)]).connections[0] as waiting:
        helpers.until(lambda: of(own, "gateway_pending_requests", "slow") == 1, 10)
        os.kill(old, signal.SIGSEGV)  # as a kernel of the optimised form would end it
        assert waiting.response().status == 200
    assert own.pid("instance slow/") != old
    notes = own.http.get("/v2/models/slow").json()["parameters"]["notes"]
    assert "a process that computed with it ended with signal 11; plain module used" in str(notes)
    assert "slow/1: its optimised form is not used from now on" in own.log.read_text()


def test_a_model_is_free_again_soon_after_the_last_client_of_its_batch_has_left(own: Any, helpers: Any) -> None:
    runaway = own.slow(60.0)
    started = time.monotonic()
    with own.connect() as leaving:
        leaving.send(runaway)
        helpers.until(lambda: of(own, "gateway_pending_requests", "slow") == 1, 10)
        waiting = Together(own, [rounds(helpers, own, "slow")])
    assert waiting.answers()[0].status == 200
    assert time.monotonic() - started < 15  # not the execution_timeout of 30 s
    assert own.metrics().of("gateway_instance_restarts_total", model="slow", reason="abandoned") == 1
    assert own.versions()["slow"] == "READY"


def test_abandoned_requests_are_not_computed(own: Any, helpers: Any) -> None:
    cheap = numbers(own, helpers, "crashes", 1.0)
    executed = of(own, "gateway_executions_total", "crashes")
    dropped = of(own, "gateway_requests_dropped_total", "crashes", reason="disconnected")
    with held(own, "instance crashes/"):
        abandoned = Together(own, [cheap] * 300)
        helpers.until(lambda: of(own, "gateway_pending_requests", "crashes") == 300, 20)
        abandoned.close()
        now = dropped + 300
        helpers.until(lambda: of(own, "gateway_requests_dropped_total", "crashes", reason="disconnected") == now, 20)
    helpers.until(lambda: of(own, "gateway_pending_requests", "crashes") == 0, 10)
    assert Together(own, [cheap]).answers()[0].status == 200
    assert of(own, "gateway_executions_total", "crashes") == executed + 1


def test_more_than_the_queue_takes_is_refused_at_once_with_the_time_to_come_back(own: Any, helpers: Any) -> None:
    one = rounds(helpers, own, "narrow")
    workers = len(own.pids("http worker"))
    with held(own, "instance narrow/"):
        sent = Together(own, [one] * 20)
        accepted = workers * (QUEUE + 1)  # each worker fills the queue and has one more, as if that were computed
        helpers.until(
            lambda: of(own, "gateway_requests_dropped_total", "narrow", reason="queue_full") >= 20 - accepted, 20
        )
    answers = sent.answers()
    refused = [each for each in answers if each.status == 429]
    assert {each.status for each in answers} == {200, 429}
    assert len(answers) - len(refused) >= QUEUE
    for each in refused:
        assert 1 <= int(each.headers["retry-after"]) <= 60
        assert "queue is full" in each.json()["error"]
    assert of(own, "gateway_requests_dropped_total", "narrow", reason="queue_full") == len(refused)
    assert Together(own, [one]).answers()[0].status == 200


@pytest.mark.parametrize(
    ("headers", "parameters"),
    [
        (["X-Request-Timeout: 0.2"], {}),
        (["X-Envoy-Expected-Rq-Timeout-Ms: 200"], {}),
        ([], {"timeout": 200_000}),
        (["X-Request-Timeout: 30", "X-Envoy-Expected-Rq-Timeout-Ms: 200"], {"timeout": 10_000_000}),
    ],
)
def test_a_request_is_answered_when_its_own_time_is_over_and_not_computed(
    own: Any, helpers: Any, headers: list[str], parameters: dict[str, Any]
) -> None:
    request = numbers(own, helpers, "crashes", 1.0, *headers, **parameters)
    executed = of(own, "gateway_executions_total", "crashes")
    dropped = of(own, "gateway_requests_dropped_total", "crashes", reason="deadline")
    with held(own, "instance crashes/"):
        (answer,) = Together(own, [request]).answers()
        assert answer.status == 504
        assert "0.2 s" in answer.json()["error"]
    helpers.until(lambda: of(own, "gateway_pending_requests", "crashes") == 0, 10)
    assert of(own, "gateway_executions_total", "crashes") == executed
    assert of(own, "gateway_requests_dropped_total", "crashes", reason="deadline") == dropped + 1


def test_a_request_for_a_model_whose_process_is_being_replaced_waits_no_longer_than_it_may(
    own: Any, helpers: Any
) -> None:
    with held(own, "runner pytorch"):  # which cannot start another
        old = own.pid("instance slow/")
        os.kill(old, signal.SIGKILL)
        hurried = rounds(helpers, own, "slow", timeout=300_000)
        (answer,) = Together(own, [hurried]).answers()
        assert answer.status == 504
        patient = Together(own, [rounds(helpers, own, "slow"), own.inference("slow", b"{}")])
    assert [each.status for each in patient.answers()] == [200, 400]
    assert own.pid("instance slow/") != old


@pytest.mark.parametrize(
    "header",
    [
        "X-Request-Timeout: 0",
        "X-Request-Timeout: -1",
        "X-Request-Timeout: soon",
        "X-Request-Timeout: inf",
        "X-Envoy-Expected-Rq-Timeout-Ms: 1e3",
    ],
)
def test_a_timeout_that_is_none_is_refused(own: Any, helpers: Any, header: str) -> None:
    answer = Together(own, [numbers(own, helpers, "crashes", 1.0, header)]).answers()[0]
    assert answer.status == 400
    assert "must be a number of" in answer.json()["error"]


@pytest.mark.parametrize("parameters", [{"timeout": -5}, {"timeout": "1"}, {"priority": 101}, {"priority": 1.5}])
def test_a_parameter_that_makes_no_sense_is_refused(own: Any, helpers: Any, parameters: dict[str, Any]) -> None:
    answer = Together(own, [numbers(own, helpers, "crashes", 1.0, **parameters)]).answers()[0]
    assert answer.status == 400
    assert next(iter(parameters)) in answer.json()["error"]


def test_a_request_that_kills_is_judged_again_after_the_files_were_replaced(own: Any, helpers: Any) -> None:
    poison = numbers(own, helpers, "crashes", -4000.0)
    assert Together(own, [poison]).answers()[0].status == 500
    refused = of(own, "gateway_requests_dropped_total", "crashes", reason="condemned")
    Together(own, [poison]).answers()
    assert of(own, "gateway_requests_dropped_total", "crashes", reason="condemned") == refused + 1
    old = own.pids("instance crashes/")
    model = own.log.parent / "store" / "crashes" / "1" / "model.pt"
    copy = shutil.copy(model, own.log.parent / "copy.pt")
    Path(copy).replace(model)
    helpers.until(lambda: own.pids("instance crashes/") and not own.pids("instance crashes/") & old, 20)
    before = restarts(own, "crashes")
    assert Together(own, [poison]).answers()[0].status == 500
    assert restarts(own, "crashes") > before
