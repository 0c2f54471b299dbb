"""Real models that attack, all served by one gateway; beside them two that do not."""

import os
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

FIXTURES = Path(__file__).parent / "fixtures"
pytestmark = pytest.mark.timeout(240)  # the first test waits for the models that never end loading

SECRET = "SECRET-5d1f0c"
INNOCENT = {"mlp": ("x", "FP32", [1, 16], [0.5] * 16), "identity_tensorflow": ("x", "FP32", [1, 4], [0.5] * 4)}


class Attack:
    """A gateway full of hostile models, and what they are after."""

    def __init__(self, directory: Path) -> None:
        self.secret = directory / "outside" / "secret.txt"
        self.secret.parent.mkdir()
        self.secret.write_text(f"{SECRET}: in a file of somebody else\n")
        self.target = directory / "target"
        self.target.mkdir()
        self.temporary = directory / "temporary"
        self.temporary.mkdir()
        self.listener = socket.socket()
        self.listener.bind(("127.0.0.1", 0))
        self.listener.listen()
        self.answers: list[bytes] = []
        self.gateway: Any = None
        self.store = directory

    def build(self, store: Path) -> None:
        """Fill the store; at the end one of the builders connects, which shows that a model could."""
        self.store = store.resolve()
        port = str(self.listener.getsockname()[1])
        environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, "-W", "ignore"]
        arguments = [store, self.secret, self.target]
        torch = subprocess.Popen([*command, FIXTURES / "hostile_torch.py", *arguments], env=environment)
        tensorflow = subprocess.Popen([*command, FIXTURES / "hostile_tensorflow.py", *arguments, port], env=environment)
        try:
            self.listener.settimeout(100)
            self.listener.accept()[0].close()
            assert torch.wait(100) == 0
        finally:
            tensorflow.kill()
            tensorflow.wait()
        link_outside(store, self.secret)
        for framework in ("torch", "tensorflow"):
            (store / f"{framework}_files" / "1" / "readme.txt").write_text("a file beside the model")

    def ask(self, model: str, *inputs: Any, signature: str = "") -> Any:
        """One inference; its answer is remembered, for nothing secret may be in any."""
        names = ("name", "datatype", "shape", "data")
        body: dict[str, Any] = {"inputs": [dict(zip(names, each, strict=True)) for each in inputs]}
        if signature:
            body["parameters"] = {"signature_name": signature}
        answer = self.gateway.infer(model, body)
        self.answers.append(answer.body)
        return answer

    def read(self, framework: str, path: object) -> Any:
        if framework == "torch":
            return self.ask("torch_files", ("path", "BYTES", [1], [str(path)]), ("write", "BOOL", [1], [False]))
        return self.ask("tensorflow_files", ("path", "BYTES", [1], [str(path)]), signature="serving_default")

    def write(self, framework: str, path: object) -> Any:
        if framework == "torch":
            return self.ask("torch_files", ("path", "BYTES", [1], [str(path)]), ("write", "BOOL", [1], [True]))
        return self.ask("tensorflow_files", ("path", "BYTES", [1], [str(path)]), signature="write")

    def number(self, model: str, value: float) -> Any:
        return self.ask(model, ("x", "FP32", [1], [value]))

    def innocents_answer(self) -> bool:
        return all(self.ask(model, tensor).status == 200 for model, tensor in INNOCENT.items())

    def reasons(self) -> dict[str, tuple[str, str]]:
        index = self.gateway.http.post("/v2/repository/index")
        self.answers.append(index.content)
        return {each["name"]: (each["state"], each["reason"]) for each in index.json()}


def link_outside(store: Path, secret: Path) -> None:
    """Models whose files lie elsewhere, and elsewhere there is a good archive, too."""
    outside = secret.parent / "model.pt"
    outside.write_bytes((store / "torch_allocates" / "1" / "model.pt").read_bytes())
    for name, place in (("link_to_model", outside), ("link_to_secret", secret)):
        (store / name / "1").mkdir(parents=True)
        (store / name / "1" / "model.pt").symlink_to(place)
    folder = store / "link_inside" / "1"
    (folder / "variables").mkdir(parents=True)
    (folder / "saved_model.pb").write_bytes((store / "tensorflow_lists_at_load" / "1" / "saved_model.pb").read_bytes())
    (folder / "variables" / "variables.index").symlink_to(secret)


