"""Versions that are gone and still have counters: how long those are shown, so that labels do not grow forever."""

from collections.abc import Collection, Sequence

from gateway.metrics import VersionCounters

KEPT_SCRAPES = 5
"""So many scrapes still show the last counts of a version that is gone."""


class Departed:
    """Counts the scrapes that each version's counters have outlived it."""

    def __init__(self) -> None:
        self._scrapes: dict[tuple[str, str], int] = {}

    @property
    def expired(self) -> list[tuple[str, str]]:
        """Model and version of counters that are to be dropped."""
        return [key for key, scrapes in self._scrapes.items() if scrapes > KEPT_SCRAPES]

    def without(
        self, counters: Sequence[VersionCounters], living: Collection[tuple[str, str]]
    ) -> list[VersionCounters]:
        """One more scrape: the counters without those of versions that have been gone for long."""
        gone = {(each.model, each.version) for each in counters}.difference(living)
        self._scrapes = {key: self._scrapes.get(key, 0) + 1 for key in gone}
        expired = set(self.expired)
        return [each for each in counters if (each.model, each.version) not in expired]
