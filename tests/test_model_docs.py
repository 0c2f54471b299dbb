"""Each model's own page: its names, its shapes, and examples that are answered when they are sent as they are."""

import re
from typing import Any
from urllib.parse import urljoin

import pytest

CALLS = ("infer", "generate", "generate_stream", ":predict", "predictions")
"""How the paths of the calls are told apart; of each that is served, every model has an example."""
WITHOUT_EXAMPLE = {"crashes", "hangs"}


def documents(gateway: Any) -> dict[str, Any]:
    ready = [name for name, state in gateway.versions().items() if state == "READY"]
    return {name: gateway.http.get(f"/v2/models/{name}/openapi.json").json() for name in ready}


def test_every_example_of_every_model_is_answered_when_it_is_sent_as_it_is(gateway: Any) -> None:
    sent = 0
    for model, document in documents(gateway).items():
        for path, operations in document["paths"].items():
            if "post" in operations:
                content = operations["post"]["requestBody"]["content"]["application/json"]
                assert "example" in content, (model, path)
                answer = gateway.http.post(path, json=content["example"])
                assert answer.status_code == 200, (model, path, content["example"], answer.text[:200])
                sent += 1
    assert sent > 20
