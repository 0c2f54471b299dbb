import base64
import json
import math
import time
from types import SimpleNamespace
from typing import Any

import httpx
import ovmsclient
import pytest

from gateway.http.tfserving import signatures_of
from gateway.tensors import Signature

GOOD = {"instances": [[0.5] * 16]}


@pytest.fixture(scope="module")
def http(gateway: Any) -> httpx.Client:
    return gateway.http


def ask(http: httpx.Client, path: str, body: Any, status: int = 200) -> Any:
    content = body if isinstance(body, str | bytes) else json.dumps(body)
    answer = http.post(f"/v1/models/{path}", content=content, headers={"Content-Type": "text/plain"})
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    return json.loads(answer.content)


def refused(http: httpx.Client, path: str, body: Any, status: int = 400) -> str:
    found = ask(http, path, body, status)
    assert list(found) == ["error"]
    return str(found["error"])


# Predict


def test_twins_of_both_frameworks_give_the_same_predictions(http: httpx.Client) -> None:
    rows = {"instances": [[float(i % 5) for i in range(64)], [1] * 64]}
    (one, two) = (ask(http, f"digits_{name}:predict", rows)["predictions"] for name in ("torch", "tensorflow"))
    assert len(one) == len(two) == 2
    for left, right in zip(one, two, strict=True):
        keys = sorted(left) if isinstance(left, dict) else [None]
        for key in keys:
            a, b = (left[key], right[key]) if key else (left, right)
            assert a == pytest.approx(b, abs=1e-4)


def test_rows_and_columns_are_two_ways_to_say_the_same(http: httpx.Client) -> None:
    rows = [
        {"number": [1, 2], "text": "a", "flag": True},
        {"number": [3, 4], "text": {"b64": "/w=="}, "flag": False},
    ]
    columns = {"number": [[1, 2], [3, 4]], "text": ["a", {"b64": "/w=="}], "flag": [True, False]}
    # /w== is no UTF-8: it can only come back as base64
    assert "no UTF-8" in refused(http, "columns:predict", {"instances": rows})
    rows[1]["text"] = columns["text"][1] = {"b64": base64.b64encode(b"b").decode()}
    assert ask(http, "columns:predict", {"instances": rows})["predictions"] == [
        {"number": [2, 3], "text": "a", "raw_bytes": {"b64": "YQ=="}, "flag": False},
        {"number": [4, 5], "text": "b", "raw_bytes": {"b64": "Yg=="}, "flag": True},
    ]
    assert ask(http, "columns:predict", {"inputs": columns})["outputs"] == {
        "number": [[2, 3], [4, 5]],
        "text": ["a", "b"],
        "raw_bytes": [{"b64": "YQ=="}, {"b64": "Yg=="}],
        "flag": [False, True],
    }


def test_an_output_without_rows_answers_columns_only(http: httpx.Client) -> None:
    body = {"signature_name": "total", "inputs": {"number": [[1, 2], [3, 4]]}}
    assert ask(http, "columns:predict", body) == {"outputs": 10}
    body = {"signature_name": "total", "instances": [[1, 2]]}
    assert "has no shape information" in refused(http, "columns:predict", body)


def test_the_usual_signature_is_there_under_its_usual_name(http: httpx.Client) -> None:
    body = GOOD | {"signature_name": "serving_default"}
    assert ask(http, "mlp:predict", body) == ask(http, "mlp:predict", GOOD)
    found = http.get("/v1/models/mlp/metadata").json()["metadata"]["signature_def"]["signature_def"]
    assert found["serving_default"]["inputs"]["x"]["dtype"] == "DT_FLOAT"


def test_numbers_that_are_none_go_in_and_out_as_tokens(http: httpx.Client) -> None:
    body = '{"signature_name":"FP32","instances":[NaN,Infinity,-Infinity,Inf,1e39,1435774380,-0.0]}'
    found = ask(http, "identity_tensorflow:predict", body)["predictions"]
    assert math.isnan(found[0])
    assert found[1:5] == [math.inf, -math.inf, math.inf, math.inf]
    assert found[5:] == pytest.approx([1435774336.0, 0.0], rel=1e-7)


