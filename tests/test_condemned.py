import pytest

from gateway.http import condemned as module
from gateway.http.condemned import Condemned, digest_of
from gateway.ipc.messages import VersionRoute
from gateway.store.manifest import ModelConfig


def route(model: str, version: int, stamp: int = 5) -> VersionRoute:
    return VersionRoute(model, version, "pytorch_torchscript", "pytorch", "READY", "", ModelConfig(), stamp=stamp)


ROUTE = route("m", 1)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_only_the_same_request_is_remembered() -> None:
    condemned = Condemned()
    assert not condemned.digests
    condemned.add(digest_of(ROUTE, b"body"))
    assert condemned.digests
    assert condemned.has(ROUTE, b"body")
    assert condemned.has(ROUTE, memoryview(b"body"))
    for other in (
        (route("m", 2), b"body"),
        (route("n", 1), b"body"),
        (route("m", 1, stamp=6), b"body"),
        (ROUTE, b"bodx"),
        (ROUTE, b"bodies"),
    ):
        assert not condemned.has(*other)


def test_it_is_forgotten_after_a_while(clock: Clock) -> None:
    condemned = Condemned()
    condemned.add(digest_of(ROUTE, b"first"))
    clock.now += module.REMEMBER_SECONDS - 1
    condemned.add(digest_of(ROUTE, b"second"))
    assert condemned.has(ROUTE, b"first")
    clock.now += 2
    assert not condemned.has(ROUTE, b"first")
    assert condemned.has(ROUTE, b"second")
    clock.now += module.REMEMBER_SECONDS
    assert not condemned.has(ROUTE, b"second")
    assert not condemned.digests


def test_the_requests_of_others_are_neither_hashed_nor_compared_with_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def hashed(*_: object) -> bytes:
        raise AssertionError

    condemned = Condemned()
    for number in range(100):
        condemned.add(digest_of(ROUTE, b"%3d" % number))
    monkeypatch.setattr(module, "digest_of", hashed)
    for other in ((route("m", 2), b"  1"), (route("n", 1), b"  1"), (ROUTE, b"1")):
        assert not condemned.has(*other)
    with pytest.raises(AssertionError):
        condemned.has(ROUTE, b"  1")


def test_one_that_is_remembered_forgets_those_whose_time_is_over(clock: Clock) -> None:
    condemned = Condemned()
    condemned.add(digest_of(ROUTE, b"first"))
    clock.now += module.REMEMBER_SECONDS
    condemned.add(digest_of(ROUTE, b"second"))
    assert list(condemned.digests) == [digest_of(ROUTE, b"second")]


def test_one_that_comes_again_is_remembered_from_then_on_and_once(clock: Clock) -> None:
    condemned = Condemned()
    for body in (b"again", b"other", b"again"):
        condemned.add(digest_of(ROUTE, body))
        clock.now += 1
    clock.now += module.REMEMBER_SECONDS - 2
    assert condemned.has(ROUTE, b"again")
    assert not condemned.has(ROUTE, b"other")
    clock.now += 1
    assert not condemned.has(ROUTE, b"again")
    assert not condemned.digests


def test_only_so_many_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 3)
    condemned = Condemned()
    bodies = [f"body {number}".encode() for number in range(5)]
    for body in bodies:
        condemned.add(digest_of(ROUTE, body))
    assert [condemned.has(ROUTE, body) for body in bodies] == [False, False, True, True, True]
