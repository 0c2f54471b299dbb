"""Copies of live requests for another version, and what is told of their answers."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

SHADOWS = {
    "digits_torch": "{model: digits_tensorflow, percent: 100}",
    "mlp": "{version: 2, percent: 100}",
    "identity_torch": "{model: ranks_its_numbers, percent: 100}",
    "crashes": "{model: raises, percent: 100}",
    "raises": "{model: nobody, percent: 100}",
    "hangs": "{percent: 25, model: identity_torch, version: 1}",
}


@pytest.fixture(scope="module")
def store() -> list[Path]:
    """The one of the server, when it is there."""
    return []


@pytest.fixture(scope="module")
def server(start_gateway: Any, store: list[Path]) -> Iterator[Any]:
    def add(directory: Path) -> None:
        store.append(directory)
        for name, shadow in SHADOWS.items():
            with (directory / name / "model.yaml").open("a") as file:
                file.write(f"shadow: {shadow}\n")

    with start_gateway([*SHADOWS, "digits_tensorflow", "ranks_its_numbers"], prepare=add) as gateway:
        yield gateway


def ask(server: Any, model: str, name: str, data: Any) -> httpx.Response:
    values = np.asarray(data, np.float32)
    item = {"name": name, "datatype": "FP32", "shape": values.shape, "data": values.ravel().tolist()}
    answer: httpx.Response = server.http.post(f"/v2/models/{model}/infer", json={"inputs": [item]})
    return answer


def told(server: Any, model: str, name: str = "gateway_shadow_requests_total", **labels: str) -> float:
    found: float = server.metrics().of(name, model=model, **labels)
    return found


def test_twins_of_two_frameworks_agree(server: Any, helpers: Any) -> None:
    random = np.random.default_rng(0)
    for rows in (1, 2, 3):
        assert ask(server, "digits_torch", "image", random.random((rows, 64))).status_code == 200
    helpers.until(lambda: told(server, "digits_torch", outcome="agreed") == 3, 10)
    assert told(server, "digits_torch") == 3
    assert told(server, "digits_torch", "gateway_shadow_rows_total", **{"class": "same"}) == 6
    assert told(server, "digits_torch", "gateway_shadow_difference_count") == 3
    assert 0 <= told(server, "digits_torch", "gateway_shadow_difference_sum") < 3e-3
    for answer in ("live", "shadow"):
        labels = {"answer": answer, "shadow_model": "digits_tensorflow", "shadow_version": "default"}
        assert told(server, "digits_torch", "gateway_shadow_duration_seconds_count", **labels) == 3
        assert told(server, "digits_torch", "gateway_shadow_duration_seconds_sum", **labels) > 0
    assert told(server, "digits_tensorflow", "gateway_requests_total") == 0  # copies are nobody's requests
    assert told(server, "digits_tensorflow", "gateway_inferences_total") == 6


def test_another_version_of_the_same_model_is_served_for_it(server: Any, helpers: Any) -> None:
    assert server.http.get("/v2/models/mlp/versions/2/ready").status_code == 200
    assert ask(server, "mlp", "x", np.ones((1, 16))).json()["model_version"] == "3"
    helpers.until(lambda: told(server, "mlp", shadow_version="2", outcome="agreed") == 1, 10)
    assert ask(server, "mlp/versions/2", "x", np.ones((1, 16))).json()["model_version"] == "2"
    helpers.until(lambda: told(server, "mlp", "gateway_requests_total", version="2") == 1, 10)
    assert told(server, "mlp") == 1  # the shadow has none of its own


def test_the_metadata_tell_of_it(server: Any) -> None:
    shadow = server.http.get("/v2/models/digits_torch").json()["parameters"]["shadow"]
    assert shadow == {"percent": 100, "model": "digits_tensorflow", "version": None, "tolerance": 1e-3}
    assert "shadow" not in server.http.get("/v2/models/digits_tensorflow").json()["parameters"]


def test_every_dialect_casts_one(server: Any, helpers: Any) -> None:
    before = told(server, "mlp", outcome="agreed")
    assert server.http.post("/v1/models/mlp:predict", json={"instances": [[0.5] * 16]}).status_code == 200
    assert server.http.post("/predictions/mlp", json=[0.5] * 16).status_code == 200
    helpers.until(lambda: told(server, "mlp", outcome="agreed") == before + 2, 10)


def test_different_answers_differ_and_large_tensors_are_copied_whole(server: Any, helpers: Any) -> None:
    """A softmax keeps the order of numbers and changes their size; the tensors travel through shared memory."""
    values = np.random.default_rng(1).random((2, 100_000), np.float32)
    body = values.tobytes()
    head = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [2, 100_000]}]}
    head["inputs"][0]["parameters"] = {"binary_data_size": len(body)}
    head["parameters"] = {"binary_data_output": True}
    answer = server.infer("identity_torch", (head, body))
    assert answer.parts()[1] == body
    helpers.until(lambda: told(server, "identity_torch", outcome="differed") == 1, 10)
    assert told(server, "identity_torch", "gateway_shadow_rows_total", **{"class": "same"}) == 2
    softmax = np.exp(values) / np.exp(values).sum(-1, keepdims=True)
    expected = float(np.abs(values - softmax).max())
    assert told(server, "identity_torch", "gateway_shadow_difference_sum") == pytest.approx(expected, rel=1e-3)


def test_a_shadow_that_fails_is_no_business_of_the_caller(server: Any, helpers: Any) -> None:
    assert ask(server, "crashes", "x", [-1.0]).json()["outputs"][0]["data"] == [0.0]
    helpers.until(lambda: told(server, "crashes", outcome="failed") == 1, 10)
    assert ask(server, "crashes", "x", [1.0]).json()["outputs"][0]["data"] == [2.0]
    helpers.until(lambda: told(server, "crashes", outcome="agreed") == 1, 10)


def test_a_shadow_that_is_not_there_fails_every_time(server: Any, helpers: Any) -> None:
    assert ask(server, "raises", "x", [1.0]).status_code == 200
    helpers.until(lambda: told(server, "raises", shadow_model="nobody", outcome="failed") == 1, 10)


def test_a_share_of_the_requests_is_copied(server: Any, helpers: Any) -> None:
    for _ in range(400):
        assert ask(server, "hangs", "x", [1.0]).status_code == 200
    helpers.until(lambda: told(server, "hangs") > 60, 10)
    before = -1.0
    while told(server, "hangs") != before:  # until the last of them is counted
        before = told(server, "hangs")
        for _ in range(5):
            assert server.http.get("/v2/health/live").status_code == 200
    assert 60 < before < 140  # 4.6 standard deviations on either side


def test_ending_it_reloads_nothing(server: Any, store: list[Path], helpers: Any) -> None:
    pids = server.pids("instance mlp/3")
    file = store[0] / "mlp" / "model.yaml"
    new = file.with_name("new")
    new.write_text(file.read_text().replace("shadow:", "# shadow:"))
    new.rename(file)
    helpers.until(lambda: server.http.get("/v2/models/mlp/versions/2/ready").status_code != 200, 20)
    before = told(server, "mlp")
    assert ask(server, "mlp", "x", np.ones((1, 16))).status_code == 200
    assert ask(server, "crashes", "x", [1.0]).status_code == 200
    helpers.until(lambda: told(server, "crashes", outcome="agreed") >= 2, 10)
    assert told(server, "mlp") == before
    assert server.pids("instance mlp/3") == pids
