"""What a person writes becomes the arrays that the model takes, or one sentence."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given as cases
from hypothesis import strategies as st

from gateway.commands.inputs import cast, random_inputs, read_inputs
from gateway.errors import RequestError
from gateway.tensors import DTYPES, TensorSpec

X = TensorSpec("x", "FP32", (-1, 2))
N = TensorSpec("n", "INT64", (-1,))
TEXT = TensorSpec("text", "BYTES", (-1,))


def read(*given: str, specs: tuple[TensorSpec, ...] = (X,)) -> dict[str, Any]:
    return read_inputs(given, specs, scale=1.0, platform="pytorch_torchscript")


def refusal(*given: str, specs: tuple[TensorSpec, ...] = (X,)) -> str:
    with pytest.raises(RequestError) as caught:
        read(*given, specs=specs)
    return caught.value.message


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("x=[[1, 2]]", [[1, 2]]),
        ("[[1, 2], [3, 4.5]]", [[1, 2], [3, 4.5]]),
        ("[1, 2]", [[1, 2]]),
        ("3.5", [[3.5]]),
        ("x=[]", np.zeros((1, 0))),
        ("[NaN, 1e400]", [[np.nan, np.inf]]),
    ],
)
def test_numbers_get_the_datatype_and_the_leading_dimensions_they_lack(text: str, values: Any) -> None:
    found = read(text)["x"]
    assert found.dtype == np.float32
    assert np.array_equal(found, np.array(values, np.float32), equal_nan=True)


def test_several_inputs_are_told_apart_by_name() -> None:
    found = read("n=3", "x=[1, 2]", specs=(X, N))
    assert found["n"].tolist() == [3]
    assert found["x"].tolist() == [[1, 2]]


def test_text_is_text_unless_it_is_a_list_of_texts() -> None:
    for given, elements in (
        ("hello", [b"hello"]),
        ("text=where is x=1?", [b"where is x=1?"]),
        ("x=1", [b"x=1"]),
        ('["a", "b"]', [b"a", b"b"]),
        ("[sic] it says", [b"[sic] it says"]),
        ("[1]", [b"[1]"]),
        ("@@home", [b"@home"]),
        ("", [b""]),
    ):
        assert read(given, specs=(TEXT,))["text"].tolist() == elements


def test_an_optional_input_may_be_left_out() -> None:
    assert set(read("x=[1, 2]", specs=(X, TensorSpec("n", "INT64", (-1,), optional=True)))) == {"x"}


@pytest.mark.parametrize(
    ("given", "specs", "said"),
    [
        (["y=1"], (X,), "the model has no input 'y'; it has x"),
        (["imag=1"], (TensorSpec("image", "FP32", (1,)), N), "did you mean 'image'?"),
        (["1"], (X, N), "write --input NAME=1: the model has the inputs x, n"),
        (["x=1", "x=2"], (X,), "input 'x' is given twice"),
        ([], (X, N), "input 'x' is missing; the model takes x (FP32 [-1, 2]), n (INT64 [-1])"),
        (["x=one"], (X,), "'one' is no number and no JSON; a file is given as @FILE"),
        (["x=[1, [2]]"], (X,), "different lengths"),
        (["x=" + "[" * 100_000], (X,), "nested too deep"),
        (["x=null"], (X,), "takes numbers"),
        (["x={}"], (X,), "takes numbers"),
        (['x=["1"]'], (X,), "takes numbers"),
        (["3.5"], (N,), "input 'n' is INT64 and cannot hold 3.5"),
        ([str(2**63)], (N,), "cannot hold"),
        ([str(2**70)], (N,), "takes numbers"),
        (["[1, 2]"], (TensorSpec("b", "BOOL", (-1,)),), "cannot hold 2"),
        (["x=@nowhere.npy"], (X,), "nowhere.npy cannot be read: No such file"),
        (["x=@tests"], (X,), "is .npy, .json or an image"),
        (["text=@tests"], (TEXT,), "Is a directory"),
    ],
)
def test_what_is_wrong_is_said(given: list[str], specs: tuple[TensorSpec, ...], said: str) -> None:
    assert said in refusal(*given, specs=specs)


def test_the_name_of_a_file_without_its_at_sign_is_recognised(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    path.touch()
    assert f"@{path} reads the file" in refusal(f"x={path}")


# Files


def saved(path: Path, array: Any) -> Path:
    np.save(path, array)
    return path


def test_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("[[1, 2], [3, 4]]")
    assert read(f"@{tmp_path / 'x.json'}")["x"].tolist() == [[1, 2], [3, 4]]
    for array in (
        np.ones((3, 2)),
        np.ones((3, 2), np.float16),
        np.zeros((0, 2), np.int8),
        np.asfortranarray(np.eye(2)),
    ):
        found = read(f"x=@{saved(tmp_path / 'x.npy', array)}")["x"]
        assert found.dtype == np.float32
        assert np.array_equal(found, array)


def test_bytes_are_the_file_itself(tmp_path: Path) -> None:
    for name, content in (("x.npy", b"\x93NUMPY\0"), ("x.json", b"[1"), ("a.jpg", b"\xff\xd8\0"), ("empty", b"")):
        (tmp_path / name).write_bytes(content)
        assert read(f"@{tmp_path / name}", specs=(TEXT,))["text"].tolist() == [content]


class Unpickled:
    """Opening what this becomes as a pickle makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_no_pickle_is_ever_opened(tmp_path: Path) -> None:
    trap = tmp_path / "opened"
    np.save(tmp_path / "objects.npy", np.array([Unpickled(trap)], object), allow_pickle=True)
    (tmp_path / "pickle.npy").write_bytes(pickle.dumps(Unpickled(trap)))
    for name in ("objects", "pickle"):
        assert "is no .npy file of numbers" in refusal(f"@{tmp_path / name}.npy")
    assert not trap.exists()


