"""What Triton's example clients do, step by step, with Triton's client library as it is."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@pytest.fixture(scope="module")
def client(gateway: Any) -> Iterator[Any]:
    with triton.InferenceServerClient(f"127.0.0.1:{gateway.port}", concurrency=4) as client:
        yield client


@pytest.fixture(scope="module")
def own(start_gateway: Any) -> Iterator[Any]:
    """A gateway whose models may be loaded and unloaded, under the name that Triton's examples insist on."""
    with start_gateway(["mlp"], "--server-name", "triton") as gateway:
        yield gateway


def images(count: int, *, binary: bool = True) -> tuple[Any, Any]:
    array = np.random.default_rng(1).random((count, 64)).astype(np.float32)
    sent = triton.InferInput("image", [count, 64], "FP32")
    sent.set_data_from_numpy(array, binary_data=binary)
    return array, sent


def probabilities(client: Any, sent: Any) -> Any:
    return client.infer("digits_torch", [sent]).as_numpy("probabilities")


# image_client.py


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("count", [1, 3])
def test_an_image_client_gets_the_classes_of_each_image(client: Any, count: int, binary: bool) -> None:
    config = client.get_model_config("digits_torch")
    metadata = client.get_model_metadata("digits_torch")
    assert len(metadata["inputs"]) == len(metadata["outputs"]) == len(config["input"]) == 1
    assert config["max_batch_size"] > 1
    assert metadata["outputs"][0]["datatype"] == "FP32"
    _, sent = images(count)
    wanted = [triton.InferRequestedOutput("probabilities", binary_data=binary, class_count=2)]
    found = client.infer("digits_torch", [sent], outputs=wanted).as_numpy("probabilities")
    assert found.shape == (count, 2)
    truth = probabilities(client, sent)
    for row, values in zip(found, truth, strict=True):
        assert len(row) == 2
        for text, index in zip(row, np.argsort(-values)[:2], strict=True):
            value, number, label = (text.decode() if isinstance(text, bytes) else text).split(":")
            assert (int(number), label) == (index, NAMES[index])
            assert np.float32(value) == pytest.approx(values[index], rel=1e-5)


def test_an_image_client_may_ask_for_all_classes_and_more(client: Any) -> None:
    _, sent = images(1)
    wanted = [triton.InferRequestedOutput("probabilities", class_count=1000)]
    assert client.infer("digits_torch", [sent], outputs=wanted).as_numpy("probabilities").shape == (1, 10)


# simple_http_infer_client.py


def test_statistics_stand_under_one_entry_for_one_model(client: Any) -> None:
    _, sent = images(2)
    probabilities(client, sent)
    (stats,) = client.get_inference_statistics(model_name="digits_torch")["model_stats"]
    assert stats["inference_stats"]["success"]["count"] > 0
    assert stats["last_inference"] > 1_600_000_000_000
    names = {each["name"] for each in client.get_inference_statistics()["model_stats"]}
    assert {"digits_torch", "mlp", "no_archive"} <= names
    with pytest.raises(InferenceServerException, match="unknown model"):
        client.get_inference_statistics("wrong_model_name")


# simple_http_health_metadata.py


def test_the_name_of_the_server_is_the_one_that_clients_insist_on(own: Any) -> None:
    with triton.InferenceServerClient(f"127.0.0.1:{own.port}") as client:
        assert client.is_server_live(query_params={"test_1": 1, "test_2": 2})
        assert client.is_server_ready()
        assert client.is_model_ready("mlp")
        assert client.get_server_metadata()["name"] == "triton"
        assert client.get_model_metadata("mlp")["name"] == "mlp"
        with pytest.raises(InferenceServerException) as caught:
            client.get_model_metadata("wrong_model_name")
        assert "Request for unknown model" in caught.value.message()


# simple_http_model_control.py


def test_models_are_unloaded_and_loaded(own: Any) -> None:
    with triton.InferenceServerClient(f"127.0.0.1:{own.port}") as client:
        client.unload_model("mlp")
        assert not client.is_model_ready("mlp")
        client.load_model("mlp")
        assert client.is_model_ready("mlp")
        with pytest.raises(InferenceServerException) as caught:
            client.load_model("wrong_model_name")
        assert "failed to load" in caught.value.message()
        with pytest.raises(InferenceServerException, match="configured in the model store"):
            client.load_model("mlp", config='{"max_batch_size": "16"}')
        assert client.is_model_ready("mlp")


# simple_http_shm_client.py, simple_http_cudashm_client.py


@pytest.mark.parametrize("kind", ["system", "cuda"])
def test_shared_memory_is_refused_in_words(client: Any, kind: str) -> None:
    getattr(client, f"unregister_{kind}_shared_memory")()
    assert getattr(client, f"get_{kind}_shared_memory_status")() == []
    place: tuple[Any, ...] = ("/mine", 64) if kind == "system" else (b"handle", 0, 64)
    with pytest.raises(InferenceServerException, match="does not use shared memory"):
        getattr(client, f"register_{kind}_shared_memory")("mine", *place)
    with pytest.raises(InferenceServerException, match="Unable to find"):
        getattr(client, f"get_{kind}_shared_memory_status")("mine")
    sent = triton.InferInput("image", [1, 64], "FP32")
    sent.set_shared_memory("mine", 256)
    with pytest.raises(InferenceServerException, match="lies in shared memory"):
        client.infer("digits_torch", [sent])


