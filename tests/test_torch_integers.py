from typing import Any

import numpy as np
import pytest

from gateway.instance.torch_inputs import Guess
from gateway.instance.torch_integers import floats_only

X = {"x": np.ones((1, 4), np.float32)}


def twice(inputs: dict[str, Any]) -> dict[str, Any]:
    return {"y": inputs["x"] * 2}


def refuses_integers(inputs: dict[str, Any]) -> dict[str, Any] | None:
    return twice(inputs) if inputs["x"].dtype.kind == "f" else None


def forgets_fractions(inputs: dict[str, Any]) -> dict[str, Any]:
    return {"y": np.full_like(inputs["x"], 0.5)}


@pytest.mark.parametrize(("model", "names"), [(twice, set()), (refuses_integers, {"x"}), (forgets_fractions, {"x"})])
def test_a_model_that_answers_integers_otherwise_gets_floats(model: Any, names: set[str]) -> None:
    assert floats_only(model, X, {"x": []}) == names


def test_without_an_example_the_weights_of_floats_decide() -> None:
    weighed = {"x": [Guess("FP32", (1, 4))], "n": [Guess("INT64", (1,))], "y": []}
    assert floats_only(twice, None, weighed) == {"x"}


def test_inputs_that_take_integers_alone_and_not_together_get_floats() -> None:
    def mean(inputs: dict[str, Any]) -> dict[str, Any] | None:
        total = inputs["a"] + inputs["b"]
        return {"y": total.mean(keepdims=True)} if total.dtype.kind == "f" else None

    example = {"a": np.ones(3, np.float32), "b": np.ones(3, np.float32)}
    assert floats_only(mean, example, {}) == {"a", "b"}
