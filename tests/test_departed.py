"""Counters of versions that are gone are shown for some scrapes only."""

from gateway.departed import KEPT_SCRAPES, Departed
from gateway.metrics import VersionCounters

HERE, GONE = ("m", "1"), ("gone", "1")


def counters(*keys: tuple[str, str]) -> list[VersionCounters]:
    return [VersionCounters(*key, "pytorch") for key in keys]


def shown(departed: Departed, *living: tuple[str, str]) -> list[str]:
    return [each.model for each in departed.without(counters(HERE, GONE), living)]


def test_a_version_that_is_gone_is_shown_for_some_scrapes() -> None:
    departed = Departed()
    for _ in range(KEPT_SCRAPES):
        assert shown(departed, HERE) == ["m", "gone"]
        assert departed.expired == []
    for _ in range(3):
        assert shown(departed, HERE) == ["m"]
        assert departed.expired == [GONE]


def test_a_version_that_comes_back_is_shown_as_long_again() -> None:
    departed = Departed()
    for _ in range(KEPT_SCRAPES):
        shown(departed, HERE)
    assert shown(departed, HERE, GONE) == ["m", "gone"]
    assert shown(departed, HERE) == ["m", "gone"]


def test_nothing_is_remembered_of_versions_whose_counters_are_dropped() -> None:
    departed = Departed()
    for _ in range(KEPT_SCRAPES + 1):
        shown(departed, HERE)
    departed.without(counters(HERE), [HERE])
    assert departed.expired == []