# traces and logs


def test_traces_and_logs_can_be_read_and_not_set(client: Any) -> None:
    assert client.get_trace_settings()["trace_level"] == ["OFF"]
    assert client.get_trace_settings("mlp")["trace_level"] == ["OFF"]
    assert client.get_log_settings()["log_error"] is True
    with pytest.raises(InferenceServerException, match="not set through the API"):
        client.update_trace_settings(settings={"trace_level": ["TIMESTAMPS"]})
    with pytest.raises(InferenceServerException, match="not set through the API"):
        client.update_log_settings({"log_verbose_level": 1})


# What extension_schedule_policy.md says of priority and timeout


def slow(gateway: Any, seconds: float) -> Any:
    gateway.slow(seconds)  # learns how many rounds that is
    sent = triton.InferInput("rounds", [1], "INT64")
    return sent.set_data_from_numpy(np.array([gateway._rounds(seconds)], np.int64))  # noqa: SLF001 - as gateway.slow


def test_a_request_whose_time_is_over_is_answered_so(gateway: Any, client: Any) -> None:
    sent = slow(gateway, 0.5)
    with pytest.raises(InferenceServerException) as caught:
        client.infer("slow", [sent], timeout=20_000)
    assert caught.value.status() == "504"
    assert client.infer("slow", [slow(gateway, 0.01)], timeout=20_000_000).as_numpy("y") is not None


def test_what_is_urgent_is_answered_before_what_came_first(gateway: Any, client: Any) -> None:
    ahead = client.async_infer("slow", [slow(gateway, 0.3)])
    late = client.async_infer("slow", [slow(gateway, 0.3)], priority=100)
    soon = client.async_infer("slow", [slow(gateway, 0.02)], priority=1)
    soon.get_result(timeout=20)
    assert not late._greenlet.ready()  # noqa: SLF001 - the client has no other way to ask
    for each in (ahead, late):
        assert each.get_result(timeout=20).as_numpy("y") is not None


def test_priorities_that_make_no_sense_are_refused(client: Any) -> None:
    _, sent = images(1)
    assert client.infer("digits_torch", [sent], priority=100).as_numpy("probabilities").shape == (1, 10)
    with pytest.raises(InferenceServerException, match="priority"):
        client.infer("digits_torch", [sent], priority=101)
    with pytest.raises(InferenceServerException, match="timeout"):
        client.infer("digits_torch", [sent], timeout=-1)


# simple_http_sequence_sync_infer_client.py


def test_a_model_without_state_takes_no_notice_of_sequences(client: Any) -> None:
    _, sent = images(1)
    plain = probabilities(client, sent)
    result = client.infer("digits_torch", [sent], sequence_id=7, sequence_start=True, sequence_end=True)
    assert np.array_equal(result.as_numpy("probabilities"), plain)


# reuse_infer_objects_client.py, simple_http_string_infer_client.py


def test_inputs_and_outputs_are_used_again(client: Any) -> None:
    array, sent = images(2)
    wanted = [triton.InferRequestedOutput("probabilities")]
    first = client.infer("digits_torch", [sent], outputs=wanted).as_numpy("probabilities")
    sent.set_data_from_numpy(array[::-1].copy(), binary_data=False)
    second = client.infer("digits_torch", [sent], outputs=wanted).as_numpy("probabilities")
    assert np.allclose(first, second[::-1], atol=1e-6)


def test_numbers_travel_as_text(client: Any) -> None:
    numbers = np.array([str(number).encode() for number in range(16)], dtype=np.object_)
    sent = triton.InferInput("words", [16], "BYTES")
    sent.set_data_from_numpy(numbers)
    found = client.infer("echo_strings", [sent]).as_numpy("output_0")
    assert [int(text) for text in found] == list(range(16))


# simple_http_aio_infer_client.py


async def test_the_asyncio_client_gets_classes_config_and_statistics(gateway: Any) -> None:
    async with triton_aio.InferenceServerClient(f"127.0.0.1:{gateway.port}") as aio:
        assert (await aio.get_model_config("digits_torch"))["max_batch_size"] > 1
        assert len((await aio.get_inference_statistics("digits_torch"))["model_stats"]) == 1
        sent = triton_aio.InferInput("image", [1, 64], "FP32")
        sent.set_data_from_numpy(np.ones((1, 64), np.float32))
        wanted = [triton_aio.InferRequestedOutput("probabilities", class_count=3)]
        found = await aio.infer("digits_torch", [sent], outputs=wanted)
        assert found.as_numpy("probabilities").shape == (1, 3)
        assert await aio.get_system_shared_memory_status() == []
