"""A gateway of a command's own: it serves, knows nothing of the environment, and never stays behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.commands.own_server import own_server
from gateway.errors import CallFailed, RequestError

NEVER_READY = """
import os, pathlib, signal
began = pathlib.Path(__file__).with_name("began")
began.with_suffix(".part").write_text(str(os.getpid()))
began.with_suffix(".part").rename(began)
signal.pause()
"""
HOLDING = """
import signal
import sys
from pathlib import Path
from gateway.commands.own_server import own_server
signal.signal(signal.SIGINT, signal.default_int_handler)  # even if whoever runs the tests ignores it
with own_server(Path(sys.argv[1])) as url:
    print(url, flush=True)
    sys.stdin.read()
"""


def test_it_serves_and_is_gone_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_TLS_CERT", "/nowhere")
    handler = signal.getsignal(signal.SIGTERM)
    with own_server(tmp_path) as url:
        assert url.startswith("http://127.0.0.1:")
        assert httpx.get(f"{url}/v2/health/live").status_code == 200
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/v2/health/live")
    assert signal.getsignal(signal.SIGTERM) is handler


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_it_ends_with_a_command_that_does(helpers: Any, tmp_path: Path, number: int, code: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDING, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as command:
        assert command.stdout is not None
        url = command.stdout.readline().strip()
        assert httpx.get(f"{url}/v2/health/live").status_code == 200
        command.send_signal(number)
        assert command.wait(30) == code

    def gone() -> bool:
        try:
            return not httpx.get(f"{url}/v2/health/live")
        except httpx.ConnectError:
            return True

    helpers.until(gone, 10)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_it_starts_ends_both(helpers: Any, tmp_path: Path, number: int) -> None:
    (tmp_path / "typer.py").write_text(NEVER_READY)  # which the command itself has no need of
    (tmp_path / "store").mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", HOLDING, tmp_path / "store"],
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    ) as command:
        helpers.until((tmp_path / "began").exists, 20)
        server = int((tmp_path / "began").read_text())
        command.send_signal(number)
        assert command.wait(30) == (-number if number == signal.SIGINT else 128 + number)
    helpers.until(lambda: not Path(f"/proc/{server}").exists(), 10)


def test_a_store_that_is_none_is_told(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="none is not a directory"), own_server(tmp_path / "none"):
        pass


def test_one_that_does_not_start_says_why_in_its_own_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "uvloop.py").write_text("raise SystemExit('no loop today')\n")
    with pytest.raises(CallFailed, match=r"could not be started: .*does not stay up"), own_server(tmp_path):
        pass
