"""The supervisor follows the file of keys."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.errors import ConfigError
from gateway.http.rates import shared_memory, take
from gateway.keyring import Keyring
from gateway.keys import Key, new_key, write


def key() -> Key:
    return new_key("a", ["infer"])[1]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.yaml"


@pytest.fixture
def keyring(file: Path) -> Iterator[Keyring]:
    write(file, [key(), key()])
    keyring = Keyring(file)
    yield keyring
    os.close(keyring.memory)


def test_a_bad_or_missing_file_at_the_start_is_a_mistake(file: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        Keyring(file)
    file.write_text("keys: 3")
    with pytest.raises(ConfigError):
        Keyring(file)


def test_only_a_change_is_news(keyring: Keyring, file: Path) -> None:
    first = keyring.message()
    assert keyring.look() is None
    file.touch()
    assert keyring.look() is None
    write(file, [*first.keys, key()])
    news = keyring.look()
    assert news is not None
    assert (news.keys[:2], news.places[:2]) == (first.keys, first.places)
    assert len(set(news.places)) == 3


@pytest.mark.parametrize("content", [b"", b"  \n", b"keys: [{}]", b"\xff", b"keys: [", b"keys:\n- !!bool x"])
def test_a_file_that_became_bad_changes_nothing_and_is_told_once(
    keyring: Keyring, file: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    before, good = keyring.message(), file.read_bytes()
    file.write_bytes(content)
    for _ in range(3):
        assert keyring.look() is None
    assert caplog.text.count("stay in force") == 1
    file.unlink()
    assert keyring.look() is None
    assert caplog.text.count("stay in force") == 2
    file.write_bytes(good)
    assert keyring.look() is None
    assert keyring.message() == before


def test_a_file_that_says_so_needs_no_keys_any_more(keyring: Keyring, file: Path) -> None:
    file.write_text("keys: []")
    news = keyring.look()
    assert news is not None
    assert news.keys == []


def test_a_new_key_in_an_old_ones_place_starts_fresh(keyring: Keyring, file: Path) -> None:
    old, kept = keyring.message().keys
    used = keyring.message().places[0]
    assert take(shared_memory(keyring.memory), used, 10.0, 1000.0, 0.0) == 0.0
    write(file, [kept])
    keyring.look()
    write(file, [kept, key()])
    news = keyring.look()
    assert news is not None
    assert old not in news.keys
    assert news.places[1] == used
    assert take(shared_memory(keyring.memory), used, 10.0, 1000.0, 0.0) == 0.0
