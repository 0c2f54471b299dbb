"""The names say what holds."""

from gateway.lifecycle.scarcity import RESERVE_BYTES, matters, reserve, to_end

MATTERS = matters(RESERVE_BYTES)


def test_while_enough_is_left_none_is_ended() -> None:
    assert to_end(RESERVE_BYTES, RESERVE_BYTES, {"a": 1 << 40}) is None


def test_the_one_that_has_grown_most_is_ended() -> None:
    assert to_end(0, RESERVE_BYTES, {"a": MATTERS, "b": MATTERS + 1, "c": 0}) == "b"


def test_growth_that_gives_back_too_little_ends_none() -> None:
    assert to_end(0, RESERVE_BYTES, {"a": MATTERS - 1, "b": 24 << 20}) is None
    assert to_end(0, RESERVE_BYTES, {}) is None


def test_a_small_container_has_a_small_reserve() -> None:
    assert reserve(1 << 40) == RESERVE_BYTES
    assert reserve(800 << 20) == 100 << 20
    assert to_end(50 << 20, 100 << 20, {"a": 30 << 20}) == "a"
    assert to_end(0, reserve(0), {"a": 0}) is None
