import pytest

from gateway.errors import ModelNotFound
from gateway.http import calls, oip
from gateway.http.calls import Calls, match
from gateway.ipc.messages import Batching, Ready, VersionRoute
from gateway.metrics import VersionCounters
from gateway.routing import RoutingTable, Target
from gateway.store.manifest import ModelConfig
from gateway.tensors import Signature


def table_of(model: str) -> RoutingTable:
    ready = Ready(
        pid=1,
        platform="pytorch_torchscript",
        signatures={"forward": Signature("forward", (), ())},
        default_signature="forward",
        batching=Batching(1, "off"),
        notes=[],
        load_seconds=0.1,
    )
    route = VersionRoute(model, 1, "pytorch_torchscript", "pytorch", "READY", "", ModelConfig(), ready)
    return RoutingTable([route], [Target(route, [], VersionCounters(model, "1", "pytorch"))])


@pytest.mark.parametrize(
    ("path", "wish"),
    [
        (b"/v2/models/m/infer", ("m", None)),
        (b"/v2/models/m/versions/3/infer", ("m", "3")),
        (b"/v2/models/m/versions/stable/infer", ("m", "stable")),
        (b"/v2/models/a%20b%2F%C3%BC/infer", ("a b/ü", None)),
        (b"http://host:8000/v2/models/m/infer", ("m", None)),
        (b"/v2/models/%ff/infer", ("\ufffd", None)),
    ],
)
def test_an_inference_path_names_its_model(path: bytes, wish: tuple[str, str | None]) -> None:
    assert match(path) == (oip.INFER, wish)


@pytest.mark.parametrize(
    "path", [b"/v2/models/m", b"/v2/models/m/infer/", b"/v2/models//infer", b"/", b"http://h", b""]
)
def test_other_paths_are_no_calls(path: bytes) -> None:
    assert match(path) is None
    assert Calls(RoutingTable()).find(path) is None


def test_a_call_that_can_be_answered_is_looked_up_once() -> None:
    known = Calls(table_of("m"))
    assert known.get(b"/v2/models/m/infer") is None
    call = known.find(b"/v2/models/m/infer")
    assert call is not None
    assert isinstance(call.target, Target)
    assert known.get(b"/v2/models/m/infer") is call


def test_a_call_that_cannot_be_answered_says_why_and_is_not_kept() -> None:
    known = Calls(table_of("m"))
    call = known.find(b"/v2/models/other/infer")
    assert call is not None
    assert isinstance(call.target, ModelNotFound)
    assert known.get(b"/v2/models/other/infer") is None


def test_what_is_kept_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "CALLS", 3)
    known = Calls(table_of("m"))
    paths = [b"/v2/models/m/versions/%s1/infer" % (b"0" * zeros) for zeros in range(5)]
    for path in paths:
        assert known.find(path) is not None
    assert sum(known.get(path) is not None for path in paths) <= 3
    assert known.find(b"/v2/models/m/versions/%s/infer" % (b"0" * 600)) is not None
    assert known.get(b"/v2/models/m/versions/%s/infer" % (b"0" * 600)) is None
