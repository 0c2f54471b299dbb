"""Triton's own calls: what only asks is answered, what would change something is refused in one sentence."""

from typing import Any

import pytest


@pytest.mark.parametrize("place", ["", "/models/mlp"])
def test_there_are_no_traces(gateway: Any, place: str) -> None:
    answer = gateway.http.get(f"/v2{place}/trace/setting")
    assert (answer.status_code, answer.json()) == (200, {"trace_level": ["OFF"]})
    refused = gateway.http.post(f"/v2{place}/trace/setting", json={"trace_level": ["TIMESTAMPS"]})
    assert refused.status_code == 501
    assert "--otlp-endpoint" in refused.json()["error"]


def test_a_model_that_is_not_there_has_no_traces_either(gateway: Any) -> None:
    assert gateway.http.get("/v2/models/nobody/trace/setting").status_code == 404


def test_the_log_can_be_asked_about_and_not_changed(gateway: Any) -> None:
    assert gateway.http.get("/v2/logging").json()["log_error"] is True
    assert gateway.http.post("/v2/logging", json={"log_verbose_level": 1}).status_code == 501


@pytest.mark.parametrize("kind", ["system", "cuda"])
def test_there_is_no_shared_memory_and_none_is_taken(gateway: Any, kind: str) -> None:
    base = f"/v2/{kind}sharedmemory"
    assert gateway.http.get(f"{base}/status").json() == []
    missing = gateway.http.get(f"{base}/region/mine/status")
    assert missing.status_code == 404
    assert missing.json() == {"error": f"Unable to find {kind} shared memory region: 'mine'"}
    refused = gateway.http.post(f"{base}/region/mine/register", json={"key": "/mine", "byte_size": 64})
    assert refused.status_code == 501
    assert "shared memory" in refused.json()["error"]
    assert gateway.http.post(f"{base}/unregister").status_code == 200
    assert gateway.http.post(f"{base}/region/mine/unregister").status_code == 200
    assert gateway.http.post(f"{base}/register").status_code == 404


def test_other_kinds_of_memory_are_unknown_paths(gateway: Any) -> None:
    assert gateway.http.get("/v2/othersharedmemory/status").status_code == 404
    assert gateway.http.post("/v2/othersharedmemory/unregister").status_code == 404


def test_tensors_in_shared_memory_are_refused(gateway: Any, helpers: Any) -> None:
    there = {"shared_memory_region": "mine", "shared_memory_byte_size": 64}
    lies = {"inputs": [helpers.tensor("x", "FP32", [1, 16], **there)]}
    goes = {
        "inputs": [helpers.tensor("x", "FP32", [1, 16], [0.5] * 16)],
        "outputs": [{"name": "y", "parameters": there}],
    }
    for body, words in ((lies, "lies in shared memory"), (goes, "is wanted in shared memory")):
        answer = gateway.infer("mlp", body)
        assert answer.status == 400
        assert words in answer.json()["error"]


def test_the_configuration_says_what_is_in_force(gateway: Any) -> None:
    config = gateway.http.get("/v2/models/digits_torch/config").json()
    assert config["version_policy"] == {"latest": {"num_versions": 1}}
    assert config["default_model_filename"] == "model.pt"
    assert config["dynamic_batching"]["default_queue_policy"]["max_queue_size"] == 1024
    assert config["output"][0]["dims"] == [10]
    single = gateway.http.get("/v2/models/hangs/config").json()
    assert single["max_batch_size"] == 0
    assert single["input"][0]["dims"] == [-1]
    assert "dynamic_batching" not in single


def test_the_extensions_are_those_that_are_served(gateway: Any) -> None:
    served = set(gateway.http.get("/v2").json()["extensions"])
    assert {"classification", "statistics", "schedule_policy", "generate", "binary_tensor_data"} <= served
    assert not {"sequence", "system_shared_memory", "cuda_shared_memory", "trace", "logging"} & served