def test_hostile_arrays_are_refused_before_memory_is_taken_for_them(tmp_path: Path) -> None:
    def header(text: str) -> bytes:
        return b"\x93NUMPY\x01\0" + len(text).to_bytes(2, "little") + text.encode()

    np.savez(tmp_path / "many.npz", np.zeros(1))
    contents = {
        "huge": header("{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,), }\n") + b"\0" * 64,
        "overflow": header("{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 8), }\n"),
        "negative": header("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }\n") + b"\0" * 64,
        "nested": header("{'descr': '<f4', 'shape': " + "(" * 9000 + ")" * 9000 + "}\n"),
        "code": header("__import__('os').getpid()\n"),
        "torn": header("{'descr': '<f4', 'fortran_order': False, 'shape': (4,), }\n") + b"\0" * 15,
        "records": header("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }\n") + b"\0" * 4,
        "empty": b"",
        "text": b"hello",
        "zip": (tmp_path / "many.npz").read_bytes(),
    }
    for name, content in contents.items():
        (tmp_path / f"{name}.npy").write_bytes(content)
        said = refusal(f"@{tmp_path / name}.npy")
        assert "is no .npy file of numbers" in said or "takes numbers" in said, name


def test_json_that_is_none_names_its_file(tmp_path: Path) -> None:
    for content in (b"[1", b"\xff", b"[" * 100_000):
        (tmp_path / "x.json").write_bytes(content)
        assert "JSON" in refusal(f"@{tmp_path / 'x.json'}")


# Casts


SIGNED = st.lists(st.integers(-(2**63), 2**63 - 1)).map(lambda numbers: np.array(numbers, np.int64))
UNSIGNED = st.lists(st.integers(0, 2**64 - 1)).map(lambda numbers: np.array(numbers, np.uint64))


@cases(st.sampled_from([name for name in DTYPES if name != "BYTES"]), SIGNED | UNSIGNED)
def test_a_whole_number_arrives_as_it_is_or_not_at_all(datatype: str, array: Any) -> None:
    try:
        made = cast(array, "x", datatype)
    except RequestError:
        return
    assert made.dtype == DTYPES[datatype]
    assert [int(value) for value in made.tolist()] == array.tolist()


def test_floats_may_be_rounded_but_not_to_infinity() -> None:
    assert cast(np.array([0.1]), "x", "FP32").tolist() == [np.float32(0.1)]
    assert cast(np.array([0.1], np.float32), "x", "BF16").astype(np.float32).tolist() == [np.float32(0.10009765625)]
    for datatype, value in (("FP32", 1e300), ("FP16", 1e5), ("BF16", 1e39)):
        with pytest.raises(RequestError, match="cannot hold"):
            cast(np.array([value]), "x", datatype)
    assert np.isinf(cast(np.array([np.inf]), "x", "FP16")).all()
    with pytest.raises(RequestError, match=r"cannot hold 0\.5"):
        cast(np.array([0.5]), "x", "INT8")
    with pytest.raises(RequestError, match="cannot hold nan"):
        cast(np.array([np.nan]), "x", "INT8")


# Random data


@pytest.mark.parametrize("datatype", list(DTYPES))
def test_random_data_fit_the_signature_and_repeat_with_their_seed(datatype: str) -> None:
    spec = TensorSpec("x", datatype, (-1, 3, -1))
    found, again, other = (random_inputs([spec], 4, seed)["x"] for seed in (0, 0, 1))
    assert found.shape == (4, 3, 1)
    assert found.dtype == DTYPES[datatype]
    assert found.tolist() == again.tolist() != other.tolist()
    if datatype == "BYTES":
        assert all(isinstance(each, bytes) for each in found.ravel())
    else:
        assert 0 <= found.astype(float).min() <= found.astype(float).max() <= (255 if datatype == "UINT8" else 1)


def test_random_data_leave_out_what_may_be_left_out_and_refuse_what_nobody_knows() -> None:
    optional = TensorSpec("o", "FP32", None, optional=True)
    assert set(random_inputs([X, optional], 1, 0)) == {"x"}
    with pytest.raises(RequestError, match=r"declare it in model\.yaml"):
        random_inputs([TensorSpec("x", "FP32", None)], 1, 0)
    for shape in ((-1, 1 << 30), (1 << 40, 1 << 40)):
        with pytest.raises(RequestError, match="large"):
            random_inputs([TensorSpec("x", "FP32", shape)], 1, 0)


def test_the_words_of_json_are_those_of_python(tmp_path: Path) -> None:
    (tmp_path / "b.json").write_text(json.dumps([True, False]))
    spec = TensorSpec("b", "BOOL", (-1,))
    assert read(f"@{tmp_path / 'b.json'}", specs=(spec,))["b"].tolist() == [True, False]


def test_an_integer_that_a_guessed_float_does_not_hold_stays_one() -> None:
    guess = TensorSpec("ts", "FP32", (1,), strict=False, guessed=True)
    found = read("ts=[1764543210]", specs=(guess,))["ts"]
    assert (found.dtype, found.tolist()) == (np.int64, [1764543210])
    assert read("ts=[3]", specs=(guess,))["ts"].dtype == np.float32
    assert "cannot hold 1764543211" in refusal("x=[1764543211, 1]")
