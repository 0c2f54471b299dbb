"""What an HTTP worker counts: plain arrays of buckets, added up by the supervisor when somebody asks.

A request costs a worker less than a microsecond of counting, a tenth of what a metrics library's locks and label
lookups cost.
"""

import time
from array import array
from bisect import bisect_left

import msgspec
import numpy as np
import numpy.typing as npt

from gateway.errors import DeadlineExceeded, GatewayError, InstanceDied, QueueFull

DURATION_BOUNDS = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
)  # fmt: skip
STAGE_BOUNDS = (
    0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0,
    2.5, 10.0,
)  # fmt: skip
BATCH_SIZES = 256
"""So many different batch sizes are counted apart; a client that sends all sizes there are must not fill the memory."""
BATCH_BOUNDS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)
DIFFERENCE_BOUNDS = (0.0, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)
STAGES = ("decode", "queue", "compute", "ipc", "encode")


class Histogram(msgspec.Struct, array_like=True):
    """Counts per bucket (the last one is +Inf) and the sum of what was observed."""

    counts: list[int]
    total: float = 0.0

    @classmethod
    def over(cls, bounds: tuple[float, ...]) -> "Histogram":
        """An empty histogram with these upper bounds."""
        return cls([0] * (len(bounds) + 1))

    def count(self, bounds: tuple[float, ...], value: float) -> None:
        """Add one observation, given these upper bounds."""
        self.counts[bisect_left(bounds, value)] += 1
        self.total += value

    def observe(self, bounds: tuple[float, ...], values: npt.NDArray[np.float64]) -> None:
        """Add observations, given these upper bounds."""
        found = np.bincount(np.searchsorted(bounds, values), minlength=len(self.counts)).tolist()
        self.counts = [a + b for a, b in zip(self.counts, found, strict=True)]
        self.total += float(values.sum())

    def add(self, other: "Histogram") -> None:
        """Add another histogram of the same bounds."""
        self.counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]
        self.total += other.total


class ShadowCounters(msgspec.Struct):
    """What became of the copies of a version's requests that went to one other version."""

    requests: dict[str, int] = {}
    """Outcome → copies: agreed, differed, failed (no answer), dropped (no room, or not asked)."""
    classes: dict[str, int] = {}
    """same or other → rows of scores, by which class is the highest."""
    difference: Histogram = msgspec.field(default_factory=lambda: Histogram.over(DIFFERENCE_BOUNDS))
    """The largest of each copy that was answered with numbers of the same shapes."""
    live: Histogram = msgspec.field(default_factory=lambda: Histogram.over(DURATION_BOUNDS))
    shadow: Histogram = msgspec.field(default_factory=lambda: Histogram.over(DURATION_BOUNDS))
    """Seconds from being sent to an instance to its answer, of the requests with an answer of both."""

    def add(self, other: "ShadowCounters") -> None:
        """Add what another worker counted."""
        for mine, theirs in ((self.requests, other.requests), (self.classes, other.classes)):
            _add_up(mine, theirs)
        self.difference.add(other.difference)
        self.live.add(other.live)
        self.shadow.add(other.shadow)


def _add_up(mine: dict[str, int], theirs: dict[str, int]) -> None:
    for key, number in theirs.items():
        mine[key] = mine.get(key, 0) + number


class VersionCounters(msgspec.Struct):
    """Everything counted of one model version."""

    model: str
    version: str
    framework: str
    requests: dict[str, int] = {}
    """"CODE PROTOCOL" → requests answered."""
    dropped: dict[str, int] = {}
    """Why → requests given up."""
    retries: int = 0
    """Requests sent again because their instance was gone."""
    inferences: int = 0
    executions: int = 0
    duration: Histogram = msgspec.field(default_factory=lambda: Histogram.over(DURATION_BOUNDS))
    stages: list[Histogram] = msgspec.field(default_factory=lambda: [Histogram.over(STAGE_BOUNDS) for _ in STAGES])
    execution: Histogram = msgspec.field(default_factory=lambda: Histogram.over(STAGE_BOUNDS))
    batch: Histogram = msgspec.field(default_factory=lambda: Histogram.over(BATCH_BOUNDS))
    by_rows: dict[int, tuple[int, float]] = {}
    """Rows of a batch → executions with so many, and their seconds."""
    failed_seconds: float = 0.0
    """Of all requests that were answered with an error."""
    last_inference: int = 0
    """When the last request came, in milliseconds since the epoch; 0 if none did."""
    shadows: dict[str, ShadowCounters] = {}
    """"MODEL VERSION" → what became of the copies sent there."""
    pending: int = 0
    """Requests waiting for their instance now; a gauge, not summed over time."""

    def count(self, code: int, protocol: str) -> None:
        """One request was answered with this HTTP status."""
        key = f"{code} {protocol}"
        self.requests[key] = self.requests.get(key, 0) + 1

    def drop(self, reason: str) -> None:
        """One request was given up before it was computed."""
        self.dropped[reason] = self.dropped.get(reason, 0) + 1

    def failed(self, error: GatewayError, seconds: float) -> None:
        """A request was answered with this error, after so long: was it given up before it was computed?"""
        self.failed_seconds += seconds
        if isinstance(error, QueueFull | DeadlineExceeded | InstanceDied):
            self.drop(error.code)

    def executed(self, seconds: float, rows: int) -> None:
        """One execution of the model ran, over a batch of `rows`."""
        self.executions += 1
        self.execution.count(STAGE_BOUNDS, seconds)
        self.batch.count(BATCH_BOUNDS, rows)
        self.inferences += rows
        known = self.by_rows.get(rows)
        if known is not None:
            self.by_rows[rows] = known[0] + 1, known[1] + seconds
        elif len(self.by_rows) < BATCH_SIZES:
            self.by_rows[rows] = 1, seconds

    def add(self, other: "VersionCounters") -> None:
        """Add what another worker, or the same one later, counted of the same version."""
        for mine, theirs in ((self.requests, other.requests), (self.dropped, other.dropped)):
            _add_up(mine, theirs)
        for key, shadow in other.shadows.items():
            self.shadows.setdefault(key, ShadowCounters()).add(shadow)
        self.inferences += other.inferences
        self.executions += other.executions
        self.retries += other.retries
        self.pending += other.pending
        self.failed_seconds += other.failed_seconds
        self.last_inference = max(self.last_inference, other.last_inference)
        for rows, (number, seconds) in other.by_rows.items():
            mine_number, mine_seconds = self.by_rows.get(rows, (0, 0.0))
            self.by_rows[rows] = mine_number + number, mine_seconds + seconds
        for histogram, more in zip(self.histograms(), other.histograms(), strict=True):
            histogram.add(more)

    def histograms(self) -> list[Histogram]:
        """All histograms, in a fixed order."""
        return [self.duration, *self.stages, self.execution, self.batch]


