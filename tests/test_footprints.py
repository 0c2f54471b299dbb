import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from gateway.store import footprints
from gateway.store.footprints import FILE, MAX_ENTRIES, Footprints, estimate
from gateway.store.source import Artifact, scan


def make(store: Path, name: str = "m/1/model.pt", content: bytes = b"weights", config: str = "") -> Artifact:
    path = store / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    model = name.split("/", maxsplit=1)[0]
    (store / model / "model.yaml").write_text(config)
    return scan(store).model(model)[0]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state" / "deep"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of all artifacts' files that are read."""
    names: list[str] = []
    real = footprints.open_regular

    def open_regular(path: Path) -> Any:
        if path.name != FILE:
            names.append(path.name)
        return real(path)

    monkeypatch.setattr(footprints, "open_regular", open_regular)
    return names


def test_what_was_measured_is_known_after_a_restart(store: Path, state: Path) -> None:
    artifact = make(store)
    first = Footprints(state)
    digest = first.digest_of(artifact)
    assert first.get(digest) is None
    first.put(digest, 1234)
    assert first.get(digest) == 1234
    second = Footprints(state)
    assert second.get(second.digest_of(artifact)) == 1234
    assert [path.name for path in state.iterdir()] == [FILE]


def test_an_artifact_is_read_once_while_it_does_not_change(store: Path, state: Path, read: list[str]) -> None:
    artifact = make(store)
    digests = {Footprints(state).digest_of(artifact) for _ in range(3)}
    assert (len(digests), read) == (1, ["model.pt"])
    changed = make(store, content=b"others!")
    assert Footprints(state).digest_of(changed) not in digests
    assert read == ["model.pt"] * 2


def test_the_same_files_in_another_place_have_the_same_footprint(store: Path, state: Path) -> None:
    kept = Footprints(state)
    assert kept.digest_of(make(store, "m/1/model.pt")) == kept.digest_of(make(store, "n/7/model.pt"))


@pytest.mark.parametrize(
    "other",
    [
        {"content": b"weight"},
        {"name": "m/1/model.pth"},
        {"config": "threads: 2"},
        {"config": "max_batch_size: 2"},
        {"config": "warmup: {iterations: 0}"},
        {"config": "stateful: true"},
        {"config": "inputs: [{name: x, datatype: FP32, shape: [1]}]"},
    ],
)
def test_everything_that_changes_memory_makes_another_digest(
    store: Path, tmp_path: Path, state: Path, other: dict[str, Any]
) -> None:
    kept = Footprints(state)
    assert kept.digest_of(make(store)) != kept.digest_of(make(tmp_path / "other", **other))


def test_what_does_not_change_memory_leaves_the_digest_as_it_is(store: Path, state: Path, read: list[str]) -> None:
    kept = Footprints(state)
    before = kept.digest_of(make(store))
    artifact = make(store)  # written again: other times, the same contents
    (store / "m/model.yaml").write_text("pinned: true\nmax_queue_size: 3")
    assert kept.digest_of(artifact) == before
    assert kept.digest_of(scan(store).artifacts[0]) == before
    assert read == ["model.pt"] * 2


def test_names_and_contents_do_not_run_into_each_other(store: Path, tmp_path: Path, state: Path) -> None:
    kept = Footprints(state)
    make(store, "m/1/a", b"bc")
    make(tmp_path / "other", "m/1/ab", b"c")
    digests = {kept.digest_of(make(each)) for each in (store, tmp_path / "other")}
    assert len(digests) == 2


def test_files_that_change_while_they_are_read_are_read_again(
    store: Path, state: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact, kept = make(store), Footprints(state)
    real = footprints.hashlib.file_digest

    def file_digest(*arguments: Any) -> Any:
        (store / "m/1/more").touch()
        return real(*arguments)

    monkeypatch.setattr(footprints.hashlib, "file_digest", file_digest)
    assert kept.digest_of(artifact)
    assert kept.digest_of(artifact)
    assert read == ["model.pt"] * 2


def test_files_that_are_gone_or_are_no_files_any_more_have_no_digest(store: Path, state: Path) -> None:
    artifact, kept = make(store), Footprints(state)
    (store / "m/1/model.pt").unlink()
    assert kept.digest_of(artifact) == ""
    os.mkfifo(store / "m/1/model.pt")
    assert kept.digest_of(artifact) == ""
    kept.put("", 5)
    assert kept.get("") is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\x00",
        b'{"footprints": {"a": -1}}',
        b'{"footprints": {"a": "b"}}',
        b"[" * 100_000,
        b"null",
    ],
)
def test_a_file_that_is_not_ours_is_replaced_and_said_once(
    state: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    state.mkdir(parents=True)
    (state / FILE).write_bytes(content)
    kept = Footprints(state)
    kept.put("a", 7)
    assert Footprints(state).get("a") == 7
    assert len(caplog.records) == 1
    assert "measured again" in caplog.text


def test_a_file_that_is_a_pipe_is_not_waited_for(state: Path) -> None:
    state.mkdir(parents=True)
    os.mkfifo(state / FILE)
    Footprints(state).put("a", 7)
    assert Footprints(state).get("a") == 7


def test_a_place_that_cannot_be_written_is_said_once_and_memory_does(
    state: Path, helpers: Any, caplog: pytest.LogCaptureFixture
) -> None:
    state.mkdir(parents=True)
    state.chmod(0o500)
    with helpers.ordinary_user():
        kept = Footprints(state)
        kept.put("a", 7)
        kept.put("b", 8)
    assert (kept.get("a"), kept.get("b")) == (7, 8)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "cannot be kept" in caplog.text
    assert list(state.iterdir()) == []


def test_a_place_that_is_a_file_is_no_place(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "state").touch()
    kept = Footprints(tmp_path / "state")
    kept.put("a", 7)
    assert kept.get("a") == 7
    assert "cannot be kept" in caplog.text


def test_a_write_that_fails_leaves_what_was_there(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Footprints(state)
    kept.put("a", 7)

    def refuse(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", refuse)
    kept.put("b", 8)
    assert [path.name for path in state.iterdir()] == [FILE]
    assert json.loads((state / FILE).read_bytes())["footprints"] == {"a": 7}


def test_two_gateways_do_not_take_each_other_s_measurements_away(state: Path) -> None:
    one, other = Footprints(state), Footprints(state)
    one.put("a", 1)
    other.put("b", 2)
    one.put("c", 3)
    later = Footprints(state)
    assert [later.get(digest) for digest in "abc"] == [1, 2, 3]


def test_a_measurement_that_is_hardly_smaller_is_not_written(state: Path) -> None:
    kept = Footprints(state)
    for size, expected in ((1000, 1000), (950, 1000), (1001, 1001), (500, 500)):
        kept.put("a", size)
        assert kept.get("a") == expected


def test_the_oldest_entries_are_dropped(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_ENTRIES >= 1000
    monkeypatch.setattr(footprints, "MAX_ENTRIES", 3)
    kept = Footprints(state)
    for number in range(5):
        kept.put(str(number), 100)
        kept.put("0", 200 + number)
    later = Footprints(state)
    assert [later.get(str(number)) for number in range(5)] == [204, None, None, 100, 100]


def test_an_estimate_is_of_the_size_of_the_files_and_the_framework(store: Path) -> None:
    assert estimate(make(store, content=b"x" * 1000)) == 8_000_000 + 1200
    tensorflow = make(store, "t/1/model.savedmodel/saved_model.pb", b"x" * 1000)
    assert estimate(tensorflow) == 30_000_000 + 1200
