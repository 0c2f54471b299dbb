"""Pickles are told from other files by their opcodes, and never opened."""

import pickle

import pytest

from gateway.store.pickles import is_pickle


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("value", [{"a": [1, 2.5, "x"]}, list(range(1000)), None])
def test_a_pickle_of_any_protocol_is_one(protocol: int, value: object) -> None:
    data = pickle.dumps(value, protocol)
    assert is_pickle(data)
    assert len(data) < 300 or is_pickle(data[:300]), "its beginning is enough"


@pytest.mark.parametrize(
    "content",
    [b"", b"PK\x03\x04", b"hello world, this is text", b"\x89PNG\r\n\x1a\n", bytes(100), b"\x80\x09"],
)
def test_other_files_are_none(content: bytes) -> None:
    assert not is_pickle(content)