@pytest.mark.parametrize(
    ("datatype", "values"),
    [
        ("BOOL", [True, False]),
        ("UINT8", [0, 255]),
        ("INT8", [-128, 127]),
        ("UINT16", [65535]),
        ("INT64", [-(2**63), 2**63 - 1]),
        ("UINT64", [2**64 - 1]),
        ("FP16", [0.5, -2.0]),
        ("BF16", [0.5, -2.0]),
        ("FP64", [0.1, 1e300]),
        ("BYTES", ["", "ä\n\u0000"]),
        ("FP32", [[[1.5], [2.5]], [[3.5], [4.5]]]),
    ],
)
def test_every_datatype_goes_in_and_out(http: httpx.Client, datatype: str, values: Any) -> None:
    body = {"signature_name": datatype, "instances": values}
    assert ask(http, "identity_tensorflow:predict", body) == {"predictions": values}


def test_shapes_are_the_models_business(http: httpx.Client) -> None:
    assert ask(http, "identity_tensorflow:predict", {"instances": [1.0, 2.0]}) == {"predictions": [1.0, 2.0]}
    assert "In[0]: [1,3]" in refused(http, "digits_tensorflow:predict", {"instances": [[1.0, 2.0, 3.0]]})
    assert "shape [1, 3]" in refused(http, "mlp:predict", {"instances": [[1.0, 2.0, 3.0]]})


@pytest.mark.parametrize(
    "body",
    [
        b'{"instances":[NaN' + b'\\"' * 2_000_000,
        b'{"instances":[' + b"[]," * 1_000_000 + b"[1]]}",
        b'{"instances":[' + b"[[[[0]]]]," * 400_000 + b"[1]]}",
        b'{"instances":[' + b'{"x":1},' * 500_000 + b'{"x":1}]}',
        b'{"instances":[' + b'"a",' * 1_000_000 + b'"a"]}',
        b'{"instances":[' + b'{"b64":""},' * 400_000 + b'{"b64":""}]}',
    ],
    ids=["open strings", "empty lists", "deep lists", "objects", "strings", "base64"],
)
def test_a_body_that_takes_long_to_read_is_refused_at_once(http: httpx.Client, body: bytes) -> None:
    begun = time.perf_counter()
    refused(http, "mlp:predict", body)
    assert time.perf_counter() - begun < 1.0  # of minutes


def test_a_context_in_very_many_examples_is_refused_at_once(http: httpx.Client) -> None:
    body = {"context": {"c": "x" * 500_000}, "examples": [{}] * 20_000}
    assert "come to more than" in refused(http, "examples:classify", body)


def test_integers_for_a_guessed_datatype_stay_integers(http: httpx.Client) -> None:
    when = 1764543210
    right = when % 86400
    for body, answer in (
        ({"instances": [when]}, {"predictions": [right]}),
        ({"instances": [{"ts": [when, 1]}, {"ts": [2, 3]}]}, {"predictions": [[right, 1], [2, 3]]}),
        ({"inputs": {"ts": when}}, {"outputs": right}),
        ({"instances": [0.5, 86402]}, {"predictions": [0.5, 2.0]}),
    ):
        assert ask(http, "seconds_of_the_day:predict", body) == answer
    many = [{"ts": [when + number] * 4} for number in range(1000)]
    found = ask(http, "seconds_of_the_day:predict", {"instances": many})["predictions"]
    assert found == [[each % 86400 for each in row["ts"]] for row in many]
    said = refused(http, "seconds_of_the_day:predict", {"instances": [when, 0.5]})
    assert said.startswith("Cannot convert JSON value: 1764543210 to float without loss of precision")


def test_what_a_signature_has_a_default_for_may_be_left_out(http: httpx.Client) -> None:
    assert ask(http, "scales:predict", {"inputs": {"x": [[1.0, 2.0]]}}) == {"outputs": [[3.0, 6.0]]}
    assert ask(http, "scales:predict", {"inputs": [[1.0, 2.0]]}) == {"outputs": [[3.0, 6.0]]}
    assert ask(http, "scales:predict", {"instances": [[1.0, 2.0]]}) == {"predictions": [[3.0, 6.0]]}
    assert ask(http, "scales:predict", {"inputs": {"x": [[1.0, 2.0]], "scale": 2.0}}) == {"outputs": [[2.0, 4.0]]}
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}
    answer = http.post("/v2/models/scales/infer", json={"inputs": [tensor]})
    assert answer.json()["outputs"][0]["data"] == [3.0, 6.0]


