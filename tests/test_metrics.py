import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import errors
from gateway.metrics import (
    BATCH_BOUNDS,
    DURATION_BOUNDS,
    FOLD_AT,
    STAGE_BOUNDS,
    STAGES,
    Counters,
    Histogram,
    Timings,
    VersionCounters,
    pack,
    summed,
    unpack,
)

quick = settings(max_examples=50, deadline=None)
seconds = st.floats(0, 100)


def counters_of(durations: list[float], model: str = "m") -> VersionCounters:
    made = VersionCounters(model, "1", "pytorch")
    timings = Timings(made)
    for duration in durations:
        timings.add((duration, duration, 0.0, duration / 2, 1e9, duration))
        made.executed(duration, 3)
        made.count(200, "oip")
        made.drop("disconnected")
    timings.fold()
    return made


@quick
@given(st.lists(seconds, max_size=20))
def test_every_observation_lies_in_one_bucket_of_each_histogram(durations: list[float]) -> None:
    made = counters_of(durations)
    for histogram in made.histograms():
        assert sum(histogram.counts) == len(durations)
    for at, bound in enumerate(DURATION_BOUNDS):
        assert sum(made.duration.counts[: at + 1]) == sum(duration <= bound for duration in durations)
    assert made.duration.total == pytest.approx(sum(durations))
    assert made.stages[STAGES.index("ipc")].counts[-1] == len(durations)
    assert (made.executions, made.inferences) == (len(durations), 3 * len(durations))


@quick
@given(st.lists(st.lists(seconds, max_size=5), max_size=4))
def test_the_sum_of_several_workers_is_what_one_would_have_counted(workers: list[list[float]]) -> None:
    total = summed([unpack(pack([counters_of(durations)])) for durations in workers])
    if not workers:
        assert total == []
        return
    want = counters_of([duration for durations in workers for duration in durations])
    assert total[0].requests == want.requests
    assert total[0].dropped == want.dropped
    for mine, theirs in zip(total[0].histograms(), want.histograms(), strict=True):
        assert mine.counts == theirs.counts
        assert mine.total == pytest.approx(theirs.total)


def test_summing_leaves_what_is_summed_as_it_was() -> None:
    one, other = counters_of([1.0]), counters_of([2.0])
    before = pack([one, other])
    summed([[one], [other], [one]])
    assert pack([one, other]) == before


def test_versions_are_summed_apart_and_in_order() -> None:
    total = summed([[counters_of([1.0], "b"), counters_of([], "a")], [counters_of([1.0], "b")]])
    assert [(each.model, each.executions) for each in total] == [("a", 0), ("b", 2)]


def test_counters_survive_their_packing() -> None:
    counters = Counters()
    counters.of("m", "1", "pytorch").executed(0.5, 8)
    counters.of("m", "2", "pytorch").count(429, "oip")
    assert counters.of("m", "1", "pytorch").executions == 1
    first, second = unpack(counters.packed())
    assert (first.version, first.batch.counts[BATCH_BOUNDS.index(8)]) == ("1", 1)
    assert second.requests == {"429 oip": 1}


@pytest.mark.parametrize("packed", [b"", b"\xc1", msgspec.msgpack.encode([1])])
def test_what_is_no_counters_is_a_decode_error(packed: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        unpack(packed)


def test_only_requests_given_up_before_they_were_computed_count_as_dropped() -> None:
    made = VersionCounters("m", "1", "pytorch")
    for kind in errors.GatewayError.__subclasses__():
        made.failed(kind("no"), 0.5)
    assert made.failed_seconds == 0.5 * len(errors.GatewayError.__subclasses__())
    assert made.dropped == {"queue_full": 1, "deadline": 1, "instance_died": 1}


def test_bounds_ascend() -> None:
    for bounds in (DURATION_BOUNDS, STAGE_BOUNDS, BATCH_BOUNDS):
        assert list(bounds) == sorted(set(bounds))
        assert len(Histogram.over(bounds).counts) == len(bounds) + 1


def test_times_are_kept_until_somebody_asks_or_there_are_many() -> None:
    counters = Counters()
    version = counters.of("m", "1", "pytorch")
    timings = counters.timings_of(version)
    assert counters.timings_of(version) is timings
    for _ in range(FOLD_AT - 1):
        timings.add((0.002, 0.001, 0.0, 0.001, 0.0, 0.0))
    assert sum(version.duration.counts) == 0
    timings.add((0.002, 0.001, 0.0, 0.001, 0.0, 0.0))
    assert sum(version.duration.counts) == FOLD_AT
    timings.add((0.002, 0.001, 0.0, 0.001, 0.0, 0.0))
    (packed,) = unpack(counters.packed())
    assert sum(packed.duration.counts) == FOLD_AT + 1
    assert abs(packed.duration.total - 0.002 * (FOLD_AT + 1)) < 1e-9
