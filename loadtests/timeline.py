"""What a load test saw, second by second and by framework, and a picture of it."""

from array import array
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np

COLOURS = {"PyTorch": "#d1495b", "TensorFlow": "#e08e0b"}


class Point(NamedTuple):
    """One second: right answers, failures, and percentiles of the right answers in milliseconds (NaN: none)."""

    second: int
    requests: int
    failures: int
    p50: float
    p95: float


class Timeline:
    """Collects the answers of a load test."""

    def __init__(self) -> None:
        self._times: dict[str, dict[int, array[float]]] = defaultdict(lambda: defaultdict(lambda: array("f")))
        self._failures: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))

    def add(self, framework: str, second: float, milliseconds: float, *, right: bool) -> None:
        """An answer came in this second after the start."""
        if right:
            self._times[framework][int(second)].append(milliseconds)
        else:
            self._failures[framework][int(second)] += 1

    def points(self) -> dict[str, list[Point]]:
        """The seconds of each framework, from the first with an answer of any to the last, which is not whole."""
        frameworks = sorted(self._times.keys() | self._failures.keys())
        seconds = [second for each in (*self._times.values(), *self._failures.values()) for second in each]
        found: dict[str, list[Point]] = {}
        for framework in frameworks:
            times, failures = self._times[framework], self._failures[framework]
            found[framework] = []
            for second in range(min(seconds), max(*seconds, min(seconds) + 1)):
                right = np.array(times.get(second, ()), np.float32)
                p50, p95 = np.percentile(right, [50, 95]) if len(right) else (np.nan, np.nan)
                found[framework].append(Point(second, len(right), failures.get(second, 0), float(p50), float(p95)))
        return found


def draw(timeline: Timeline, title: str, path: Path) -> None:
    """Throughput above, latency below, each framework a colour; failures as crosses."""
    import matplotlib as mpl  # noqa: PLC0415 - half a second, at the end of a test

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 - as above

    figure, (throughput, latency) = plt.subplots(2, 1, sharex=True, figsize=(10, 6), layout="constrained")
    for framework, points in timeline.points().items():
        seconds = [point.second for point in points]
        style = {"color": COLOURS.get(framework, "#555555"), "linewidth": 1.5}
        throughput.plot(seconds, [point.requests for point in points], label=framework, **style)
        failed = [point for point in points if point.failures]
        if failed:
            where, many = [point.second for point in failed], [point.failures for point in failed]
            throughput.scatter(where, many, marker="x", color="black", label=f"{framework}, failed")
        latency.plot(seconds, [point.p50 for point in points], label=f"{framework}, median", **style)
        latency.plot(seconds, [point.p95 for point in points], label=f"{framework}, p95", linestyle="--", **style)
    throughput.set(ylabel="right answers/s", title=title, ylim=(0, None))
    latency.set(xlabel="seconds", ylabel="milliseconds", ylim=(0, None))
    for axes in (throughput, latency):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)
