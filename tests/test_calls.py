import gc
import weakref
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import ModelNotFound
from gateway.http import calls, oip
from gateway.http.calls import Calls, match, spread
from gateway.ipc.batching import Batching
from gateway.ipc.messages import Ready, VersionRoute
from gateway.metrics import VersionCounters
from gateway.routing import RoutingTable, Target
from gateway.store.manifest import ModelConfig
from gateway.tensors import Signature


def table_of(model: str, *versions: int, traffic: dict[int, int] | None = None, default: int = 0) -> RoutingTable:
    ready = Ready(
        pid=1,
        platform="pytorch_torchscript",
        signatures={"forward": Signature("forward", (), ())},
        default_signature="forward",
        batching=Batching(1, "off"),
        notes=[],
        load_seconds=0.1,
    )
    config = ModelConfig(traffic=traffic or {})
    routes = [
        VersionRoute(
            model, version, "pytorch_torchscript", "pytorch", "READY", "", config, ready, default=version == default
        )
        for version in versions or (1,)
    ]
    targets = [Target(route, [], VersionCounters(model, str(route.version), "pytorch")) for route in routes]
    return RoutingTable(routes, targets)


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


def test_a_call_without_an_answer_goes_with_its_last_user() -> None:
    """Routing tables change often, and must not stay until the garbage collector comes."""

    def ask(table: RoutingTable) -> None:
        call = Calls(table).find(b"/v2/models/nobody/infer")  # held by the very frame that the error would remember
        assert call is not None
        assert isinstance(call.target, ModelNotFound)

    table = table_of("m", 1)
    gone = weakref.ref(table)
    gc.disable()
    try:
        ask(table)
        del table
        assert gone() is None
    finally:
        gc.enable()


def test_what_is_kept_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "CALLS", 3)
    known = Calls(table_of("m"))
    paths = [b"/v2/models/m/versions/%s1/infer" % (b"0" * zeros) for zeros in range(5)]
    for path in paths:
        assert known.find(path) is not None
    assert sum(known.get(path) is not None for path in paths) <= 3
    assert known.find(b"/v2/models/m/versions/%s/infer" % (b"0" * 600)) is not None
    assert known.get(b"/v2/models/m/versions/%s/infer" % (b"0" * 600)) is None


@given(st.dictionaries(st.integers(1, 9), st.integers(1, 100), min_size=1, max_size=4))
def test_shares_are_kept_and_spread(shares: dict[int, int]) -> None:
    order = spread(shares)
    for version, part in shares.items():
        assert order.count(version) * sum(shares.values()) == part * len(order)
        places = [place for place, each in enumerate(order) if each == version]
        gaps = [after - before for before, after in pairwise([*places, places[0] + len(order)])]
        assert max(gaps) <= 2 * len(order) / len(places) + len(shares)


def served(known: Calls, count: int) -> list[str]:
    found = [known.get(PATH) or known.find(PATH) for _ in range(count)]
    return sorted(call.target.version for call in found if call and isinstance(call.target, Target))


PATH = b"/v2/models/m/infer"


def test_requests_without_a_version_are_split_as_the_model_says() -> None:
    assert served(Calls(table_of("m", 3, 4, 5, traffic={3: 75, 4: 25})), 8) == ["3"] * 6 + ["4"] * 2
    assert served(Calls(table_of("m", 3, 4, traffic={3: 100, 4: 0})), 8) == ["3"] * 8
    named = Calls(table_of("m", 3, 4, traffic={3: 75, 4: 25})).find(b"/v2/models/m/versions/4/infer")
    assert named is not None
    assert isinstance(named.target, Target)
    assert named.target.version == "4"


def test_a_version_that_is_not_there_leaves_its_part_and_a_default_gets_all() -> None:
    assert served(Calls(table_of("m", 3, traffic={3: 75, 4: 25})), 4) == ["3"] * 4
    assert served(Calls(table_of("m", 5, traffic={3: 75, 4: 25})), 4) == ["5"] * 4
    assert served(Calls(table_of("m", 3, 4, traffic={3: 75, 4: 25}, default=4)), 4) == ["4"] * 4
