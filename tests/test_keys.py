"""The file of keys, and the commands that change it."""

import contextlib
import json
import os
import stat
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import ConfigError
from gateway.keys import MAX_FILE_BYTES, SCOPES, Key, changing, hash_of, moment, new_key, parse, read, write

NOW = datetime(2030, 1, 1, tzinfo=UTC)
some_keys = st.lists(
    st.builds(
        lambda name, scopes, models, rate: new_key(name, sorted(scopes), models=models, rate=rate, created=NOW)[1],
        st.text(min_size=1, max_size=20),
        st.sets(st.sampled_from(SCOPES), min_size=1),
        st.none() | st.lists(st.text(min_size=1, max_size=9), max_size=3),
        st.none() | st.floats(0.001, 1e6),
    ),
    max_size=4,
)


@given(some_keys)
def test_what_is_written_is_read_again(tmp_path_factory: pytest.TempPathFactory, keys: list[Key]) -> None:
    path = tmp_path_factory.getbasetemp() / "keys.yaml"
    write(path, keys)
    assert read(path) == keys


@given(st.binary(max_size=60))
def test_any_other_file_has_no_keys_or_is_a_mistake(data: bytes) -> None:
    with contextlib.suppress(ConfigError):
        assert parse(data) == []


@pytest.mark.parametrize("data", [b"[" * 100_000, b'{"a":' * 50_000, b"&a [*a]", b"? !!python/x", b"1", b"keys: {}"])
def test_a_file_made_to_do_harm_is_a_mistake_in_one_line(data: bytes) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(data)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"scopes": ["root"]}, "root"),
        ({"scopes": []}, "scopes"),
        ({"sha256": "ab"}, "sha256"),
        ({"id": "a_b"}, "id"),
        ({"rate": 0}, "rate"),
        ({"model": ["a"]}, "model"),
        ({"expires": "2030-01-01T00:00:00"}, "expires"),
    ],
)
def test_a_mistake_in_a_key_is_named(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    good = {"id": "a", "name": "b", "sha256": "0" * 64, "scopes": ["infer"]}
    assert parse(json.dumps({"keys": [good]}).encode())[0].id == "a"
    path = tmp_path / "keys.json"
    path.write_text(json.dumps({"keys": [good | change]}))
    with pytest.raises(ConfigError, match=f"the keys file {path}: .*{said}"):
        read(path)


def test_two_keys_of_one_id_a_huge_file_and_one_that_is_none_are_refused(tmp_path: Path) -> None:
    one = {"id": "a", "name": "b", "sha256": "0" * 64, "scopes": ["infer"]}
    with pytest.raises(ConfigError, match="two keys have the id 'a'"):
        parse(json.dumps({"keys": [one, one]}).encode())
    huge, pipe = tmp_path / "huge", tmp_path / "pipe"
    huge.write_bytes(b" " * (MAX_FILE_BYTES + 1))
    os.mkfifo(pipe)  # nobody ever writes to it
    for path in (huge, pipe, tmp_path, tmp_path / "nothing"):
        with pytest.raises(ConfigError):
            read(path)


def test_secrets_differ_and_only_their_hash_is_kept() -> None:
    made = [new_key("a", ["infer"]) for _ in range(50)]
    assert len({text for text, _ in made} | {key.id for _, key in made}) == 100
    for text, key in made:
        prefix, identity, secret = text.split("_")
        assert (prefix, identity, len(secret)) == ("gw", key.id, 43)
        assert key.sha256 == hash_of(text.encode()).hex()
        assert secret not in repr(key)


def test_the_file_is_its_owners_and_never_half_there(tmp_path: Path) -> None:
    path, link = tmp_path / "real" / "keys.yaml", tmp_path / "link"
    path.parent.mkdir()
    link.symlink_to(path)
    write(link, [])
    path.chmod(0o644)
    with changing(link) as keys:
        keys.append(new_key("a", ["infer"])[1])
    assert link.is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_what_goes_wrong_meanwhile_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    write(path, [])

    def interrupted() -> None:
        with changing(path) as keys:
            keys.append(new_key("a", ["infer"])[1])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert read(path) == []


def test_two_who_add_keys_at_the_same_time_both_do(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"

    def add() -> None:
        for _ in range(5):
            with changing(path) as keys:
                keys.append(new_key("a", ["infer"])[1])

    threads = [threading.Thread(target=add) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read(path)) == 15


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90d", NOW + timedelta(days=90)),
        ("12h", NOW + timedelta(hours=12)),
        ("2031-01-31", datetime(2031, 1, 31, tzinfo=UTC)),
        ("2031-01-31T12:00:00+02:00", datetime(2031, 1, 31, 10, tzinfo=UTC)),
    ],
)
def test_a_time_is_said_in_several_ways(text: str, expected: datetime) -> None:
    assert moment(text, NOW) == expected


