"""What the gateway is made of, and what becomes of it when parts of it die."""

import os
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

MODELS = ["mlp", "slow", "no_archive"]


@pytest.fixture(scope="module")
def own(start_gateway: Callable[..., Any]) -> Iterator[Any]:
    """A gateway with two workers whose processes may be killed."""
    with start_gateway(MODELS, "--workers", "2", "--keep-alive-seconds", "60") as gateway:
        yield gateway


def ask(gateway: Any) -> int:
    with gateway.connect() as connection:
        return connection.ask(gateway.good()).status


def requests_of(gateway: Any) -> float:
    return gateway.metrics().of("gateway_requests_total", model="mlp")


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def test_every_process_says_in_its_title_what_it_is(own: Any) -> None:
    processes = own.processes()
    titles = sorted(title for title in processes.values() if title.startswith("gateway: "))
    assert titles == [
        "gateway: http worker 0",
        "gateway: http worker 1",
        "gateway: instance mlp/3 #0 cpu",
        "gateway: instance slow/1 #0 cpu",
        "gateway: runner pytorch",
    ]
    assert len(processes) == len(titles) + 1  # and the supervisor
    assert own.process.pid in processes


def test_a_runner_is_started_for_each_framework_and_for_no_other(gateway: Any, own: Any) -> None:
    assert len(gateway.pids("runner pytorch")) == len(gateway.pids("runner tensorflow")) == 1
    assert not own.pids("runner tensorflow")


def test_supervisor_and_workers_have_no_framework_in_their_memory(gateway: Any) -> None:
    for pid in (gateway.process.pid, *gateway.pids("http worker")):
        mapped = Path(f"/proc/{pid}/maps").read_text()
        assert "python" in mapped
        assert not re.search(r"/torch/|libtorch|/tensorflow/|libtensorflow", mapped)
    assert "libtorch" in Path(f"/proc/{gateway.pid('instance mlp/')}/maps").read_text()


def test_bad_models_do_not_stop_the_others(gateway: Any, helpers: Any) -> None:
    failed = {name for name, state in gateway.versions().items() if state == "FAILED"}
    assert failed == {"exits_at_load", "no_archive", "misspelt_key", "no_artifact"}
    assert not gateway.pids("instance exits_at_load/")
    image = helpers.tensor("image", "FP32", [1, 64], [0.0] * 64)
    for model in ("digits_torch", "digits_tensorflow"):
        assert gateway.infer(model, {"inputs": [image]}).status == 200


def test_a_model_that_exits_while_it_loads_is_failed_with_that_reason(gateway: Any) -> None:
    index = {each["name"]: each for each in gateway.http.post("/v2/repository/index").json()}
    assert index["exits_at_load"]["state"] == "FAILED"
    assert re.search(r"process ended with (code|signal) \d+ while loading", index["exits_at_load"]["reason"])


def test_metrics_add_up_over_all_workers(own: Any) -> None:
    """Each worker in turn is held still, so that the other one has to answer."""
    workers = sorted(own.pids("http worker"))
    before = requests_of(own)
    for held, number in zip(workers, (3, 5), strict=True):
        os.kill(held, signal.SIGSTOP)
        try:
            assert [ask(own) for _ in range(number)] == [200] * number
        finally:
            os.kill(held, signal.SIGCONT)
    for _ in range(4):  # whichever worker answers the scrape
        assert requests_of(own) == before + 8


def test_an_instance_that_is_killed_is_replaced_and_answers(own: Any, helpers: Any) -> None:
    def restarts() -> float:
        return own.metrics().of("gateway_instance_restarts_total", model="mlp", reason="signal 9")

    assert ask(own) == 200
    old, before = own.pid("instance mlp/"), restarts()
    kill(old)
    helpers.until(lambda: own.pids("instance mlp/") - {old} and ask(own) == 200, 10)
    assert own.pid("instance mlp/") != old
    assert restarts() == before + 1
    assert own.versions()["mlp"] == "READY"


def test_a_request_whose_instance_is_killed_is_answered_soon(own: Any, helpers: Any) -> None:
    slow = own.slow(2.0)
    old = own.pid("instance slow/")
    with own.connect() as connection:
        connection.send(slow)
        helpers.until(lambda: own.metrics().of("gateway_pending_requests", model="slow"), 5)
        kill(old)
        answer = connection.response()
        assert answer.status in (200, 503), answer.body
        assert connection.ask(own.good()).status == 200
    helpers.until(lambda: own.pids("instance slow/") - {old} and own.infer("slow", b"{}").status == 400, 10)


