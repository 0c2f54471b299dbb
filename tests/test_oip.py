"""The Open Inference Protocol v2 as a client sees it."""

import gzip
import json
import struct
import threading
import zlib
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from gateway.http.oip import raw_shape
from gateway.tensors import TensorSpec

NUMBERS: dict[str, tuple[Any, list[Any]]] = {
    "BOOL": (np.bool_, [True, False, True]),
    "UINT8": (np.uint8, [0, 7, 2**8 - 1]),
    "UINT16": (np.uint16, [0, 7, 2**16 - 1]),
    "UINT32": (np.uint32, [0, 7, 2**32 - 1]),
    "UINT64": (np.uint64, [0, 7, 2**64 - 1]),
    "INT8": (np.int8, [-(2**7), -1, 2**7 - 1]),
    "INT16": (np.int16, [-(2**15), -1, 2**15 - 1]),
    "INT32": (np.int32, [-(2**31), -1, 2**31 - 1]),
    "INT64": (np.int64, [-(2**63), -1, 2**63 - 1]),
    "FP16": (np.float16, [-65504.0, 0.25, 6.1035e-05]),
    "BF16": (ml_dtypes.bfloat16, [-2.0, 0.25, 3.3895314e38]),
    "FP32": (np.float32, [-0.1, 1e-45, 3.4028235e38]),
    "FP64": (np.float64, [-0.1, 5e-324, 1.7976931348623157e308]),
}
WORDS = ["", "grüße", "null\0byte", "日本語", "\U0001f642 " * 30]
IDENTITIES = [(model, datatype) for model in ("identity_torch", "identity_tensorflow") for datatype in NUMBERS]


def packed_words(words: list[str]) -> bytes:
    return b"".join(struct.pack("<I", len(word)) + word for word in (word.encode() for word in words))


def asked(model: str, datatype: str) -> dict[str, Any]:
    """The TensorFlow model has a signature for each datatype, the TorchScript one takes all of them."""
    return {"parameters": {"signature_name": datatype}} if model == "identity_tensorflow" else {}


def values_of(output: dict[str, Any], datatype: str) -> Any:
    if datatype == "BF16":
        return np.array(output["data"], np.float64).astype(ml_dtypes.bfloat16)
    return np.array(output["data"], NUMBERS[datatype][0])


# --- Server, models, repository


def test_the_server_says_what_it_is_and_that_it_is_live_and_ready(gateway: Any) -> None:
    server = gateway.http.get("/v2")
    assert server.status_code == 200
    assert server.json()["name"] == "gateway"
    assert {"binary_tensor_data", "model_repository", "statistics"} <= set(server.json()["extensions"])
    assert gateway.http.get("/v2/health/live").status_code == 200
    assert gateway.http.get("/v2/health/ready").status_code == 200  # failed models make only themselves unready


