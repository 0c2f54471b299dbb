"""Each model's own page: its names, its shapes, and examples that are answered when they are sent as they are."""

import re
from typing import Any
from urllib.parse import urljoin

import pytest
import schemathesis
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance

from gateway.http import examples
from gateway.http.examples import Example, Given, example_of
from gateway.http.model_docs import document
from gateway.ipc.batching import Batching
from gateway.ipc.messages import ExampleInput, Ready, VersionRoute
from gateway.metrics import VersionCounters
from gateway.routing import Target
from gateway.store.manifest import ModelConfig, Warmup
from gateway.tensors import Signature, TensorSpec

CALLS = ["infer", "generate", "generate_stream", ":predict"]
"""What every model's document has an example of, by the ends of their paths."""


def target_of(
    *specs: TensorSpec, example: list[ExampleInput] | None = None, config: ModelConfig | None = None
) -> Target:
    ready = Ready(
        pid=1,
        platform="pytorch_torchscript",
        signatures={"forward": Signature("forward", specs, (TensorSpec("y", "FP32", (-1, 3)),))},
        default_signature="forward",
        batching=Batching(4, "on"),
        notes=[],
        load_seconds=0.0,
        example=example or [],
    )
    config = config or ModelConfig(warmup=Warmup(0))
    route = VersionRoute("m", 1, "pytorch_torchscript", "pytorch", "READY", "", config, ready)
    return Target(route, [], VersionCounters("m", "1", "pytorch"))


X = TensorSpec("x", "FP32", (-1, 2))


def shown(target: Target) -> Example | None:
    """The example on the page of a model."""
    assert target.route.ready is not None
    return example_of(target.route.ready)


def test_every_example_of_every_model_is_answered_when_it_is_sent_as_it_is(gateway: Any) -> None:
    ready = [name for name, state in gateway.versions().items() if state == "READY"]
    assert {"digits_torch", "digits_tensorflow", "text_tensorflow", "collatz_torch", "mlp"} <= set(ready)
    answered: set[tuple[str, str]] = set()
    for model in ready:
        served = gateway.http.get(f"/v2/models/{model}/openapi.json").json()
        schema = schemathesis.openapi.from_dict(served)
        posts = [path for path, operations in served["paths"].items() if "post" in operations]
        assert all(any(path.endswith(call) for path in posts) for call in CALLS)
        for path in posts:
            operation = served["paths"][path]["post"]
            example = operation["requestBody"]["content"]["application/json"].get("example")
            if example is None:
                assert "No example" in operation["description"]
                continue
            answered.update((model, call) for call in CALLS if path.endswith(call))
            case = schema[path]["POST"].Case(body=example, media_type="application/json")
            answer = case.call(base_url=gateway.url)
            assert answer.status_code == 200, (path, example, answer.text[:200])
            checks = [] if path.endswith("_stream") else [response_schema_conformance]
            case.validate_response(answer, checks=[content_type_conformance, *checks])
        for path, operations in served["paths"].items():
            if "get" in operations:
                assert gateway.http.get(path).status_code == 200, path
    assert {
        (model, call) for model in ("digits_torch", "digits_tensorflow", "text_tensorflow", "mlp") for call in CALLS
    } <= answered
    assert [call for model, call in answered if model == "pictures"] == ["infer"], "only binary data carries its answer"
    assert not [call for model, call in answered if model == "on_another_device"]


@pytest.mark.parametrize("place", ["mlp", "mlp/versions/3"])
def test_the_page_loads_nothing_from_elsewhere_and_shows_the_model_s_document(gateway: Any, place: str) -> None:
    page = gateway.http.get(f"/v2/models/{place}/docs")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert not re.search(r"https?://", page.text), "the page names another host"
    for name in re.findall(r"""(?:src|href)=["']([^"']+)["']""", page.text):
        assert gateway.http.get(urljoin(f"/v2/models/{place}/docs", name)).status_code == 200, name
    (source,) = re.findall(r"url: '([^']+)'", page.text)
    served = gateway.http.get(urljoin(f"/v2/models/{place}/docs", source)).json()
    assert f"/v2/models/{place}/infer" in served["paths"]
    assert served["info"]["title"] == "mlp, version 3"
    assert (
        "| `x` | FP32 | [-1, 16] (-1: any size) |"
        in served["paths"][f"/v2/models/{place}/infer"]["post"]["description"]
    )


@pytest.mark.parametrize("what", ["docs", "openapi.json"])
def test_what_is_no_model_has_no_page(gateway: Any, what: str) -> None:
    assert gateway.http.get(f"/v2/models/nobody/{what}").status_code == 404
    assert gateway.http.get(f"/v2/models/mlp/versions/9/{what}").status_code == 404
    assert gateway.http.get(f"/v2/models/no_archive/{what}").status_code == 503


