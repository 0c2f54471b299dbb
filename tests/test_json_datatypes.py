import json
from typing import Any

import msgspec
import pytest

from gateway.errors import RequestError
from gateway.http.json_datatypes import check_exact, datatype_of, datatype_of_unknown
from gateway.http.tfserving_json import parse
from gateway.tensors import TensorSpec

GUESS = TensorSpec("x", "FP32", None, strict=False, guessed=True, integers=True)
FLOATS_ONLY = TensorSpec("x", "FP32", None, strict=False, guessed=True)
DECLARED = TensorSpec("x", "FP32", (-1,))
LONG = [0] * 20_000


def refusal(datatype: str, value: Any) -> str:
    """What is said of a value; nothing if it passes."""
    try:
        check_exact(DECLARED, datatype, value)
    except RequestError as error:
        return error.message
    return ""


def forms(value: Any) -> list[Any]:
    """A value as each of the parsers gives it: read at once, of a large body unconverted, or not yet read."""
    return [value, parse(json.dumps({"x": value, "pad": LONG}).encode())["x"], msgspec.Raw(json.dumps(value).encode())]


@pytest.mark.parametrize(
    ("value", "datatype"),
    [
        ([1, 2], "INT64"),
        (3, "INT64"),
        ([[1], [2]], "INT64"),
        ([1, 2.5], "FP32"),
        ([1.0], "FP32"),
        ([[1], [2.0]], "FP32"),
        ([True, False], "BOOL"),
        ([], "FP32"),
    ],
)
def test_a_guess_gives_way_to_what_the_value_is(value: Any, datatype: str) -> None:
    for form in forms(value):
        assert datatype_of(GUESS, form) == datatype
        assert datatype_of(DECLARED, form) == "FP32"
        assert datatype_of_unknown(form) == datatype
    assert datatype_of(FLOATS_ONLY, value) == datatype.replace("INT64", "FP32")


def test_arrays_of_large_rows_count_together() -> None:
    document = parse(json.dumps({"instances": [{"x": [1, 2]}, {"x": [3, 4]}], "pad": LONG}).encode())
    column = [row["x"] for row in document["instances"]]
    assert datatype_of(GUESS, column) == "INT64"
    assert datatype_of(GUESS, [*column, [0.5]]) == "FP32"


@pytest.mark.parametrize(
    ("datatype", "value"),
    [
        ("FP32", [16777217, 0.5]),
        ("FP32", 1764543210),
        ("FP32", [[-16777217], [1]]),
        ("FP64", [2**53 + 1]),
        ("FP16", [2049]),
        ("FP16", [70000]),
        ("BF16", [257]),
    ],
)
def test_an_integer_that_would_change_is_refused_and_named(datatype: str, value: Any) -> None:
    for form in forms(value):
        assert "without loss of precision; input 'x' takes" in refusal(datatype, form)


@pytest.mark.parametrize(
    ("datatype", "value"),
    [
        ("FP32", [16777216, 16777218, -(2**40), 0.1]),
        ("FP32", [16777217.0, 1e30]),
        ("FP64", [2**53, 2**60]),
        ("BF16", [256, 512]),
        ("INT64", [2**60 + 1]),
        ("FP32", ["text", None, {"b64": ""}]),
    ],
)
def test_what_a_float_holds_or_rounds_as_a_float_passes(datatype: str, value: Any) -> None:
    for form in forms(value):
        assert refusal(datatype, form) == ""


def test_an_integer_without_end_is_refused_in_few_words() -> None:
    assert 0 < len(refusal("FP64", [10**4000])) < 200
