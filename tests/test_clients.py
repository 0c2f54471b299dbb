"""Clients that other people wrote, unmodified."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from open_inference.openapi.client import OpenInferenceClient
from open_inference.openapi.core.api_error import ApiError
from open_inference.openapi.errors import BadRequestError, NotFoundError, ServiceUnavailableError
from open_inference.openapi.types import InferenceRequest
from tritonclient.utils import InferenceServerException

A = np.arange(8, dtype=np.float32).reshape(2, 4)
B = np.full((2, 4), 10, np.float32)


@pytest.fixture(scope="module")
def client(gateway: Any) -> Iterator[Any]:
    with triton.InferenceServerClient(f"127.0.0.1:{gateway.port}", concurrency=4) as client:
        yield client


@pytest.fixture
async def aio(gateway: Any) -> AsyncIterator[Any]:
    async with triton_aio.InferenceServerClient(f"127.0.0.1:{gateway.port}") as client:
        yield client


def inputs(binary: tuple[bool, bool] = (True, True), module: Any = triton) -> list[Any]:
    found = [module.InferInput(name, [2, 4], "FP32") for name in ("a", "b")]
    for each, array, flag in zip(found, (A, B), binary, strict=True):
        each.set_data_from_numpy(array, binary_data=flag)
    return found


def outputs(binary: tuple[bool, bool] = (True, True), module: Any = triton) -> list[Any]:
    names = ("difference", "sum")
    return [module.InferRequestedOutput(name, binary_data=flag) for name, flag in zip(names, binary, strict=True)]


def assert_answer(result: Any) -> None:
    assert np.array_equal(result.as_numpy("sum"), A + B)
    assert np.array_equal(result.as_numpy("difference"), A - B)


def test_the_server_and_its_models_are_described(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("mlp")
    assert client.is_model_ready("mlp", "3")
    assert not client.is_model_ready("mlp", "9")
    assert not client.is_model_ready("no_archive")
    assert client.get_server_metadata()["name"] == "gateway"
    assert client.get_model_metadata("mlp", "3")["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 16]}]
    assert client.get_model_config("mlp")["max_batch_size"] > 1
    states = {each["name"]: each["state"] for each in client.get_model_repository_index()}
    assert states["mlp"] == "READY"
    assert states["no_archive"] == "FAILED"


@pytest.mark.parametrize("given", [(True, True), (False, False), (True, False), (False, True)])
@pytest.mark.parametrize("wanted", [(True, True), (False, False), (True, False)])
def test_json_and_binary_in_and_out(client: Any, given: tuple[bool, bool], wanted: tuple[bool, bool]) -> None:
    result = client.infer("optional_input", inputs(given), outputs=outputs(wanted), request_id="seven")
    assert_answer(result)
    assert result.get_response()["id"] == "seven"
    assert_answer(client.infer("optional_input", inputs(given)))


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_packed_requests_and_responses(client: Any, encoding: str) -> None:
    array = np.arange(40_000, dtype=np.float32).reshape(-1, 4)
    for binary in (True, False):
        sent = triton.InferInput("x", list(array.shape), "FP32")
        sent.set_data_from_numpy(array, binary_data=binary)
        wanted = [triton.InferRequestedOutput("y", binary_data=binary)]
        result = client.infer(
            "identity_tensorflow",
            [sent],
            outputs=wanted,
            request_compression_algorithm=encoding,
            response_compression_algorithm=encoding,
        )
        assert np.array_equal(result.as_numpy("y"), array)


@pytest.mark.parametrize("binary", [True, False])
def test_strings(client: Any, binary: bool) -> None:
    words = np.array(["", "grüße", "日本語"], dtype=object)
    sent = triton.InferInput("words", [3], "BYTES")
    sent.set_data_from_numpy(words, binary_data=binary)
    wanted = [triton.InferRequestedOutput("output_0", binary_data=binary)]
    result = client.infer("echo_strings", [sent], outputs=wanted).as_numpy("output_0")
    assert [word.decode() if isinstance(word, bytes) else word for word in result] == words.tolist()


def test_requests_under_way_at_the_same_time(client: Any) -> None:
    pending = [client.async_infer("optional_input", inputs(), outputs=outputs()) for _ in range(32)]
    for request in pending:
        assert_answer(request.get_result(timeout=20))


def test_statistics_count_what_was_computed(client: Any) -> None:
    before = client.get_inference_statistics("optional_input")["model_stats"][0]
    for _ in range(3):
        client.infer("optional_input", inputs())
    after = client.get_inference_statistics("optional_input", "1")["model_stats"][0]
    assert after["inference_count"] - before["inference_count"] == 6  # two rows each
    success = after["inference_stats"]["success"]
    assert success["count"] - before["inference_stats"]["success"]["count"] == 3
    assert success["ns"] > before["inference_stats"]["success"]["ns"]


@pytest.mark.parametrize(
    ("model", "version", "expected"),
    [
        ("nobody", "", "Request for unknown model: 'nobody' is not found"),
        ("mlp", "9", "version '9' is not found"),
        ("mlp", "3", "no input 'a'"),
        ("no_archive", "", "not a TorchScript archive"),
    ],
)
def test_errors_are_the_client_s_own_exceptions(client: Any, model: str, version: str, expected: str) -> None:
    with pytest.raises(InferenceServerException, match=expected):
        client.infer(model, inputs(), model_version=version)


def test_an_error_of_the_model_reaches_the_client(client: Any) -> None:
    sent = triton.InferInput("x", [1], "FP32").set_data_from_numpy(np.array([-1], np.float32))
    with pytest.raises(InferenceServerException, match="unhappy") as caught:
        client.infer("raises", [sent])
    assert caught.value.status() == "500"


async def test_the_asyncio_client_describes_and_infers(aio: Any) -> None:
    assert await aio.is_server_live()
    assert await aio.is_model_ready("optional_input")
    assert (await aio.get_model_metadata("mlp"))["platform"] == "pytorch_torchscript"
    assert any(each["name"] == "mlp" for each in await aio.get_model_repository_index())
    for given in ((True, True), (False, False), (True, False)):
        assert_answer(await aio.infer("optional_input", inputs(given, triton_aio), outputs=outputs(given, triton_aio)))
    with pytest.raises(InferenceServerException, match="unknown model: 'nobody'"):
        await aio.infer("nobody", inputs(module=triton_aio))


async def test_the_asyncio_client_has_many_requests_under_way(aio: Any) -> None:
    for result in await asyncio.gather(*(aio.infer("optional_input", inputs(module=triton_aio)) for _ in range(32))):
        assert_answer(result)


async def test_the_asyncio_client_packs_requests_and_responses(aio: Any) -> None:
    array = np.ones((3000, 4), np.float32)
    sent = triton_aio.InferInput("x", list(array.shape), "FP32").set_data_from_numpy(array)
    result = await aio.infer(
        "identity_tensorflow", [sent], request_compression_algorithm="gzip", response_compression_algorithm="gzip"
    )
    assert np.array_equal(result.as_numpy("y"), array)


@pytest.fixture
def generated(gateway: Any) -> Iterator[Any]:
    """The client that is generated from the protocol's own OpenAPI document; it checks what it gets."""
    with httpx.Client(timeout=20) as connection:
        yield OpenInferenceClient(base_url=gateway.url, httpx_client=connection)


