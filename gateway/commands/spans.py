"""What a trace says was computed and when, as times by operation and as what Perfetto reads. Pure functions."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from operator import attrgetter
from typing import Any, NamedTuple

import orjson

_COMPUTING = frozenset({"cpu_op", "kernel", "gpu_memcpy", "gpu_memset"})


class Span(NamedTuple):
    """One operation from its begin to its end, in microseconds."""

    track: str
    """The thread, or the stream of a device, that it was on: spans of one are side by side or within each other."""
    name: str
    start: float
    duration: float


class Operation(NamedTuple):
    """All spans of one name, in microseconds."""

    name: str
    calls: int
    own: float
    """Without the operations within."""
    total: float
    """What lies within another of the same name counts once."""


def from_chrome(trace: bytes) -> list[Span]:
    """The operations in a trace of PyTorch's profiler; ValueError if it is none."""
    try:
        return [
            Span(f"{each['pid']}/{each['tid']}", str(each["name"]), float(each["ts"]), float(each["dur"]))
            for each in orjson.loads(trace)["traceEvents"]
            if each.get("ph") == "X" and each.get("cat") in _COMPUTING
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no trace: {error}") from None


def to_chrome(spans: Iterable[Span]) -> bytes:
    """The same form, which Perfetto and chrome://tracing open."""
    tracks: dict[str, int] = {}
    events: list[dict[str, Any]] = [
        {
            "ph": "X",
            "cat": "op",
            "name": span.name,
            "pid": 1,
            "tid": tracks.setdefault(span.track, len(tracks) + 1),
            "ts": round(span.start, 3),
            "dur": round(span.duration, 3),
        }
        for span in spans
    ]
    events += [
        {"ph": "M", "name": "thread_name", "pid": 1, "tid": number, "args": {"name": track}}
        for track, number in tracks.items()
    ]
    return orjson.dumps({"displayTimeUnit": "ms", "traceEvents": events})


def operations(spans: Iterable[Span]) -> list[Operation]:
    """Times by name, those that took the longest themselves first."""
    by_track: dict[str, list[Span]] = defaultdict(list)
    for span in spans:
        by_track[span.track].append(span)
    calls: dict[str, int] = defaultdict(int)
    own: dict[str, float] = defaultdict(float)
    total: dict[str, float] = defaultdict(float)
    for track in by_track.values():
        track.sort(key=attrgetter("duration"), reverse=True)
        track.sort(key=attrgetter("start"))
        around: list[Span] = []
        open_names: Counter[str] = Counter()
        for span in track:
            while around and around[-1].start + around[-1].duration <= span.start:
                open_names[around.pop().name] -= 1
            calls[span.name] += 1
            own[span.name] += span.duration
            if around:
                own[around[-1].name] -= span.duration
            if not open_names[span.name]:
                total[span.name] += span.duration
            around.append(span)
            open_names[span.name] += 1
    found = [Operation(name, calls[name], max(0.0, own[name]), total[name]) for name in calls]
    return sorted(found, key=lambda each: (-each.own, each.name))