def test_metadata_name_the_tensors_of_the_graph_and_the_defaults(http: httpx.Client) -> None:
    found = http.get("/v1/models/scales/metadata").json()["metadata"]["signature_def"]["signature_def"]
    signature = found["serving_default"]
    assert signature["inputs"]["x"]["name"] == "serving_default_x:0"
    assert signature["outputs"]["y"]["name"].endswith(":0")
    assert signature["defaults"]["scale"]["float_val"] == [3.0]
    assert (
        http.get("/v1/models/mlp/metadata").json()["metadata"]["signature_def"]["signature_def"]["serving_default"][
            "defaults"
        ]
        == {}
    )


def test_only_a_torchscript_model_has_its_signature_under_the_usual_name() -> None:
    signature = Signature("forward", (), ())
    for framework, usual in (("pytorch", signature), ("tensorflow", None)):
        route = SimpleNamespace(framework=framework)
        target = SimpleNamespace(route=route, signatures={"forward": signature}, default_signature="forward")
        assert signatures_of(target).get("serving_default") is usual  # type: ignore[arg-type] # what it reads of one


def test_what_failed_or_is_unloaded_is_not_found(http: httpx.Client) -> None:
    said = refused(http, "misspelt_key:predict", GOOD, 404)
    assert said == "Servable not found for request: Latest(misspelt_key)"


def test_a_version_that_is_no_number_of_64_bits_is_refused(http: httpx.Client) -> None:
    wanted = "Failed to convert version: 99999999999999999999 to numeric."
    assert refused(http, "mlp/versions/99999999999999999999:predict", GOOD) == wanted
    for model in ("mlp", "nobody"):
        for call in ("predict", "classify", "regress"):
            assert refused(http, f"{model}/versions/99999999999999999999:{call}", GOOD) == wanted
        for path in ("", "/metadata"):
            answer = http.get(f"/v1/models/{model}/versions/99999999999999999999{path}")
            assert (answer.status_code, answer.json()["error"]) == (400, wanted)
    assert "to numeric" in refused(http, f"nobody/versions/{'9' * 5000}:predict", GOOD)
    assert refused(http, f"nobody/versions/{2**63 - 1}:predict", GOOD, 404).startswith("Servable not found")


def test_paths_are_read_without_regard_to_case_and_other_verbs_are_malformed(http: httpx.Client) -> None:
    assert http.get("/V1/MODELS/mlp").json() == http.get("/v1/models/mlp").json()
    assert http.get("/V1/foo").json() == {"error": "Malformed request: GET /V1/foo"}
    assert http.options("/v1/models/mlp").json() == {"error": "Malformed request: OPTIONS /v1/models/mlp"}


def test_a_large_body_is_answered_like_a_small_one(http: httpx.Client) -> None:
    image = [[[(x * y + c) / 7.0 for c in range(3)] for x in range(100)] for y in range(100)]
    body = {"signature_name": "FP64", "instances": [image]}
    assert ask(http, "identity_tensorflow:predict", body)["predictions"] == [image]
    body = {"signature_name": "FP64", "inputs": {"x": image}}
    assert ask(http, "identity_tensorflow:predict", body)["outputs"] == image
    image[50][50] = [1.0]
    assert "size: 1 at level" in refused(http, "identity_tensorflow:predict", body)