@pytest.fixture(scope="module")
def attack(tmp_path_factory: pytest.TempPathFactory, start_gateway: Callable[..., Any]) -> Iterator[Attack]:
    made = Attack(tmp_path_factory.mktemp("attack"))
    with made.listener, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SECRET_OF_THE_GATEWAY", f"{SECRET}: in the environment")
        patch.setenv("TMPDIR", str(made.temporary))
        options = ("--sandbox", "require", "--load-timeout", "8", "--request-timeout", "15")
        with start_gateway(list(INNOCENT), *options, prepare=made.build) as made.gateway:
            yield made
            assert made.gateway.stop() == 0
        assert not list(made.temporary.glob("gateway-*"))


@pytest.fixture(scope="module")
def connecting(attack: Attack) -> Iterator[Any]:
    """A request that makes a model connect to a port of this machine; it takes long to give up."""
    port = attack.listener.getsockname()[1]
    body = {
        "inputs": [{"name": "port", "datatype": "INT64", "shape": [1], "data": [port]}],
        "parameters": {"signature_name": "connect"},
    }
    with attack.gateway.connect() as connection:
        connection.send(attack.gateway.inference("tensorflow_connects", body))
        yield connection


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("torch_reads_at_load", "Permission denied"),
        ("torch_allocates_at_load", "more memory"),
        ("torch_loops_at_load", "not ready within"),
        ("tensorflow_reads_at_load", "Permission denied"),
        ("tensorflow_writes_at_load", "Permission denied"),
        ("tensorflow_allocates_at_load", "more memory"),
        ("tensorflow_loops_at_load", "not ready within"),
        ("tensorflow_connects_at_load", "not ready within"),
        ("truncated", "truncated or damaged"),
        ("bit_flipped", ""),
        ("fifo", "FIFO"),
        ("fifo_inside", "FIFO"),
        ("link_to_model", ""),
        ("link_to_secret", ""),
        ("link_inside", ""),
    ],
)
@pytest.mark.usefixtures("connecting")
def test_what_attacks_while_it_is_loaded_is_failed(attack: Attack, model: str, reason: str) -> None:
    state, why = attack.reasons()[model]
    assert (state, reason in why) == ("FAILED", True), why
    assert why
    assert not attack.gateway.pids(f"instance {model}/")
    assert not re.search(r"(?<!\w)/\w+/", why)


def test_what_fails_to_write_while_it_is_loaded_has_written_nothing(attack: Attack) -> None:
    assert attack.reasons()["torch_writes_at_load"][0] == "READY"  # PyTorch does not look whether it could
    assert not list(attack.target.iterdir())


def test_a_folder_looks_empty_to_a_model_that_lists_it_while_it_is_loaded(attack: Attack) -> None:
    answer = attack.number("tensorflow_lists_at_load", 1.0)
    assert answer.json()["outputs"][0]["data"] == [""]


def test_every_model_says_how_it_is_kept_in(attack: Attack) -> None:
    for model in ("mlp", "tensorflow_files"):
        said = attack.gateway.http.get(f"/v2/models/{model}").json()["parameters"]["sandbox"]
        assert "Landlock" in said
        assert "seccomp" in said
        assert "not in force" not in said


@pytest.mark.parametrize("framework", ["torch", "tensorflow"])
def test_a_model_reads_its_own_files_and_no_others(attack: Attack, framework: str) -> None:
    good = attack.read(framework, attack.store / f"{framework}_files" / "1" / "readme.txt")
    assert good.status == 200, good.body
    supervisor = attack.gateway.process.pid
    worker = min(attack.gateway.pids("http worker"))
    runner = min(attack.gateway.pids("runner"))
    others = [
        attack.secret,
        "/etc/passwd",
        "/proc/self/environ",
        f"/proc/{supervisor}/environ",
        f"/proc/{worker}/maps",
        f"/proc/{runner}/cmdline",
        attack.gateway.log,
        attack.store / f"{framework}_files" / "model.yaml",
        attack.store / "torch_floods" / "1" / "model.pt",
        f"/proc/self/root{attack.secret}",
        os.path.relpath(attack.secret, "/"),
        f"../../../../../../../../..{attack.secret}",
    ]
    for path in others:
        answer = attack.read(framework, path)
        assert answer.status in (400, 500), (path, answer.body)
        if str(path).startswith("/"):  # others are the client's own words
            assert not re.search(rb"(?<!\w)/\w+/", answer.body), answer.body


