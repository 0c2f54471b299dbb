"""TorchServe's inference API on real models, as its clients call it."""

import base64
import json
import subprocess
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from gateway.http.torchserve import PREDICTIONS, PredictionRequest
from gateway.ipc.framing import ResultHeader, TensorHeader
from gateway.tensors import pack_bytes

ROW = [number / 16 for number in range(16)]


@pytest.fixture(scope="module")
def http(gateway: Any) -> httpx.Client:
    client: httpx.Client = gateway.http
    return client


@pytest.fixture(scope="module")
def expected(http: httpx.Client) -> list[float]:
    """What mlp makes of ROW, by another dialect."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 16], "data": ROW}
    found: list[float] = http.post("/v2/models/mlp/infer", json={"inputs": [tensor]}).json()["outputs"][0]["data"]
    return found


def refused(answer: httpx.Response, code: int, kind: str) -> str:
    assert answer.status_code == code, answer.text
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert body.keys() == {"code", "type", "message"}
    assert (body["code"], body["type"]) == (code, kind)
    message: str = body["message"]
    return message


@pytest.mark.parametrize("path", ["mlp", "mlp/3", "mlp/3.0"])
@pytest.mark.parametrize(
    "sent",
    [
        {"json": ROW},
        {"json": {"data": ROW}},
        {"json": {"body": ROW}},
        {"json": {"x": ROW}},
        {"content": json.dumps(ROW)},
        {"data": {"data": json.dumps(ROW)}},
        {"data": {"x": json.dumps(ROW)}},
        {"files": {"data": ("row.json", json.dumps(ROW))}},
        {"files": {"data": ("row.bin", np.array(ROW, np.float32).tobytes(), "application/octet-stream")}},
    ],
)
def test_one_row_is_answered_without_a_batch_dimension(
    http: httpx.Client, expected: list[float], path: str, sent: dict[str, Any]
) -> None:
    answer = http.post(f"/predictions/{path}", **sent)
    assert answer.status_code == 200, answer.text
    found = np.array(answer.json())
    assert found.shape == (4,)
    assert np.allclose(found, expected)


def test_a_batch_is_answered_as_one(http: httpx.Client, expected: list[float]) -> None:
    assert np.allclose(http.post("/predictions/mlp", json=[ROW, ROW]).json(), [expected, expected])
    found = http.post("/predictions/mlp", json={"instances": [ROW, ROW]}).json()
    assert found.keys() == {"predictions"}
    assert np.allclose(found["predictions"], [expected, expected])


def test_several_outputs_are_an_object_by_name(http: httpx.Client) -> None:
    a, b = [1.0, 2.0, 3.0, 4.0], [1.0, 1.0, 1.0, 1.0]
    found = http.post("/predictions/optional_input", json={"a": a, "b": b})
    assert found.json() == {"sum": [2.0, 3.0, 4.0, 5.0], "difference": [0.0, 1.0, 2.0, 3.0]}
    found = http.post("/predictions/optional_input", json={"instances": [{"a": a, "b": b}]})
    assert found.json() == {"predictions": [{"sum": [2.0, 3.0, 4.0, 5.0], "difference": [0.0, 1.0, 2.0, 3.0]}]}


def test_text_is_one_string_however_it_comes(http: httpx.Client) -> None:
    found = {
        http.post("/predictions/text_tensorflow", **sent).text
        for sent in (
            {"content": b"hello"},
            {"data": {"data": "hello"}},
            {"files": {"data": b"hello"}},
            {"json": "hello"},
        )
    }
    assert len(found) == 1
    assert "error" not in found.pop()


@pytest.mark.parametrize(
    ("path", "sent", "code", "kind", "said"),
    [
        ("InvalidModel", {"json": ROW}, 404, "ModelNotFoundException", "Model not found: InvalidModel"),
        (
            "mlp/99",
            {"json": ROW},
            404,
            "ModelVersionNotFoundException",
            "Model version: 99 does not exist for model: mlp",
        ),
        ("mlp", {}, 400, "BadRequestException", "no body"),
        ("mlp", {"json": ROW[:3]}, 400, "BadRequestException", "has shape [1, 3], the model takes [-1, 16]"),
        ("mlp", {"content": b"123"}, 400, "BadRequestException", "shape"),
        ("mlp", {"content": bytes(9 << 20)}, 413, "PayloadTooLargeException", "larger than the limit"),
        ("mlp", {"data": {"y": "1"}}, 400, "BadRequestException", "the form has 'y'"),
        ("no_archive", {"json": ROW}, 503, "ServiceUnavailableException", "FAILED"),
    ],
)
def test_errors_are_torchserves(
    http: httpx.Client, path: str, sent: dict[str, Any], code: int, kind: str, said: str
) -> None:
    assert said in refused(http.post(f"/predictions/{path}", **sent), code, kind)


def test_other_methods_and_calls_are_refused(http: httpx.Client) -> None:
    for method in ("GET", "DELETE"):
        refused(http.request(method, "/predictions/mlp"), 405, "MethodNotAllowedException")
    refused(http.post("/predictions"), 404, "ResourceNotFoundException")
    assert "no handlers" in refused(http.post("/explanations/mlp", json=ROW), 501, "NotSupportedException")


def test_put_is_an_inference_as_post_is_for_curl_sends_files_so(http: httpx.Client, expected: list[float]) -> None:
    for content in (json.dumps(ROW).encode(), np.array(ROW, np.float32).tobytes()):
        assert np.allclose(http.put("/predictions/mlp", content=content).json(), expected)
        assert np.allclose(http.put("/predictions/mlp/3.0", content=content).json(), expected)
    refused(http.put("/predictions/nobody", content=b"[1]"), 404, "ModelNotFoundException")
    assert http.put("/v2/models/mlp/infer", content=b"{}").status_code == 405
    assert http.put("/v1/models/mlp:predict", content=b"{}").status_code == 400


def test_curl_t_sends_a_file(gateway: Any, helpers: Any, expected: list[float], tmp_path: Path) -> None:
    file = tmp_path / "row.json"
    file.write_text(json.dumps(ROW))
    command = [helpers.installed("curl"), "-s", f"{gateway.url}/predictions/mlp", "-T", str(file)]
    done = subprocess.run(command, capture_output=True, timeout=30, check=True)
    assert np.allclose(json.loads(done.stdout), expected)


def test_a_number_is_given_together_with_a_row(http: httpx.Client) -> None:
    row, batch = [1.0, 5.0, 3.0], [[1.0, 5.0, 3.0], [9.0, 7.0, 8.0]]
    one = {"output_0": [5.0, 3.0], "output_1": [1, 2]}
    assert http.post("/predictions/best", json={"x": row, "k": 2}).json() == one
    assert http.post("/predictions/best", json={"data": {"x": row, "k": 2}}).json() == one
    assert http.post("/predictions/best", data={"x": json.dumps(row), "k": "2"}).json() == one
    doubled = {"output_0": [10.0], "output_1": [1]}
    assert http.post("/predictions/best", json={"x": row, "k": 1, "scale": 2}).json() == doubled
    two = {"output_0": [[5.0], [9.0]], "output_1": [[1], [0]]}
    assert http.post("/predictions/best", json={"x": batch, "k": 1}).json() == two
    rows = {"instances": [{"x": each, "k": 1} for each in batch]}
    found = [{"output_0": [5.0], "output_1": [1]}, {"output_0": [9.0], "output_1": [0]}]
    assert http.post("/predictions/best", json=rows).json() == {"predictions": found}
    assert http.post("/v1/models/best:predict", json=rows).json() == {"predictions": found}
    rows["instances"][1]["k"] = 2
    assert "one value for all rows" in refused(http.post("/predictions/best", json=rows), 400, "BadRequestException")


WHEN, OF_THE_DAY = 1764543210, 1764543210 % 86400
"""A float of 32 bits makes another time of it."""


def test_integers_for_a_guessed_datatype_stay_integers(http: httpx.Client) -> None:
    def predicted(value: Any) -> Any:
        return http.post("/predictions/seconds_of_the_day", json=value).json()

    for value, right in (
        (WHEN, OF_THE_DAY),
        ([WHEN, 3], [OF_THE_DAY, 3]),
        ([[WHEN], [-1]], [[OF_THE_DAY], [86399]]),
        ({"ts": [WHEN]}, [OF_THE_DAY]),
        ([0.5, 86402], [0.5, 2.0]),
    ):
        assert predicted(value) == right
    many = [WHEN + number for number in range(6000)]  # of more than 32 kB
    assert predicted(many) == [each % 86400 for each in many]
    assert predicted({"instances": many}) == {"predictions": [each % 86400 for each in many]}
    for value in ([WHEN, 0.5], [*many, 0.5], 10**30, {"instances": [[WHEN], [0.5]]}):
        refused(http.post("/predictions/seconds_of_the_day", json=value), 400, "BadRequestException")


def test_an_integer_that_a_declared_float_does_not_hold_is_refused(http: httpx.Client) -> None:
    row = [2**24 + 1, *ROW[1:]]
    said = refused(http.post("/predictions/mlp", json=row), 400, "BadRequestException")
    assert said == ("Cannot convert JSON value: 16777217 to float without loss of precision; input 'x' takes FP32")
    assert http.post("/predictions/mlp", json=[2**24 + 2, *ROW[1:]]).status_code == 200
    assert http.post("/predictions/mlp", json=[float(2**24 + 1), *ROW[1:]]).status_code == 200  # a float is rounded


@pytest.mark.parametrize("model", ["images_torch", "images_tensorflow"])
def test_a_picture_comes_as_curl_sends_it_or_as_base64_in_json(
    http: httpx.Client, images: dict[str, dict[str, bytes]], model: str
) -> None:
    for name in ("plain.jpg", "plain.png"):
        file = images["good"][name]
        text = base64.b64encode(file).decode()
        wanted = http.post(f"/predictions/{model}", content=file, headers={"Content-Type": "image/jpeg"}).json()
        for kind in ("application/x-www-form-urlencoded", "application/octet-stream", ""):
            headers = {"Content-Type": kind} if kind else {}
            assert http.post(f"/predictions/{model}", content=file, headers=headers).json() == wanted, kind
        assert http.put(f"/predictions/{model}", content=file).json() == wanted
        for value in (
            {"data": text}, {"body": text}, {"b64": text}, {"data": {"b64": text}}, text,
            {"data": f"data:image/png;base64,{text}"},
        ):  # fmt: skip
            assert http.post(f"/predictions/{model}", json=value).json() == wanted, list(value)
            bare = http.put(f"/predictions/{model}", content=json.dumps(value))
            assert bare.json() == wanted, list(value)
        for row in ({"data": text, "target": 0}, {"b64": text}, text):
            for path in (f"/predictions/{model}", f"/v1/models/{model}:predict"):
                answer = http.post(path, json={"instances": [row, row]})
                assert answer.status_code == 200, answer.text
                assert len(answer.json()["predictions"]) == 2
    refused(http.post(f"/predictions/{model}", json={"data": "*"}), 400, "BadRequestException")


def test_a_models_call_is_described(http: httpx.Client) -> None:
    assert "/predictions/mlp/3" in http.options("/predictions/mlp/3").json()["paths"]
    assert refused(http.options("/predictions/nobody"), 404, "ModelNotFoundException") == "Model not found: nobody"
    for description in (http.options("/"), http.get("/api-description")):
        assert "/predictions/{model}" in description.json()["paths"]


def test_health_is_one_word(http: httpx.Client) -> None:
    assert http.get("/ping").json()["status"] in {"Healthy", "Partial Healthy"}  # others may end instances now


def test_calls_are_counted_under_their_protocol(gateway: Any) -> None:
    before = gateway.metrics().of("gateway_requests_total", protocol="torchserve", model="mlp", code="200")
    gateway.http.post("/predictions/mlp", json=ROW)
    after = gateway.metrics().of("gateway_requests_total", protocol="torchserve", model="mlp", code="200")
    assert after == before + 1


def test_single_metrics_are_told_by_name(gateway: Any) -> None:
    url = gateway.listener("metrics alone")
    names = {"name[]": ["gateway_requests_total", "gateway_pending_requests"]}
    lines = httpx.get(f"{url}/metrics", params=names).text.splitlines()
    found = {line.partition("{")[0] for line in lines if not line.startswith("#")}
    assert found == set(names["name[]"])


@pytest.mark.parametrize(
    ("rows", "request_of", "said"),
    [
        (1, {"row": True}, b'{"cat":0.75,"dog":0.25}'),
        (2, {}, b'[{"cat":0.75,"dog":0.25},{"cat":0.75,"dog":0.25}]'),
        (1, {"predictions": True}, b'{"predictions":[{"cat":0.75,"dog":0.25}]}'),
    ],
)
def test_what_classifies_is_answered_by_label(rows: int, request_of: dict[str, bool], said: bytes) -> None:
    raws = [pack_bytes([b"cat", b"dog"] * rows), np.array([0.75, 0.25] * rows, np.float32).tobytes()]
    names = (("labels", "BYTES"), ("probabilities", "FP32"))
    outputs = tuple(
        TensorHeader(name, datatype, (rows, 2), len(raw), False)
        for (name, datatype), raw in zip(names, raws, strict=True)
    )
    header = ResultHeader(outputs=outputs)
    target: Any = None  # which this dialect does not ask
    assert PREDICTIONS.encode(PredictionRequest(b"", [], **request_of), target, header, raws) == (said, [])
