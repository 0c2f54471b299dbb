"""Whatever a client sends, it is told what is wrong, its connection goes on, and no process is hurt."""

import gzip
import json
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FILE_PATH = re.compile(r"/(?:home|work|tmp|usr|root|proc|opt|var|store)\b|\.py\b|\bline \d+")
MB = 1 << 20


@pytest.fixture(scope="module", autouse=True)
def unhurt(gateway: Any) -> Iterator[None]:
    """After all these requests the same processes run as before."""
    before = gateway.lasting_processes()
    yield
    assert gateway.lasting_processes() == before


def assert_error(answer: Any, status: int, expected: str = "") -> None:
    assert answer.status == status, answer.body[:500]
    body = answer.json()
    assert list(body) == ["error"]
    message = body["error"]
    assert isinstance(message, str)
    assert message.strip()
    assert len(message) < 600
    assert "\n" not in message
    assert "Traceback" not in message
    assert not FILE_PATH.search(message), message
    assert re.search(expected, message), message


def assert_refused(gateway: Any, request: bytes, status: int = 400, expected: str = "") -> None:
    """The request is refused, and the next one on its connection is answered."""
    with gateway.connect() as connection:
        assert_error(connection.ask(request), status, expected)
        assert connection.ask(gateway.good()).status == 200


