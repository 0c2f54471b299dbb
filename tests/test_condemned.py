import pytest

from gateway.http import condemned as module
from gateway.http.condemned import Condemned, digest_of


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
    condemned.add(digest_of("m", "1", b"body"))
    assert condemned.digests
    assert condemned.has("m", "1", b"body")
    assert condemned.has("m", "1", memoryview(b"body"))
    for other in (("m", "2", b"body"), ("n", "1", b"body"), ("m", "1", b"bodx"), ("m", "1", b"bodies")):
        assert not condemned.has(*other)


def test_it_is_forgotten_after_a_while(clock: Clock) -> None:
    condemned = Condemned()
    condemned.add(digest_of("m", "1", b"first"))
    clock.now += module.REMEMBER_SECONDS - 1
    condemned.add(digest_of("m", "1", b"second"))
    assert condemned.has("m", "1", b"first")
    clock.now += 2
    assert not condemned.has("m", "1", b"first")
    assert condemned.has("m", "1", b"second")
    clock.now += module.REMEMBER_SECONDS
    assert not condemned.has("m", "1", b"second")
    assert not condemned.digests


def test_only_so_many_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 3)
    condemned = Condemned()
    bodies = [f"body {number}".encode() for number in range(5)]
    for body in bodies:
        condemned.add(digest_of("m", "1", body))
    assert [condemned.has("m", "1", body) for body in bodies] == [False, False, True, True, True]
