import json
import math

import numpy as np
import pytest

from gateway.errors import RequestError
from gateway.http import tfserving_outputs
from gateway.http.tfserving_outputs import array_of, pieces, text_of


def test_odd_numbers_are_written_as_tokens_at_their_places() -> None:
    array = np.array([[1.0, math.nan], [math.inf, -math.inf]], np.float32)
    assert text_of(array) == b"[[1.0,NaN],[Infinity,-Infinity]]"
    assert text_of(np.array(math.nan)) == b"NaN"
    assert text_of(np.array(2, np.int8)) == b"2"
    assert text_of(np.empty((2, 0), np.float32)) == b"[[],[]]"


@pytest.mark.parametrize("shape", [(40,), (3, 40), (40, 3), (2, 3, 40), (1, 1, 100)])
def test_large_outputs_are_written_in_pieces_that_make_the_whole(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tfserving_outputs, "PIECE", 7)
    array = np.arange(math.prod(shape), dtype=np.int32).reshape(shape)
    parts = list(pieces(array))
    assert json.loads(b"".join(parts)) == array.tolist()
    assert max(map(len, parts)) < 60


def test_strings_are_text_or_base64_by_the_name_of_their_output() -> None:
    raw = b"\2\0\0\0\xff\xff"
    assert array_of("image_bytes", "BYTES", (1,), raw).tolist() == [{"b64": "//8="}]
    with pytest.raises(RequestError, match="end in _bytes"):
        array_of("image", "BYTES", (1,), raw)
