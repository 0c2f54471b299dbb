"""Nothing that a client can send is answered as our own fault, breaks the documented form, or hurts a process."""

import asyncio
import importlib.util
import json
import random
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import requests
import schemathesis
import uvloop
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from gateway.http.app import create_app

MUTANTS = 20_000
SEED = 20260101
OPERATIONS = [(path, method) for path, methods in create_app().openapi()["paths"].items() for method in methods]
CHECKS = [
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
ALLOWED_5XX = {501, 503, 504, 507}
"""What says that the server cannot or will not do it now; all others mean that something is broken."""
WORDS = [f"word {number} <b>é</b>" for number in range(4)]


def load(name: str) -> Any:
    """A module of loadtests/, which is no package."""
    path = Path(__file__).parent.parent / "loadtests" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"loadtests_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


client, mutations = load("client"), load("mutations")


@pytest.fixture(scope="module", autouse=True)
def unhurt(gateway: Any) -> Iterator[None]:
    """After all of this the same processes run as before, and answer."""
    before = gateway.lasting_processes()
    yield
    assert gateway.lasting_processes() == before
    with gateway.connect() as connection:
        assert connection.ask(gateway.good()).status == 200


@pytest.fixture(scope="module")
def api(gateway: Any) -> Any:
    return schemathesis.openapi.from_url(f"{gateway.url}/openapi.json")


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        yield session


def test_the_document_served_is_the_one_tested(gateway: Any) -> None:
    served = gateway.http.get("/openapi.json").json()["paths"]
    assert {(path, method) for path, methods in served.items() for method in methods} == set(OPERATIONS)
    assert not any("422" in operation["responses"] for methods in served.values() for operation in methods.values())


@pytest.mark.parametrize(("path", "method"), OPERATIONS, ids=lambda part: part.strip("/"))
def test_every_answer_is_a_documented_one(gateway: Any, api: Any, session: Any, path: str, method: str) -> None:
    """Positive and negative data by the schema, for names that exist and names that do not."""
    operation = api[path][method.upper()]
    names = sorted(gateway.versions())
    # Loading and unloading models would hurt them, and recording them takes a minute.
    harmful = "{action}" in path or path.endswith("/profile")

    modes = _modes(operation)

    @settings(
        max_examples=25 if len(modes) > 1 else 2,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate],
    )
    @given(
        case=st.one_of(operation.as_strategy(generation_mode=mode) for mode in modes),
        model=st.none() | st.sampled_from(names),
        version=st.none() | st.sampled_from(["1", "3", "0", "latest"]),
    )
    def every_case(case: Any, model: str | None, version: str | None) -> None:
        parameters = case.path_parameters or {}
        if "model" in parameters and model is not None and not harmful:
            parameters["model"] = model
        if "version" in parameters and version is not None:
            parameters["version"] = version
        response = case.call(session=session)
        assert response.status_code < 500 or response.status_code in ALLOWED_5XX, response.text[:500]
        case.validate_response(response, checks=CHECKS)

    every_case()


def _modes(operation: Any) -> list[Any]:
    """Where nothing can be sent, nothing can be wrong with it."""
    modes = [schemathesis.GenerationMode.POSITIVE]
    if operation.body or operation.path_parameters:
        modes.append(schemathesis.GenerationMode.NEGATIVE)
    return modes


def mutants(gateway: Any, count: int) -> Iterator[tuple[str, Any]]:
    """(model, mutant), the same ones each time. Models that raise for a good request are not asked."""
    good = {
        "mlp": mutations.good_requests("x", "FP32", [1, 16], [0.5] * 16),
        "digits_torch": mutations.good_requests("image", "FP32", [1, 64], [0.25] * 64),
        "digits_tensorflow": mutations.good_requests("image", "FP32", [2, 64], [0.25] * 128),
        "text_tensorflow": mutations.good_requests(_text_input(gateway), "BYTES", [4], WORDS),
        "identity_tensorflow": mutations.good_requests("x", "FP32", [2, 4], [0.5] * 8),
        "identity_torch": mutations.good_requests("x", "INT64", [2, 4], list(range(8))),
        "echo_strings": mutations.good_requests("words", "BYTES", [4], WORDS),
    }
    choose = random.Random(SEED)
    for _ in range(count):
        model = choose.choice(list(good))
        yield model, mutations.mutant(choose, choose.choice(good[model]))


def _text_input(gateway: Any) -> str:
    name: str = gateway.http.get("/v2/models/text_tensorflow").json()["inputs"][0]["name"]
    return name


def test_the_mutations_start_from_requests_that_are_answered(gateway: Any) -> None:
    for model in ("mlp", "digits_torch", "identity_tensorflow"):
        shape = gateway.http.get(f"/v2/models/{model}").json()["inputs"][0]
        size = shape["shape"][-1]
        for good in mutations.good_requests(shape["name"], "FP32", [1, size], [0.5] * size):
            body = (good.json, good.binary) if good.binary else good.json
            answer = gateway.infer(model, body)
            assert answer.status == 200, answer.body
    for good in mutations.good_requests(_text_input(gateway), "BYTES", [4], WORDS):
        answer = gateway.infer("text_tensorflow", (good.json, good.binary) if good.binary else good.json)
        assert answer.status == 200, answer.body


def test_twenty_thousand_mutated_requests_are_answered_and_none_with_a_server_error(gateway: Any) -> None:
    statuses: Counter[int] = Counter()
    bad: list[tuple[str, Any, int, bytes]] = []

    def shot(model: str, mutant: Any) -> Any:
        def check(status: int, head: bytes, body: bytes) -> str:
            statuses[status] += 1
            if status >= 500 or not well_formed(status, head, body):
                bad.append((model, mutant, status, body))
            return ""

        data = client.request("POST", f"/v2/models/{quote(model)}/infer", mutant.body, *mutant.headers)
        return client.Shot(data, check)

    shots = iter([shot(model, mutant) for model, mutant in mutants(gateway, MUTANTS)])

    async def send() -> Any:
        load = client.ClosedLoop(gateway.address, shots.__next__, 16, timeout=20.0, count=MUTANTS)
        return await load.finish(100.0)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        tally = runner.run(send())
    assert not bad, f"{len(bad)} of {MUTANTS}, the first: {bad[:3]}"
    assert not tally.failures, (tally.failures, tally.examples)
    assert tally.right == MUTANTS
    assert statuses[400] > MUTANTS / 4  # else they were hardly mutated
    assert statuses[200] > MUTANTS / 50  # else nothing gets past the first check


def well_formed(status: int, head: bytes, body: bytes) -> bool:
    """An error is one sentence without anything of our insides; an answer is what its headers say."""
    if b"content-encoding: " in head:
        return status == 200
    if status == 200:
        return b"application/octet-stream" in head or "outputs" in json.loads(body)
    error = json.loads(body)
    return list(error) == ["error"] and bool(error["error"]) and "Traceback" not in error["error"]
