"""Models whose rows influence each other, asked by many clients at once: each gets the answer it would get alone."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

HERE = Path(__file__).parent
REQUESTS, CLIENTS = 2000, 12
MASKS = [[1, 1, 1, 1, 0, 0, 0, 0], [1] * 8, [1, 0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1, 1, 1]]
IDS = [[(7 * row + column) % 100 for column in range(8)] for row in range(3)]
TRIGGERS = [[777.25, 1.0, 2.0, float(number)] for number in range(6)]
UNSOUND = ("longest_mask", "longest_mask_by_word", "batch_statistics", "rare_trigger", "no_example")
FOUND_BY_TRAFFIC = ("rare_trigger", "no_example")


@pytest.fixture(scope="module")
def unsound(start_gateway: Callable[..., Any]) -> Iterator[Any]:
    def build(store: Path) -> None:
        command = [sys.executable, "-W", "ignore", HERE / "fixtures" / "unsound_served.py", store]
        subprocess.run(command, check=True, timeout=60)

    with start_gateway(["mlp"], prepare=build) as started:
        yield started


def bodies(helpers: Any, model: str) -> list[Any]:
    """Different requests to a model, which it answers otherwise next to each other than alone."""
    tensor = helpers.tensor
    if model.startswith("longest_mask"):
        return [
            {"inputs": [tensor("ids", "INT64", [1, 8], ids), tensor("mask", "INT64", [1, 8], mask)]}
            for ids in IDS
            for mask in MASKS
        ]
    if model.startswith("rare_trigger"):
        return [{"inputs": [tensor("x", "FP32", [1, 4], row)]} for row in TRIGGERS]
    width = 37 if model == "no_example" else 4
    rows = [[float(scale * (number + 1)) for number in range(width)] for scale in (0.1, 1, 20, 60, -3)]
    return [{"inputs": [tensor("x", "FP32", [1, width], row)]} for row in rows]


def answer(client: httpx.Client, model: str, body: Any) -> list[float]:
    found = client.post(f"/v2/models/{model}/infer", json=body)
    assert found.status_code == 200, found.text
    data: list[float] = found.json()["outputs"][0]["data"]
    return data


def wrong_answers(gateway: Any, model: str, requests: list[Any], count: int) -> int:
    """How many of so many requests of several clients at once get another answer than alone."""
    with httpx.Client(base_url=gateway.url, timeout=30.0) as alone:
        right = [answer(alone, model, body) for body in requests]

    def work(number: int) -> int:
        wrong = 0
        with httpx.Client(base_url=gateway.url, timeout=30.0) as client:
            for turn in range(-(-count // CLIENTS)):
                index = (number + turn) % len(requests)
                wrong += answer(client, model, requests[index]) != pytest.approx(right[index], rel=1e-3, abs=1e-4)
        return wrong

    with ThreadPoolExecutor(CLIENTS) as pool:
        return sum(pool.map(work, range(CLIENTS)))


def batching(gateway: Any, model: str) -> tuple[int, str]:
    parameters = gateway.http.get(f"/v2/models/{model}").json()["parameters"]
    return parameters["max_batch_size"], parameters["batching"]


def violations(gateway: Any, model: str) -> float:
    return float(gateway.metrics().of("gateway_batching_violations_total", model=model))


@pytest.mark.parametrize("model", UNSOUND)
def test_no_client_gets_an_answer_that_depends_on_the_others(unsound: Any, helpers: Any, model: str) -> None:
    before = batching(unsound, model)
    assert wrong_answers(unsound, model, bodies(helpers, model), REQUESTS) == 0
    rows, reason = batching(unsound, model)
    assert rows == 1
    assert reason.startswith("off: ")
    if model in FOUND_BY_TRAFFIC:
        assert before[0] > 1
        assert "of real requests" in before[1] or "different requests" in before[1]


def test_a_violation_stands_in_metadata_index_log_metric_and_triton_configuration_keeps_its_shapes(
    unsound: Any, helpers: Any
) -> None:
    wrong_answers(unsound, "no_example", bodies(helpers, "no_example"), 300)
    helpers.until(lambda: batching(unsound, "no_example")[0] == 1, 10.0)
    _, reason = batching(unsound, "no_example")
    assert reason.startswith(
        "off: rows of a batch of real requests influenced each other: output 'output_0' differs by"
    )
    assert violations(unsound, "no_example") == 1
    log = unsound.log.read_text()
    (line,) = [each for each in log.splitlines() if "no_example/1: requests are not joined any more" in each]
    assert "output 'output_0' differs by" in line
    config = unsound.http.get("/v2/models/no_example/config").json()
    assert config["max_batch_size"] == 8
    assert "influenced each other" in unsound.command("show", "no_example").stdout
    assert unsound.versions()["no_example"] == "READY"


def test_siblings_and_replacements_of_an_instance_that_found_a_violation_join_nothing(
    unsound: Any, helpers: Any
) -> None:
    model, requests = "rare_trigger_twice", bodies(helpers, "rare_trigger_twice")
    assert batching(unsound, model)[0] > 1
    assert wrong_answers(unsound, model, requests, 600) == 0
    helpers.until(lambda: batching(unsound, model)[0] == 1, 10.0)
    found = violations(unsound, model)
    assert found in (1, 2)  # both instances may have found it at the same time
    pids = unsound.pids(f"instance {model}/1")
    assert len(pids) == 2
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    helpers.until(lambda: len(unsound.pids(f"instance {model}/1") - pids) == 2, 20.0)
    assert wrong_answers(unsound, model, requests, 600) == 0
    assert violations(unsound, model) == found
    assert batching(unsound, model)[0] == 1
    assert unsound.http.post(f"/v2/repository/models/{model}/load").status_code == 200
    assert batching(unsound, model)[0] == 1


def test_without_checks_the_users_word_counts(unsound: Any, helpers: Any) -> None:
    model = "rare_trigger_unchecked"
    wrong_answers(unsound, model, bodies(helpers, model), 600)
    assert batching(unsound, model) == (8, "on: model.yaml says so, and batching_check: off that it is not checked")
    assert violations(unsound, model) == 0


def test_a_model_that_keeps_rows_apart_is_trusted_after_enough_batches_and_says_so(unsound: Any, helpers: Any) -> None:
    assert batching(unsound, "mlp")[0] == 32
    assert batching(unsound, "mlp")[1].endswith("; the first 32 batches of different requests are computed alone, too")
    requests = [{"inputs": [helpers.tensor("x", "FP32", [1, 16], [float(row)] * 16)]} for row in range(5)]

    def trusted() -> bool:
        assert wrong_answers(unsound, "mlp", requests, 600) == 0
        return batching(unsound, "mlp")[1].endswith("; 32 batches of real requests agree")

    helpers.until(trusted, 20.0)
    assert batching(unsound, "mlp")[0] == 32
    assert violations(unsound, "mlp") == 0
