"""What whoever answers at the URL may send instead of a recording."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from gateway.commands.recording import MOST_BYTES, keep
from gateway.errors import CallFailed

FACTS: dict[str, Any] = {
    "model": "m",
    "version": "1",
    "framework": "pytorch",
    "instance": 0,
    "instances": [0],
    "device": "cpu",
    "seconds": 1.0,
    "executions": 1,
    "full": False,
    "missing": "",
}
TRACE = b'{"traceEvents": []}'


def archive(facts: Any = FACTS, **files: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, data in {"recording.json": json.dumps(facts).encode(), "trace": TRACE, **files}.items():
            opened.writestr(name, data)
    return out.getvalue()


def test_each_recording_gets_a_folder_of_its_own(tmp_path: Path) -> None:
    folders = [keep(archive(graph=b"\x22\x02\x08\x15"), tmp_path / "new" / "profiles").folder for _ in range(3)]
    assert len(set(folders)) == 3
    for folder in folders:
        assert folder.name.startswith("m-1-20")
        assert sorted(path.name.partition(".")[0] for path in folder.iterdir()) == ["events", "m-1"]


@pytest.mark.parametrize("name", ["../../evil", "/etc/evil", "..", "a/b", "\0", ".hidden", "\x1b[2J", "x" * 5000, ""])
def test_no_name_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    out = tmp_path / "deep" / "out"
    kept = keep(archive(FACTS | {"model": name, "version": name}), out)
    assert kept.folder.parent == out
    assert not kept.folder.name.startswith(".")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [kept.trace]


def damaged(data: bytes) -> bytes:
    """With other bytes in the middle of what is compressed."""
    at = data.index(b"trace") + 8
    return data[:at] + bytes(byte ^ 0xFF for byte in data[at : at + 8]) + data[at + 8 :]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PK",
        b"{}",
        archive()[:-30],
        damaged(archive(trace=b"[" * 3000)),
        archive([]),
        archive(FACTS | {"seconds": "long"}),
        archive({}),
        archive(trace=b"none"),
        archive(FACTS | {"framework": "tensorflow"}, trace=b"\xff" * 20),
        archive(trace=b"[" * 100_000),
    ],
)
def test_what_is_no_recording_is_said_so_and_nothing_is_written(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(CallFailed, match="what came is no recording"):
        keep(data, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    with pytest.raises(CallFailed, match="'graph' of the recording is larger than 16 MiB"):
        keep(archive(graph=bytes(MOST_BYTES["graph"] + 1)), tmp_path)


def test_a_place_that_cannot_be_written_to_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here already")
    with pytest.raises(CallFailed, match=r"cannot be written to: "):
        keep(archive(), tmp_path / "file")