def test_the_generated_client_describes_and_infers(generated: Any) -> None:
    generated.check_server_liveness()
    generated.check_server_readiness()
    generated.check_model_readiness("mlp")
    generated.check_model_version_readiness("mlp", "3")
    assert generated.read_server_metadata().name == "gateway"
    for metadata in (generated.read_model_metadata("mlp"), generated.read_model_version_metadata("mlp", "3")):
        assert (metadata.name, metadata.platform, metadata.versions) == ("mlp", "pytorch_torchscript", ["3"])
        assert [(each.name, each.datatype, each.shape) for each in metadata.inputs] == [("x", "FP32", [-1, 16])]
    rows = [[0.5] * 16, [0.25] * 16]
    request = InferenceRequest.parse_obj(
        {"id": "seven", "inputs": [{"name": "x", "shape": [2, 16], "datatype": "FP32", "data": rows}]}
    )
    once = generated.model_infer("mlp", request=request)
    again = generated.model_version_infer("mlp", "3", request=request)
    assert (once.id, once.model_name, once.model_version) == ("seven", "mlp", "3")
    assert [(each.name, each.datatype, each.shape) for each in once.outputs] == [("y", "FP32", [2, 4])]
    assert once.outputs == again.outputs


def test_the_generated_client_knows_the_errors(generated: Any) -> None:
    request = InferenceRequest.parse_obj({"inputs": [{"name": "z", "shape": [1], "datatype": "FP32", "data": [1.0]}]})
    with pytest.raises(BadRequestError):
        generated.model_infer("mlp", request=request)
    for ask in (
        lambda: generated.model_infer("nobody", request=request),
        lambda: generated.read_model_metadata("nobody"),
    ):
        with pytest.raises(ApiError) as caught:  # of these calls the document has no 404
            ask()
        assert caught.value.status_code == 404
    with pytest.raises(NotFoundError):
        generated.check_model_readiness("nobody")
    with pytest.raises(ServiceUnavailableError):
        generated.check_model_readiness("no_archive")


async def test_httpx_asks_for_packed_answers_on_its_own(gateway: Any, helpers: Any) -> None:
    body = {"inputs": [helpers.tensor("x", "FP32", [1, 5000], [0.5] * 5000)]}
    async with httpx.AsyncClient(base_url=gateway.url, timeout=20) as client:
        answers = await asyncio.gather(*(client.post("/v2/models/identity_torch/infer", json=body) for _ in range(8)))
    for answer in answers:
        assert answer.status_code == 200
        assert answer.headers["content-encoding"] == "gzip"
        assert answer.json()["outputs"][0]["data"] == [0.5] * 5000
