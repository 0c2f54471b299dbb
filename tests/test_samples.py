import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.samples import nested, plausible, smallest
from gateway.tensors import DTYPES, TensorSpec


@pytest.mark.parametrize("datatype", list(DTYPES))
def test_every_datatype_has_a_value_that_json_can_carry(datatype: str) -> None:
    kinds = {"BYTES": str, "BOOL": bool} | dict.fromkeys(("FP16", "BF16", "FP32", "FP64"), float)
    assert type(plausible(datatype)) is kinds.get(datatype, int)


def test_open_dimensions_are_one() -> None:
    assert smallest(TensorSpec("x", "FP32", (-1, 3, -1))) == (1, 3, 1)
    assert smallest(TensorSpec("x", "FP32", ())) == ()
    assert smallest(TensorSpec("x", "FP32", None)) == (1,)


@given(st.lists(st.integers(1, 4), max_size=4))
def test_nested_values_have_their_shape_and_order(shape: list[int]) -> None:
    count = 1
    for size in shape:
        count *= size
    level = [nested(list(range(count)), shape)]
    for size in shape:
        assert all(len(item) == size for item in level)
        level = [value for item in level for value in item]
    assert level == list(range(count))
