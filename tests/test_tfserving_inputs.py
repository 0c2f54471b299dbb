from typing import Any

import pytest

from gateway.errors import RequestError
from gateway.http.tfserving_inputs import from_inputs, from_instances
from gateway.tensors import Signature, TensorSpec

X = TensorSpec("x", "INT8", (-1,))
TEXT = TensorSpec("text", "BYTES", (-1,))
MAYBE = TensorSpec("maybe", "INT8", (-1,), optional=True)
ONE, TWO = Signature("s", (X,), ()), Signature("s", (X, TEXT), ())


def test_values_without_a_name_are_for_the_only_input_that_is_needed() -> None:
    for signature in (ONE, Signature("s", (MAYBE, X), ())):
        assert from_instances([1, 2], signature) == [("x", "INT8", (2,), b"\1\2")]
        assert from_inputs(3, signature) == [("x", "INT8", (), b"\3")]


def test_an_optional_input_may_be_given_or_not() -> None:
    signature = Signature("s", (MAYBE, X), ())
    assert [each.name for each in from_instances([{"x": 1, "maybe": 2}], signature)] == ["x", "maybe"]
    assert [each.name for each in from_inputs({"x": [1]}, signature)] == ["x"]
    with pytest.raises(RequestError, match="keys must be equal to: x"):
        from_instances([{"x": 1}, {"x": 1, "maybe": 2}], signature)


def test_an_open_signature_takes_names_of_its_own() -> None:
    signature = Signature("s", (), (), open_inputs=True)
    found = from_inputs({"a": [1], "b": [[0.5]], "c": "t", "d": True}, signature)
    assert [(each.name, each.datatype) for each in found] == [
        ("a", "INT64"),
        ("b", "FP32"),
        ("c", "BYTES"),
        ("d", "BOOL"),
    ]
    assert [each.shape for each in from_instances([{"a": [1, 2]}], signature)] == [(1, 2)]


def test_a_signature_without_inputs_takes_an_empty_object() -> None:
    assert from_inputs({}, Signature("s", (), ())) == []
    with pytest.raises(RequestError, match="Failed to get input map"):
        from_instances([1], Signature("s", (), ()))


@pytest.mark.parametrize("value", [[1], ["a"], [[1]], {"b64": "YQ=="}])
def test_values_without_names_do_for_one_input_only(value: Any) -> None:
    for read in (from_inputs, from_instances):
        with pytest.raises(RequestError):
            read(value, TWO)


def test_base64_may_stand_alone() -> None:
    text = Signature("s", (TEXT,), ())
    assert from_inputs({"b64": "YQ=="}, text) == [("text", "BYTES", (), b"\1\0\0\0a")]
    assert from_instances([{"b64": "YQ=="}, "b"], text) == [("text", "BYTES", (2,), b"\1\0\0\0a\1\0\0\0b")]