@pytest.mark.parametrize("framework", ["torch", "tensorflow"])
def test_a_model_writes_into_its_own_temporary_folder_and_nowhere_else(attack: Attack, framework: str) -> None:
    assert attack.write(framework, "kept").status == 200
    assert attack.read(framework, "kept").status == 200
    elsewhere = [
        attack.target / framework,
        attack.store / f"{framework}_files" / "1" / "written",
        attack.store / framework,
        Path("/dev/shm") / f"{attack.target.parent.name}-{framework}",
        Path(tempfile.gettempdir()) / f"{attack.target.parent.name}-{framework}",
    ]
    for path in elsewhere:
        answer = attack.write(framework, path)
        assert framework == "torch" or answer.status == 500  # PyTorch does not look whether it could
        assert not path.exists()
    attack.write(framework, attack.secret)
    assert attack.secret.read_text().startswith(SECRET)


def test_a_model_lists_its_own_files_and_no_others(attack: Attack) -> None:
    def found(pattern: str) -> list[str]:
        answer = attack.ask("tensorflow_files", ("path", "BYTES", [1], [pattern]), signature="list")
        return list(answer.json()["outputs"][0]["data"]) if answer.status == 200 else []

    own = attack.store / "tensorflow_files" / "1"
    assert str(own / "saved_model.pb") in found(f"{own}/*")
    for pattern in (f"{attack.secret.parent}/*", "/*", "/etc/*", f"{attack.store}/*", "/proc/*", "/tmp/*"):
        assert found(pattern) == []


@pytest.mark.parametrize(
    ("model", "size"),
    [("torch_allocates", 256), ("tensorflow_allocates", 256), ("torch_limited", 1), ("tensorflow_limited", 1)],
)
def test_memory_that_a_model_cannot_have_is_507_and_it_goes_on(attack: Attack, model: str, size: int) -> None:
    before = attack.gateway.pid(f"instance {model}/")
    answer = attack.number(model, size)
    assert answer.status == 507, answer.body
    assert attack.number(model, 0).status == 200
    assert attack.gateway.pid(f"instance {model}/") == before


@pytest.mark.parametrize("model", ["torch_floods", "tensorflow_floods"])
def test_a_flood_of_output_stops_nobody_and_little_of_it_is_kept(attack: Attack, helpers: Any, model: str) -> None:
    for _ in range(3):
        assert attack.number(model, 1.0).status == 200
    assert attack.innocents_answer()

    def printed() -> list[str]:
        return [line for line in attack.gateway.log.read_text().splitlines() if f" gateway.model.{model} " in line]

    helpers.until(lambda: any("printed too much" in line for line in printed()), 20)
    assert f"{model}/1#0" in printed()[0]
    assert sum(map(len, printed())) < 300_000


def test_what_a_model_prints_as_it_is_loaded_is_logged_without_what_terminals_obey(attack: Attack) -> None:
    log = attack.gateway.log.read_text()
    assert "gateway.model.torch_floods_at_load INFO torch_floods_at_load/1#0" in log
    assert "flood of the torch model 0 \\x1b[2J" in log
    assert "\x1b[2J" not in log


def test_an_archive_with_names_that_climb_out_writes_nothing(attack: Attack) -> None:
    assert attack.reasons()["zip_slip"][0] in ("READY", "FAILED")
    places = [attack.store / "zip_slip" / "1", *(attack.store / "zip_slip" / "1").parents, attack.temporary]
    assert not [place for place in places if (place / "slipped").exists()]


def test_a_model_that_connects_reaches_nobody(attack: Attack, connecting: Any) -> None:
    answer = connecting.response()
    assert answer.status in (500, 504), answer.body
    attack.listener.setblocking(False)
    with pytest.raises(BlockingIOError):
        attack.listener.accept()


def test_after_all_that_nothing_was_leaked_and_the_others_answer(attack: Attack) -> None:
    assert attack.innocents_answer()
    instances = attack.gateway.pids("instance ")
    (private,) = attack.temporary.glob("gateway-*")
    assert len(list(private.glob("*.tmp"))) == len(instances)
    assert not list(attack.target.iterdir())
    assert len(attack.answers) > 50
    assert not [answer for answer in attack.answers if SECRET.encode() in answer]
    assert SECRET not in attack.gateway.log.read_text()
