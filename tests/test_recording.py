"""An instance's recorder, with a profiler that writes down what is asked of it."""

import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from gateway.instance.recording import CALLS_OF_UNKNOWN_COST, EVENT_BYTES, SHARE_OF_LIMIT, Recorder
from gateway.instance.serve import Server
from gateway.ipc.messages import Stop, send
from gateway.ipc.recording import EndRecord, Record, Recorded, graph_name, receive, trace_name
from gateway.store.manifest import ModelConfig
from gateway.tensors import Array, Signature

X = {"x": np.zeros((1, 1), np.float32)}


class Profiled:
    """Model and profiler in one; a call costs 2 of the 10 that there is room for."""

    platform = "pytorch_torchscript"
    default_signature = "forward"
    signatures: ClassVar[dict[str, Signature]] = {}
    notes: ClassVar[list[str]] = []
    optimised = False
    most = 10

    def __init__(self) -> None:
        self.log: list[str] = []
        self.known: dict[str, Array] | None = X
        self.broken = ""

    def _do(self, what: str) -> None:
        self.log.append(what)
        if self.broken == what:
            raise RuntimeError(what)

    def execute(self, _: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self._do("execute")
        return dict(inputs)

    def rest(self) -> float:
        return -1.0

    def example(self, _: str) -> dict[str, Array] | None:
        return self.known

    def tracer(self) -> "Profiled":
        return self

    def cost(self, call: Callable[[], object]) -> int:
        call()
        self.log[-1] = "try"
        return 2

    def start(self) -> None:
        self._do("start")

    def stop(self, path: Path) -> None:
        self._do("stop")
        path.write_bytes(b"trace")

    def graph(self) -> bytes:
        self._do("graph")
        return b"graph"


class Scene:
    def __init__(self, folder: Path, listener: socket.socket, memory_limit: int = 0) -> None:
        self.model: Any = Profiled()
        self.server = Server(self.model, ModelConfig(), 1, listener)
        self.plain = self.server.execute
        self.said: list[Recorded] = []
        self.recorder = Recorder(self.server, self.model, folder, self.said.append, memory_limit)

    def call(self, times: int = 1) -> None:
        for _ in range(times):
            self.server.execute("forward", X)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with socket.socket(socket.AF_UNIX) as listener:
        yield Scene(tmp_path, listener)


def test_what_is_executed_between_the_two_words_is_recorded(scene: Scene, tmp_path: Path) -> None:
    scene.call()
    scene.recorder.hear(Record(number=3))
    scene.call(2)
    assert not scene.said
    scene.recorder.hear(EndRecord(number=3))
    scene.call()
    assert scene.model.log == ["execute", "try", "start", "execute", "execute", "stop", "graph", "execute"]
    (said,) = scene.said
    assert (said.number, said.executions, said.full, said.error) == (3, 2, False, "")
    assert (tmp_path / trace_name(3)).read_bytes() == b"trace"
    assert (tmp_path / graph_name(3)).read_bytes() == b"graph"


def test_without_a_recording_nothing_stands_between_server_and_model(scene: Scene) -> None:
    scene.recorder.hear(Record(number=1))
    assert scene.server.execute != scene.plain
    scene.recorder.hear(EndRecord(number=1))
    assert scene.server.execute == scene.plain


def test_it_ends_by_itself_when_there_is_no_room_for_more_and_the_late_word_is_overheard(scene: Scene) -> None:
    scene.recorder.hear(Record(number=1))
    scene.call(7)
    scene.recorder.hear(EndRecord(number=1))
    (said,) = scene.said
    assert (said.executions, said.full) == (5, True)
    assert scene.model.log[-3:] == ["graph", "execute", "execute"]


def test_a_model_that_may_have_little_memory_is_recorded_for_less_long(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        scene = Scene(tmp_path, listener, memory_limit=4 * SHARE_OF_LIMIT * EVENT_BYTES)
        scene.recorder.hear(Record(number=1))
        scene.call(2)
        assert scene.said[0].full


def test_a_model_without_an_example_is_not_tried_beforehand(scene: Scene) -> None:
    scene.model.known = None
    scene.recorder.hear(Record(number=1))
    assert scene.model.log == ["start"]
    scene.call(CALLS_OF_UNKNOWN_COST)
    assert scene.said[0].full


def test_a_request_that_fails_fails_as_ever_and_counts(scene: Scene) -> None:
    scene.recorder.hear(Record(number=1))
    scene.model.broken = "execute"
    with pytest.raises(RuntimeError, match="execute"):
        scene.call()
    scene.model.broken = ""
    scene.recorder.hear(EndRecord(number=1))
    assert scene.said[0].executions == 1


@pytest.mark.parametrize("what", ["start", "stop", "graph", "execute"])
def test_a_profiler_that_fails_is_told_and_the_model_serves_on(
    scene: Scene, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    scene.model.broken = what
    scene.recorder.hear(Record(number=1))
    scene.recorder.hear(EndRecord(number=1))
    (said,) = scene.said
    assert said.error == "RuntimeError was raised"
    assert "Traceback" in capsys.readouterr().err
    scene.model.broken = ""
    scene.call()
    scene.recorder.hear(Record(number=2))
    scene.recorder.hear(EndRecord(number=2))
    assert not scene.said[-1].error


def test_words_are_read_whole_and_the_end_is_none() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for message in (Record(number=7), EndRecord(number=7), Stop()):
            send(theirs, message)
            assert receive(ours) == message
        theirs.close()
        assert receive(ours) is None
