"""Pickles are recognised without being opened."""

import pickle

import pytest

from gateway.store.pickles import is_pickle


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_of_every_protocol_is_called_one(protocol: int) -> None:
    assert is_pickle(pickle.dumps({"weights": [1.0, 2.0]}, protocol))


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89HDF\r\n", b"PK\x03\x04", b"."])
def test_what_is_no_pickle_is_not(content: bytes) -> None:
    assert not is_pickle(content)