def test_only_calls_that_are_served_are_described() -> None:
    paths = document(target_of(X), None)["paths"]
    assert {"/v2/models/m/infer", "/v2/models/m/generate", "/v2/models/m/stats"} <= set(paths)
    labelled = document(target_of(X), "a b/c")["paths"]
    assert "/v2/models/m/versions/a%20b%2Fc/infer" in labelled


def test_the_example_is_the_one_that_was_tested() -> None:
    tested = ExampleInput("x", "FP16", (1, 2), b"\x00\x3c\x66\x2e")
    (given,) = shown(target_of(X, example=[tested])) or []
    assert (given.shape, given.values) == ((1, 2), [1.0, 0.1])
    words = ExampleInput("w", "BYTES", (1,), b"\x02\0\0\0hi")
    (given,) = shown(target_of(TensorSpec("w", "BYTES", (-1,)), example=[words])) or []
    assert given.values == ["hi"]
    large = ExampleInput("x", "FP32", (1, 1000))
    (given,) = shown(target_of(X, example=[large])) or []
    assert given.values == [0.0] * 1000


@pytest.mark.parametrize(
    "claimed",
    [
        ExampleInput("x", "FP32", (1 << 40,)),
        ExampleInput("x", "FP32", (1 << 61, 1 << 61)),
        ExampleInput("x", "FP32", (1, 2), b"\0"),
        ExampleInput("x", "BYTES", (1,), b"\x02\0\0\0\xff\xff"),
        ExampleInput("x", "BYTES", (1,), b"\xff\0\0\0a"),
    ],
)
def test_an_example_that_cannot_be_shown_is_none(claimed: ExampleInput) -> None:
    target = target_of(X, example=[claimed])
    assert shown(target) is None
    operation = document(target, None)["paths"]["/v2/models/m/infer"]["post"]
    assert "example" not in operation["requestBody"]["content"]["application/json"]
    assert "No example" in operation["description"]


def test_what_nobody_has_tried_has_no_example() -> None:
    assert shown(target_of(X, config=ModelConfig(stateful=True))) is None
    assert shown(target_of(X, config=ModelConfig(warmup=Warmup(0)))) is None


def test_a_large_request_that_was_answered_is_told_by_its_zeros() -> None:
    image = TensorSpec("x", "FP32", (-1, 3, 224, 224))
    target = target_of(image, example=[ExampleInput("x", "FP32", (1, 3, 224, 224))])
    operation = document(target, None)["paths"]["/v2/models/m/infer"]["post"]
    assert operation["x-zero-bytes"] == 3 * 224 * 224 * 4
    assert "example" not in operation["requestBody"]["content"]["application/json"]


def test_the_page_says_what_is_a_guess() -> None:
    guess = TensorSpec("g", "FP32", (1, 4), strict=False, guessed=True)
    number = TensorSpec("k", "INT64", (), optional=True, strict=False, plain=True)
    said = document(target_of(X, guess, number), None)["paths"]["/v2/models/m/infer"]["post"]["description"]
    for line in ("| `x` | FP32 |", "| `g` (a guess) | FP32 |", "| `k` (optional, not enforced) | INT64 |"):
        assert line in said


def given(name: str, shape: tuple[int, ...], *values: Any) -> Given:
    return Given(TensorSpec(name, "FP32", (-1, *shape[1:]) if shape else ()), shape, list(values))


def test_each_dialect_has_its_own_words_for_an_example() -> None:
    matrix, column, scalar = given("a", (1, 2), 1, 2), given("b", (1,), 3), given("c", (), 4)
    assert examples.infer([scalar], binary=False) == {
        "inputs": [{"name": "c", "shape": (), "datatype": "FP32", "data": [4]}]
    }
    assert examples.generate([matrix, column, scalar]) == {"a": [1, 2], "b": 3, "c": 4}
    free = Signature("usual", (), (TensorSpec("y", "FP32", (-1, 3)),))
    odd = Given(TensorSpec("d", "FP32", (-1, -1)), (2, 1), [1, 2])
    assert examples.generate([odd]) == {"d": [[1], [2]]}
    assert examples.predict([matrix], free, named=False, in_rows=True) == {"instances": [[1, 2]]}
    assert examples.predict([matrix, column], free, named=False, in_rows=True) == {"instances": [{"a": [1, 2], "b": 3}]}
    assert examples.predict([matrix, scalar], free, named=False, in_rows=False) == {"inputs": {"a": [[1, 2]], "c": 4}}
    assert examples.predict([scalar], free, named=False, in_rows=False) == {"inputs": 4}
    fixed = Signature("other", (), (TensorSpec("y", "FP32", (3,)),))
    assert examples.predict([matrix], fixed, named=True, in_rows=False) == {
        "signature_name": "other",
        "inputs": [[1, 2]],
    }
    assert examples.prediction([matrix]) == [1, 2]
    assert examples.prediction([matrix, column]) == {"a": [1, 2], "b": 3}
    assert examples.prediction([matrix, scalar]) == {"a": [[1, 2]], "c": 4}
