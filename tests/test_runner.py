import os
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from gateway.instance import process, runner


def test_the_exception_that_ends_an_instance_is_told_first(
    tmp_path: Path, helpers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> int:
        raise OverflowError("no frame holds so many rows")

    monkeypatch.setattr(process, "main", fail)
    parent, told = os.getpid(), tmp_path / "stderr"

    def become_instance() -> None:
        sys.stderr = told.open("w", buffering=1)
        ours, theirs = socket.socketpair()
        nothing: Any = None
        runner.Runner(nothing, ours)._become_instance(nothing, theirs.detach(), 2, parent)  # noqa: SLF001

    assert helpers.in_child(become_instance) == 1
    assert "OverflowError: no frame holds so many rows" in told.read_text()
