from types import SimpleNamespace
from typing import Any, cast

import msgspec
import orjson
import pytest

from gateway.errors import ModelNotFound, ModelNotReady, OutOfMemory, RequestError, VersionNotFound
from gateway.ipc.batching import Batching
from gateway.ipc.channel import Channel
from gateway.ipc.messages import Ready, VersionRoute
from gateway.metrics import VersionCounters
from gateway.routing import NotYet, RoutingTable, Target, pick
from gateway.store.manifest import ModelConfig
from gateway.tensors import Signature, TensorSpec


def route_of(model: str = "m", version: int = 1, state: str = "READY", reason: str = "") -> VersionRoute:
    spec = TensorSpec("x", "FP32", (-1,))
    signatures = {name: Signature(name, (spec, TensorSpec("o", "FP32", (), optional=True)), ()) for name in ("a", "b")}
    ready = Ready(
        pid=1,
        platform="p",
        signatures=signatures,
        default_signature="a",
        batching=Batching(1, ""),
        notes=[],
        load_seconds=0.0,
    )
    return VersionRoute(
        model=model,
        version=version,
        platform="p",
        framework="pytorch",
        state=state,
        reason=reason,
        config=ModelConfig(),
        ready=ready if state == "READY" else None,
    )


def channel(pending: int = 0) -> Channel:
    return cast("Channel", SimpleNamespace(rows=pending))


def target_of(route: VersionRoute, *channels: Channel) -> Target:
    return Target(route, list(channels), VersionCounters(route.model, str(route.version), route.framework))


def table_of(*routes: VersionRoute, settled: bool = True) -> RoutingTable:
    return RoutingTable(routes, [target_of(route, channel()) for route in routes if route.ready], settled)


def test_the_highest_ready_version_answers_for_the_model() -> None:
    table = table_of(route_of(version=9), route_of(version=10), route_of(version=11, state="LOADING"))
    assert table.find("m").version == 10
    assert table.target("m").version == "10"
    assert table.target("m", "9").version == "9"
    with pytest.raises(ModelNotReady):
        table.target("m", "11")


def labelled(version: int, *labels: str, state: str = "READY") -> VersionRoute:
    config = ModelConfig(version_labels={"stable": 1, "canary": 2, "gone": 7})
    return msgspec.structs.replace(route_of(version=version, state=state), labels=list(labels), config=config)


def test_a_label_is_the_version_that_it_stands_for() -> None:
    table = table_of(labelled(1, "stable"), labelled(2, "canary"))
    assert table.find("m", "stable").version == 1
    assert table.target("m", "canary").version == "2"
    assert table.target("m", "stable").version == "1"
    assert table.target("m").version == "2"


@pytest.mark.parametrize(
    ("label", "expected"), [("gone", "stands for version 7, which is not there"), ("nobody", "'nobody' is not found")]
)
def test_a_label_without_a_version_is_not_found(label: str, expected: str) -> None:
    with pytest.raises(VersionNotFound, match=expected):
        table_of(labelled(1, "stable")).find("m", label)


def test_a_cold_version_soon_answers_and_is_found_where_none_is_ready() -> None:
    table = table_of(
        route_of(version=1, state="COLD"), route_of(version=2, state="COLD"), route_of(version=3, state="FAILED")
    )
    assert table.find("m").version == 2
    assert table.answers_soon("m", 2)
    assert not table.answers_soon("m", 3)
    with pytest.raises(NotYet) as caught:
        table.target("m")
    assert caught.value.route.version == 2


def test_a_version_does_not_lose_its_place_by_going_cold() -> None:
    table = table_of(route_of(version=1), route_of(version=2, state="COLD"))
    assert table.find("m").version == 2
    assert table.target("m", "1").version == "1"


def test_a_version_that_loads_is_waited_for_only_if_it_was_there_before() -> None:
    loading = route_of(state="LOADING")
    with pytest.raises(ModelNotReady) as caught:
        table_of(loading).target("m")
    assert not isinstance(caught.value, NotYet)
    for before in (table_of(route_of(state="COLD")), table_of(route_of())):
        waking = RoutingTable([loading], before=before)
        with pytest.raises(NotYet):
            waking.target("m")
        still = RoutingTable([loading], before=waking)
        assert still.answers_soon("m", 1)


def test_a_version_that_cannot_fit_says_so() -> None:
    route = msgspec.structs.replace(route_of(state="FAILED", reason="3 GB of 2 GB"), refusal="out_of_memory")
    with pytest.raises(OutOfMemory, match="FAILED: 3 GB of 2 GB"):
        table_of(route).target("m")