def test_a_model_without_a_running_instance_is_not_ready_and_its_requests_wait(own: Any, helpers: Any) -> None:
    """The runner is held still, so that it cannot start another instance."""

    def get_ready() -> int:
        return int(own.http.get("/v2/models/mlp/ready").status_code)

    runner, old = own.pid("runner pytorch"), own.pid("instance mlp/")
    assert get_ready() == 200
    with own.connect() as connection:
        os.kill(runner, signal.SIGSTOP)
        try:
            kill(old)
            helpers.until(lambda: get_ready() == 503, 5)
            connection.send(own.good())
            assert get_ready() == 503
        finally:
            os.kill(runner, signal.SIGCONT)
        assert connection.response().status == 200
    helpers.until(lambda: own.pids("instance mlp/") - {old} and get_ready() == 200, 10)


def test_a_runner_that_is_killed_comes_back_with_its_models(own: Any, helpers: Any) -> None:
    old = own.processes()
    kill(own.pid("runner pytorch"))
    helpers.until(lambda: len(own.pids("instance ") - set(old)) == 2 and ask(own) == 200, 15)
    assert not own.pids("instance ") & set(old)
    assert own.pid("runner pytorch") not in old
    assert own.pids("http worker") <= set(old)


def test_a_worker_that_is_killed_is_replaced_and_what_it_had_counted_is_kept(own: Any, helpers: Any) -> None:
    workers = own.pids("http worker")
    assert ask(own) == 200
    before = requests_of(own)
    for old in sorted(workers):
        kill(old)
        helpers.until(lambda old=old: len(own.pids("http worker") - {old}) == 2 and ask(own) == 200, 10)
    assert not workers & own.pids("http worker")
    own.http.close()  # its connection went with a worker
    with own.connect() as connection:
        text = connection.ask(own.request("GET", "/metrics")).body.decode()
    found = re.findall(r'^gateway_requests_total\{[^}]*model="mlp"[^}]*\} ([\d.e+]+)$', text, re.MULTILINE)
    assert sum(map(float, found)) >= before


def test_a_model_that_is_loaded_again_answers_every_request_meanwhile(own: Any) -> None:
    old, statuses, done = own.pid("instance mlp/"), [], threading.Event()

    def client() -> None:
        with own.connect() as connection:
            while not done.is_set():
                statuses.append(connection.ask(own.good()).status)

    clients = [threading.Thread(target=client) for _ in range(4)]
    for each in clients:
        each.start()
    try:
        with own.connect() as connection:
            for _ in range(3):
                assert connection.ask(own.request("POST", "/v2/repository/models/mlp/load")).status == 200
    finally:
        done.set()
        for each in clients:
            each.join(20)
    assert set(statuses) == {200}
    assert own.pid("instance mlp/") != old


def test_nothing_outlives_a_killed_supervisor(start_gateway: Callable[..., Any], helpers: Any) -> None:
    with start_gateway(["mlp"]) as gateway:
        assert len(gateway.processes()) == 4
        kill(gateway.process.pid)
        assert gateway.process.wait(5) == -signal.SIGKILL
        helpers.until(lambda: not gateway.processes(), 2)


@pytest.mark.parametrize("action", ["unload", "load"])
def test_a_model_can_be_unloaded_or_loaded_again_while_the_gateway_still_loads_it(
    start_gateway: Callable[..., Any], helpers: Any, action: str
) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    with start_gateway(["mlp"], port=port) as gateway:
        helpers.until(lambda: gateway.pids("runner"), 5)
        runner = gateway.pid("runner")
        os.kill(runner, signal.SIGSTOP)  # so that the model goes on loading
        try:
            helpers.until(lambda: answers(gateway) and gateway.versions() == {"mlp": "LOADING"}, 10)
            with gateway.connect() as connection:
                connection.send(gateway.request("POST", f"/v2/repository/models/mlp/{action}"))
                os.kill(runner, signal.SIGCONT)
                assert connection.response().status == 200
        finally:
            os.kill(runner, signal.SIGCONT)
        helpers.until(lambda: "Serving on" in gateway.log.read_text() or gateway.process.poll() is not None, 10)
        assert gateway.process.poll() is None, gateway.log.read_text()
        assert gateway.versions()["mlp"] == ("READY" if action == "load" else "UNLOADED")


def answers(gateway: Any) -> bool:
    try:
        with gateway.connect() as connection:
            return connection.ask(gateway.request("GET", "/v2/health/live")).status == 200
    except OSError:
        return False


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--port", "70000"], "port"),
        (["--workers", "0"], "workers"),
        (["--model-store", "/nowhere"], "model_store"),
        (["--host", "192.0.2.1", "--port", "0"], "cannot listen"),
    ],
)
def test_a_bad_setting_ends_the_program_at_once_and_is_named(
    tmp_path: Path, helpers: Any, arguments: list[str], expected: str
) -> None:
    done = helpers.run(["--model-store", str(tmp_path), *arguments])
    assert done.returncode == 2
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
