"""Models whose names are not made of ASCII letters: a folder's name is a model's name."""

import shlex
import subprocess
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import pytest

NAMES = ("a b", "größe", "模型", "50%", "what?", "a:b", "$(ls)'s", "__m", "x" * 200)
INPUT = {"name": "x", "datatype": "FP32", "shape": [1, 16], "data": [0.5] * 16}


@pytest.fixture(scope="module")
def named(start_gateway: Callable[..., Any]) -> Iterator[Any]:
    def rename(store: Any) -> None:
        for name in NAMES[1:]:
            (store / name).symlink_to(store / NAMES[0])
        (store / "mlp").rename(store / NAMES[0])

    with start_gateway(["mlp"], prepare=rename) as gateway:
        yield gateway


@pytest.mark.parametrize("name", NAMES)
def test_a_model_of_any_name_answers_in_every_dialect(named: Any, name: str) -> None:
    path, http = quote(name, safe=""), named.http
    assert http.get(f"/v2/models/{path}").json()["name"] == name
    for answer in (
        http.post(f"/v2/models/{path}/infer", json={"inputs": [INPUT]}),
        http.post(f"/v2/models/{path}/versions/3/infer", json={"inputs": [INPUT]}),
        http.post(f"/v1/models/{path}:predict", json={"instances": [INPUT["data"]]}),
        http.post(f"/predictions/{path}", json=INPUT["data"]),
        http.get(f"/v1/models/{path}"),
        http.get(f"/v1/models/{path}/metadata"),
        http.get(f"/v2/models/{path}/ready"),
        http.get(f"/v2/models/{path}/stats"),
        http.get(f"/v2/models/{path}/docs"),
        http.get(f"/v2/models/{path}/openapi.json"),
    ):
        assert answer.status_code == 200, answer.text
    assert named.metrics().of("gateway_requests_total", model=name) >= 4


def test_the_call_that_is_shown_for_such_a_model_works_as_it_is_shown(named: Any) -> None:
    shown = named.command("show", NAMES[6]).stdout
    line = next(line for line in shown.splitlines() if "curl " in line)
    arguments = shlex.split(line[line.index("curl ") :])
    answer = subprocess.run([*arguments, "--silent"], capture_output=True, text=True, timeout=20, check=True)
    assert '"outputs"' in answer.stdout


def test_such_a_model_is_unloaded_and_loaded_by_its_name(named: Any) -> None:
    path = f"/v2/repository/models/{quote(NAMES[5], safe='')}"
    assert named.http.post(f"{path}/unload").status_code == 200
    assert named.versions()[NAMES[5]] == "UNLOADED"
    assert named.http.post(f"{path}/load").status_code == 200
    assert named.versions()[NAMES[5]] == "READY"
