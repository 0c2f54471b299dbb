"""Requests that name no version, split among versions of a model."""

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BODY = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 16], "data": [0.5] * 16}]}


def _split(store: Path, three: int, four: int) -> None:
    file = store / "mlp" / "model.yaml"
    lines = [line for line in file.read_text().splitlines() if not line.startswith("traffic:")]
    new = file.with_name("model.yaml.new")
    new.write_text("\n".join([*lines, f"traffic: {{3: {three}, 4: {four}}}", ""]))
    new.rename(file)


@pytest.fixture(scope="module")
def stores() -> list[Path]:
    """The one of the server, when it is there."""
    return []


@pytest.fixture(scope="module")
def server(start_gateway: Any, stores: list[Path]) -> Iterator[Any]:
    def two_versions(store: Path) -> None:
        stores.append(store)
        shutil.copytree(store / "mlp" / "3", store / "mlp" / "4")
        _split(store, 75, 25)

    with start_gateway(["mlp"], prepare=two_versions) as gateway:
        yield gateway


def versions(server: Any, count: int) -> Counter[str]:
    answers = [server.http.post("/v2/models/mlp/infer", json=BODY) for _ in range(count)]
    return Counter(answer.json()["model_version"] for answer in answers)


def test_each_version_gets_its_part_and_can_be_named(server: Any) -> None:
    assert versions(server, 40) == {"3": 30, "4": 10}
    for version in ("3", "4"):
        answer = server.http.post(f"/v2/models/mlp/versions/{version}/infer", json=BODY)
        assert answer.json()["model_version"] == version


def test_every_dialect_is_split(server: Any) -> None:
    def count(version: str) -> float:
        total: float = server.metrics().of("gateway_inferences_total", model="mlp", version=version)
        return total

    before = count("4")
    for _ in range(8):
        assert server.http.post("/v1/models/mlp:predict", json={"instances": [[0.5] * 16]}).status_code == 200
        assert server.http.post("/predictions/mlp", json=[0.5] * 16).status_code == 200
    assert count("4") - before == 4


def test_a_new_split_holds_soon_and_reloads_nothing(server: Any, stores: list[Path], helpers: Any) -> None:
    pids = server.pids("instance mlp/3") | server.pids("instance mlp/4")
    _split(stores[0], 0, 100)
    helpers.until(lambda: versions(server, 4) == {"4": 4}, 20)
    assert server.http.post("/v2/models/mlp/versions/4/infer", json=BODY).status_code == 200
    assert server.pids("instance mlp/4") <= pids