def test_a_server_that_stops_is_not_ready() -> None:
    cold = route_of(state="COLD")
    assert RoutingTable([cold], settled=True).ready
    assert not RoutingTable([cold], settled=True, stopping=True).ready
    assert not RoutingTable([cold], settled=False).ready


def test_without_a_ready_version_the_highest_is_found() -> None:
    table = table_of(route_of(version=2, state="FAILED"), route_of(version=3, state="LOADING"))
    assert table.find("m").version == 3


def test_a_version_is_found_by_its_number_however_it_is_written() -> None:
    table = table_of(route_of(version=123))
    assert table.find("m", "123").version == 123
    assert table.find("m", "00123").version == 123


@pytest.mark.parametrize("version", ["2", "", "-1", "1.0", "one", "١", "9" * 5000, "1 ", "+1", "1_0"])  # noqa: RUF001
def test_a_version_that_is_not_there_is_said_in_a_short_sentence(version: str) -> None:
    with pytest.raises(VersionNotFound) as caught:
        table_of(route_of()).find("m", version)
    assert len(caught.value.message) < 150


def test_a_model_that_is_not_there_is_said_so() -> None:
    with pytest.raises(ModelNotFound, match="'other'"):
        table_of(route_of()).find("other")
    with pytest.raises(ModelNotFound):
        RoutingTable().find("m")


def test_a_version_that_cannot_answer_says_why() -> None:
    table = table_of(route_of(version=1), route_of(version=2, state="FAILED", reason="no layer fits"))
    with pytest.raises(ModelNotReady, match="FAILED: no layer fits"):
        table.target("m", "2")
    assert table.target("m").version == "1"


def test_the_instance_with_the_fewest_requests_is_picked() -> None:
    busy, idle = channel(3), channel(1)
    assert pick(target_of(route_of(), busy, idle)) is idle
    assert pick(target_of(route_of(), busy)) is busy
    with pytest.raises(ModelNotReady, match="no running instance"):
        pick(target_of(route_of()))


def test_an_instance_that_is_gone_is_picked_no_more() -> None:
    gone, left = channel(), channel(9)
    target = target_of(route_of(), gone, left)
    table = RoutingTable([target.route], [target], settled=True)
    table.drop(gone)
    table.drop(gone)
    assert pick(target) is left


@pytest.mark.parametrize(
    ("states", "settled", "ready"),
    [
        ([], False, (False, False)),
        ([], True, (False, False)),
        (["READY"], False, (False, False)),
        (["READY"], True, (True, True)),
        (["COLD"], True, (True, True)),
        (["READY", "FAILED"], True, (True, False)),
        (["READY", "LOADING"], True, (True, False)),
        (["READY", "UNLOADED", "DRAINING"], True, (True, True)),
        (["FAILED"], True, (False, False)),
        (["FAILED", "COLD"], True, (True, False)),
        (["UNLOADED"], True, (False, False)),
    ],
)
def test_the_server_is_ready_when_everything_settled_and_any_model_answers_and_strictly_when_all_do(
    states: list[str], settled: bool, ready: tuple[bool, bool]
) -> None:
    routes = [route_of(f"m{index}", state=state) for index, state in enumerate(states)]
    table = table_of(*routes, settled=settled)
    assert (table.ready, table.all_ready) == ready


def test_a_server_is_not_ready_while_its_only_model_has_no_instance() -> None:
    gone = channel()
    target = target_of(route_of(), gone)
    table = RoutingTable([target.route], [target], settled=True)
    assert table.ready
    table.drop(gone)
    assert not table.ready


@pytest.mark.parametrize(("newer", "ready"), [("LOADING", True), ("FAILED", False)])
def test_a_new_version_leaves_a_server_strictly_ready_unless_it_fails(newer: str, ready: bool) -> None:
    assert table_of(route_of(version=1), route_of(version=2, state=newer)).all_ready is ready


def test_a_signature_is_found_by_name_or_by_default() -> None:
    target = target_of(route_of())
    assert [target.signature(name).name for name in (None, "", "a", "b")] == ["a", "a", "a", "b"]
    with pytest.raises(RequestError, match="'a', 'b'"):
        target.signature("c")


def test_what_answering_needs_is_looked_up_beforehand() -> None:
    target: Any = target_of(route_of())
    assert orjson.loads(target.response_start + b"}") == {"model_name": "m", "model_version": "1"}
    assert target.required == {"a": frozenset({"x"}), "b": frozenset({"x"})}
    assert target.specs["a"]["o"].optional
