"""The two digit models, trained on the same data with the same weights, over HTTP."""

import importlib.util
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

TWINS = ("digits_torch", "digits_tensorflow")


@pytest.fixture(scope="module")
def held_out(helpers: Any) -> Any:
    spec = importlib.util.spec_from_file_location("digits_data", helpers.shipped / "digits_torch" / "data.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.split()[1]


def probabilities(gateway: Any, helpers: Any, model: str, images: Any) -> Any:
    """Asked for in JSON, one request for all."""
    body = {"inputs": [helpers.tensor("image", "FP32", images.shape, images.ravel().tolist())]}
    answer = gateway.infer(model, body)
    assert answer.status == 200, answer.body
    (output,) = answer.json()["outputs"]
    assert (output["name"], output["datatype"]) == ("probabilities", "FP32")
    return np.array(output["data"], np.float32).reshape(output["shape"])


@pytest.mark.parametrize("model", TWINS)
def test_digits_it_has_never_seen_are_recognised(gateway: Any, helpers: Any, held_out: Any, model: str) -> None:
    answers = probabilities(gateway, helpers, model, held_out.images)
    assert answers.shape == (450, 10)
    assert np.allclose(answers.sum(axis=1), 1, atol=1e-5)
    assert np.mean(answers.argmax(axis=1) == held_out.labels) >= 0.97


def test_both_frameworks_give_the_same_answers(gateway: Any, helpers: Any, held_out: Any) -> None:
    torch, tensorflow = (probabilities(gateway, helpers, model, held_out.images) for model in TWINS)
    assert np.abs(torch - tensorflow).max() < 1e-5


@pytest.mark.parametrize("model", TWINS)
def test_an_image_gets_the_same_answer_alone_in_binary_and_among_others_at_the_same_time(
    gateway: Any, helpers: Any, held_out: Any, model: str
) -> None:
    images = held_out.images[:48]
    together = probabilities(gateway, helpers, model, images)
    head = {
        "parameters": {"binary_data_output": True},
        "inputs": [helpers.tensor("image", "FP32", [1, 64], binary_data_size=256)],
    }

    def alone(image: Any) -> Any:
        answer = gateway.infer(model, (head, image.tobytes()))
        assert answer.status == 200, answer.body
        return np.frombuffer(answer.parts()[1], np.float32)

    with ThreadPoolExecutor(8) as pool:
        assert np.abs(np.stack(list(pool.map(alone, images))) - together).max() < 1e-5
