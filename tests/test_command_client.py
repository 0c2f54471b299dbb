"""What all commands that ask a gateway do alike: where they ask, with which key, and what they say if it goes wrong."""

import json
import shutil
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from gateway.commands.client import Client, did_you_mean, model_path
from gateway.errors import CallFailed, RequestError


class Server(ThreadingHTTPServer):
    """Answers every request with the same status and body, and keeps the headers of each."""

    def __init__(self, status: int, body: bytes) -> None:
        self.answer = status, body
        self.seen: list[tuple[str, dict[str, str]]] = []
        super().__init__(("127.0.0.1", 0), Handler)

    def handle_error(self, *_: object) -> None:
        """A client that breaks off, as one does that does not trust the certificate, is no news."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def _answer(self) -> None:
        self.server.seen.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        status, body = self.server.answer
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = _answer  # noqa: N815 - the library's names

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(status: int, body: bytes, tls: ssl.SSLContext | None = None) -> Iterator[Server]:
    with Server(status, body) as server:
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def client(url: str, key: str | None = None, **options: Any) -> Client:
    return Client(url, key, options.get("ca_cert"), insecure=options.get("insecure", False), timeout=5.0)


def failure(act: Callable[[], Any]) -> str:
    with pytest.raises(CallFailed) as caught:
        act()
    return caught.value.message


COMMANDS = (["ls"], ["show", "mlp"], ["infer", "mlp", "--random"], ["load", "mlp"], ["unload", "mlp"], ["bench", "mlp"])


@pytest.mark.parametrize("arguments", COMMANDS)
def test_where_nothing_answers_one_line_says_what_to_do(helpers: Any, arguments: list[str]) -> None:
    done = helpers.command(*arguments, "--url", "http://127.0.0.1:1")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "gateway: nothing answers at http://127.0.0.1:1; start one with `gateway serve` or give --url\n"
    )


@pytest.mark.parametrize("arguments", COMMANDS[1:])
def test_a_name_that_is_nearly_right_is_found(gateway: Any, arguments: list[str]) -> None:
    done = gateway.command(arguments[0], "mpl", *arguments[2:])
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "gateway: no model 'mpl'; did you mean 'mlp'?\n"


def test_a_name_like_no_other_is_told_where_names_are_listed(gateway: Any) -> None:
    assert gateway.command("show", "xyz").stderr == "gateway: no model 'xyz'; `gateway ls` lists what there is\n"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["ls", "--url", "ftp://there"], "--url must be like http://127.0.0.1:8000"),
        (["ls", "--url", "http://[::1"], "--url must be like http://127.0.0.1:8000"),
        (["ls", "--url", "http://x?y"], "--url must be like http://127.0.0.1:8000"),
        (["ls", "--key", "two\nlines"], "the API key has characters"),
        (["ls", "--ca-cert", "/nowhere", "--url", "https://x"], "--ca-cert /nowhere cannot be read: No such file"),
        (["ls", "--url", "http://xn--/"], "--url must be like http://127.0.0.1:8000"),
        (["ls", "--url", f"http://{'a' * 300}"], "has no name of a host"),
        (["ls", "--timeout", "0"], "--timeout"),
        (["ls", "--timeout", "inf"], "--timeout"),
        (["ls", "--timeout", "nan"], "--timeout"),
        (["infer", "..", "--random"], "'..' is no name of a model"),
        (["infer", "mlp", "--version", ".."], "'..' is no name of a version"),
        (["load", "."], "'.' is no name of a model"),
        (["bench", ""], "'' is no name of a model"),
        (["show"], "MODEL"),
    ],
)
def test_wrong_use_is_one_line_and_code_2(helpers: Any, arguments: list[str], named: str) -> None:
    done = helpers.command(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("gateway: ")
    assert named in line


@pytest.mark.parametrize("arguments", COMMANDS)
def test_help_shows_an_example_and_loads_nothing_that_takes_long(helpers: Any, arguments: list[str]) -> None:
    done = helpers.command(arguments[0], "--help", PYTHONPROFILEIMPORTTIME="1")
    assert done.returncode == 0
    assert f"gateway {arguments[0]} " in done.stdout.partition("Usage:")[2].partition("\n")[2]
    assert slow_modules(done.stderr) == set()


def test_no_command_loads_a_framework(gateway: Any) -> None:
    done = gateway.command("infer", "mlp", "--random", PYTHONPROFILEIMPORTTIME="1")
    assert done.returncode == 0
    assert slow_modules(done.stderr) == {"numpy", "httpx"}


def slow_modules(times: str) -> set[str]:
    """Those of what Python has written about its imports that --help must do without."""
    loaded = {line.rpartition("|")[2].strip() for line in times.splitlines()}
    return loaded & {"torch", "tensorflow", "keras", "numpy", "PIL.Image", "httpx", "fastapi", "uvicorn"}


def test_the_key_of_an_option_or_the_environment_is_sent_and_an_option_is_stronger(helpers: Any) -> None:
    with serving(200, b"[]") as server:
        url = f"http://127.0.0.1:{server.server_port}/prefix/"
        assert helpers.command("load", "m", "--url", url, GATEWAY_API_KEY="from the environment").returncode == 0
        assert helpers.command("ls", "--key", "given", GATEWAY_URL=url, GATEWAY_API_KEY="other").returncode == 0
        assert helpers.command("ls", GATEWAY_URL=url).returncode == 0
    keys = [headers.get("authorization") for _, headers in server.seen]
    assert list(dict.fromkeys(keys)) == ["Bearer from the environment", "Bearer given", None]
    assert all(path.startswith("/prefix/") and not path.startswith("/prefix//") for path, _ in server.seen)


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (403, b'{"error": "only here"}', "only here"),
        (401, b'{"error": "no key"}', "no key (--key or GATEWAY_API_KEY gives a key)"),
        (409, b'{"code": 409, "type": "ConflictStatusException", "message": "twice"}', "twice"),
        (502, b"<html>", "answers 502 Bad Gateway"),
        (500, b'{"error": ""}', "answers 500 Internal Server Error"),
        (500, b"[1]", "answers 500"),
        (200, b"hello", "answers, but not as a gateway does"),
        (200, b"{}", "answers, but not as a gateway does"),
        (200, b"[[]]", "answers, but not as a gateway does"),
    ],
)
def test_a_server_that_says_no_is_quoted(status: int, body: bytes, said: str) -> None:
    with serving(status, body) as server, client(f"127.0.0.1:{server.server_port}") as asking:
        assert said in failure(asking.index)


def test_a_terminal_obeys_nothing_that_a_server_says(helpers: Any) -> None:
    with serving(400, json.dumps({"error": "\x1b[31mred\x9b2J\nand more"}).encode()) as server:
        done = helpers.command("load", "m", "--url", f"http://127.0.0.1:{server.server_port}")
    assert done.stderr == "gateway: [31mred 2J and more\n"


def test_a_server_that_does_not_answer_in_time_is_named(helpers: Any) -> None:
    import socket  # noqa: PLC0415 - here only

    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        done = helpers.command("ls", "--url", url, "--timeout", "0.2")
    assert (done.returncode, done.stderr) == (
        1,
        f"gateway: {url} did not answer within 0.2 s; --timeout waits longer\n",
    )


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes the certificate")
def test_https_is_trusted_by_its_certificate_or_without_any(tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-keyout", key, "-out", cert, "-days", "2", "-subj", "/CN=gateway"),
            *("-addext", "subjectAltName=IP:127.0.0.1"),
        ],
        check=True,
        capture_output=True,
        timeout=20,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    with serving(200, b"[]", context) as server:
        url = f"https://127.0.0.1:{server.server_port}"
        with client(url) as asking:
            assert "is not trusted" in failure(asking.index)
            assert "--ca-cert" in failure(asking.index)
        for options in ({"ca_cert": cert}, {"insecure": True}):
            with client(url, **options) as asking:
                assert asking.index() == []
    with serving(200, b"[]") as server, client(f"https://127.0.0.1:{server.server_port}") as asking:
        assert "is it an http:// one?" in failure(asking.index)
    with pytest.raises(RequestError, match="cannot be read"):
        client("https://x", ca_cert=key)


def test_no_proxy_of_the_environment_is_asked(helpers: Any) -> None:
    with serving(200, b"[]") as server:
        url = f"http://127.0.0.1:{server.server_port}"
        assert helpers.command("ls", "--url", url, HTTP_PROXY="http://127.0.0.1:1", ALL_PROXY="").returncode == 0


def test_names_are_escaped_in_paths() -> None:
    assert model_path("a/b c?", "1") == "/v2/models/a%2Fb%20c%3F/versions/1"
    assert model_path("\udcff") == "/v2/models/%FF"


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_what_leads_to_another_path_is_no_name(name: str) -> None:
    for arguments in ((name,), ("m", name)):
        with pytest.raises(RequestError, match="is no name of a"):
            model_path(*arguments)


def test_only_what_is_alike_is_proposed() -> None:
    assert did_you_mean("mpl", ["mlp", "slow"]) == "did you mean 'mlp'?"
    assert did_you_mean("xyz", ["mlp", "slow"]) == ""


# The shell


def completions(helpers: Any, words: str, **variables: str) -> list[str]:
    done = helpers.command(
        _GATEWAY_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=str(len(words.split(" ")) - 1), **variables
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


def test_the_shell_completes_commands_and_the_names_of_models(helpers: Any, gateway: Any) -> None:
    assert {"serve", "ls", "show", "infer", "load", "unload", "bench"} <= set(completions(helpers, "gateway "))
    assert completions(helpers, "gateway show digits", GATEWAY_URL=gateway.url) == ["digits_tensorflow", "digits_torch"]
    assert completions(helpers, f"gateway infer --url {gateway.url} text") == ["text_tensorflow"]
    assert completions(helpers, "gateway load ", GATEWAY_URL="http://127.0.0.1:1") == []


def test_the_shell_is_given_no_name_that_it_could_run(helpers: Any) -> None:
    names = [{"name": name} for name in ("good", "$(touch x)", "`x`", "a b", "a;b", "")]
    with serving(200, json.dumps(names).encode()) as server:
        assert completions(helpers, "gateway show ", GATEWAY_URL=f"http://127.0.0.1:{server.server_port}") == ["good"]


def test_the_script_for_a_shell_is_shown(helpers: Any) -> None:
    named = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}  # whatever shell the tests have been started from
    assert "_GATEWAY_COMPLETE=complete_bash" in helpers.command("--show-completion", "bash", **named).stdout
