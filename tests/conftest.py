"""The gateway as its users meet it: the real program in a process group of its own, and bytes on a socket."""

import contextlib
import ctypes
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

HERE = Path(__file__).parent
SHIPPED = HERE.parent / "model_store"
PROGRAM = Path(sys.executable).with_name("gateway")
QUICK = ("--settle-seconds", "0", "--management-address", "off", "--metrics-address", "off")
"""The test models were copied a moment ago and are complete; one listener is enough for most tests."""
AS_SUBREAPER = (
    sys.executable,
    "-c",
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(36, 1, 0, 0, 0); os.execv(sys.argv[1], sys.argv[1:])",
)
"""Starts a program with PR_SET_CHILD_SUBREAPER, which stays with the process."""
START_SECONDS = 60.0
STOP_SECONDS = 20.0
LIMIT = 8 << 20
"""Largest body that the shared gateway takes."""

_running: list["Gateway"] = []


class Response:
    """What came back on a raw connection; header names are in lower case."""

    def __init__(self, head: bytes) -> None:
        lines = head.decode("latin-1").split("\r\n")
        self.status = int(lines[0].split(" ")[1])
        self.headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        self.body = b""

    def json(self) -> Any:
        return json.loads(self.body)

    def parts(self) -> tuple[Any, bytes]:
        """The JSON and the binary data behind it."""
        size = int(self.headers["inference-header-content-length"])
        return json.loads(self.body[:size]), self.body[size:]


class Connection:
    """One client connection, on which the test decides about every byte."""

    def __init__(self, address: tuple[str, int], receive_buffer: int = 0) -> None:
        self.sock = socket.socket()
        if receive_buffer:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.sock.settimeout(20.0)
        try:
            self.sock.connect(address)
        except OSError:
            self.sock.close()
            raise
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._have = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, *data: bytes) -> None:
        for piece in data:
            self.sock.sendall(piece)

    def head(self) -> Response:
        """Read the head of one response and no body, as after HEAD."""
        while b"\r\n\r\n" not in self._have:
            self._more()
        head, _, self._have = self._have.partition(b"\r\n\r\n")
        return Response(head)

    def response(self) -> Response:
        """Read one response, with its body if it has a Content-Length; an interim one is a response too."""
        response = self.head()
        size = int(response.headers.get("content-length", 0))
        parts = [self._have]
        while (missing := size - sum(map(len, parts))) > 0:
            parts.append(self.sock.recv(min(missing, 1 << 20)))
            assert parts[-1], f"the connection was closed {missing} bytes before the end of the response"
        body = b"".join(parts)
        response.body, self._have = body[:size], body[size:]
        return response

    def _more(self) -> None:
        data = self.sock.recv(1 << 16)
        assert data, f"the connection was closed instead of answering; it had sent {self._have[:200]!r}"
        self._have += data

    def ask(self, request: bytes) -> Response:
        self.send(request)
        return self.response()

    def closed_by_peer(self, seconds: float = 10.0) -> bool:
        """Wait for the end of the stream; False if more bytes come instead, TimeoutError if neither happens."""
        self.sock.settimeout(seconds)
        try:
            return not self._have and self.sock.recv(1) == b""
        except ConnectionResetError:
            return True


class Metrics:
    """One scrape."""

    def __init__(self, text: str) -> None:
        self.families = {family.name: family for family in text_string_to_metric_families(text)}
        self.samples = [sample for family in self.families.values() for sample in family.samples]

    def of(self, name: str, **labels: str) -> float:
        """The sum of a sample over all label sets that agree with these labels."""
        wanted = labels.items()
        return sum(s.value for s in self.samples if s.name == name and wanted <= s.labels.items())


