import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import gateway

MAIN = "from gateway.cli import main; main()"
NOTHING_WRITABLE = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)); "
"""No file can be written to from here on, as under a read-only root."""


def run(
    *arguments: str, cwd: Path, stdout: Any = subprocess.PIPE, before: str = "", **variables: str
) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.upper().startswith("GATEWAY_")}
    return subprocess.run(
        [sys.executable, "-c", before + MAIN, *arguments],
        check=False,
        cwd=cwd,
        env=environment | {"PYTHONPATH": str(Path(gateway.__file__).parents[1])} | variables,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=30,
    )


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "model_store").mkdir()
    return tmp_path


def assert_refused(done: subprocess.CompletedProcess[str], *named: str) -> None:
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("gateway: ")
    for name in named:
        assert name in line


def test_an_unknown_key_in_the_file_ends_with_one_line_that_names_it(place: Path) -> None:
    (place / "gateway.yaml").write_text("prot: 8000")
    assert_refused(run("serve", cwd=place), "prot", "gateway.yaml")


def test_an_unknown_variable_ends_with_one_line_that_names_it(place: Path) -> None:
    assert_refused(run("serve", cwd=place, GATEWAY_PROT="8000"), "GATEWAY_PROT")


def test_variables_of_the_commands_that_ask_a_server_do_not_disturb_the_server(tmp_path: Path) -> None:
    ours = {"GATEWAY_URL": "http://127.0.0.1:8000", "GATEWAY_API_KEY": "secret"}
    assert_refused(run("serve", cwd=tmp_path, **ours), "model_store")  # it has got that far


def test_a_bad_value_ends_with_one_line_that_names_its_key(place: Path) -> None:
    assert_refused(run("serve", "--workers", "0", cwd=place), "workers")


def test_a_model_store_that_is_not_there_ends_with_one_line(tmp_path: Path) -> None:
    assert_refused(run("serve", cwd=tmp_path), "model_store")


@pytest.mark.parametrize("command", [("serve", "--port", "0"), ("validate", "model_store")])
def test_a_root_that_is_read_only_without_a_temporary_directory_ends_with_one_line(
    place: Path, command: tuple[str, ...]
) -> None:
    assert_refused(run(*command, cwd=place, before=NOTHING_WRITABLE), "TMPDIR", "/tmp")


def test_a_temporary_directory_too_long_for_sockets_ends_with_one_line(place: Path) -> None:
    long = place / ("long" * 25)
    long.mkdir()
    assert_refused(run("serve", "--port", "0", cwd=place, TMPDIR=str(long)), "TMPDIR", "107 bytes")
    assert not list(long.iterdir())


def test_a_port_that_is_taken_ends_with_one_line(place: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert_refused(run("serve", "--port", str(port), cwd=place), str(port), "in use")


@pytest.mark.parametrize("host", ["no.such.host.invalid", "203.0.113.1", "not a host", "1:2:3"])
def test_a_host_that_cannot_be_listened_on_ends_with_one_line(place: Path, host: str) -> None:
    assert_refused(run("serve", "--host", host, "--port", "0", cwd=place), host)


def test_a_wrong_option_or_command_ends_with_code_2(place: Path) -> None:
    for arguments in (["serve", "--prot", "1"], ["serve", "--port", "many"], ["sevre"]):
        done = run(*arguments, cwd=place)
        assert done.returncode == 2
        assert arguments[-2 if "many" in arguments else 1 if len(arguments) > 1 else 0] in done.stderr


def test_the_version_is_shown(place: Path) -> None:
    done = run("--version", cwd=place)
    assert (done.returncode, done.stdout) == (0, f"gateway {gateway.__version__}\n")


@pytest.mark.parametrize("arguments", [["--help"], ["serve", "--help"], ["infer", "--help"], ["serve", "--prot", "1"]])
def test_help_and_a_wrong_option_answer_at_once(place: Path, arguments: list[str]) -> None:
    """Within half a second; on a machine that is slow now, within four times what importing the libraries takes."""
    seconds, bare = [], []
    for _ in range(3):
        started = time.perf_counter()
        done = run(*arguments, cwd=place)
        seconds.append(time.perf_counter() - started)
        assert done.returncode == (2 if "--prot" in arguments else 0)
        if seconds[-1] < 0.5:
            break
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import asyncio, typer.main, rich.table"], check=True, timeout=20)
        bare.append(time.perf_counter() - started)
    assert min(seconds) < max(0.5, 4 * min(bare, default=0.0))


def test_help_names_every_setting(place: Path) -> None:
    from gateway.settings import Settings  # noqa: PLC0415 - the command line does without

    shown = run("serve", "--help", cwd=place, COLUMNS="200").stdout
    for name in Settings.model_fields:
        assert f"--{name.replace('_', '-')}" in shown


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [[], ["--help"], ["keys", "ls"], ["keys", "ls", "--json"]])
def test_output_that_cannot_be_written_is_one_line_and_code_1(
    place: Path, arguments: list[str], unbuffered: str
) -> None:
    (place / "keys").write_text('{"keys": []}')
    variables = {"GATEWAY_KEYS_FILE": str(place / "keys"), "PYTHONUNBUFFERED": unbuffered}
    with Path("/dev/full").open("w") as full:
        done = run(*arguments, cwd=place, stdout=full, **variables)
    assert (done.returncode, done.stderr) == (1, "gateway: the output cannot be written: No space left on device\n")


def test_a_reader_that_has_gone_is_no_mistake(place: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = run(cwd=place, stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")
