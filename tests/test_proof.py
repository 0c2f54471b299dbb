import re
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any, ClassVar, NamedTuple

import ml_dtypes
import numpy as np
import pytest

from gateway.errors import InferenceFailed, RequestError
from gateway.instance import proof
from gateway.instance.batch_checks import FIRST_BATCHES
from gateway.instance.proof import AUTO_BATCH_SIZE, FEWEST_ROWS, decide_batching, examine
from gateway.instance.row_separation import RowSeparation
from gateway.ipc.framing import RequestHeader
from gateway.store.manifest import ModelConfig
from gateway.tensors import Array, Signature

Function = Callable[[Mapping[str, Array]], dict[str, Array]]
X = {"x": np.full((1, 4), 0.5, np.float32)}


class FakeModel:
    platform = "pytorch_torchscript"
    signatures: ClassVar[dict[str, Signature]] = {}
    default_signature = "forward"
    notes: ClassVar[list[str]] = []
    optimised = False

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

    def rest(self) -> float:
        return -1.0

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
        assert re.fullmatch(
            r"on: \d+ different rows in \d+ pairs gave the same answers together as alone", batching.reason
        )
        assert batching.checked == FIRST_BATCHES


noise = count()
GLOBAL = "a row's output 'y' depends on the rows next to it"


def doubt_about(function: Function, example: dict[str, Array]) -> str:
    evidence = examine(function, example)
    assert not evidence.unknown
    return evidence.doubt


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
        (lambda i: {"y": i["x"].sum()[None]}, f"output 'y' has shape [1] for {FEWEST_ROWS} rows"),
        (lambda i: {"y": i["x"].sum()}, f"output 'y' has shape [] for {FEWEST_ROWS} rows"),
        (lambda i: {"y": i["x"].T}, f"output 'y' has shape [4, {FEWEST_ROWS}] for {FEWEST_ROWS} rows"),
        (lambda i: {"y": i["x"] + next(noise)}, "the same request gave two different answers"),
        (lambda i: {"y": np.zeros_like(i["x"])}, "no test request was found whose rows get different answers"),
    ],
)
def test_a_model_that_mixes_its_rows_is_not_batched_and_says_why(function: Function, reason: str) -> None:
    batching = decide_batching(FakeModel(function), ModelConfig())
    assert batching.max_batch_size == 1
    assert batching.reason == f"off: {reason}"


def test_one_good_output_does_not_excuse_a_bad_one() -> None:
    model = FakeModel(lambda i: {"y": i["x"], "z": i["x"] / (1 + np.abs(i["x"]).max())})
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
    "config",
    [{"max_batch_size": 1}, {"stateful": True}, {"max_batch_size": 8, "batching_check": False}],
    ids=["one", "stateful", "unchecked"],
)
def test_what_model_yaml_settles_is_taken_without_a_test(config: dict[str, Any]) -> None:
    model = FakeModel(lambda i: {"y": softmax(i["x"], 0)}, obstacle="it draws random numbers")
    batching = decide_batching(model, ModelConfig(**config), "another instance has seen it mix rows")
    assert batching.max_batch_size == (8 if "batching_check" in config else 1)
    assert batching.checked == 0
    assert "model.yaml" in batching.reason
    assert model.calls == 0


@pytest.mark.parametrize("obstacle", [None, "it draws random numbers"])
def test_a_number_in_model_yaml_does_not_excuse_a_model_that_mixes_rows(obstacle: str | None) -> None:
    model = FakeModel(lambda i: {"y": softmax(i["x"], 0)}, obstacle=obstacle)
    batching = decide_batching(model, ModelConfig(max_batch_size=8))
    assert (batching.max_batch_size, batching.shown_batch_size, batching.checked) == (1, 8, 0)
    assert batching.reason.startswith(f"off: {obstacle or GLOBAL}; ")
    assert "batching_check: off" in batching.reason


def test_a_number_in_model_yaml_is_used_where_no_test_can_be_made_and_traffic_is_checked() -> None:
    constant = FakeModel(lambda i: {"y": np.zeros_like(i["x"])})
    for model in (FakeModel(rows_apart, {}), constant):
        batching = decide_batching(model, ModelConfig(max_batch_size=8))
        assert (batching.max_batch_size, batching.checked) == (8, FIRST_BATCHES)
        assert batching.reason.startswith("on: model.yaml says so; it was not tested at load: no ")
        assert not batching.repeatable