FOLD_AT = 1024
_WIDTH = 1 + len(STAGES)


class Timings:
    """What a version's requests took: kept as it comes, and sorted into buckets a thousand requests at a time.

    Sorting each request's times by itself costs a microsecond, this a third of that.
    """

    def __init__(self, counters: VersionCounters) -> None:
        self.last_used = 0.0
        """When the version's last request came, by the monotonic clock; 0 if none did."""
        self._counters = counters
        self._told = 0.0
        self._values = array("d")

    def add(self, times: tuple[float, float, float, float, float, float]) -> None:
        """One request was computed: its whole duration and its stages, in the order of STAGES, in seconds."""
        self._values.extend(times)
        if len(self._values) >= FOLD_AT * _WIDTH:
            self.fold()

    def fold(self) -> None:
        """Bring the counters up to date."""
        if self.last_used != self._told:
            self._told = self.last_used
            self._counters.last_inference = round((time.time() - time.perf_counter() + self.last_used) * 1000)
        if not self._values:
            return
        rows = np.frombuffer(self._values).reshape(-1, _WIDTH)
        self._counters.duration.observe(DURATION_BOUNDS, rows[:, 0])
        for index, histogram in enumerate(self._counters.stages, start=1):
            histogram.observe(STAGE_BOUNDS, rows[:, index])
        self._values = array("d")


class Counters:
    """One worker's counters, by model version."""

    def __init__(self) -> None:
        self._timings: dict[tuple[str, str], Timings] = {}
        self._versions: dict[tuple[str, str], VersionCounters] = {}

    def of(self, model: str, version: str, framework: str) -> VersionCounters:
        """The counters of a version, created at first use."""
        key = (model, version)
        counters = self._versions.get(key)
        if counters is None:
            counters = self._versions[key] = VersionCounters(model, version, framework)
        return counters

    def timings_of(self, counters: VersionCounters) -> Timings:
        """Where the times of a version's requests go."""
        return self._timings.setdefault((counters.model, counters.version), Timings(counters))

    def last_used(self, model: str, version: str) -> float:
        """When the last request for a version came, by the monotonic clock; 0 if none did."""
        timings = self._timings.get((model, version))
        return timings.last_used if timings is not None else 0.0

    def forget(self, model: str, version: str) -> None:
        """Drop what was counted of a version."""
        self._versions.pop((model, version), None)
        self._timings.pop((model, version), None)

    def none_pending(self) -> None:
        """No request is under way, as far as is known so far."""
        for counters in self._versions.values():
            counters.pending = 0

    def packed(self) -> bytes:
        """Everything counted so far."""
        for timings in self._timings.values():
            timings.fold()
        return pack(list(self._versions.values()))


def pack(counters: list[VersionCounters]) -> bytes:
    """Counters as bytes."""
    return msgspec.msgpack.encode(counters)


def unpack(packed: bytes) -> list[VersionCounters]:
    """What `pack` packed."""
    return msgspec.msgpack.decode(packed, type=list[VersionCounters])


def summed(snapshots: list[list[VersionCounters]]) -> list[VersionCounters]:
    """The counters of several workers added up, by version."""
    total: dict[tuple[str, str], VersionCounters] = {}
    for snapshot in snapshots:
        for counters in snapshot:
            key = (counters.model, counters.version)
            if key in total:
                total[key].add(counters)
            else:
                total[key] = VersionCounters(counters.model, counters.version, counters.framework)
                total[key].add(counters)
    return [total[key] for key in sorted(total)]
