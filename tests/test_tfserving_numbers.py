import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import RequestError
from gateway.http.tfserving_inputs import Tensor, from_instances
from gateway.http.tfserving_json import LARGE, parse
from gateway.http.tfserving_numbers import MOST_ROW_ARRAYS, Numbers
from gateway.tensors import Signature, TensorSpec

PADDING = b" " * (LARGE + 1)
SIGNATURE = Signature("", (TensorSpec("x", "FP32", None), TensorSpec("n", "INT64", None, optional=True)), ())
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.integers(-5, 5) | st.floats(-5, 5, width=32) | st.booleans() | st.just("a") | st.none(),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=6,
)


def outcome(text: bytes) -> list[tuple[str, tuple[int, ...], bytes]] | str:
    try:
        found: list[Tensor] = from_instances(parse(text)["instances"], SIGNATURE)
    except RequestError as error:
        return error.message
    return [(tensor.name, tensor.shape, bytes(tensor.raw)) for tensor in found]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.fixed_dictionaries({"x": VALUES}, optional={"n": VALUES}), min_size=1, max_size=4))
def test_rows_mean_the_same_in_small_and_large_bodies(rows: list[dict[str, Any]]) -> None:
    text = json.dumps({"instances": rows}).encode()
    small, large = outcome(text), outcome(text + PADDING)
    assert isinstance(small, str) == isinstance(large, str)
    assert isinstance(small, str) or small == large


def test_images_in_rows_stay_unconverted() -> None:
    image = np.arange(256 * 256 * 3, dtype=np.float32).reshape(256, 256, 3) % 251
    text = json.dumps({"instances": [{"x": image.tolist()}, {"x": (image + 1).tolist()}]}).encode()
    assert isinstance(parse(text)["instances"][0]["x"], Numbers)
    ((_, shape, raw),) = outcome(text)
    assert shape == (2, 256, 256, 3)  # type: ignore[comparison-overlap] # it is no message
    assert raw == np.stack([image, image + 1]).tobytes()  # type: ignore[comparison-overlap] # as above


@pytest.mark.parametrize(
    "rows",
    [
        [{f"f{number}": number for number in range(20)}] * 4000,
        ["text"] * 60_000,
        [[True, False]] * 60_000,
        [{"x": [1.5, 2.5]}] * (MOST_ROW_ARRAYS + 1),
        [[[[float("nan"), 1, 2]] * 256] * 256],
    ],
    ids=["features", "strings", "booleans", "small arrays", "an image with a NaN"],
)
def test_what_is_sent_in_earnest_is_read(rows: list[Any]) -> None:
    assert len(parse(json.dumps({"instances": rows}).encode())["instances"]) == len(rows)
