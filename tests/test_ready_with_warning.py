"""Versions that load and cannot answer, told apart from those that can, by what they were asked at load."""

from typing import Any

import pytest


@pytest.mark.parametrize(
    ("model", "word", "body"),
    [
        ("on_another_device", "CUDA", {"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}),
        ("calls_python", "Python", {"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}),
    ],
)
def test_a_version_that_never_works_is_ready_with_a_warning_wherever_it_is_shown(
    gateway: Any, model: str, word: str, body: dict[str, Any]
) -> None:
    index = {each["name"]: each for each in gateway.http.post("/v2/repository/index", json={}).json()}
    assert index[model]["state"] == "READY"
    assert word in index[model]["reason"]
    assert not index["mlp"]["reason"]
    assert word in gateway.http.get(f"/v2/models/{model}").json()["parameters"]["warning"]
    assert "warning" not in gateway.http.get("/v2/models/mlp").json()["parameters"]
    answer = gateway.http.post(f"/v2/models/{model}/infer", json={"inputs": [body]})
    assert answer.status_code == 500
    assert word in answer.json()["error"]
    tensorflow = gateway.http.post(f"/v1/models/{model}:predict", json={"instances": [1.0]})
    assert tensorflow.status_code == 500
    assert word in tensorflow.json()["error"]


def test_other_signatures_that_call_python_say_so(gateway: Any) -> None:
    body = {"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}]}
    body["parameters"] = {"signature_name": "by_python"}  # type: ignore[assignment]
    answer = gateway.http.post("/v2/models/calls_python/infer", json=body)
    assert (answer.status_code, "Python" in answer.json()["error"]) == (500, True), answer.text


def test_a_list_of_tensors_of_different_sizes_needs_no_model_yaml(gateway: Any) -> None:
    def sizes(body: dict[str, Any], path: str = "/v2/models/parts/infer") -> Any:
        answer = gateway.http.post(path, json=body)
        assert answer.status_code == 200, answer.text
        found = answer.json()["outputs"]
        if isinstance(found, dict):
            return [found["output_0.size"], found["output_1.size"]]
        return [each["data"] for each in found if each["name"].endswith("size")]

    inputs = [
        {"name": f"images_{index}", "shape": shape, "datatype": "FP32", "data": [1.0] * shape[0] * shape[1] * shape[2]}
        for index, shape in enumerate([[3, 4, 5], [3, 7, 2]])
    ]
    assert sizes({"inputs": inputs}) == [[4, 5], [7, 2]]
    whole = {"name": "images", "shape": [2, 1, 3, 2], "datatype": "FP32", "data": [1.0] * 12}
    assert sizes({"inputs": [whole]}) == [[3, 2], [3, 2]]
    images = {"images_0": [[[1.0, 2.0]]], "images_1": [[[1.0], [2.0], [3.0]]]}
    assert sizes({"inputs": images}, "/v1/models/parts:predict") == [[1, 2], [3, 1]]
    missing = gateway.http.post("/v2/models/parts/infer", json={"inputs": [inputs[1]]})
    assert (missing.status_code, "images" in missing.text) == (400, True), missing.text
    metadata = gateway.http.get("/v2/models/parts").json()
    assert metadata["inputs"][0]["name"] == "images"
    assert any("images_0, images_1" in note for note in metadata["parameters"]["notes"])


def test_a_saved_model_that_fails_in_a_session_is_loaded_by_tensorflow_2(gateway: Any) -> None:
    metadata = gateway.http.get("/v2/models/keras_saved").json()
    assert any("TensorFlow 2" in note for note in metadata["parameters"]["notes"])
    answer = gateway.http.post("/v1/models/keras_saved:predict", json={"instances": [[0.0] * 4]})
    assert answer.json() == {"predictions": [[0.0] * 3]}
