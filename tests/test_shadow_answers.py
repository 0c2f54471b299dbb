import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gateway.http.shadow_answers import Agreement, Outputs, compare, counterparts
from gateway.ipc.framing import TensorHeader
from gateway.tensors import DATATYPES, pack_bytes


def output(array: np.ndarray, name: str = "y") -> Outputs:
    raw = array.tobytes()
    return [(TensorHeader(name, DATATYPES[array.dtype], array.shape, len(raw)), raw)]


def scores(*rows: list[float]) -> Outputs:
    return output(np.array(rows, np.float32))


def test_scores_agree_within_the_tolerance() -> None:
    assert compare(scores([0.1, 0.9]), scores([0.1005, 0.8995]), 1e-3).agrees
    assert not compare(scores([0.1, 0.9]), scores([0.2, 0.8]), 1e-3).agrees


def test_the_highest_class_is_compared_row_by_row() -> None:
    found = compare(scores([0.1, 0.9], [0.6, 0.4]), scores([0.4, 0.6], [0.4, 0.6]), 1e-3)
    assert (found.same, found.other) == (1, 1)
    assert found.difference == pytest.approx(0.3)


def test_datatypes_of_scores_may_differ_and_those_of_whole_numbers_may_not() -> None:
    one = np.array([[1.0, 2.0]], np.float32)
    assert compare(output(one), output(one.astype(np.float64)), 0.0).agrees
    assert not compare(output(one), output(one.astype(np.int64)), 0.1).agrees
    whole = np.array([1, 2])
    assert compare(output(whole), output(whole.copy()), 0.0) == Agreement(agrees=True)
    assert not compare(output(whole), output(whole + 1), 1.0).agrees


def test_other_shapes_do_not_agree() -> None:
    assert compare(scores([1.0, 2.0]), scores([1.0], [2.0]), 1.0) == Agreement(agrees=False)


def test_strings_agree_if_they_are_equal() -> None:
    raws = [pack_bytes([b"cat"]), pack_bytes([b"dog"])]
    cat, dog = ([(TensorHeader("y", "BYTES", (1,), len(raw)), raw)] for raw in raws)
    assert compare(cat, cat, 0.0).agrees
    assert not compare(cat, dog, 0.0).agrees


@given(hnp.arrays(np.float32, hnp.array_shapes(min_side=0), elements=st.floats(width=32)))
def test_whatever_numbers_they_are_they_agree_with_themselves(array: np.ndarray) -> None:
    found = compare(output(array), output(array), 0.0)
    assert found.agrees
    assert found.other == 0
    assert not found.difference


def test_what_is_no_number_is_infinitely_far_from_one() -> None:
    found = compare(scores([float("nan"), 1.0]), scores([0.0, 1.0]), 1e-3)
    assert (found.agrees, found.difference) == (False, float("inf"))


def test_names_are_kept_where_both_know_them() -> None:
    assert counterparts(["b"], ["a", "b"], ["b", "c", "a"]) == ["b"]


def test_other_names_are_found_by_their_place() -> None:
    assert counterparts(["y", "x"], ["x", "y"], ["first", "second"]) == ["second", "first"]


def test_nothing_stands_for_a_name_where_there_are_more_or_fewer() -> None:
    assert counterparts(["x"], ["x", "y"], ["one"]) is None
    assert counterparts(["z"], ["x"], ["one"]) is None