def row(**changes: Any) -> dict[str, Any]:
    """A request for the MLP's one input, with these parts of it changed."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 16], "data": [0.5] * 16} | changes
    return {"inputs": [{key: value for key, value in tensor.items() if value is not ...}]}


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


def deep_data(depth: int) -> bytes:
    return json.dumps(row(data="HERE")).replace('"HERE"', nested(depth)).encode()


def deep_parameters(depth: int) -> bytes:
    return json.dumps(row() | {"parameters": {"a": "HERE"}}).replace('"HERE"', nested(depth)).encode()


GOOD = json.dumps(row()).encode()
INTS = {"INT8": 300, "UINT8": -1, "INT16": 2**15, "UINT16": -1, "INT32": 2**31, "UINT32": -1, "UINT64": -1}

BODIES: dict[str, tuple[Any, str]] = {
    "empty": (b"", "JSON"),
    "no JSON at all": (b"hello", "JSON"),
    "JSON cut off": (GOOD[:-1], "JSON"),
    "JSON cut off in its data": (GOOD[:60], "JSON"),
    "bytes behind the JSON": (GOOD + b"}", "JSON"),
    "no UTF-8": (GOOD[:-1] + b', "id": "\xff\xfe"}', "JSON|UTF-8"),
    "an array": (b"[]", "object"),
    "null": (b"null", "object"),
    "no inputs": ({}, "inputs"),
    "inputs no array": ({"inputs": {}}, "array"),
    "an input that is a number": ({"inputs": [1]}, "object"),
    "500,000 deep": (nested(500_000).encode(), "nested"),
    "500,000 objects deep": (b'{"a":' * 500_000, "nested"),
    "500,000 deep in the data": (deep_data(500_000), "nested"),
    "101 deep in the data": (deep_data(98), "nested"),
    "101 deep in the parameters": (deep_parameters(99), "nested"),
    "deep after a quoted bracket": (b'{"id":"\\"]]]]","inputs":' + nested(100).encode() + b"}", "nested"),
    "shape overflows": (row(shape=[2**33, 2**33]), "shape|large"),
    "shape of many dimensions": (row(shape=[1] * 100), "shape|large"),
    "2**40 elements": (row(shape=[2**40]), "shape|large|elements"),
    "2**40 rows": (row(shape=[2**40, 16]), "shape|large|elements"),
    "a dimension of 70 digits": (json.dumps(row(shape=[1, "N"])).replace('"N"', "9" * 70).encode(), ""),
    "a negative dimension": (row(shape=[-1, 16]), "shape|negative"),
    "two negative dimensions": (row(shape=[-1, -16]), "shape|negative"),
    "a float dimension": (row(shape=[1.5, 16]), "int"),
    "a string dimension": (row(shape=["1", 16]), "int"),
    "a shape that is a number": (row(shape=16), "array"),
    "no shape": (row(shape=...), "shape"),
    "no datatype": (row(datatype=...), "datatype"),
    "no name": (row(name=...), "name"),
    "no data": (row(data=...), "data"),
    "data null": (row(data=None), "data|number|array"),
    "data a number": (row(data=1), "data|array"),
    "data a string": (row(data="0.5"), "data|array"),
    "too few elements": (row(data=[0.5] * 15), "15"),
    "too many elements": (row(data=[0.5] * 17), "17"),
    "another width than the model's": (row(shape=[1, 15], data=[0.5] * 15), "shape"),
    "another rank than the model's": (row(shape=[16]), "shape"),
    "nested too deep": (row(data=[[[0.5] * 16]]), "x"),
    "nested across the shape": (row(shape=[2, 16], data=[[0.5] * 2] * 16), "nested|shape"),
    "ragged": (row(shape=[2, 16], data=[[0.5] * 15, [0.5] * 17]), "nested|shape"),
    "half nested": (row(data=[[0.5] * 15, 0.5]), "x"),
    "another datatype than the model's": (row(datatype="FP64"), "FP32"),
    "an unknown datatype": (row(datatype="FP31"), "FP31"),
    "a datatype in small letters": (row(datatype="fp32"), "fp32"),
    "an unknown input": (row(name="y"), "'y'"),
    "an input twice": ({"inputs": row()["inputs"] * 2}, "twice"),
    "no input": ({"inputs": []}, "'x'"),
    "an unknown output": (row() | {"outputs": [{"name": "z"}]}, "'z'"),
    "an output twice": (row() | {"outputs": [{"name": "y"}] * 2}, "twice"),
    "an output without a name": (row() | {"outputs": [{}]}, "name"),
    "an unknown signature": (row() | {"parameters": {"signature_name": "nobody"}}, "nobody"),
    "a signature that is a number": (row() | {"parameters": {"signature_name": 1}}, "signature_name"),
    "parameters an array": (row() | {"parameters": []}, "parameters"),
    "binary_data_output a string": (row() | {"parameters": {"binary_data_output": "yes"}}, "binary_data_output"),
    "binary_data a number": (row() | {"outputs": [{"name": "y", "parameters": {"binary_data": 1}}]}, "binary_data"),
    "id a number": (row() | {"id": 7}, "id|str"),
    "null among the data": (row(data=[None] * 16), "FP32"),
    "true among the data": (row(data=[True] * 16), "FP32"),
    "strings among the data": (row(data=["0.5"] * 16), "FP32"),
    "an object among the data": (row(data=[{}] * 16), "FP32"),
    "NaN": (json.dumps(row(data=[float("nan")] * 16)).encode(), "JSON"),
    "Infinity": (json.dumps(row(data=[float("inf")] * 16)).encode(), "JSON"),
    "1e39": (row(data=[1e39] * 16), "range"),
    "1e400": (json.dumps(row()).replace("0.5", "1e400").encode(), ""),
}


@pytest.mark.parametrize("what", BODIES)
def test_a_bad_body_is_refused_in_one_sentence(gateway: Any, what: str) -> None:
    body, expected = BODIES[what]
    assert_refused(gateway, gateway.inference("mlp", body), expected=expected)


@pytest.mark.parametrize("where", [deep_data, deep_parameters])
def test_exactly_a_hundred_deep_is_not_too_deep(gateway: Any, where: Any) -> None:
    depth = 97 if where is deep_data else 98
    with gateway.connect() as connection:
        answer = connection.ask(gateway.inference("mlp", where(depth)))
    assert "deep" not in answer.json().get("error", "")
    assert answer.status == (400 if where is deep_data else 200), answer.body


@pytest.mark.parametrize("long", [False, True], ids=["short", "long"])
@pytest.mark.parametrize(
    ("datatype", "value"),
    [
        *INTS.items(),
        ("INT64", 2**63),
        ("UINT64", 2**64),
        ("INT32", 1.5),
        ("INT64", 1e30),
        ("INT32", True),
        ("INT8", None),
        ("INT8", "1"),
        ("UINT8", [1]),
        ("FP32", 1e39),
        ("FP32", -1e39),
        ("FP16", 65520.0),
        ("FP16", 1e300),
        ("BF16", 3.4e38),
        ("FP64", True),
        ("FP32", None),
        ("FP64", "1.0"),
        ("BOOL", 2),
        ("BOOL", 0.5),
        ("BOOL", "true"),
        ("BOOL", None),
        ("BYTES", 1),
        ("BYTES", None),
        ("BYTES", True),
        ("BYTES", ["a"]),
    ],
)
def test_a_value_that_its_datatype_cannot_hold_is_refused(
    gateway: Any, helpers: Any, datatype: str, value: Any, long: bool
) -> None:
    fine: Any = {"BYTES": "a", "BOOL": True}.get(datatype, 1)
    data = [*[fine] * (20_000 if long else 2), value]
    model, name = ("echo_strings", "words") if datatype == "BYTES" else ("identity_torch", "x")
    inputs = [helpers.tensor(name, datatype, [len(data)], data)]
    assert_refused(gateway, gateway.inference(model, {"inputs": inputs}), expected=f"'{name}'|not valid JSON")


BINARY: dict[str, tuple[Any, bytes, str]] = {
    "size negative": (-1, b"", "binary_data_size"),
    "size a string": ("64", bytes(64), "binary_data_size"),
    "size true": (True, b"\0", "binary_data_size"),
    "size a float": (64.0, bytes(64), "binary_data_size"),
    "size beyond the body": (128, bytes(64), "ends"),
    "size of 20 digits": (10**19, bytes(64), "ends|binary_data_size"),
    "too small for the shape": (60, bytes(60), "60"),
    "too large for the shape": (68, bytes(68), "68"),
    "nothing": (0, b"", "0 bytes"),
    "bytes behind": (64, bytes(65), "1 bytes"),
    "missing bytes": (64, bytes(63), "ends"),
}


@pytest.mark.parametrize("what", BINARY)
def test_binary_data_must_be_what_the_request_says(gateway: Any, helpers: Any, what: str) -> None:
    size, raw, expected = BINARY[what]
    head = {"inputs": [helpers.tensor("x", "FP32", [1, 16], binary_data_size=size)]}
    assert_refused(gateway, gateway.inference("mlp", (head, raw)), expected=expected)


@pytest.mark.parametrize("shape", [[2**40], [2**62, 4], [0, 2**62], [4, 0, 2**63]])
def test_a_binary_tensor_of_an_absurd_shape_is_refused(gateway: Any, helpers: Any, shape: list[int]) -> None:
    head = {"inputs": [helpers.tensor("x", "FP32", shape, binary_data_size=0)]}
    assert_refused(gateway, gateway.inference("identity_torch", (head, b"")), expected="shape|int|large|bytes")


def test_data_and_binary_data_together_are_refused(gateway: Any, helpers: Any) -> None:
    head = {"inputs": [helpers.tensor("x", "FP32", [1, 16], [0.5] * 16, binary_data_size=64)]}
    assert_refused(gateway, gateway.inference("mlp", (head, bytes(64))), expected="both")


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        ("abc", "Inference-Header-Content-Length"),
        ("-1", "Inference-Header-Content-Length"),
        ("1.5", "Inference-Header-Content-Length"),
        ("", "Inference-Header-Content-Length"),
        ("9" * 40, "Inference-Header-Content-Length"),
        ("100000", "Inference-Header-Content-Length"),
        (str(len(GOOD) - 1), "JSON"),
        ("1", "JSON"),
        ("0", "elements|bytes"),
    ],
)
@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
def test_the_length_of_the_json_part_must_be_right(gateway: Any, length: str, expected: str, large: bool) -> None:
    body = GOOD + b" " * (300_001 if large else 1)
    if large and length == "100000":
        length = str(len(body) + 1)
    header = f"Inference-Header-Content-Length: {length}"
    assert_refused(gateway, gateway.request("POST", "/v2/models/mlp/infer", body, header), expected=expected)


def test_large_bodies_that_are_refused_give_their_memory_back(gateway: Any, helpers: Any) -> None:
    """Together they are larger than the memory for bodies."""
    raw = bytes(5_000_000)
    bad = {"inputs": [helpers.tensor("y", "FP32", [1_250_000], binary_data_size=len(raw))]}
    good = {"inputs": [helpers.tensor("x", "FP32", [1_250_000], binary_data_size=len(raw))]}
    request = gateway.inference("identity_torch", (bad, raw))
    with gateway.connect() as connection:
        for _ in range(60):
            assert_error(connection.ask(request), 400, "'y'")
        assert connection.ask(gateway.inference("identity_torch", (good, raw))).status == 200


@pytest.mark.parametrize(
    "raw",
    [
        struct.pack("<I", 3) + b"ab",
        struct.pack("<I", 2**32 - 1) + b"ab",
        b"\x01\x00",
        struct.pack("<I", 1) + b"abc",
        struct.pack("<I", 1) + b"a" + struct.pack("<I", 0),
        b"",
    ],
)
def test_torn_strings_are_refused(gateway: Any, helpers: Any, raw: bytes) -> None:
    head = {"inputs": [helpers.tensor("words", "BYTES", [1], binary_data_size=len(raw))]}
    assert_refused(gateway, gateway.inference("echo_strings", (head, raw)), expected="BYTES|string")


def test_fewer_strings_than_the_shape_says_are_refused_however_many_it_says(gateway: Any, helpers: Any) -> None:
    raw = struct.pack("<I", 1) + b"a"
    for count in (2, 2**39):
        head = {"inputs": [helpers.tensor("words", "BYTES", [count], binary_data_size=len(raw))]}
        assert_refused(gateway, gateway.inference("echo_strings", (head, raw)), expected="string|is larger than")


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
@pytest.mark.parametrize("size", [1, 300_000], ids=["small", "large"])
def test_broken_packed_bodies_are_refused(gateway: Any, encoding: str, size: int) -> None:
    text = GOOD + b" " * size
    packed = gzip.compress(text) if encoding == "gzip" else zlib.compress(text)
    noise = bytes(range(255, 0, -1)) * (size // 255 + 1)
    for body in (noise, packed[:-5], packed[:20], packed + b"more", b""):
        header = f"Content-Encoding: {encoding}"
        assert_refused(gateway, gateway.request("POST", "/v2/models/mlp/infer", body, header), expected=encoding)


def memory(pid: int, field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) * 1024


def bomb(size: int) -> bytes:
    """A gzip file that unpacks to `size` zeros: one packed megabyte again and again."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    start = packer.compress(bytes(MB)) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(MB)) + packer.flush(zlib.Z_FULL_FLUSH)
    return start + block * (size // MB - 2) + packer.compress(bytes(MB)) + packer.flush()


def test_a_gzip_bomb_is_refused_before_it_unfolds(gateway: Any) -> None:
    worker = gateway.pid("http worker")
    body = bomb(1 << 30)
    request = gateway.request("POST", "/v2/models/mlp/infer", body, "Content-Encoding: gzip")
    Path(f"/proc/{worker}/clear_refs").write_text("5")  # VmHWM starts anew
    before = memory(worker, "VmHWM")
    assert_refused(gateway, request, 413, "larger|more")
    assert memory(worker, "VmHWM") - before < 64 * MB


def chunks(size: int) -> bytes:
    piece = b"10000\r\n" + bytes(1 << 16) + b"\r\n"
    return piece * (size >> 16) + b"0\r\n\r\n"


def test_a_body_over_the_limit_is_refused_by_its_announced_length(gateway: Any, helpers: Any) -> None:
    assert_refused(
        gateway, gateway.request("POST", "/v2/models/mlp/infer", bytes(helpers.limit + 1)), 413, str(helpers.limit)
    )


def test_a_body_over_the_limit_is_refused_when_its_length_is_not_announced(gateway: Any, helpers: Any) -> None:
    worker = gateway.pid("http worker")
    head = gateway.request("POST", "/v2/models/mlp/infer", b"", "Transfer-Encoding: chunked", length=False)
    Path(f"/proc/{worker}/clear_refs").write_text("5")
    before = memory(worker, "VmHWM")
    assert_refused(gateway, head + chunks(helpers.limit * 4), 413, str(helpers.limit))
    assert memory(worker, "VmHWM") - before < helpers.limit + 16 * MB


def test_a_body_at_the_limit_is_read(gateway: Any, helpers: Any) -> None:
    body = GOOD + b" " * (helpers.limit - len(GOOD))
    assert gateway.infer("mlp", body).status == 200


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip", "x" * 300])
def test_an_encoding_that_is_not_read_is_refused(gateway: Any, encoding: str) -> None:
    with gateway.connect() as connection:
        header = f"Content-Encoding: {encoding}"
        answer = connection.ask(gateway.request("POST", "/v2/models/mlp/infer", GOOD, header))
        assert_error(answer, 415, "not supported")
        assert "gzip" in answer.headers["accept-encoding"]
        assert connection.ask(gateway.good()).status == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "expected"),
    [
        ("POST", "/v2/models/x/infer", 404, "^Request for unknown model: 'x' is not found$"),
        ("GET", "/v2/models/x", 404, "^Request for unknown model: 'x' is not found$"),
        ("GET", "/v2/models/x/ready", 404, "^Request for unknown model: 'x' is not found$"),
        ("GET", "/v2/models/x/config", 404, "^Request for unknown model: 'x' is not found$"),
        ("GET", "/v2/models/x/stats", 404, "^Request for unknown model: 'x' is not found$"),
        ("POST", "/v2/models/%2e%2e%2f%2e%2e/infer", 404, "unknown model"),
        ("POST", "/v2/models/%ff%fe/infer", 404, "unknown model"),
        ("POST", "/v2/models/mlp/versions/9/infer", 404, "'mlp' version '9' is not found"),
        ("POST", "/v2/models/mlp/versions/2/infer", 404, "version '2'"),
        ("GET", "/v2/models/mlp/versions/9", 404, "version '9'"),
        ("GET", "/v2/models/mlp/versions/9/ready", 404, "version '9'"),
        ("GET", "/v2/models/mlp/versions/9/stats", 404, "version '9'"),
        ("POST", "/v2/models/mlp/versions/three/infer", 404, "version 'three'"),
        ("POST", "/v2/models/mlp/versions/-3/infer", 404, "version '-3'"),
        ("POST", "/v2/models/mlp/versions/3.0/infer", 404, "version"),
        ("GET", f"/v2/models/mlp/versions/{'9' * 200}", 404, "version"),
        ("GET", "/v2/models/mlp/infer", 405, "GET"),
        ("PUT", "/v2/models/mlp/infer", 405, "PUT"),
        ("POST", "/v2/models/mlp", 405, "POST"),
        ("DELETE", "/v2/models/mlp", 405, "DELETE"),
        ("GET", "/v2/repository/index", 405, "GET"),
        ("POST", "/metrics", 405, "POST"),
        ("GET", "/v3", 404, "unknown path"),
        ("POST", "/v2/models//infer", 404, ""),
        ("POST", "/v2/models/mlp/explain", 404, ""),
        ("POST", "/v2/repository/models/mlp/reload", 404, ""),
    ],
)
def test_paths_and_verbs_that_are_not_served(gateway: Any, method: str, path: str, status: int, expected: str) -> None:
    assert_refused(gateway, gateway.request(method, path, GOOD if method == "POST" else b""), status, expected)


