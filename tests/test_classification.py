"""The classification extension: the highest values of an output, by index and label."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import RequestError
from gateway.http import classification, large_json
from gateway.http.classification import Classes, classify, classify_in_turns, highest, wanted_classes
from gateway.ipc.framing import ResultHeader, TensorHeader
from gateway.tensors import DTYPES, TensorSpec, raw_from_array, unpack_bytes

NUMERIC = sorted(set(DTYPES) - {"BOOL", "BYTES"})


def result(*arrays: Any) -> tuple[ResultHeader, list[Any]]:
    raws = [raw_from_array(array) for array in arrays]
    outputs = [
        TensorHeader(f"y{at}", datatype, array.shape, len(raw))
        for at, (array, (datatype, raw)) in enumerate(zip(arrays, raws, strict=True))
    ]
    return ResultHeader(tuple(outputs)), [raw for _, raw in raws]


def classes(
    array: Any, count: int, labels: Sequence[str] = (), *, by_row: bool = True
) -> tuple[tuple[int, ...], list[str]]:
    """Shape and strings of the classes of one output; both ways of finding them agree."""
    header, tensors = result(array)
    wanted = {"y0": Classes(count, by_row)}
    found, raws = classify(header, tensors, wanted, {"y0": labels})
    again, others = asyncio.run(classify_in_turns(header, tensors, wanted, {"y0": labels}))
    assert (again.outputs, [bytes(raw) for raw in others]) == (found.outputs, [bytes(raw) for raw in raws])
    (tensor,) = found.outputs
    assert (tensor.datatype, tensor.size) == ("BYTES", len(raws[0]))
    return tensor.shape, [text.decode() for text in unpack_bytes(raws[0], int(np.prod(tensor.shape)))]


def test_the_highest_come_first_with_value_index_and_label() -> None:
    array = np.array([[1.1, 3.3, 0.5, 2.4]], np.float32)
    assert classes(array, 2) == ((1, 2), ["3.3:1", "2.4:3"])
    assert classes(array, 3, ["a", "b:c", "", "d"]) == ((1, 3), ["3.3:1:b:c", "2.4:3:d", "1.1:0:a"])
    assert classes(array, 4, ["only"]) == ((1, 4), ["3.3:1", "2.4:3", "1.1:0:only", "0.5:2"])


def test_each_row_has_its_own_ranking_unless_there_are_no_rows() -> None:
    array = np.array([[1, 5, 10, 4], [9, 8, 7, 6]], np.int64)
    assert classes(array, 2) == ((2, 2), ["10:2", "5:1", "9:0", "8:1"])
    assert classes(array, 3, by_row=False) == ((3,), ["10:2", "9:4", "8:5"])
    assert classes(array.reshape(2, 2, 2), 2) == ((2, 2), ["10:2", "5:1", "9:0", "8:1"])
    for by_row in (True, False):
        assert classes(np.array([3, 1, 2], np.uint8), 2, by_row=by_row) == ((2,), ["3:0", "2:2"])
    assert classes(np.array(7.5, np.float64), 3) == ((1,), ["7.5:0"])


def test_there_are_no_more_classes_than_values() -> None:
    assert classes(np.array([[1, 2]], np.int8), 1000) == ((1, 2), ["2:1", "1:0"])
    assert classes(np.empty((0, 4), np.float32), 2) == ((0, 2), [])
    assert classes(np.empty((2, 0), np.float32), 2) == ((2, 0), [])


def test_of_equal_values_the_first_comes_first_and_nan_comes_last() -> None:
    assert classes(np.array([[1.0, 2.0, 2.0, 2.0]], np.float32), 2) == ((1, 2), ["2.0:1", "2.0:2"])
    odd = np.array([[np.nan, -np.inf, np.inf, 0.0]], np.float32)
    assert classes(odd, 4)[1] == ["inf:2", "0.0:3", "nan:0", "-inf:1"]


@pytest.mark.parametrize("datatype", NUMERIC)
def test_all_numeric_datatypes_are_ranked(datatype: str) -> None:
    array = np.array([[3, 1, 2]]).astype(DTYPES[datatype])
    shape, texts = classes(array, 3)
    assert shape == (1, 3)
    assert [(float(value), index) for value, index in (text.split(":") for text in texts)] == [
        (3.0, "0"),
        (2.0, "2"),
        (1.0, "1"),
    ]


@pytest.mark.parametrize(
    "extremes",
    [
        np.array([[0, 2**64 - 1, 2**63]], np.uint64),
        np.array([[-(2**63), 2**63 - 1, 0]], np.int64),
        np.array([[-128, 127, 0]], np.int8),
        np.array([[-65504, 65504, 0]], np.float16),
        np.array([[-3.3e38, 3.3e38, 0]]).astype(ml_dtypes.bfloat16),
        np.array([[-1e308, 1e308, 0]], np.float64),
    ],
)
def test_the_ends_of_a_datatype_are_in_their_place(extremes: Any) -> None:
    assert [text.split(":")[1] for text in classes(extremes, 3)[1]] == ["1", "2", "0"]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.lists(st.integers(-3, 3), min_size=6, max_size=6), min_size=1, max_size=4),
    st.integers(1, 7),
    st.sampled_from([np.int8, np.float32, np.float64]),
)
def test_the_ranking_is_that_of_a_stable_sort(rows: list[list[int]], count: int, dtype: Any) -> None:
    array = np.array(rows, dtype)
    want = [sorted(range(6), key=lambda index, row=row: -row[index])[:count] for row in rows]  # type: ignore[misc]
    assert highest(array, min(count, 6)).tolist() == want


def test_rows_beyond_one_piece_are_ranked_like_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classification, "_RANKED_AT_ONCE", 7)
    monkeypatch.setattr(classification, "AT_ONCE", 3)
    array = np.arange(30, dtype=np.float32).reshape(10, 3)
    assert [text.split(":")[1] for text in classes(array, 1)[1]] == ["2"] * 10


def test_only_the_outputs_that_are_wanted_so_are_replaced() -> None:
    header, tensors = result(np.array([[1.0, 2.0]], np.float32), np.array([[3, 4]], np.int32))
    found, raws = classify(header, tensors, {"y1": Classes(1, True)}, {})
    assert (found.outputs[0], raws[0]) == (header.outputs[0], tensors[0])
    assert unpack_bytes(raws[1], 1) == [b"4:1"]


@pytest.mark.parametrize(
    ("array", "count", "message"),
    [
        (np.array([[True]]), 1, "is BOOL, which has no classes"),
        (np.array([[b"x"]], object), 1, "is BYTES, which has no classes"),
        (np.zeros((70, 1000), np.float32), 1000, "70000 classes are wanted"),
    ],
)
def test_what_cannot_be_classified_is_refused(array: Any, count: int, message: str) -> None:
    header, tensors = result(array)
    for act in (
        lambda: classify(header, tensors, {"y0": Classes(count, True)}, {}),
        lambda: classification.takes_long(header, {"y0": Classes(count, True)}),
    ):
        with pytest.raises(RequestError, match=message):
            act()


def test_an_output_that_is_too_large_is_refused_before_it_is_looked_at() -> None:
    header = ResultHeader((TensorHeader("y0", "FP32", (1 << 40,), large_json.MOST + 1),))
    with pytest.raises(RequestError, match="the most to be classified"):
        classification.takes_long(header, {"y0": Classes(1, False)})


def test_many_classes_or_large_outputs_take_long() -> None:
    small, _ = result(np.zeros((2, 10), np.float32))
    many, _ = result(np.zeros((9, 1000), np.int8))
    large, _ = result(np.zeros((1, 100_000), np.float32))
    assert not classification.takes_long(small, {"y0": Classes(10, True)})
    assert classification.takes_long(many, {"y0": Classes(1000, True)})
    assert classification.takes_long(large, {"y0": Classes(1, True)})


def test_the_parameter_is_a_number_and_zero_means_none() -> None:
    open_rows, fixed, flat = (TensorSpec("y", "FP32", shape) for shape in ((-1, 4), (2, 4), (-1,)))
    assert wanted_classes("y", 0, open_rows, batched=True) is None
    assert wanted_classes("y", 2, open_rows, batched=False) == Classes(2, True)
    assert wanted_classes("y", 2, fixed, batched=False) == Classes(2, False)
    assert wanted_classes("y", 2, fixed, batched=True) == Classes(2, True)
    assert wanted_classes("y", 2, flat, batched=False) == Classes(2, False)
    assert wanted_classes("y", 2, None, batched=False) == Classes(2, False)
    for wrong in (-1, 1.5, "2", True, None, [2]):
        with pytest.raises(RequestError, match="classification of output 'y'"):
            wanted_classes("y", wrong, flat, batched=False)


# --- Through the whole gateway


def asked(gateway: Any, helpers: Any, image: Any, outputs: list[Any], **parameters: Any) -> Any:
    body = {"inputs": [helpers.tensor("image", "FP32", image.shape, image.ravel().tolist())], "outputs": outputs}
    return gateway.infer("digits_torch", body | ({"parameters": parameters} if parameters else {}))


def wanting(count: Any, **more: Any) -> list[Any]:
    return [{"name": "probabilities", "parameters": {"classification": count, **more}}]


def test_a_model_s_output_is_classified_as_json_and_as_binary_data(gateway: Any, helpers: Any) -> None:
    image = np.random.default_rng(0).random((3, 64)).astype(np.float32)
    values = asked(gateway, helpers, image, [{"name": "probabilities"}]).json()["outputs"][0]["data"]
    rows = np.array(values).reshape(3, 10)
    answer = asked(gateway, helpers, image, wanting(2))
    assert answer.status == 200
    (output,) = answer.json()["outputs"]
    assert (output["datatype"], output["shape"]) == ("BYTES", [3, 2])
    order = np.argsort(-rows, axis=1, kind="stable")[:, :2]
    assert [int(text.split(":")[1]) for text in output["data"]] == order.ravel().tolist()
    assert [float(text.split(":")[0]) for text in output["data"]] == np.take_along_axis(rows, order, 1).ravel().tolist()
    found, binary = asked(gateway, helpers, image, wanting(2, binary_data=True)).parts()
    assert found["outputs"][0]["parameters"]["binary_data_size"] == len(binary)
    assert [text.decode() for text in unpack_bytes(binary, 6)] == output["data"]


def test_classes_have_the_labels_of_model_yaml(gateway: Any, helpers: Any) -> None:
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    (output,) = asked(gateway, helpers, np.ones((1, 64), np.float32), wanting(10)).json()["outputs"]
    found = [text.split(":") for text in output["data"]]
    assert sorted(int(index) for _, index, _ in found) == list(range(10))
    assert all(names[int(index)] == label for _, index, label in found)
    config = gateway.http.get("/v2/models/digits_torch/config").json()
    assert config["output"][0]["labels"] == names


def test_a_label_file_that_changes_gives_new_labels_to_the_process_that_runs(start_gateway: Any, helpers: Any) -> None:
    stores: list[Path] = []

    def label(store: Path) -> None:
        stores.append(store)
        config = store / "mlp" / "model.yaml"
        config.write_text(config.read_text().replace("shape: [-1, 4]", "shape: [-1, 4], labels: labels.txt"))
        (store / "mlp" / "labels.txt").write_text("a\nb\nc\nd\n")

    with start_gateway(["mlp"], prepare=label) as gateway:
        body = {
            "inputs": [helpers.tensor("x", "FP32", [1, 16], [0.5] * 16)],
            "outputs": [{"name": "y", "parameters": {"classification": 4}}],
        }

        def labels() -> set[str]:
            (output,) = gateway.infer("mlp", body).json()["outputs"]
            return {text.split(":")[2] for text in output["data"]}

        assert labels() == {"a", "b", "c", "d"}
        before = gateway.pids("instance")
        (stores[0] / "mlp" / "labels.txt").write_text("e\nf\ng\nh\n")
        helpers.until(lambda: labels() == {"e", "f", "g", "h"}, 20)
        assert gateway.pids("instance") == before


def test_many_classes_are_answered_like_few(gateway: Any, helpers: Any) -> None:
    image = np.random.default_rng(0).random((500, 64)).astype(np.float32)
    (output,) = asked(gateway, helpers, image, wanting(10)).json()["outputs"]
    assert (output["shape"], len(output["data"])) == ([500, 10], 5000)
    (few,) = asked(gateway, helpers, image[:3], wanting(10)).json()["outputs"]
    assert [text.split(":")[1] for text in output["data"][:30]] == [text.split(":")[1] for text in few["data"]]


@pytest.mark.parametrize("wrong", [-1, "two", 1.5, True])
def test_a_parameter_that_is_no_number_is_a_sentence(gateway: Any, helpers: Any, wrong: Any) -> None:
    answer = asked(gateway, helpers, np.zeros((1, 64), np.float32), wanting(wrong))
    assert answer.status == 400
    assert "classification" in answer.json()["error"]


def test_text_has_no_classes(gateway: Any, helpers: Any) -> None:
    body = {
        "inputs": [helpers.tensor("words", "BYTES", [1], ["x"])],
        "outputs": [{"name": "output_0", "parameters": {"classification": 1}}],
    }
    answer = gateway.infer("echo_strings", body)
    assert (answer.status, answer.json()) == (400, {"error": "output 'output_0' is BYTES, which has no classes"})