def test_a_case_of_letters_or_a_query_changes_nothing(http: httpx.Client) -> None:
    assert ask(http, "../../V1/MODELS/mlp:PREDICT?x=1".removeprefix("../../V1/MODELS/"), GOOD)
    answer = http.post("/V1/Models/mlp/Versions/3:Predict", json=GOOD)
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "JSON Parse error: The document is empty"),
        (b"instances = [1, 2]", "JSON Parse error: Invalid value. at offset: 0"),
        (b'{"instances": [1,]}', "JSON Parse error: Invalid value."),
        (b'{"instances": [NaN,]}', "JSON Parse error: Invalid value."),
        (b"\xff\xfe{}", "JSON Parse error: Invalid value."),
        (b"[1]", "JSON Value: [1] Is not object"),
        (b"{}", "Missing 'inputs' or 'instances' key"),
        (b'{"instances":[1],"inputs":[1]}', "expecting only one of 'inputs' or 'instances' keys to exist"),
        (b'{"instances":1}', "Excepting 'instances' to be an list/array"),
        (b'{"instances":[]}', "No values in 'instances' array"),
        (b'{"signature_name":1,"instances":[1]}', "'signature_name' key must be a string value"),
        (b'{"signature_name":"no","instances":[1]}', 'Serving signature name: "no" not found in signature def'),
        (b'{"instances":["x"]}', 'JSON Value: "x" Type: String is not of expected type: float'),
        (b'{"instances":[true]}', "JSON Value: true Type: True is not of expected type: float"),
        (b'{"instances":[null]}', "Type: Null is not of expected type: float"),
        (b'{"instances":[[1,2],[3,4],[[5,6]]]}', "Expecting shape [2] but got: [1,2]"),
        (b'{"instances":[[1,2],[3,4],[5,6,7]]}', "Error: INVALID_ARGUMENT: Expecting tensor size: 2 but got: 3"),
        (b'{"instances":[1,[1]]}', "Expecting shape [] but got: [1]"),
        (b'{"instances":[1,{"x":1}]}', "Expecting value/list but got object at item 1 of input list"),
        (b'{"instances":[{"x":[1]},[1]]}', "Expecting object but got list at item 1 of input list"),
        (b'{"instances":[{"z":[1]}]}', "JSON object: does not have named input: z"),
        (b'{"instances":[{}]}', "keys must be equal to: x"),
        (b'{"inputs":{}}', "Missing named input: x in 'inputs' object."),
        (b'{"inputs":[[1,2],[3]]}', "Encountered list at unexpected size: 1 at level: 1 expected size: 2"),
        (b'{"signature_name":"BYTES","instances":[{"b64":"*"}]}', "Unable to base64 decode"),
        (b'{"signature_name":"BYTES","instances":[{"b64":1}]}', "does not have named input: b64"),
        (b'{"signature_name":"INT32","instances":[2147483648]}', "is not of expected type: int32"),
        (b'{"signature_name":"INT32","instances":[1.0]}', "is not of expected type: int32"),
        (b'{"instances":' + b"[" * 250_000 + b"]" * 250_000 + b"}", "nested more than"),
        (b'{"instances":[' + b"1" * 5000 + b"]}", "JSON"),
    ],
)
def test_what_is_wrong_is_said_as_tensorflow_serving_says_it(http: httpx.Client, body: bytes, said: str) -> None:
    assert said in refused(http, "identity_tensorflow:predict", body)


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("nobody:predict", 404, "Servable not found for request: Latest(nobody)"),
        ("mlp/versions/99:predict", 404, "Servable not found for request: Specific(mlp, 99)"),
        ("mlp/labels/none:predict", 400, "Unrecognized servable version label: none"),
        ("mlp/labels/3:predict", 400, "Unrecognized servable version label: 3"),
        ("mlp/version/3:predict", 400, "Malformed request: POST /v1/models/mlp/version/3:predict"),
        ("mlp/versions/one:predict", 400, "Malformed request: POST /v1/models/mlp/versions/one:predict"),
        ("mlp/versions/3/labels/a:predict", 400, "Malformed request: POST"),
        ("mlp", 400, "Malformed request: POST /v1/models/mlp"),
        ("mlp:explain", 400, "Malformed request: POST /v1/models/mlp:explain"),
        ("no_archive:predict", 404, "Servable not found for request: Latest(no_archive)"),
    ],
)
def test_what_is_not_there_is_said_so(http: httpx.Client, path: str, status: int, said: str) -> None:
    assert said in refused(http, path, GOOD, status)


def test_calls_are_counted_under_their_protocol(gateway: Any) -> None:
    before = gateway.metrics().of("gateway_requests_total", protocol="tfserving", model="mlp", code="200")
    ask(gateway.http, "mlp:predict", GOOD)
    after = gateway.metrics().of("gateway_requests_total", protocol="tfserving", model="mlp", code="200")
    assert after == before + 1


# Classify and regress