@pytest.mark.parametrize("parameters", [{"config": "{}"}, {"file:1/model.pt": "aGVsbG8="}])
def test_a_load_that_brings_its_own_configuration_or_files_is_refused(gateway: Any, parameters: dict[str, str]) -> None:
    body = json.dumps({"parameters": parameters}).encode()
    assert_refused(gateway, gateway.request("POST", "/v2/repository/models/mlp/load", body), 501)


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"ready": "yes"}', b"\xff", b"[" * 10_000])
def test_a_bad_body_of_a_repository_call_is_refused(gateway: Any, body: bytes) -> None:
    assert_refused(gateway, gateway.request("POST", "/v2/repository/index", body), 400)


def test_a_large_body_of_a_repository_call_is_refused(gateway: Any) -> None:
    with gateway.connect() as connection:
        assert_error(connection.ask(gateway.request("POST", "/v2/repository/index", b" " * 100_000)), 413)


def test_what_a_model_raises_is_told_without_its_traceback(gateway: Any, helpers: Any) -> None:
    bad = {"inputs": [helpers.tensor("x", "FP32", [2], [1.0, -1.0])]}
    good = {"inputs": [helpers.tensor("x", "FP32", [2], [1.0, 2.0])]}
    with gateway.connect() as connection:
        assert_error(connection.ask(gateway.inference("raises", bad)), 500, "negative numbers make this model unhappy")
        assert connection.ask(gateway.inference("raises", good)).json()["outputs"][0]["data"] == [2.0, 3.0]


def test_what_a_framework_raises_is_told_without_its_traceback(gateway: Any, helpers: Any) -> None:
    bad = {"inputs": [helpers.tensor(name, "FP32", [1, size], [1.0] * size) for name, size in (("a", 2), ("b", 3))]}
    assert_refused(gateway, gateway.inference("optional_input", bad), 400, "size of tensor a")


def test_nothing_that_is_no_http_hurts(gateway: Any) -> None:
    for garbage in (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"hello\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"):
        with gateway.connect() as connection:
            connection.send(garbage)
            assert connection.response().status == 400
            assert connection.closed_by_peer()
    for lengths in ("Content-Length: -1", "Content-Length: 5\r\nContent-Length: 6", "Content-Length: x"):
        with gateway.connect() as connection:
            request = gateway.request("POST", "/v2/models/mlp/infer", b"", lengths, length=False)
            assert connection.ask(request).status == 400
            assert connection.closed_by_peer()
    assert gateway.infer("mlp", GOOD).status == 200
