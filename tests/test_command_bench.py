"""`gateway bench`: what it reports is what happened."""

import json
from typing import Any

import pytest

from gateway.commands.bench import _between, _judge
from gateway.errors import CallFailed

ROW = {
    "connections", "seconds", "requests_per_second", "p50_ms", "p95_ms", "p99_ms", "right", "errors", "kinds_of_errors",
    "examples_of_errors", "generator_cpu", "mean_batch", "queue_ms", "compute_ms",
}  # fmt: skip
QUICK = ("--seconds", "0.3", "--warmup", "0.1")


@pytest.mark.parametrize("body", ["json", "binary"])
def test_its_figures_agree_with_the_servers(gateway: Any, body: str) -> None:
    before = gateway.metrics().of("gateway_requests_total", model="mlp", code="200")
    option = "--binary" if body == "binary" else "--json-body"
    done = gateway.command("bench", "mlp", "-c", "1,4", "--batch", "2", option, "--json", *QUICK)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    results = found.pop("results")
    assert found == {"model": "mlp", "version": "3", "rows": 2, "body": body}
    assert [each["connections"] for each in results] == [1, 4]
    assert all(set(each) == ROW for each in results)
    answered = gateway.metrics().of("gateway_requests_total", model="mlp", code="200") - before
    counted = sum(each["right"] for each in results)
    assert 0 < counted < answered  # which are those before and after it counts, too
    for each in results:
        assert each["errors"] == 0
        assert each["requests_per_second"] == pytest.approx(each["right"] / each["seconds"], rel=0.01)
        assert 0 < each["p50_ms"] <= each["p95_ms"] <= each["p99_ms"]
        assert each["mean_batch"] >= 2
        assert each["queue_ms"] > 0
        assert each["compute_ms"] > 0


def test_people_get_a_table_and_no_bar_where_no_terminal_is(gateway: Any) -> None:
    done = gateway.command("bench", "collatz_torch", "-i", "27", "-c", "2", *QUICK)
    assert (done.returncode, done.stderr) == (0, "")
    title, head, row = done.stdout.splitlines()
    assert title == "collatz_torch/1, requests of 1 row, JSON, 0.3 s each"
    assert head.split()[:2] == ["CONNECTIONS", "REQUESTS/S"]
    assert row.split()[0] == "2"
    assert float(row.split()[1]) > 0


def test_a_request_that_is_refused_is_one_line_and_no_load(gateway: Any) -> None:
    before = gateway.metrics().of("gateway_requests_total", model="raises")
    done = gateway.command("bench", "raises", "-i", "[-1]", *QUICK)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "gateway: ValueError: negative numbers make this model unhappy\n"
    assert gateway.metrics().of("gateway_requests_total", model="raises") == before + 1


@pytest.mark.parametrize("connections", ["0", "many", "1,,2", "513", "-1", ""])
def test_connections_must_be_numbers(helpers: Any, connections: str) -> None:
    done = helpers.command("bench", "mlp", f"--connections={connections}")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--connections takes numbers from 1 to 512" in done.stderr


def test_what_the_server_did_is_the_difference_of_its_counters() -> None:
    def counters(requests: int, executions: int, nanoseconds: int) -> dict[str, Any]:
        stage = {"count": requests, "ns": nanoseconds}
        stages = {"queue": stage, "compute_infer": stage}
        return {"inference_count": 2 * requests, "execution_count": executions, "inference_stats": stages}

    found = _between(counters(10, 5, 10**6), counters(30, 15, 41 * 10**6))
    assert found == {"mean_batch": 4.0, "queue_ms": 2.0, "compute_ms": 2.0}
    unknown = {"mean_batch": None, "queue_ms": None, "compute_ms": None}
    assert _between(counters(1, 1, 1), counters(1, 1, 1)) == unknown
    assert _between({}, counters(1, 1, 1)) == unknown


def test_a_generator_that_was_the_limit_and_errors_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    row = {"connections": 8, "generator_cpu": 0.95, "right": 1, "kinds_of_errors": {}, "examples_of_errors": {}}
    _judge([row])
    assert "8 connections: this program had 95% of its core and was itself the limit" in capsys.readouterr().err
    failed = row | {"generator_cpu": 0.1, "right": 0, "kinds_of_errors": {"status 429": 7}}
    with pytest.raises(CallFailed, match="no request was answered with 200"):
        _judge([failed | {"examples_of_errors": {"status 429": '{"error":"full"}'}}])
    assert capsys.readouterr().err == 'gateway: 8 connections: 7 x status 429: {"error":"full"}\n'
