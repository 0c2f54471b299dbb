"""A gateway that a command starts for itself: on free loopback ports, gone when the command is, however that ends."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import orjson

from gateway.commands.printing import plain
from gateway.errors import CallFailed, RequestError
from gateway.ipc.lifeline import die_with_parent
from gateway.nodes import scratch

START_SECONDS = 600.0
"""A store of large models takes long; the gateway itself gives each of them up in time."""
STOP_SECONDS = 60.0
_SAID = 2000


@contextlib.contextmanager
def own_server(store: Path) -> Iterator[str]:
    """Serve a model store and nothing else: the URL. CallFailed, with its own last words, if it does not start.

    It knows nothing of this command's environment and gateway.yaml: no keys, no certificate. Of a command
    that is killed nothing but a temporary directory is left.
    """
    if not store.is_dir():
        raise RequestError(f"--model-store {store} is not a directory")
    with contextlib.ExitStack() as stack:
        place = scratch.private_directory()
        stack.callback(scratch.remove, place)
        command = [sys.executable, "-m", "gateway", "serve", "--json", "--port", "0", "--watch", "off"]
        command += ["--management-address", "off", "--metrics-address", "off", "--keep-alive-seconds", "600"]
        command += ["--model-store", str(store.resolve()), "--state-directory", str(place / "state")]
        environment = {key: value for key, value in os.environ.items() if not key.startswith("GATEWAY_")}
        with ending_is_an_exception(), (place / "log").open("wb") as log:
            process = subprocess.Popen(  # noqa: S603 - our own program
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=place,
                env=environment,
                start_new_session=True,  # Ctrl-C is for the command, which then ends the server in order
                preexec_fn=partial(die_with_parent, os.getpid()),  # noqa: PLW1509 - no other thread of ours runs yet
            )
            try:
                yield _url(process, place / "log")
            finally:
                _end(process)


def _url(process: "subprocess.Popen[bytes]", log: Path) -> str:
    """Where it serves, once it does."""
    late = threading.Timer(START_SECONDS, process.kill)
    late.daemon = True
    late.start()
    assert process.stdout is not None
    try:
        line = process.stdout.readline()  # or nothing, when it has ended
    finally:
        late.cancel()  # whatever interrupts this: a program waits for its timers
    try:
        url: str = orjson.loads(line)["listeners"]["http"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        said = log.read_text(encoding="utf-8", errors="replace")[-_SAID:].strip().splitlines()
        why = plain(said[-1]).removeprefix("gateway: ") if said else "it says nothing"
        raise CallFailed(f"a gateway of this command's own could not be started: {why}") from None
    return url


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


@contextlib.contextmanager
def ending_is_an_exception() -> Iterator[None]:
    """SIGTERM and SIGHUP unwind this program, as Ctrl-C does, instead of leaving behind what it has begun."""

    def leave(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    ours = [each for each in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) is not signal.SIG_IGN]  # nohup
    before: dict[int, Any] = {number: signal.signal(number, leave) for number in ours}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
