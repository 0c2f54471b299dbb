"""`gateway validate` as its users meet it: the real command over good, broken and hostile models."""

import contextlib
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
PROGRAM = Path(sys.executable).with_name("gateway")
pytestmark = pytest.mark.timeout(240)


def environment(directory: Path) -> dict[str, str]:
    names = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")}
    return names | {"TMPDIR": str(directory), "COLUMNS": "160"}


def validate(directory: Path, *arguments: Path | str, **how: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PROGRAM, "validate", *arguments],
        check=False, text=True, timeout=200, cwd=directory, env=environment(directory), start_new_session=True,
        **({"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | how),
    )  # fmt: skip


def in_session(leader: int) -> set[int]:
    """The living processes of a session."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                state, _, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
                if int(session) == leader and state not in "ZX":
                    found.add(int(entry.name))
    return found


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, built: Path) -> Path:
    """Two good models, two that cannot be served, and hostile ones."""
    directory = tmp_path_factory.mktemp("validate")
    hostile, store = directory / "hostile", directory / "store"
    command = [sys.executable, "-W", "ignore", HERE / "fixtures" / "hostile_torch.py", hostile, "/none", directory]
    subprocess.run(command, check=True, timeout=100)
    store.mkdir()
    for name in ("torch_loops_at_load", "torch_allocates_at_load", "truncated", "fifo"):
        (hostile / name).rename(store / name)
    for name in ("mlp", "images_torch", "images_tensorflow", "exits_at_load", "misspelt_key", "no_artifact"):
        shutil.copytree(built / name, store / name)
    (store / "mlp" / "tmp").mkdir()
    return store


@pytest.fixture(scope="module")
def report(store: Path) -> dict[str, Any]:
    done = validate(store.parent, store, "--json", "--load-timeout", "8", "--sandbox", "auto")
    assert done.stderr == ""
    assert done.returncode == 1
    found: dict[str, Any] = json.loads(done.stdout)
    assert not list(store.parent.glob("gateway-*"))
    return found


@pytest.fixture(scope="module")
def versions(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {f"{each['model']}/{each['version']}": each for each in report["versions"]}


def test_good_models_come_with_everything_that_is_known_of_them(versions: dict[str, Any]) -> None:
    for name in ("mlp/2", "mlp/3", "images_torch/1", "images_tensorflow/1"):
        found = versions[name]
        assert found["problem"] is None
        assert found["batching"]["max_batch_size"] == 32
        assert found["batching"]["reason"].startswith("on: ")
        assert 100_000 < found["memory_bytes"]["cpu"] < 500_000_000
        assert 0 < found["load_seconds"] < 8
    images = versions["images_tensorflow/1"]
    inputs = images["signatures"][images["default_signature"]]["inputs"]
    assert [(spec["name"], spec["datatype"], spec["shape"]) for spec in inputs] == [("image", "BYTES", [-1])]


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("exits_at_load/1", "its process ended with "),
        ("torch_loops_at_load/1", "it was not ready within 8 s"),
        ("torch_allocates_at_load/1", "memory"),
        ("truncated/1", ""),
        ("fifo/1", "is a FIFO"),
        ("misspelt_key/1", "max_batchsize"),
        ("no_artifact/1", "no artifact: expected model.pt"),
    ],
)
def test_whatever_a_model_does_it_is_a_row_with_its_reason(versions: dict[str, Any], name: str, problem: str) -> None:
    assert versions[name]["problem"]
    assert problem in versions[name]["problem"]
    assert "signatures" not in versions[name]


def test_everything_is_counted(report: dict[str, Any]) -> None:
    assert report["oddities"] == ["ignored: 'mlp/tmp' is no version: the name of a version's directory is an integer"]
    assert report["problems"] == 1 + sum(bool(each["problem"]) for each in report["versions"])
    assert len(report["versions"]) == 11


def test_one_model_without_problems_is_a_table_and_a_success(store: Path, versions: dict[str, Any]) -> None:
    assert versions["images_torch/1"]["problem"] is None
    done = validate(store.parent, store, "--model", "images_torch")
    assert (done.returncode, done.stderr) == (0, "")
    head, row, *rest = done.stdout.splitlines()
    assert head.split() == ["MODEL", "VERSION", "PLATFORM", "SIGNATURE", "BATCHING", "MEMORY", "LOAD", "PROBLEM"]
    assert row.startswith("images_torch  1        pytorch_torchscript  images BYTES[-1] → ")
    assert rest[-1] == "1 version, no problems"
    assert any("postprocessing: the 3 most probable of 10 classes" in line for line in rest)


def test_a_terminal_shows_what_is_being_loaded(store: Path) -> None:
    ours, theirs = pty.openpty()
    done = validate(store.parent, store, "--model", "mlp", stderr=theirs)
    os.close(theirs)
    shown = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert done.returncode == 1  # for mlp/tmp
    assert "mlp/2" in shown
    assert "0/2" in shown
    assert "mlp/tmp" in done.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_when_it_is_interrupted_nothing_is_left(
    store: Path, tmp_path: Path, helpers: Any, number: signal.Signals
) -> None:
    command = [PROGRAM, "validate", store, "--model", "torch_loops_at_load"]
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": environment(tmp_path), "cwd": tmp_path}
    process = subprocess.Popen(command, start_new_session=True, text=True, **how)
    try:
        helpers.until(lambda: len(in_session(process.pid)) == 3, 60.0)  # itself, a runner, the model that loops
        os.killpg(process.pid, number)
        stdout, stderr = process.communicate(timeout=20)
        helpers.until(lambda: not in_session(process.pid), 5.0)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)
    assert (process.returncode, stdout, stderr) == (130, "", "")
    assert not list(tmp_path.glob("gateway-*"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("store", "--model", "nobody"), "the store has no model 'nobody'; it has: exits_at_load, "),
        (("nowhere",), "nowhere is not a directory"),
        (("store", "--sandbox", "perhaps"), "sandbox"),
        (("store", "--load-timeout", "0"), "load_timeout"),
        ((), "DIR"),
        (("store", "--colour"), "--colour"),
    ],
)
def test_wrong_use_is_one_line(store: Path, arguments: tuple[str, ...], words: str) -> None:
    done = validate(store.parent, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("gateway: ")
    assert words in line


@pytest.fixture(autouse=True)
def nothing_runs_afterwards(store: Path) -> Iterator[None]:
    yield
    assert not list(store.parent.glob("gateway-*"))
