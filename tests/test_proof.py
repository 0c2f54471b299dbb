from collections.abc import Callable, Mapping
from itertools import count
from typing import Any, ClassVar

import ml_dtypes
import numpy as np
import pytest

from gateway.errors import InferenceFailed, RequestError
from gateway.instance.proof import AUTO_BATCH_SIZE, ROWS, agree, decide_batching, doubt_about
from gateway.instance.row_separation import RowSeparation
from gateway.store.manifest import ModelConfig
from gateway.tensors import Array, Signature

Function = Callable[[Mapping[str, Array]], dict[str, Array]]
X = {"x": np.full((1, 4), 0.5, np.float32)}


class FakeModel:
    platform = "pytorch_torchscript"
    signatures: ClassVar[dict[str, Signature]] = {}
    default_signature = "forward"
    notes: ClassVar[list[str]] = []

    def __init__(
        self, function: Function, example: dict[str, Array] | None = None, obstacle: str | None = None
    ) -> None:
        self.function = function
        self.shown = X if example is None else example
        self.obstacle = obstacle
        self.calls = 0

    def execute(self, _: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self.calls += 1
        return self.function(inputs)

    def example(self, _: str) -> dict[str, Array] | None:
        return self.shown or None

    def batching_obstacle(self, _: str) -> str | None:
        return self.obstacle

    def row_separation(self, _: str) -> RowSeparation:
        return RowSeparation("unknown", "a model of numpy has no graph")


def rows_apart(inputs: Mapping[str, Array]) -> dict[str, Array]:
    return {"y": np.tanh(inputs["x"]) * np.arange(1, 5, dtype=np.float32)}


def softmax(array: Array, axis: int) -> Array:
    powers = np.exp(array - array.max(axis=axis, keepdims=True))
    return np.asarray(powers / powers.sum(axis=axis, keepdims=True))


def test_a_model_that_treats_rows_apart_is_batched() -> None:
    for function in (rows_apart, lambda inputs: {"y": softmax(inputs["x"] * [1, 2, 3, 4], 1)}):
        batching = decide_batching(FakeModel(function), ModelConfig())
        assert batching.max_batch_size == AUTO_BATCH_SIZE
        assert batching.reason.startswith(f"on: {ROWS} different rows")


noise = count()
GLOBAL = "a row's output 'y' depends on the rows beside it"


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda i: {"y": softmax(i["x"], 0)}, GLOBAL),
        (lambda i: {"y": i["x"] - i["x"].mean(0)}, GLOBAL),
        (lambda i: {"y": i["x"] - i["x"].mean()}, GLOBAL),
        (lambda i: {"y": np.sort(i["x"] * [1, -1, 2, 3], axis=0)}, GLOBAL),
        (lambda i: {"y": i["x"][::-1]}, GLOBAL),
        (lambda i: {"y": np.cumsum(i["x"], axis=0)}, GLOBAL),
        (lambda i: {"y": i["x"] * len(i["x"])}, GLOBAL),
        (lambda i: {"y": i["x"] if i["x"][0, 0] > 0 else -2 * i["x"]}, GLOBAL),
        (lambda i: {"y": i["x"] if i["x"][-1, 0] > 0 else -2 * i["x"]}, GLOBAL),
        (lambda i: {"y": i["x"] if (i["x"] > 0).all() else i["x"] + 1}, GLOBAL),
        (lambda i: {"y": i["x"].sum()[None]}, "output 'y' has shape [1] for 5 rows"),
        (lambda i: {"y": i["x"].sum()}, "output 'y' has shape [] for 5 rows"),
        (lambda i: {"y": i["x"].T}, "output 'y' has shape [4, 5] for 5 rows"),
        (lambda i: {"y": i["x"] + next(noise)}, "the same request gave two different answers"),
        (lambda i: {"y": np.zeros_like(i["x"])}, "no test request was found whose rows get different answers"),
    ],
)
def test_a_model_that_mixes_its_rows_is_not_batched_and_says_why(function: Function, reason: str) -> None:
    batching = decide_batching(FakeModel(function), ModelConfig())
    assert batching.max_batch_size == 1
    assert batching.reason == f"off: {reason}"


def test_one_good_output_does_not_excuse_a_bad_one() -> None:
    model = FakeModel(lambda i: {"y": i["x"], "z": i["x"] / np.abs(i["x"]).max()})
    assert "output 'z'" in decide_batching(model, ModelConfig()).reason


@pytest.mark.parametrize("error", [InferenceFailed("shapes differ"), RequestError("one row only")])
def test_a_model_that_refuses_several_rows_is_not_batched_and_says_why(error: Exception) -> None:
    def one_row(inputs: Mapping[str, Array]) -> dict[str, Array]:
        if len(inputs["x"]) > 1:
            raise error
        return rows_apart(inputs)

    batching = decide_batching(FakeModel(one_row), ModelConfig())
    assert batching.max_batch_size == 1
    assert str(error) in batching.reason