def test_examples_are_classified_and_regressed(http: httpx.Client) -> None:
    body = {"context": {"name": "eve"}, "examples": [{"x": 1.5, "n": 3}, {"x": [2.5], "name": "bob"}, {"n": True}]}
    assert ask(http, "examples:classify", body) == {
        "results": [[["eve", 3.0], ["eve!", 3.0]], [["bob", 5.0], ["bob!", 0.0]], [["eve", 0.0], ["eve!", 1.0]]]
    }
    body = {"signature_name": "regress", "examples": [{"x": 40.5}, {"x": -1.0}]}
    assert ask(http, "examples:regress", body) == {"results": [81.0, -2.0]}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "key 'examples' is expected and was not found"),
        ({"examples": 1}, "Expecting 'examples' value to be an list/array"),
        ({"examples": []}, "'examples' value is an empty array"),
        ({"examples": [1]}, "Example must be JSON object"),
        ({"examples": [{"x": None}]}, "Feature: x has element with unexpected JSON type: Null"),
        ({"examples": [{"x": [[1.0]]}]}, "unexpected JSON type: Array"),
        ({"examples": [{"x": [1.0, "a"]}]}, "Unexpected element type in feature: x expecting type: float"),
        ({"examples": [{"n": 2**63}]}, "Only int64 is supported"),
    ],
)
def test_examples_that_are_none_are_refused(http: httpx.Client, body: Any, said: str) -> None:
    assert said in refused(http, "examples:classify", body)


def test_a_model_without_examples_says_what_to_do(http: httpx.Client) -> None:
    assert ":predict takes tensors" in refused(http, "mlp:classify", {"examples": [{"x": 1.0}]})


# The other calls


def test_the_state_of_versions_is_told(http: httpx.Client) -> None:
    found = http.get("/v1/models/mlp").json()["model_version_status"]
    good = {"error_code": "OK", "error_message": ""}
    assert found[0] == {"version": "3", "state": "AVAILABLE", "status": good}
    assert http.get("/v1/models/mlp/versions/3").json() == {"model_version_status": found[:1]}
    (failed,) = http.get("/v1/models/no_archive").json()["model_version_status"]
    assert failed["state"] == "END"
    assert failed["status"]["error_message"]


def test_metadata_are_those_of_a_saved_model(http: httpx.Client) -> None:
    found = http.get("/v1/models/examples/metadata").json()
    assert found["model_spec"] == {"name": "examples", "signature_name": "", "version": "1"}
    signature = found["metadata"]["signature_def"]["signature_def"]["regress"]
    shape = {"dim": [{"size": "-1", "name": ""}], "unknown_rank": False}
    assert signature["inputs"]["inputs"]["dtype"] == "DT_STRING"
    assert signature["inputs"]["inputs"]["tensor_shape"] == shape
    assert signature["method_name"] == "tensorflow/serving/predict"


@pytest.mark.parametrize(
    ("method", "path", "status", "said"),
    [
        ("GET", "/v1/models", 400, "Missing model name in request."),
        ("GET", "/v1/foo", 400, "Malformed request: GET /v1/foo"),
        ("GET", "/v1", 400, "Malformed request: GET /v1"),
        ("POST", "/v1/models", 400, "Malformed request: POST /v1/models"),
        ("DELETE", "/v1/models/mlp", 400, "Malformed request: DELETE /v1/models/mlp"),
        ("GET", "/v1/models/mlp:predict", 400, "Malformed request: GET"),
        ("GET", "/v1/models/nobody", 404, "Could not find any versions of model nobody"),
        ("GET", "/v1/models/mlp/versions/99", 404, "Could not find version 99 of model mlp"),
        ("GET", "/v1/models/mlp/labels/none", 400, "Unrecognized servable version label: none"),
        ("GET", "/v1/models/nobody/metadata", 404, "Servable not found for request: Latest(nobody)"),
    ],
)
def test_all_else_is_malformed(http: httpx.Client, method: str, path: str, status: int, said: str) -> None:
    answer = http.request(method, path)
    assert answer.status_code == status
    assert said in answer.json()["error"]


def test_metrics_are_where_tensorflow_serving_has_them(http: httpx.Client) -> None:
    assert "gateway_requests_total" in http.get("/monitoring/prometheus/metrics").text


# A client of somebody else


def test_ovmsclient_gets_status_metadata_and_predictions(gateway: Any) -> None:
    client = ovmsclient.make_http_client(f"127.0.0.1:{gateway.port}")
    status = client.get_model_status("mlp", 3)
    assert status[3]["state"] == "AVAILABLE"
    metadata = client.get_model_metadata("mlp")
    assert metadata["model_spec"]["name"] == "mlp"
    found = client.predict({"x": [[0.5] * 16, [1.0] * 16]}, "mlp")
    assert len(found) == 2
    with pytest.raises(ovmsclient.tfs_compat.base.errors.ModelNotFoundError):
        client.get_model_status("nobody")