def test_a_number_in_model_yaml_holds_for_all_signatures_but_those_with_an_obstacle() -> None:
    model = FakeModel(rows_apart)
    model.signatures = {name: Signature(name, (), ()) for name in ("forward", "count")}  # type: ignore[misc]
    model.batching_obstacle = lambda name: "it counts" if name == "count" else None  # type: ignore[method-assign]
    batching = decide_batching(model, ModelConfig(max_batch_size=8))
    allowed = {name: proof.may_join(batching, RequestHeader(name, ())) for name in ("forward", "other", "count")}
    assert allowed == {"forward": True, "other": True, "count": False}


def test_what_traffic_has_shown_of_the_same_files_switches_batching_off() -> None:
    model = FakeModel(rows_apart)
    for config, shown in ((ModelConfig(), AUTO_BATCH_SIZE), (ModelConfig(max_batch_size=8), 8)):
        batching = decide_batching(model, config, "output 'y' differs")
        assert (batching.max_batch_size, batching.shown_batch_size) == (1, shown)
        assert batching.reason == "off: output 'y' differs"
    assert model.calls == 0


class Separation(NamedTuple):
    verdict: str
    reason: str


def test_what_is_known_of_the_graph_counts() -> None:
    mixed = decide_batching(FakeModel(rows_apart), ModelConfig(), separation=Separation("mixed", "softmax over rows"))
    assert (mixed.max_batch_size, mixed.reason) == (1, "off: softmax over rows")
    apart = decide_batching(
        FakeModel(rows_apart), ModelConfig(), separation=Separation("separate", "the graph keeps rows apart")
    )
    assert apart.reason.startswith("on: the graph keeps rows apart; ")
    unsound = FakeModel(lambda i: {"y": softmax(i["x"], 0)})
    assert (
        decide_batching(
            unsound, ModelConfig(), separation=Separation("separate", "the graph keeps rows apart")
        ).max_batch_size
        == 1
    )


def test_a_stateful_model_is_not_batched_whatever_size_is_given() -> None:
    assert decide_batching(FakeModel(rows_apart), ModelConfig(stateful=True, max_batch_size=8)).max_batch_size == 1


@pytest.mark.parametrize("dtype", ["int64", "uint8", "bool", "float16", "float64", ml_dtypes.bfloat16])
def test_every_kind_of_number_can_be_told_apart(dtype: Any) -> None:
    example = {"x": np.arange(20).reshape(1, 20).astype(dtype)}
    weights = np.arange(1, 21)
    assert doubt_about(lambda i: {"y": (i["x"] * weights).astype(np.float64)}, example) == ""
    doubt = doubt_about(lambda i: {"y": i["x"].astype(np.float64) - i["x"].astype(np.float64).mean()}, example)
    assert doubt == GLOBAL


def lengths(inputs: Mapping[str, Array]) -> dict[str, Array]:
    return {"y": np.array([len(text) for text in inputs["x"]], np.int64)}


def test_rows_of_text_are_told_apart() -> None:
    example = {"x": np.array([b"hello"], object)}
    assert doubt_about(lengths, example) == ""
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

    assert doubt_about(numbers, example) == ""
    assert [b"11"] in calls


def test_indices_stay_within_what_the_example_shows() -> None:
    table = np.random.default_rng(1).standard_normal((4, 3))
    example = {"x": np.array([[0, 3, 1, 2, 0, 3]])}
    assert doubt_about(lambda i: {"y": table[i["x"]]}, example) == ""


# --- Models that a proof with rows of one kind does not find out ----------------------------------


def pads_to_the_longest(inputs: Mapping[str, Array]) -> dict[str, Array]:
    """The mean over words, as many as the longest text of the batch has."""
    texts = [text.split() for text in inputs["x"].tolist()]
    longest = max(1, *map(len, texts))
    return {"y": np.array([sum(map(len, text)) / longest for text in texts], np.float32)}


