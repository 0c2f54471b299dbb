"""The data of a comparison: every bad file gets its sentence, and both models the same values."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gateway.commands.compare_data import Data, made_up, read
from gateway.comparing.pairing import Pair, paired
from gateway.errors import RequestError
from gateway.tensors import TensorSpec

IMAGE = TensorSpec("image", "FP32", (-1, 4))
MASK = TensorSpec("mask", "INT64", (-1, 2))
PIXELS = np.arange(12, dtype=np.float32).reshape(3, 4)


def reading(path: Path, a: list[TensorSpec], b: list[TensorSpec] | None = None) -> Data:
    b = b if b is not None else a
    return read(path, paired("input", ("one", "two"), a, b), a, b)


def saved(path: Path, **arrays: Any) -> Path:
    np.savez(path / "data.npz", **arrays)
    return path / "data.npz"


@pytest.mark.parametrize("name", ["image", "picture"])
@pytest.mark.parametrize("labels", ["labels", "y"])
def test_inputs_and_labels_are_read(tmp_path: Path, name: str, labels: str) -> None:
    found = reading(saved(tmp_path, **{name: PIXELS, labels: np.array([[1], [2], [3]])}), [IMAGE])
    assert (found.rows, found.source) == (3, "data.npz")
    assert found.labels is not None
    assert found.labels.tolist() == [1, 2, 3]
    for model in (0, 1):
        ((name, (datatype, array)),) = found.part(model, [2, 0]).items()
        assert (name, datatype, array.tolist()) == ("image", "FP32", PIXELS[[2, 0]].tolist())
    assert found.first(2).rows == 2


def test_each_model_gets_the_values_in_its_own_datatype_name_and_layout(tmp_path: Path) -> None:
    first, last = TensorSpec("x", "FP32", (-1, 3, 8, 8)), TensorSpec("z", "FP64", (-1, 8, 8, 3))
    values = np.random.default_rng(0).random((2, 3, 8, 8))
    found = reading(saved(tmp_path, x=values), [first], [last])
    assert (found.a["x"][0], found.a["x"][1].dtype, found.a["x"][1].shape) == ("FP32", np.float32, (2, 3, 8, 8))
    assert (found.b["z"][0], found.b["z"][1].dtype) == ("FP64", np.float64)
    assert np.array_equal(found.b["z"][1], values.transpose(0, 2, 3, 1))


def test_text_needs_no_pickle(tmp_path: Path) -> None:
    found = reading(saved(tmp_path, text=np.array(["où", "wo"])), [TensorSpec("text", "BYTES", (-1,))])
    assert found.a["text"][1].tolist() == ["où".encode(), b"wo"]


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"image": PIXELS, "mask": PIXELS[:2, :2]}, "arrays of the same number of rows"),
        ({"image": PIXELS[:0], "mask": PIXELS[:0, :2]}, "at least one"),
        ({"image": PIXELS}, "has no array 'mask'; the inputs are image, mask"),
        ({"image": PIXELS, "mask": PIXELS[:, :2], "x": PIXELS}, "has an array 'x', and the inputs are image, mask"),
        ({"image": PIXELS, "mask": PIXELS[:, :2], "y": PIXELS[:2, 0]}, "one label for each of its 3 rows; 'y' has [2]"),
        (
            {"image": PIXELS, "mask": PIXELS[:, :2], "y": np.zeros(3, "i4,f4")},
            "labels that are numbers or text; 'y' is [",
        ),
        ({"image": PIXELS, "mask": PIXELS[:, :2], "y": np.zeros(3, "M8[s]")}, "'y' is datetime64[s]"),
        ({"image": PIXELS, "mask": PIXELS}, "the model takes 'mask' INT64 [-1, 2], and the array has [3, 4]"),
        ({"image": PIXELS, "mask": PIXELS[:, :2] + 0.5}, "input 'mask' is INT64 and cannot hold 0.5 as it is"),
        ({"image": PIXELS, "mask": np.float32(1)}, "has a single value where rows are needed"),
        ({"image": PIXELS, "mask": np.array([{}, {}, {}])}, "arrays of objects are refused"),
    ],
)
def test_arrays_that_do_not_fit_are_told(tmp_path: Path, arrays: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError) as caught:
        reading(saved(tmp_path, **arrays), [IMAGE, MASK])
    assert said in caught.value.message


def cut(path: Path) -> None:
    path.write_bytes(saved(path.parent, image=PIXELS).read_bytes()[:-30])


def damaged(path: Path) -> None:
    data = bytearray(saved(path.parent, image=PIXELS).read_bytes())
    data[150:170] = bytes(20)
    path.write_bytes(data)


def enormous(path: Path) -> None:
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000, 64), }".ljust(117) + b"\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("image.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)


def no_arrays(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("image.txt", "hello")


def single(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, PIXELS)


@pytest.mark.parametrize(
    "make",
    [
        cut,
        damaged,
        enormous,
        no_arrays,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"hello"),
        lambda path: path.write_bytes(b"\x80\x04K\x01."),  # a pickle
        single,
    ],
)
def test_what_is_no_npz_of_arrays_is_one_sentence(tmp_path: Path, make: Any) -> None:
    path = tmp_path / "bad.npz"
    make(path)
    with pytest.raises(RequestError) as caught:
        reading(path, [IMAGE])
    assert "bad.npz is no .npz file of numbers or text" in caught.value.message


def test_a_file_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"none\.npz cannot be read: No such file"):
        reading(tmp_path / "none.npz", [IMAGE])


def test_data_are_made_up_by_what_both_signatures_say() -> None:
    any_rank, closed = TensorSpec("x", "FP32", None), TensorSpec("y", "FP32", (-1, 5))
    found = made_up([Pair("x", "y", "order")], [any_rank], [closed], 7, 3)
    assert found.a["x"][1].shape == found.b["y"][1].shape == (7, 5)
    assert np.array_equal(found.a["x"][1], made_up([Pair("x", "y", "order")], [any_rank], [closed], 7, 3).a["x"][1])
    first, last = TensorSpec("x", "FP32", (-1, 3, -1, -1)), TensorSpec("x", "FP32", (-1, 8, 9, 3))
    found = made_up(paired("input", ("one", "two"), [first], [last]), [first], [last], 2, 0)
    assert found.a["x"][1].shape == (2, 3, 8, 9)
    assert found.b["x"][1].shape == (2, 8, 9, 3)


def test_of_a_shape_that_nobody_knows_nothing_is_made_up() -> None:
    spec = TensorSpec("x", "FP32", None)
    with pytest.raises(RequestError, match="nobody knows which shape"):
        made_up([Pair("x", "x", "name")], [spec], [spec], 1, 0)
