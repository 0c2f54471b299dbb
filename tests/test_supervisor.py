"""How a gateway ends, and what its workers ask of it."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from typing import Any

import pytest

from gateway.departed import KEPT_SCRAPES


def test_at_sigterm_requests_under_way_are_answered_and_the_exit_code_is_0(
    start_gateway: Callable[..., Any], helpers: Any
) -> None:
    with start_gateway(["slow"]) as gateway:
        slow = gateway.slow(1.0)
        with gateway.connect() as connection:
            connection.send(slow)
            helpers.until(lambda: gateway.metrics().of("gateway_pending_requests", model="slow"), 5)
            gateway.process.send_signal(signal.SIGTERM)
            assert connection.response().status == 200
        assert gateway.process.wait(10) == 0
        assert not gateway.processes()


def test_at_sigterm_the_server_is_not_ready_at_once_though_requests_are_under_way(
    start_gateway: Callable[..., Any], helpers: Any
) -> None:
    def ready() -> bool:
        try:
            with gateway.connect() as probe:
                return bool(probe.ask(gateway.request("GET", "/v2/health/ready")).status == 200)
        except OSError:
            return False  # nobody listens any more

    with start_gateway(["slow"]) as gateway:
        slow = gateway.slow(2.0)
        assert ready()
        with gateway.connect() as connection:
            connection.send(slow)
            helpers.until(lambda: gateway.metrics().of("gateway_pending_requests", model="slow"), 5)
            gateway.process.send_signal(signal.SIGTERM)
            helpers.until(lambda: not ready(), 1.0)
            assert gateway.process.poll() is None, "the request is still under way"
            assert connection.response().status == 200
        assert gateway.process.wait(10) == 0


def test_requests_that_take_longer_than_the_drain_timeout_do_not_keep_the_server(
    start_gateway: Callable[..., Any], helpers: Any
) -> None:
    with start_gateway(["slow"], "--drain-timeout", "0.5") as gateway:
        slow = gateway.slow(15.0)
        with gateway.connect() as connection:
            connection.send(slow)
            helpers.until(lambda: gateway.metrics().of("gateway_pending_requests", model="slow"), 5)
            started = time.monotonic()
            gateway.process.send_signal(signal.SIGTERM)
            assert gateway.process.wait(10) == 0
            assert time.monotonic() - started < 8
        assert not gateway.processes()


def test_a_second_sigterm_ends_it_now(start_gateway: Callable[..., Any], helpers: Any) -> None:
    with start_gateway(["slow"]) as gateway:
        slow = gateway.slow(20.0)
        with gateway.connect() as connection:
            connection.send(slow)
            helpers.until(lambda: gateway.metrics().of("gateway_pending_requests", model="slow"), 5)
            gateway.process.send_signal(signal.SIGTERM)
            with pytest.raises(subprocess.TimeoutExpired):  # it waits for the request
                gateway.process.wait(0.5)
            gateway.process.send_signal(signal.SIGTERM)
            assert gateway.process.wait(2) == 1
        helpers.until(lambda: not gateway.processes(), 2)
        assert "ended at once" in gateway.log.read_text()


def test_a_signal_that_comes_twice_in_a_moment_is_one_wish(start_gateway: Callable[..., Any], helpers: Any) -> None:
    """As `timeout` and terminals send it: to the process, and to its group."""
    with start_gateway(["slow"]) as gateway:
        slow = gateway.slow(0.7)
        with gateway.connect() as connection:
            connection.send(slow)
            helpers.until(lambda: gateway.metrics().of("gateway_pending_requests", model="slow"), 5)
            gateway.process.send_signal(signal.SIGTERM)
            gateway.process.send_signal(signal.SIGINT)
            assert connection.response().status == 200
        assert gateway.process.wait(10) == 0


def test_a_worker_that_hangs_and_an_instance_that_hangs_are_replaced_within_10_seconds(
    start_gateway: Callable[..., Any], helpers: Any
) -> None:
    with start_gateway(["mlp"], "--workers", "2") as gateway:
        worker, healthy = sorted(gateway.pids("http worker"))
        instance = gateway.pid("instance")
        runner = gateway.pid("runner")
        with gateway.connect() as connection:
            assert connection.ask(gateway.good()).status == 200
        started = time.monotonic()
        os.kill(worker, signal.SIGSTOP)
        os.kill(instance, signal.SIGSTOP)
        helpers.until(lambda: worker not in gateway.pids("http worker") and len(gateway.pids("http worker")) == 2, 10)
        helpers.until(lambda: gateway.pids("instance") - {instance}, 10)
        assert time.monotonic() - started < 10
        assert healthy in gateway.pids("http worker")
        assert gateway.pid("runner") == runner
        os.kill(runner, signal.SIGSTOP)
        helpers.until(lambda: gateway.pids("runner") - {runner}, 10)
        helpers.until(lambda: gateway.infer("mlp", gateway.good().partition(b"\r\n\r\n")[2]).status == 200, 30)


def test_metrics_of_a_version_that_is_gone_are_dropped_after_some_scrapes(
    start_gateway: Callable[..., Any], helpers: Any
) -> None:
    with start_gateway(["mlp", "slow"]) as gateway, gateway.connect() as connection:
        for _ in range(3):
            assert connection.ask(gateway.good()).status == 200
        gateway.slow()
        before = gateway.metrics().of("gateway_requests_total", model="slow")
        shutil.move(gateway.log.parent / "store" / "mlp", gateway.log.parent / "mlp")
        helpers.until(lambda: "mlp" not in gateway.versions(), 10)
        assert gateway.metrics().of("gateway_requests_total", model="mlp") == 3, "not at once: it is to be scraped"
        for _ in range(KEPT_SCRAPES + 1):
            assert gateway.metrics().of("gateway_requests_total", model="slow") == before
        assert not [each for each in gateway.metrics().samples if each.labels.get("model") == "mlp"]
        shutil.move(gateway.log.parent / "mlp", gateway.log.parent / "store" / "mlp")
        helpers.until(lambda: gateway.versions().get("mlp") == "READY", 20)
        assert connection.ask(gateway.good()).status == 200
        assert gateway.metrics().of("gateway_requests_total", model="mlp") == 1
