import os
from pathlib import Path

import pytest

from gateway.nodes import scratch


def test_it_is_private(tmp_path: Path) -> None:
    scratch.make(tmp_path / "made")
    assert (tmp_path / "made").stat().st_mode & 0o777 == 0o700


def test_few_small_files_are_no_excess(tmp_path: Path) -> None:
    assert scratch.excess(tmp_path) is None
    (tmp_path / "file").write_bytes(b"x" * 10_000)
    assert scratch.excess(tmp_path) is None
    assert scratch.excess(tmp_path / "gone") is None


def test_many_files_are_an_excess(tmp_path: Path) -> None:
    for number in range(scratch.MOST_FILES + 1):
        (tmp_path / str(number)).touch()
    assert scratch.excess(tmp_path) == "more than 1000 temporary files"


def test_what_lies_on_the_disk_counts_and_not_what_a_file_claims(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scratch, "MOST_BYTES", 1 << 20)
    with (tmp_path / "hole").open("wb") as file:
        file.truncate(1 << 30)
    assert scratch.excess(tmp_path) is None
    (tmp_path / "full").write_bytes(b"x" * (2 << 20))
    assert scratch.excess(tmp_path) == "more than 1 MiB of temporary files"


def test_everything_is_removed_however_deep(tmp_path: Path) -> None:
    scratch.make(tmp_path / "made")
    folder = os.open(tmp_path / "made", os.O_RDONLY)
    for _ in range(50):
        os.mkdir("deeper", dir_fd=folder)
        deeper = os.open("deeper", os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = deeper
    os.close(folder)
    scratch.remove(tmp_path / "made")
    assert not (tmp_path / "made").exists()
    scratch.remove(tmp_path / "made")