def test_a_model_whose_outputs_change_their_names_is_not_batched() -> None:
    calls = count()
    batching = decide_batching(FakeModel(lambda i: {f"y{next(calls)}": i["x"]}), ModelConfig())
    assert batching.max_batch_size == 1
    assert batching.reason.startswith("off: ")


def test_an_input_without_a_batch_dimension_is_not_batched() -> None:
    for example in ({"x": np.ones(())}, {"x": np.ones((2, 3))}, {"x": np.ones((1, 3)), "n": np.array(3)}):
        batching = decide_batching(FakeModel(rows_apart, example), ModelConfig())
        assert batching.reason == "off: an input has no batch dimension"


def test_without_an_example_nothing_is_tried() -> None:
    model = FakeModel(rows_apart, {})
    batching = decide_batching(model, ModelConfig())
    assert batching.max_batch_size == 1
    assert "no example" in batching.reason
    assert model.calls == 0


def test_an_obstacle_that_the_backend_knows_of_settles_it() -> None:
    model = FakeModel(rows_apart, obstacle="it keeps a counter")
    assert decide_batching(model, ModelConfig()).reason == "off: it keeps a counter"
    assert model.calls == 0


@pytest.mark.parametrize(
    ("config", "size"), [({"max_batch_size": 7}, 7), ({"max_batch_size": 1}, 1), ({"stateful": True}, 1)]
)
def test_what_model_yaml_says_is_taken_without_a_test(config: dict[str, Any], size: int) -> None:
    model = FakeModel(lambda i: {"y": softmax(i["x"], 0)})
    batching = decide_batching(model, ModelConfig(**config))
    assert batching.max_batch_size == size
    assert "model.yaml" in batching.reason
    assert model.calls == 0


def test_a_stateful_model_is_not_batched_whatever_size_is_given() -> None:
    assert decide_batching(FakeModel(rows_apart), ModelConfig(stateful=True, max_batch_size=8)).max_batch_size == 1


@pytest.mark.parametrize("dtype", ["int64", "uint8", "bool", "float16", "float64", ml_dtypes.bfloat16])
def test_every_kind_of_number_can_be_told_apart(dtype: Any) -> None:
    example = {"x": np.arange(20).reshape(1, 20).astype(dtype)}
    weights = np.arange(1, 21)
    assert doubt_about(lambda i: {"y": (i["x"] * weights).astype(np.float64)}, example) is None
    doubt = doubt_about(lambda i: {"y": i["x"].astype(np.float64) - i["x"].astype(np.float64).mean()}, example)
    assert doubt == GLOBAL


def lengths(inputs: Mapping[str, Array]) -> dict[str, Array]:
    return {"y": np.array([len(text) for text in inputs["x"]], np.int64)}


def test_rows_of_text_are_told_apart() -> None:
    example = {"x": np.array([b"hello"], object)}
    assert doubt_about(lengths, example) is None
    assert doubt_about(lambda i: {"y": lengths(i)["y"] + len(b"".join(i["x"]))}, example) == GLOBAL


def test_text_that_must_be_a_number_is_varied_as_one() -> None:
    example = {"x": np.array([b"1"], object)}
    calls = []

    def numbers(inputs: Mapping[str, Array]) -> dict[str, Array]:
        calls.append(inputs["x"].tolist())
        try:
            return {"y": np.array([int(text) for text in inputs["x"]])}
        except ValueError:
            raise InferenceFailed("no number") from None

    assert doubt_about(numbers, example) is None
    assert [b"11"] in calls


def test_indices_stay_within_what_the_example_shows() -> None:
    table = np.random.default_rng(1).standard_normal((4, 3))
    example = {"x": np.array([[0, 3, 1, 2, 0, 3]])}
    assert doubt_about(lambda i: {"y": table[i["x"]]}, example) is None


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        ([1.0, 2.0], [1.0, 2.00001], True),
        ([1.0, 2.0], [1.0, 2.01], False),
        ([np.nan, 1.0], [np.nan, 1.0], True),
        ([np.nan, 1.0], [0.0, 1.0], False),
        ([np.inf, 1.0], [np.inf, 1.0], True),
        ([np.inf, 1.0], [-np.inf, 1.0], False),
        ([1e6, 1e-6], [1e6, 0.0], True),
        ([], [], True),
    ],
)
def test_answers_agree_but_for_rounding(left: list[float], right: list[float], same: bool) -> None:
    assert agree(np.array(left, np.float32), np.array(right, np.float32)) is same


def test_answers_of_other_shapes_or_kinds_do_not_agree() -> None:
    assert not agree(np.zeros((2, 1)), np.zeros(2))
    assert not agree(np.zeros(2, np.float32), np.zeros(2))
    assert not agree(np.array([1, 2]), np.array([1, 3]))
    assert not agree(np.array([b"a"], object), np.array([b"b"], object))
    assert agree(np.array([b"a"], object), np.array([b"a"], object))