@pytest.mark.parametrize("place", ["", "/versions/3"])
def test_metadata_tells_platform_tensors_and_why_requests_are_joined(gateway: Any, place: str) -> None:
    answer = gateway.http.get(f"/v2/models/mlp{place}")
    assert answer.status_code == 200
    found = answer.json()
    assert found["name"] == "mlp"
    assert found["versions"] == ["3"]
    assert found["platform"] == "pytorch_torchscript"
    assert found["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 16]}]
    assert found["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [-1, 4]}]
    assert found["parameters"]["max_batch_size"] > 1
    assert found["parameters"]["batching"].startswith("on: ")
    assert found["parameters"]["devices"] == ["cpu"]


def test_metadata_tells_why_requests_are_not_joined(gateway: Any) -> None:
    found = gateway.http.get("/v2/models/collatz_torch").json()["parameters"]
    assert found["max_batch_size"] == 1
    assert found["batching"].startswith("off: ")


def test_metadata_lists_every_signature_and_optional_inputs(gateway: Any) -> None:
    text = gateway.http.get("/v2/models/text_tensorflow").json()
    assert text["platform"] == "tensorflow_savedmodel"
    assert text["parameters"]["default_signature"] == "serving_default"
    assert set(text["parameters"]["signatures"]) == {"serving_default", "normalize", "count"}
    assert text["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
    inputs = gateway.http.get("/v2/models/optional_input").json()["inputs"]
    assert [(each["name"], each.get("optional", False)) for each in inputs] == [("a", False), ("b", True)]


@pytest.mark.parametrize("place", ["", "/versions/3"])
def test_ready_config_and_statistics_know_the_version(gateway: Any, place: str) -> None:
    ready = gateway.http.get(f"/v2/models/mlp{place}/ready")
    assert ready.status_code == 200
    config = gateway.http.get(f"/v2/models/mlp{place}/config").json()
    assert config["name"] == "mlp"
    assert config["max_batch_size"] > 1
    assert len(config["input"]) == 1
    assert {"name": "x", "data_type": "TYPE_FP32", "dims": [16]}.items() <= config["input"][0].items()
    before = gateway.http.get(f"/v2/models/mlp{place}/stats").json()["model_stats"]
    with gateway.connect() as connection:
        assert connection.ask(gateway.good()).status == 200
    after = gateway.http.get(f"/v2/models/mlp{place}/stats").json()["model_stats"]
    assert [(each["name"], each["version"]) for each in after] == [("mlp", "3")]
    assert after[0]["inference_count"] == before[0]["inference_count"] + 1
    success = "inference_stats", "success", "count"
    assert dig(after[0], *success) == dig(before[0], *success) + 1


def dig(found: Any, *keys: str) -> Any:
    for key in keys:
        found = found[key]
    return found


def test_the_index_lists_everything_with_its_state_and_the_ready_filter_leaves_out_what_failed(gateway: Any) -> None:
    everything = gateway.http.post("/v2/repository/index").json()
    states = {each["name"]: each["state"] for each in everything}
    failed = {each["name"]: each["reason"] for each in everything if each["state"] == "FAILED"}
    assert states["mlp"] == states["digits_tensorflow"] == "READY"
    assert set(failed) == {"no_archive", "misspelt_key", "no_artifact", "exits_at_load"}
    assert "not a TorchScript archive" in failed["no_archive"]
    assert "max_batchsize" in failed["misspelt_key"]
    assert "readme.txt" in failed["no_artifact"]
    assert "while loading" in failed["exits_at_load"]
    only_ready = gateway.http.post("/v2/repository/index", json={"ready": True}).json()
    assert {each["name"] for each in only_ready} == {name for name, state in states.items() if state == "READY"}


@pytest.mark.parametrize("path", ["", "/ready", "/config", "/versions/1", "/versions/1/ready"])
def test_a_model_that_failed_says_why_wherever_it_is_asked(gateway: Any, path: str) -> None:
    answer = gateway.http.get(f"/v2/models/no_archive{path}")
    assert answer.status_code == 503
    assert "not a TorchScript archive" in answer.json()["error"]


def test_a_model_can_be_unloaded_and_loaded_again(gateway: Any, helpers: Any) -> None:
    body = {"inputs": [helpers.tensor("words", "BYTES", [1], ["hello"])]}
    (old,) = gateway.pids("instance echo_strings/")
    assert gateway.http.post("/v2/repository/models/echo_strings/unload").status_code == 200
    assert not gateway.pids("instance echo_strings/")
    assert gateway.versions()["echo_strings"] == "UNLOADED"
    assert gateway.infer("echo_strings", body).status == 503
    assert gateway.http.get("/v2/models/echo_strings/ready").status_code == 503
    assert gateway.http.get("/v2/health/ready").status_code == 200
    assert gateway.http.post("/v2/repository/models/echo_strings/load").status_code == 200
    assert gateway.pid("instance echo_strings/") != old
    assert gateway.infer("echo_strings", body).json()["outputs"][0]["data"] == ["hello"]
    assert gateway.http.post("/v2/repository/models/nobody/load").status_code == 404
    assert gateway.http.post("/v2/repository/models/nobody/unload").status_code == 404
    refused = gateway.http.post("/v2/repository/models/no_archive/load")
    assert refused.status_code == 400
    assert "not a TorchScript archive" in refused.json()["error"]


# --- Tensors


def test_an_answer_names_model_version_and_id_and_its_outputs(gateway: Any, helpers: Any) -> None:
    body = {"id": "käse-1", "inputs": [helpers.tensor("x", "FP32", [2, 16], [0.5] * 32)]}
    for path in ("mlp/infer", "mlp/versions/3/infer"):
        answer = gateway.http.post(f"/v2/models/{path}", json=body)
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/json"
        found = answer.json()
        assert (found["model_name"], found["model_version"], found["id"]) == ("mlp", "3", "käse-1")
        (output,) = found["outputs"]
        assert (output["name"], output["datatype"], output["shape"]) == ("y", "FP32", [2, 4])
        assert output["data"][:4] == output["data"][4:]
    del body["id"]
    assert "id" not in gateway.infer("mlp", body).json()


@pytest.mark.parametrize(("model", "datatype"), IDENTITIES)
def test_numbers_survive_json_and_binary_in_every_combination(
    gateway: Any, helpers: Any, model: str, datatype: str
) -> None:
    kind, values = NUMBERS[datatype]
    array = np.array(values, kind)
    top = asked(model, datatype)
    parameters = top.get("parameters", {})
    in_json = [helpers.tensor("x", datatype, [3], values)]
    in_binary = [helpers.tensor("x", datatype, [3], binary_data_size=array.nbytes)]
    for inputs, raw in ((in_json, None), (in_binary, array.tobytes())):
        for binary_output in (False, True):
            head = {"parameters": parameters | {"binary_data_output": binary_output}, "inputs": inputs}
            answer = gateway.infer(model, head if raw is None else (head, raw))
            assert answer.status == 200, answer.body
            if binary_output:
                found, data = answer.parts()
                (output,) = found["outputs"]
                assert output["parameters"] == {"binary_data_size": array.nbytes}
                assert "data" not in output
                assert data == array.tobytes()
            else:
                (output,) = answer.json()["outputs"]
                assert "inference-header-content-length" not in answer.headers
                assert np.array_equal(values_of(output, datatype), array)
            assert (output["datatype"], output["shape"]) == (datatype, [3])


@pytest.mark.parametrize("datatype", NUMBERS)
def test_long_json_is_read_like_short_json(gateway: Any, helpers: Any, datatype: str) -> None:
    kind, values = NUMBERS[datatype]
    array = np.array(values * 10_000, kind)
    flat = values * 10_000
    nested = [flat[at : at + 3] for at in range(0, len(flat), 3)]
    for shape, data in (([30_000], flat), ([10_000, 3], flat), ([10_000, 3], nested)):
        answer = gateway.infer("identity_torch", {"inputs": [helpers.tensor("x", datatype, shape, data)]})
        assert answer.status == 200, answer.body[:300]
        (output,) = answer.json()["outputs"]
        assert output["shape"] == shape
        assert np.array_equal(values_of(output, datatype), array)


@pytest.mark.parametrize("repeat", [1, 300])
@pytest.mark.parametrize(("model", "name"), [("echo_strings", "words"), ("identity_tensorflow", "x")])
def test_strings_survive_json_and_binary_in_every_combination(
    gateway: Any, helpers: Any, model: str, name: str, repeat: int
) -> None:
    words = WORDS * repeat
    raw = packed_words(words)
    parameters = {"signature_name": "BYTES"} if model == "identity_tensorflow" else {}
    in_json = [helpers.tensor(name, "BYTES", [len(words)], words)]
    in_binary = [helpers.tensor(name, "BYTES", [len(words)], binary_data_size=len(raw))]
    for inputs, data in ((in_json, None), (in_binary, raw)):
        for binary_output in (False, True):
            head = {"parameters": parameters | {"binary_data_output": binary_output}, "inputs": inputs}
            answer = gateway.infer(model, head if data is None else (head, data))
            assert answer.status == 200, answer.body[:300]
            if binary_output:
                assert answer.parts()[1] == raw
            else:
                assert answer.json()["outputs"][0]["data"] == words


def test_bytes_that_are_no_text_come_back_in_binary_and_are_refused_in_json(gateway: Any, helpers: Any) -> None:
    raw = struct.pack("<I", 3) + b"\xff\xfe\x00"
    head: dict[str, Any] = {"parameters": {"signature_name": "BYTES"}}
    head["inputs"] = [helpers.tensor("x", "BYTES", [1], binary_data_size=7)]
    refused = gateway.infer("identity_tensorflow", (head, raw))
    assert refused.status == 400
    assert "binary_data" in refused.json()["error"]
    head["outputs"] = [{"name": "y", "parameters": {"binary_data": True}}]
    assert gateway.infer("identity_tensorflow", (head, raw)).parts()[1] == raw


@pytest.mark.parametrize("data", [[1, 2, 3, 4, 5, 6, 7, 8], [[1, 2, 3, 4], [5, 6, 7, 8]]])
def test_flat_and_nested_data_mean_the_same(gateway: Any, helpers: Any, data: Any) -> None:
    answer = gateway.infer("identity_tensorflow", {"inputs": [helpers.tensor("x", "FP32", [2, 4], data)]}).json()
    assert answer["outputs"][0]["data"] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert answer["outputs"][0]["shape"] == [2, 4]


def test_nesting_goes_as_deep_as_the_shape(gateway: Any, helpers: Any) -> None:
    data: Any = 1.5
    for _ in range(8):
        data = [data]
    answer = gateway.infer("identity_torch", {"inputs": [helpers.tensor("x", "FP32", [1] * 8, data)]})
    assert answer.status == 200, answer.body
    assert answer.json()["outputs"][0]["shape"] == [1] * 8


@pytest.mark.parametrize("shape", [[0], [0, 4], [3, 0], [0, 0]])
@pytest.mark.parametrize(("model", "extra"), [("identity_torch", {}), ("identity_tensorflow", {"signature": 1})])
def test_tensors_without_elements_go_through(
    gateway: Any, helpers: Any, shape: list[int], model: str, extra: dict[str, int]
) -> None:
    if extra and shape != [0, 4]:
        return  # its default signature takes rows of four
    flat = gateway.infer(model, {"inputs": [helpers.tensor("x", "FP32", shape, [])]})
    assert flat.status == 200, flat.body
    assert flat.json()["outputs"][0]["shape"] == shape
    assert flat.json()["outputs"][0]["data"] == []
    head = {
        "parameters": {"binary_data_output": True},
        "inputs": [helpers.tensor("x", "FP32", shape, binary_data_size=0)],
    }
    binary = gateway.infer(model, (head, b""))
    assert binary.status == 200, binary.body
    assert binary.parts()[0]["outputs"][0]["shape"] == shape
    assert binary.parts()[1] == b""


def test_a_scalar_has_an_empty_shape(gateway: Any, helpers: Any) -> None:
    answer = gateway.infer("identity_torch", {"inputs": [helpers.tensor("x", "FP64", [], [2.5])]})
    assert answer.status == 200, answer.body
    output = answer.json()["outputs"][0]
    assert (output["shape"], output["data"], output["datatype"]) == ([], [2.5], "FP64")


def test_json_and_binary_inputs_mix_and_binary_data_follow_in_the_order_of_the_inputs(
    gateway: Any, helpers: Any
) -> None:
    a, b = np.arange(4, dtype=np.float32), np.full(4, 10, np.float32)
    json_a = helpers.tensor("a", "FP32", [1, 4], a.tolist())
    json_b = helpers.tensor("b", "FP32", [1, 4], b.tolist())
    raw_a = helpers.tensor("a", "FP32", [1, 4], binary_data_size=16)
    raw_b = helpers.tensor("b", "FP32", [1, 4], binary_data_size=16)
    for inputs, raw in (
        ([json_a, raw_b], b.tobytes()),
        ([raw_a, json_b], a.tobytes()),
        ([raw_b, raw_a], b.tobytes() + a.tobytes()),
    ):
        outputs = [{"name": "difference"}, {"name": "sum", "parameters": {"binary_data": True}}]
        answer = gateway.infer("optional_input", ({"inputs": inputs, "outputs": outputs}, raw))
        assert answer.status == 200, answer.body
        found, data = answer.parts()
        assert [output["name"] for output in found["outputs"]] == ["difference", "sum"]
        assert found["outputs"][0]["data"] == (a - b).tolist()
        assert np.frombuffer(data, np.float32).tolist() == (a + b).tolist()


@pytest.mark.parametrize("names", [["sum", "difference"], ["difference", "sum"], ["difference"], ["sum"]])
def test_requested_outputs_come_in_the_order_asked_and_no_others(gateway: Any, helpers: Any, names: list[str]) -> None:
    inputs = [helpers.tensor(name, "FP32", [1, 4], [1.0, 2.0, 3.0, 4.0]) for name in ("a", "b")]
    body = {"inputs": inputs, "outputs": [{"name": name} for name in names]}
    outputs = gateway.infer("optional_input", body).json()["outputs"]
    assert [output["name"] for output in outputs] == names
    assert dict(zip(names, ({"sum": [2, 4, 6, 8], "difference": [0] * 4}[name] for name in names), strict=True)) == {
        output["name"]: output["data"] for output in outputs
    }


def test_single_outputs_can_refuse_the_binary_default(gateway: Any, helpers: Any) -> None:
    body = {
        "parameters": {"binary_data_output": True},
        "inputs": [helpers.tensor("a", "FP32", [1, 4], [1.0, 2.0, 3.0, 4.0])],
        "outputs": [{"name": "sum", "parameters": {"binary_data": False}}, {"name": "difference"}],
    }
    found, data = gateway.infer("optional_input", body).parts()
    assert found["outputs"][0]["data"] == [1, 2, 3, 4]
    assert found["outputs"][1]["parameters"] == {"binary_data_size": 16}
    assert len(data) == 16


def test_an_optional_input_may_be_left_out(gateway: Any, helpers: Any) -> None:
    a = helpers.tensor("a", "FP32", [1, 4], [1, 2, 3, 4])
    b = helpers.tensor("b", "FP32", [1, 4], [1, 1, 1, 1])
    assert gateway.infer("optional_input", {"inputs": [a]}).json()["outputs"][0]["data"] == [1, 2, 3, 4]
    assert gateway.infer("optional_input", {"inputs": [a, b]}).json()["outputs"][0]["data"] == [2, 3, 4, 5]


def test_a_raw_request_is_one_tensor_and_nothing_else(gateway: Any) -> None:
    rows = np.arange(12, dtype=np.float32)
    answer = gateway.infer("identity_tensorflow", rows.tobytes(), "Inference-Header-Content-Length: 0")
    assert answer.status == 200, answer.body
    found, data = answer.parts()
    assert found["outputs"][0]["shape"] == [3, 4]
    assert data == rows.tobytes()
    large = np.zeros((50_000, 4), np.float32)
    large[-1] = 7
    answer = gateway.infer("identity_tensorflow", large.tobytes(), "Inference-Header-Content-Length: 0")
    assert answer.parts()[1] == large.tobytes()
    long = b"a" * 300_000
    answer = gateway.infer("echo_strings", long, "Inference-Header-Content-Length: 0")
    assert answer.parts()[1] == packed_words([long.decode()])
    text = gateway.infer(
        "text_tensorflow",
        "Wo ist die Bibliothek, bitte? Ich möchte ein Buch lesen.".encode(),
        "Inference-Header-Content-Length: 0",
    )
    assert packed_words(["de"]) in text.parts()[1]


def test_signature_name_chooses_what_is_computed(gateway: Any, helpers: Any) -> None:
    inputs = [helpers.tensor("text", "BYTES", [2], ["Where does your brother live?", "Où est la bibliothèque ?"])]

    def outputs(**parameters: str) -> dict[str, Any]:
        answer = gateway.infer("text_tensorflow", {"parameters": parameters, "inputs": inputs})
        assert answer.status == 200, answer.body
        return {each["name"]: each["data"] for each in answer.json()["outputs"]}

    assert outputs()["language"] == ["en", "fr"]
    assert outputs(signature_name="serving_default")["language"] == ["en", "fr"]
    assert outputs(signature_name="count") == {"words": [5, 4]}
    assert set(outputs(signature_name="normalize")) == {"normalized"}


# --- Encodings


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
@pytest.mark.parametrize("rows", [10, 2000, 60_000])
def test_packed_requests_and_responses(gateway: Any, helpers: Any, encoding: str, rows: int) -> None:
    pack, unpack = (gzip.compress, gzip.decompress) if encoding == "gzip" else (zlib.compress, zlib.decompress)
    array = np.arange(rows * 4, dtype=np.float32).reshape(rows, 4)
    head = {
        "parameters": {"binary_data_output": True},
        "inputs": [helpers.tensor("x", "FP32", [rows, 4], binary_data_size=array.nbytes)],
    }
    text = json.dumps(head).encode()
    answer = gateway.infer(
        "identity_torch",
        pack(text + array.tobytes()),
        f"Inference-Header-Content-Length: {len(text)}",
        f"Content-Encoding: {encoding}",
        f"Accept-Encoding: {encoding}",
    )
    assert answer.status == 200, answer.body[:300]
    if rows > 100:  # small answers may stay as they are
        assert answer.headers["content-encoding"] == encoding
    if "content-encoding" in answer.headers:
        answer.body = unpack(answer.body)
    found, data = answer.parts()
    assert found["outputs"][0]["shape"] == [rows, 4]
    assert data == array.tobytes()


def test_an_answer_is_not_packed_for_a_client_that_did_not_ask(gateway: Any, helpers: Any) -> None:
    body = {"inputs": [helpers.tensor("x", "FP32", [2000], [0.5] * 2000)]}
    for accept in ((), ("Accept-Encoding: identity",), ("Accept-Encoding: br",), ("Accept-Encoding: gzip;q=0",)):
        answer = gateway.infer("identity_torch", body, *accept)
        assert "content-encoding" not in answer.headers
        assert len(answer.json()["outputs"][0]["data"]) == 2000


def test_deflate_without_its_zlib_wrapper_is_read_too(gateway: Any, helpers: Any) -> None:
    packer = zlib.compressobj(wbits=-15)
    text = json.dumps({"inputs": [helpers.tensor("x", "FP32", [1], [0.5])]}).encode()
    body = packer.compress(text) + packer.flush()
    assert gateway.infer("identity_torch", body, "Content-Encoding: deflate").status == 200


# --- Sizes


def large_request(gateway: Any, helpers: Any, size: int, binary: bool, first: float) -> tuple[bytes, Any]:
    """An inference request of about this size and the array that must come back."""
    count = size // 4 if binary else size // 5
    array = np.tile(np.array([0.25, 0.5, 0.75], np.float32), count // 3 + 1)[:count]
    array[0] = first
    if binary:
        head = {
            "parameters": {"binary_data_output": True},
            "inputs": [helpers.tensor("x", "FP32", [count], binary_data_size=array.nbytes)],
        }
        return gateway.inference("identity_torch", (head, array.tobytes())), array
    data = ",".join(map(str, array.tolist()))
    text = f'{{"inputs":[{{"name":"x","datatype":"FP32","shape":[{count}],"data":[{data}]}}]}}'
    return gateway.inference("identity_torch", text.encode()), array


def assert_large(answer: Any, binary: bool, array: Any) -> None:
    assert answer.status == 200, answer.body[:300]
    if binary:
        assert answer.parts()[1] == array.tobytes()
    else:
        assert np.array_equal(np.array(answer.json()["outputs"][0]["data"], np.float32), array)


@pytest.mark.parametrize("binary", [False, True], ids=["json", "binary"])
@pytest.mark.parametrize("size", [600_000, 5_000_000])
def test_large_tensors_go_both_ways_however_their_bytes_arrive(
    gateway: Any, helpers: Any, size: int, binary: bool
) -> None:
    request, array = large_request(gateway, helpers, size, binary, 1.0)
    with gateway.connect() as connection:
        assert_large(connection.ask(request), binary, array)
        for step in (1000, 65_536):
            connection.send(*(request[at : at + step] for at in range(0, len(request), step)))
            assert_large(connection.response(), binary, array)


@pytest.mark.parametrize("binary", [False, True], ids=["json", "binary"])
@pytest.mark.parametrize("size", [600_000, 5_000_000])
def test_large_requests_sent_one_right_behind_the_other_are_answered_in_order(
    gateway: Any, helpers: Any, size: int, binary: bool
) -> None:
    requests = [large_request(gateway, helpers, size, binary, first) for first in (1.0, 2.0)]
    small = gateway.good()
    with gateway.connect() as connection:
        data = small.join([requests[0][0], requests[1][0]]) + small
        sender = threading.Thread(target=connection.send, args=(data,))
        sender.start()
        assert_large(connection.response(), binary, requests[0][1])
        assert connection.response().json()["model_name"] == "mlp"
        assert_large(connection.response(), binary, requests[1][1])
        assert connection.response().json()["model_name"] == "mlp"
        sender.join()


# --- Batching


def all_at_once(gateway: Any, model: str, bodies: list[Any]) -> list[Any]:
    """Send each request on a connection of its own, then read all answers."""
    connections = [gateway.connect() for _ in bodies]
    try:
        for connection, body in zip(connections, bodies, strict=True):
            connection.send(gateway.inference(model, body))
        return [connection.response().json()["outputs"][0]["data"] for connection in connections]
    finally:
        for connection in connections:
            connection.sock.close()


def rows_of_two(helpers: Any) -> dict[str, Callable[[int], tuple[Any, list[float]]]]:
    """Requests and their right answers, by model: a number makes each different."""

    def centred(number: int) -> tuple[Any, list[float]]:
        row = helpers.tensor("x", "FP32", [1, 2], [number, 2 * number])
        return {"parameters": {"signature_name": "centred"}, "inputs": [row]}, [0.0, 0.0]

    def softmax(number: int) -> tuple[Any, list[float]]:
        return {"inputs": [helpers.tensor("x", "FP32", [2], [number, number])]}, [0.5, 0.5]

    return {"mixes_rows": centred, "ranks_its_numbers": softmax}


@pytest.mark.parametrize("model", ["mixes_rows", "ranks_its_numbers"])
def test_requests_that_were_not_proved_to_be_joinable_are_answered_as_if_alone(
    gateway: Any, helpers: Any, model: str
) -> None:
    """One model's other signature mixes rows; the other takes a vector, where rows were proved."""
    build = rows_of_two(helpers)[model]
    for _ in range(5):
        pairs = [build(number) for number in range(16)]
        answers = all_at_once(gateway, model, [body for body, _ in pairs])
        assert answers == [answer for _, answer in pairs]


def test_metadata_say_what_is_a_guess_and_so_does_the_command_line(gateway: Any) -> None:
    found = gateway.http.get("/v2/models/seconds_of_the_day").json()
    assert found["inputs"][0]["guessed"] is True
    assert found["parameters"]["signatures"]["forward"]["inputs"][0]["guessed"] is True
    assert "guessed" not in gateway.http.get("/v2/models/mlp").json()["inputs"][0]
    assert "(a guess)" in gateway.command("show", "seconds_of_the_day").stdout
    assert "a guess" in gateway.http.get("/v2/models/seconds_of_the_day/openapi.json").text
    done = gateway.command("infer", "seconds_of_the_day", "--input", "ts=[1764543210]")
    assert "82410" in done.stdout, done.stderr


@pytest.mark.parametrize("shape", [(), (-1,), (1,), (-1, 1), (-1, -1, -1)])
def test_a_raw_request_for_bytes_is_one_element_whatever_the_shape_leaves_open(shape: tuple[int, ...]) -> None:
    assert raw_shape(TensorSpec("x", "BYTES", shape), 1) == (1,) * len(shape)
