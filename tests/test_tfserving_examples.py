from typing import Any

import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import RequestError
from gateway.http.tfserving_examples import example, feature, features

VALUES = (
    st.lists(st.text(), max_size=4)
    | st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4)
    | st.lists(st.floats(width=32, allow_nan=False), max_size=4)
    | st.booleans()
    | st.text()
)


@given(value=st.dictionaries(st.text(max_size=200), VALUES, max_size=4))
@settings(max_examples=200, deadline=None)
def test_an_example_is_what_tensorflow_reads(value: dict[str, Any]) -> None:
    read = tf.train.Example.FromString(example(features(value)))
    assert set(read.features.feature) == set(value)
    for name, wanted in value.items():
        found = read.features.feature[name]
        kind = found.WhichOneof("kind")
        values = list(getattr(found, kind).value) if kind else []
        wanted_list = wanted if isinstance(wanted, list) else [wanted]
        assert values == [each.encode() if isinstance(each, str) else each for each in wanted_list]


def test_base64_in_a_feature_is_bytes() -> None:
    read = tf.train.Example.FromString(example({"raw": feature("raw", [{"b64": "//8="}, "x"])}))
    assert list(read.features.feature["raw"].bytes_list.value) == [b"\xff\xff", b"x"]


@pytest.mark.parametrize("value", [None, [None], [[1]], {"a": 1}, [1, 1.0], ["a", 1], [2**63], [-(2**63) - 1], [1e39]])
def test_what_no_feature_can_be_is_refused(value: Any) -> None:
    with pytest.raises(RequestError):
        feature("x", value)
