"""One running gateway as a load test sees it from outside: processes, memory, repository index, metrics."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from servers import free_port

START_SECONDS = 300.0
STOP_SECONDS = 60.0
LOG_BYTES = 3000
INSTANCE = "instance "


class Metrics:
    """One scrape."""

    def __init__(self, text: str) -> None:
        self._samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]

    def of(self, name: str, **labels: str) -> float:
        """The sum over all label sets that agree with these labels."""
        wanted = labels.items()
        return sum(s.value for s in self._samples if s.name == name and wanted <= s.labels.items())

    def by(self, name: str, label: str) -> dict[str, float]:
        """The sum for each value of a label."""
        found: dict[str, float] = {}
        for sample in self._samples:
            if sample.name == name:
                found[sample.labels[label]] = found.get(sample.labels[label], 0.0) + sample.value
        return found


class Running:
    """A gateway in a session of its own."""

    def __init__(self, store: Path, directory: Path, *options: str) -> None:
        port = free_port()
        self.address = ("127.0.0.1", port)
        self.url = f"http://127.0.0.1:{port}"
        self.log = directory / "gateway.log"
        command = [sys.executable, "-m", "gateway", "serve", "--port", str(port), "--model-store", str(store)]
        command += ["--management-address", "off", "--metrics-address", "off"]
        command += ["--state-directory", str(directory / "state"), "--keep-alive-seconds", "600", *options]
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )

    def wait_ready(self, seconds: float = START_SECONDS) -> float:
        """Seconds until every model has been loaded or has failed."""
        began = time.monotonic()

        def ready() -> bool:
            if self.process.poll() is not None:
                raise RuntimeError(f"the gateway ended with code {self.process.returncode}:\n{self.log_end()}")
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.url}/v2/health/ready", timeout=10) as got:
                return bool(got.status == 200)
            return False

        until(ready, seconds, "ready")
        return time.monotonic() - began

    def log_end(self) -> str:
        """The end of what it has written."""
        return self.log.read_text(errors="replace")[-LOG_BYTES:]

    # Processes

    def processes(self) -> dict[int, str]:
        """Process id → title, of every living process of this gateway."""
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    state, _, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
                    if int(session) == self.process.pid and state not in "ZX":
                        title = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                        found[int(entry.name)] = title.strip()
        return found

    def pids(self, title: str) -> dict[int, str]:
        """Those whose title goes on like this after "gateway: "; the rest of the title for each."""
        start = f"gateway: {title}"
        return {pid: name[9:] for pid, name in self.processes().items() if name.startswith(start)}

    def instances(self) -> dict[int, str]:
        """Process id → NAME/VERSION of every instance."""
        return {pid: title.split()[1] for pid, title in self.pids(INSTANCE).items()}

    # HTTP

    def call(self, method: str, path: str, body: bytes = b"", seconds: float = 60.0) -> tuple[int, bytes]:
        """Status and body of a call on a connection of its own."""
        call = urllib.request.Request(self.url + path, data=body if method == "POST" else None, method=method)
        try:
            with urllib.request.urlopen(call, timeout=seconds) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    def index(self) -> dict[str, dict[int, tuple[str, str]]]:
        """Model → version → (state, reason), without what is unloaded."""
        found: dict[str, dict[int, tuple[str, str]]] = {}
        status, body = self.call("POST", "/v2/repository/index")
        if status != 200:
            raise RuntimeError(f"the index answered {status}: {body[:200]!r}")
        entries: list[dict[str, Any]] = json.loads(body)
        for each in entries:
            if each.get("state") != "UNLOADED":
                versions = found.setdefault(each["name"], {})
                versions[int(each.get("version") or 0)] = (each.get("state", ""), each.get("reason", ""))
        return found

    def load(self, model: str) -> tuple[int, bytes]:
        """Have the model loaded by the API."""
        return self.call("POST", f"/v2/repository/models/{model}/load", b"{}", 300.0)

    def metrics(self) -> Metrics:
        """A scrape."""
        status, body = self.call("GET", "/metrics")
        if status != 200:
            raise RuntimeError(f"/metrics answered {status}: {body[:200]!r}")
        return Metrics(body.decode())

    # Ending

    def stop(self) -> int:
        """End it as a user would, and whatever is left with force; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_SECONDS)
        if self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        return self.process.wait(10.0)


def private_bytes(pid: int) -> int:
    """Memory that only this process has and only memory can hold; 0 if it is gone."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in text.splitlines() if line.startswith("Private_Dirty:")), 0)


def until(found: Callable[[], Any], seconds: float, what: str) -> float:
    """Call until the answer is truthy, and tell how long that took; TimeoutError after so many seconds."""
    began = time.monotonic()
    while not found():
        if time.monotonic() - began > seconds:
            raise TimeoutError(f"not {what} within {seconds:g} s")
        time.sleep(0.02)
    return time.monotonic() - began


@contextlib.contextmanager
def workplace() -> Iterator[Path]:
    """A temporary directory for a store and all around it."""
    with tempfile.TemporaryDirectory(prefix="gateway-load-", ignore_cleanup_errors=True) as name:
        yield Path(name)


@contextlib.contextmanager
def running(store: Path, *options: str) -> Iterator[Running]:
    """A gateway over this store, ready, and gone at the end; its log is shown if what is done with it raises."""
    gateway = Running(store, store.parent, *options)
    try:
        gateway.wait_ready()
        yield gateway
    except BaseException:
        print(f"the end of the gateway's log:\n{gateway.log_end()}", flush=True)
        raise
    finally:
        gateway.stop()