@pytest.mark.parametrize("text", ["", "soon", "-1d", "2029-12-31", "999999w", "0d"])
def test_other_times_are_mistakes(text: str) -> None:
    with pytest.raises(ConfigError):
        moment(text, NOW)


# Commands


def test_a_key_is_added_listed_and_revoked(tmp_path: Path, helpers: Any) -> None:
    file = tmp_path / "keys.yaml"
    text = helpers.keys(file, "add", "shop", "--model", "resnet*", "--rate", "50", "--expires", "90d")
    made = json.loads(helpers.keys(file, "add", "boss", "--scope", "admin", "--json"))
    assert made["key"].startswith(f"gw_{made['id']}_")
    shop, boss = json.loads(helpers.keys(file, "ls", "--json"))
    assert text.startswith(f"gw_{shop['id']}_")
    assert (shop["name"], shop["scopes"], shop["models"], shop["rate"]) == ("shop", ["infer"], ["resnet*"], 50)
    assert (boss["scopes"], boss["state"]) == (["admin"], "valid")
    table = helpers.keys(file, "ls")
    assert "sha256" not in json.dumps([shop, boss])
    assert all(word in table for word in ("shop", "resnet*", "50/s", "boss", "admin", "valid"))
    assert text not in table
    assert helpers.keys(file, "revoke", "shop") == f"{shop['id']} (shop) is revoked"
    assert json.loads(helpers.keys(file, "revoke", boss["id"], "--json"))["state"] == "revoked"
    assert [each["state"] for each in json.loads(helpers.keys(file, "ls", "--json"))] == ["revoked"] * 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["add", "a", "--scope", "root"], "'root' is no scope; there are infer, metrics, admin"),
        (["add", "a", "--rate", "-1"], "rate"),
        (["add", "a", "--burst", "2"], "--burst needs a --rate"),
        (["add", "a", "--expires", "2001-01-01"], "2001-01-01 is past"),
        (["add", "a", "--scope", "metrics", "--model", "m"], "metrics are of all models"),
        (["revoke", "nobody"], "there is no key 'nobody'"),
        (["revoke", "twin"], "several keys are named 'twin'"),
    ],
)
def test_a_mistake_is_a_sentence_and_changes_nothing(
    tmp_path: Path, helpers: Any, arguments: list[str], said: str
) -> None:
    file = tmp_path / "keys.yaml"
    write(file, [new_key("twin", ["infer"])[1], new_key("twin", ["infer"])[1]])
    before = file.read_bytes()
    assert said in helpers.keys(file, *arguments, code=2)
    assert file.read_bytes() == before


@pytest.mark.parametrize(("content", "said"), [(None, "is not there"), ("keys: 3", "Expected `array`")])
def test_a_gateway_does_not_start_with_a_file_that_is_bad_or_missing(
    tmp_path: Path, helpers: Any, content: str | None, said: str
) -> None:
    file = tmp_path / "keys.yaml"
    if content is not None:
        file.write_text(content)
    done = helpers.run(["--model-store", str(tmp_path), "--port", "0", "--keys-file", str(file)])
    assert done.returncode != 0
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_gateway_without_its_keys_file_says_how_to_make_it(helpers: Any, tmp_path: Path) -> None:
    done = helpers.run(["--model-store", str(tmp_path), "--keys-file", str(tmp_path / "keys.yaml")])
    assert done.returncode == 2
    assert f"`gateway keys add NAME --scope admin --keys-file {tmp_path}/keys.yaml` makes it" in done.stderr