class Gateway:
    """A gateway over a store, which serves when this returns; `options` are those of `gateway serve`.

    With a port it is only started. As `subreaper` it inherits the orphans of its descendants, as PID 1 does.
    """

    def __init__(self, store: Path, log: Path, *options: str, port: int = 0, subreaper: bool = False) -> None:
        self.log = log
        self.port = 0
        environment = {key: value for key, value in os.environ.items() if not key.startswith("GATEWAY_")}
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                [
                    *(AS_SUBREAPER if subreaper else ()),
                    PROGRAM,
                    "serve",
                    "--port",
                    str(port),
                    "--model-store",
                    store,
                    *QUICK,
                    "--state-directory",
                    log.parent,
                    *options,
                ],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environment | {"COLUMNS": "200"},
                cwd=log.parent,
                start_new_session=True,
            )
        _running.append(self)
        try:
            found = port or until(self._serving, START_SECONDS)
        except BaseException:
            self.stop()
            raise
        self.port = int(found)
        self.address = ("127.0.0.1", self.port)
        self.url = f"http://127.0.0.1:{self.port}"
        self.http = httpx.Client(base_url=self.url, timeout=30.0)

    def _serving(self) -> str | None:
        text = self.log.read_text(errors="replace")
        assert self.process.poll() is None, f"the gateway ended with code {self.process.returncode}:\n{text}"
        match = re.search(r"Serving on https?://[\d.]+:(\d+)\b", text)
        return match[1] if match else None

    # Processes

    def processes(self) -> dict[int, str]:
        """Process id → title, of every living process of this gateway."""
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    state, _, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
                    if int(session) == self.process.pid and state not in "ZX":
                        found[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ").strip()
        return found

    def listener(self, name: str) -> str:
        """The URL of another listener, by what is said of it at the start."""
        match = re.search(rf"(https?://\S+): .*{name}", self.log.read_text())
        assert match, f"nothing is said of a listener for {name}"
        return match[1]

    def lasting_processes(self) -> dict[int, str]:
        """Those that do not come and go with the requests, as the decoder of large bodies does."""
        return {pid: name for pid, name in self.processes().items() if name != "gateway: body decoder"}

    def pids(self, title: str) -> set[int]:
        """The processes whose title starts like this."""
        return {pid for pid, name in self.processes().items() if name.startswith(f"gateway: {title}")}

    def pid(self, title: str) -> int:
        (found,) = self.pids(title)
        return found

    def stop(self) -> int:
        """End it as a user would; everything must be gone after that. Returns its exit code."""
        self.process.send_signal(signal.SIGTERM)  # which does nothing if it has ended
        try:
            self.process.wait(STOP_SECONDS)
            until(lambda: not self.processes(), 5.0)
        finally:
            left = self.processes()
            if left:
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(5.0)
            if self.port:
                self.http.close()
            if self in _running:
                _running.remove(self)
        assert not left, f"processes of the gateway were left: {left}"
        return self.process.returncode

    def command(self, *arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
        """A command of the command line, which asks this gateway."""
        return command(*arguments, GATEWAY_URL=self.url, **variables)

    # Requests

    def connect(self, receive_buffer: int = 0) -> Connection:
        return Connection(self.address, receive_buffer)

    def request(
        self, method: str, path: str, body: bytes = b"", *headers: str, http: str = "1.1", length: bool = True
    ) -> bytes:
        """A request as bytes."""
        lines = [f"{method} {path} HTTP/{http}", f"Host: 127.0.0.1:{self.port}", *headers]
        if length and (body or method == "POST"):
            lines.append(f"Content-Length: {len(body)}")
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + body

    def inference(self, model: str, body: Any, *headers: str, **how: Any) -> bytes:
        """A POST to …/infer as bytes; `body` is JSON or bytes, or (JSON, binary data)."""
        return self.request("POST", f"/v2/models/{model}/infer", *packed(body, headers), **how)

    def infer(self, model: str, body: Any, *headers: str) -> Response:
        """One inference on a connection of its own."""
        with self.connect() as connection:
            return connection.ask(self.inference(model, body, *headers))

    def good(self) -> bytes:
        """A request that the MLP answers."""
        return self.inference("mlp", {"inputs": [tensor("x", "FP32", [1, 16], [0.5] * 16)]})

    def slow(self, seconds: float = 0.3) -> bytes:
        """A request that keeps the model `slow` busy for about so long."""
        return self.inference("slow", {"inputs": [tensor("rounds", "INT64", [1], [self._rounds(seconds)])]})

    def _rounds(self, seconds: float) -> int:
        """Measured once per gateway, for machines differ."""
        if not hasattr(self, "_rate"):
            rounds = 4000
            before = self.metrics().of("gateway_execution_duration_seconds_sum", model="slow")
            assert self.infer("slow", {"inputs": [tensor("rounds", "INT64", [1], [rounds])]}).status == 200
            after = self.metrics().of("gateway_execution_duration_seconds_sum", model="slow")
            self._rate = rounds / (after - before)
        return int(self._rate * seconds)

    def metrics(self) -> Metrics:
        answer = self.http.get("/metrics")
        assert answer.status_code == 200
        return Metrics(answer.text)

    def versions(self) -> dict[str, str]:
        """The state of each model, by the repository index."""
        return {each["name"]: each["state"] for each in self.http.post("/v2/repository/index").json()}


def packed(body: Any, headers: Sequence[str]) -> tuple[Any, ...]:
    """A body as bytes and the headers it needs."""
    if isinstance(body, tuple):
        text = json.dumps(body[0]).encode()
        return (text + body[1], f"Inference-Header-Content-Length: {len(text)}", *headers)
    return (body if isinstance(body, bytes) else json.dumps(body).encode(), *headers)


def tensor(name: str, datatype: str, shape: Sequence[int], data: Any = None, **parameters: Any) -> dict[str, Any]:
    """One of a request's inputs."""
    found = {"name": name, "datatype": datatype, "shape": list(shape)}
    if data is not None:
        found["data"] = data
    return found | ({"parameters": parameters} if parameters else {})


def until(found: Callable[[], Any], seconds: float) -> Any:
    """Call until the answer is truthy; fail after so many seconds."""
    end = time.monotonic() + seconds
    while not (answer := found()):
        assert time.monotonic() < end, f"did not come about within {seconds:g} s"
        time.sleep(0.01)
    return answer


def command(*arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """The program with these arguments, and none of the GATEWAY_ variables but the given ones."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GATEWAY_")}
    return subprocess.run(
        [PROGRAM, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment | {"COLUMNS": "200"} | variables,
    )


def installed(name: str, package: str = "") -> str:
    """Where a program of the system is; without it the test is skipped, or fails with TESTS_REQUIRE_ALL set."""
    found = shutil.which(name)
    if found is None:
        missing = f"{name} is not installed: apt-get install {package or name}"
        if os.environ.get("TESTS_REQUIRE_ALL"):
            pytest.fail(missing)
        pytest.skip(missing)
    return found


def run(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """`gateway serve` with arguments that end it at once."""
    command = [PROGRAM, "serve", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)


def keys_command(file: Path, *arguments: str, code: int = 0) -> str:
    """What `gateway keys` says when it ends with this code: on stdout, or what was wrong."""
    command = [PROGRAM, "keys", *arguments, "--keys-file", file]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, cwd=file.parent)
    assert done.returncode == code, done.stderr
    return (done.stderr if code else done.stdout).strip()


@contextlib.contextmanager
def ordinary_user() -> Iterator[None]:
    """This thread, and those it starts, may not read what file modes forbid, even if root runs the tests."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this thread
    before = (ctypes.c_uint32 * 6)()  # twice: effective, permitted, inheritable
    assert libc.capget(header, before) == 0
    without = (ctypes.c_uint32 * 6)(*before)
    without[0] &= ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert libc.capset(header, without) == 0
    try:
        yield
    finally:
        assert libc.capset(header, before) == 0


def in_child(act: Callable[[], Any], uid: int = 0) -> Any:
    """What `act` returns in a forked process, as JSON can carry it; what it raised as text; a signal as its number.

    With a uid the process belongs to that user and to no group of root's.
    """
    readable, writable = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            if uid:
                os.setgroups([])
                os.setgid(uid)
                os.setuid(uid)
                ctypes.CDLL(None).prctl(4, 1)  # its /proc/self is its own again, as it is after an exec
            answer = act()
        except BaseException as error:  # noqa: BLE001 - whatever it is, the parent wants to know
            answer = repr(error)
        os.write(writable, json.dumps(answer).encode())
        os._exit(0)
    os.close(writable)
    with os.fdopen(readable, "rb") as pipe:
        said = pipe.read()
    _, status = os.waitpid(pid, 0)
    return json.loads(said) if said else os.waitstatus_to_exitcode(status)


class Helpers:
    """The functions above, for tests: they cannot import from here."""

    tensor = staticmethod(tensor)
    until = staticmethod(until)
    run = staticmethod(run)
    command = staticmethod(command)
    keys = staticmethod(keys_command)
    ordinary_user = staticmethod(ordinary_user)
    in_child = staticmethod(in_child)
    installed = staticmethod(installed)
    program = PROGRAM
    limit = LIMIT
    shipped = SHIPPED


@pytest.fixture(scope="session")
def helpers() -> Helpers:
    return Helpers()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, driven by Playwright; not for longer than a module, for its event loop would be in others' way."""
    chromium = installed("chromium")
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - few tests want it

    # Chromium's own sandbox does not start as root, which tests in containers mostly are.
    quiet = ("--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-sync", *quiet])
        yield started
        started.close()


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A directory with every test model, made once for all processes that run tests; nobody may change it."""
    run = tmp_path_factory.getbasetemp()
    if worker_id != "master":
        run = run.parent
    store = run / "built"
    with (run / "built.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not store.exists():
            unfinished = run / "built.unfinished"
            _build(unfinished)
            unfinished.rename(store)
    return store


def _build(store: Path) -> None:
    """Have the frameworks make the models, in processes of their own."""
    store.mkdir()
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONDONTWRITEBYTECODE": "1"}
    builders = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", HERE / "fixtures" / f"{name}_models.py", store],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        for name in ("torch", "tensorflow")
    ]
    outputs = [builder.communicate(timeout=100)[0] for builder in builders]
    for builder, output in zip(builders, outputs, strict=True):
        assert builder.returncode == 0, output.decode(errors="replace")
    broken = {
        "no_archive": ("model.pt", b"this is no archive\n", ""),
        "misspelt_key": ("model.pt", b"", "max_batchsize: 3\n"),
        "no_artifact": ("readme.txt", b"hello\n", ""),
    }
    for name, (file, content, config) in broken.items():
        (store / name / "1").mkdir(parents=True)
        (store / name / "1" / file).write_bytes(content)
        if config:
            (store / name / "model.yaml").write_text(config)


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """Encoded images, good and bad ones, by a name that says what is the matter with them."""
    directory = tmp_path_factory.mktemp("images")
    subprocess.run([sys.executable, HERE / "fixtures" / "images.py", directory], check=True, timeout=60)
    return {
        kind.name: {path.name: path.read_bytes() for path in sorted(kind.iterdir())} for kind in directory.iterdir()
    }


@pytest.fixture(scope="session")
def start_gateway(tmp_path_factory: pytest.TempPathFactory, built: Path) -> Callable[..., Any]:
    """A context manager: a gateway of one's own over these test models, stopped at the end if it still runs."""

    @contextlib.contextmanager
    def start(
        models: Sequence[str],
        *options: str,
        port: int = 0,
        prepare: Callable[[Path], None] = lambda _: None,
        subreaper: bool = False,
    ) -> Iterator[Gateway]:
        directory = tmp_path_factory.mktemp("gateway")
        store = directory / "store"
        store.mkdir()
        for name in models:
            shutil.copytree(built / name if (built / name).is_dir() else SHIPPED / name, store / name)
        prepare(store)
        gateway = Gateway(store, directory / "log", *options, port=port, subreaper=subreaper)
        try:
            yield gateway
        finally:
            if gateway in _running:
                gateway.stop()

    return start


@pytest.fixture(scope="session")
def gateway(start_gateway: Callable[..., Any], built: Path) -> Iterator[Gateway]:
    """The shared gateway, over the shipped models and all test models; no test may harm it."""
    shipped = [path.name for path in SHIPPED.iterdir() if path.is_dir()]
    models = sorted([*shipped, *(path.name for path in built.iterdir())])
    listeners = ("--management-address", "127.0.0.1:0", "--metrics-address", "127.0.0.1:0")
    with start_gateway(models, "--max-body-bytes", str(LIMIT), "--keep-alive-seconds", "60", *listeners) as started:
        yield started


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the end of what each running gateway has written below a failure."""
    report = yield
    if report.failed and "gateway" in "".join(getattr(item, "fixturenames", ())):
        for number, each in enumerate(_running):
            text = each.log.read_text(errors="replace")
            report.sections.append((f"log of gateway {number}", "…" * (len(text) > 3000) + text[-3000:]))
    return report