def counts_from_the_longest_mask(inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Positions are counted from the last one that any mask of the batch has."""
    ids, mask = inputs["ids"], inputs["mask"]
    places = mask.sum(1).max() - np.arange(ids.shape[1])
    return {"y": ((ids + places) * mask).sum(1).astype(np.float32)}


def scales_large_images(inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Divides by 255 if any row looks like an image of bytes."""
    return {"y": inputs["x"] / (255.0 if inputs["x"].max() > 100 else 1.0)}


def widest(inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Drops columns that are empty in all rows: the sum does not change, the mean does."""
    used = max(1, int((inputs["ids"] != 0).any(0).sum()))
    return {"y": (inputs["ids"].sum(1) / used).astype(np.float32)}


def hashes_equal_rows(inputs: Mapping[str, Array]) -> dict[str, Array]:
    """A row gets another answer if one before it starts with the same element."""
    x = inputs["x"]
    return {"y": np.array([row.sum() + 1e3 * (row[0] in x[:index, 0]) for index, row in enumerate(x)], np.float32)}


IDS = {"ids": np.array([[3, 1, 60, 2, 7, 0, 5, 9]])}


@pytest.mark.parametrize(
    ("function", "example"),
    [
        (pads_to_the_longest, {"x": np.array([b"1"], object)}),
        (counts_from_the_longest_mask, {**IDS, "mask": np.array([[14, 1, 60, 2, 7, 33, 5, 9]])}),
        (counts_from_the_longest_mask, {"mask": np.ones((1, 8), np.int64), **IDS}),
        (scales_large_images, {"x": np.full((1, 3, 4), 0.5, np.float32)}),
        (widest, IDS),
        (hashes_equal_rows, {"x": np.full((1, 4), 0.5, np.float32)}),
    ],
)
def test_rows_of_other_lengths_padding_and_scale_find_out_what_mixes_them(
    function: Function, example: dict[str, Array]
) -> None:
    assert doubt_about(function, example) == GLOBAL


def test_a_row_that_the_model_refuses_is_left_out() -> None:
    def picky(inputs: Mapping[str, Array]) -> dict[str, Array]:
        if (np.abs(inputs["x"]) > 50).any():
            raise RequestError("too large")
        return rows_apart(inputs)

    evidence = examine(picky, X)
    assert (evidence.doubt, evidence.unknown) == ("", "")
    assert evidence.rows >= FEWEST_ROWS


def test_answers_that_are_not_numbers_are_equal() -> None:
    with np.errstate(all="ignore"):
        assert doubt_about(lambda i: {"y": np.log(i["x"] * np.arange(1, 5))}, X) == ""


def test_a_row_whose_answer_rounding_alone_changes_proves_nothing() -> None:
    """The variance of a constant row is rounding, which another batch size changes."""

    def norm(inputs: Mapping[str, Array]) -> dict[str, Array]:
        x = inputs["x"].astype(np.float64)
        x = x * (1 + 1e-9 * len(x))  # the rounding
        scale = np.abs(x).max(1, keepdims=True)
        flat = x.std(1, keepdims=True) < 1e-5 * (scale + 1)
        noise = np.sin(x * 1e9)
        return {"y": np.where(flat & (scale > 0), noise, x).astype(np.float32)}

    assert doubt_about(norm, X) == ""


def test_a_slow_model_is_tried_with_few_rows_and_the_reason_says_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("gateway.instance.proof.time.perf_counter", lambda: now[0])

    def slow(inputs: Mapping[str, Array]) -> dict[str, Array]:
        now[0] += 0.4
        return rows_apart(inputs)

    model = FakeModel(slow)
    batching = decide_batching(model, ModelConfig())
    assert re.match(r"on: 6 different rows in 1 of 15 pairs gave", batching.reason)
    assert model.calls == 6 + 6 + 3 + 2


def test_the_largest_batch_is_tried() -> None:
    def up_to_thirty(inputs: Mapping[str, Array]) -> dict[str, Array]:
        return {"y": rows_apart(inputs)["y"] if len(inputs["x"]) < 31 else inputs["x"]}

    assert doubt_about(up_to_thirty, X) == GLOBAL
