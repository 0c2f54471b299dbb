"""A gateway of a command's own: it serves, knows nothing of the environment, and never stays behind."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.commands.own_server import own_server
from gateway.errors import CallFailed, RequestError

HOLDING = """
import sys
from pathlib import Path
from gateway.commands.own_server import own_server
with own_server(Path(sys.argv[1])) as url:
    print(url, flush=True)
    sys.stdin.read()
"""


def test_it_serves_and_is_gone_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_TLS_CERT", "/nowhere")
    handler = signal.getsignal(signal.SIGTERM)
    with own_server(tmp_path) as url:
        assert url.startswith("http://127.0.0.1:")
        assert httpx.get(f"{url}/v2/health/ready").status_code == 200
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/v2/health/live")
    assert signal.getsignal(signal.SIGTERM) is handler


def test_it_ends_with_a_command_that_is_told_to(helpers: Any, tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDING, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as command:
        assert command.stdout is not None
        url = command.stdout.readline().strip()
        assert httpx.get(f"{url}/v2/health/live").status_code == 200
        command.send_signal(signal.SIGTERM)
        assert command.wait(30) == 128 + signal.SIGTERM

    def gone() -> bool:
        try:
            return not httpx.get(f"{url}/v2/health/live")
        except httpx.ConnectError:
            return True

    helpers.until(gone, 10)


def test_a_store_that_is_none_is_told(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="none is not a directory"), own_server(tmp_path / "none"):
        pass


def test_one_that_does_not_start_says_why_in_its_own_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "uvloop.py").write_text("raise SystemExit('no loop today')\n")
    with pytest.raises(CallFailed, match=r"could not be started: .*does not stay up"), own_server(tmp_path):
        pass
