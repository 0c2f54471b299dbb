import asyncio
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from gateway.exposition import GatewayCollector, InstanceMemory, exposition, measure, read_memory
from gateway.lifecycle.manager import Version
from gateway.lifecycle.placement import CPU
from gateway.lifecycle.state import State
from gateway.metrics import DURATION_BOUNDS, Timings, VersionCounters
from gateway.nodes.node import Instance
from gateway.store.manifest import ModelConfig
from gateway.store.source import Artifact

LABELS = {"model": 'a"b\\c', "version": "1", "framework": "pytorch"}


def version_of(model: str = LABELS["model"], state: State = State.READY) -> Version:
    version = Version(Artifact(model, 1, "pytorch_torchscript", Path("model.pt"), ModelConfig()))
    version.state = state
    version.load_seconds = 1.5
    return version


def counters() -> VersionCounters:
    made = VersionCounters(LABELS["model"], "1", "pytorch", pending=4)
    timings = Timings(made)
    for seconds in (0.00005, 0.002, 0.002, 0.3, 99.0):
        timings.add((seconds, seconds, 0.0, 0.1, 0.0, 0.0))
        made.executed(seconds, 2)
    made.count(200, "oip")
    made.count(200, "oip")
    made.count(429, "oip")
    made.drop("queue_full")
    timings.fold()
    return made


def scrape(*counted: VersionCounters) -> dict[str, Metric]:
    version = version_of()
    memory = [InstanceMemory(LABELS["model"], "1", "pytorch", "0", "cpu", 100, 300)]
    collector = GatewayCollector(counted, [version], memory, [(version, "signal 9", 2)])
    text = exposition(collector).decode()
    return {family.name: family for family in text_string_to_metric_families(text)}


def value(families: dict[str, Metric], name: str, **labels: str) -> float:
    (found,) = [
        sample.value
        for family in families.values()
        for sample in family.samples
        if sample.name == name and sample.labels == LABELS | labels
    ]
    return found


def test_a_scrape_can_be_read_back() -> None:
    families = scrape(counters())
    assert value(families, "gateway_requests_total", code="200", protocol="oip") == 2
    assert value(families, "gateway_requests_total", code="429", protocol="oip") == 1
    assert value(families, "gateway_requests_dropped_total", reason="queue_full") == 1
    assert value(families, "gateway_inferences_total") == 10
    assert value(families, "gateway_executions_total") == 5
    assert value(families, "gateway_pending_requests") == 4
    assert value(families, "gateway_model_load_seconds") == 1.5
    assert value(families, "gateway_instance_restarts_total", reason="signal 9") == 2
    for kind, size in (("private", 100), ("pss", 300)):
        assert value(families, "gateway_instance_memory_bytes", instance="0", device="cpu", kind=kind) == size


def test_a_version_is_in_exactly_one_state() -> None:
    families = scrape(counters())
    states = {state: value(families, "gateway_version_state", state=state.value) for state in State}
    assert states == {state: float(state is State.READY) for state in State}


@pytest.mark.parametrize(
    "name",
    [
        "gateway_request_duration_seconds",
        "gateway_stage_duration_seconds",
        "gateway_execution_duration_seconds",
        "gateway_batch_size",
    ],
)
def test_buckets_are_cumulative_and_end_with_the_count(name: str) -> None:
    family = scrape(counters())[name]
    series: dict[tuple[Any, ...], list[tuple[float, float]]] = {}
    for sample in family.samples:
        if sample.name.endswith("_bucket"):
            labels = dict(sample.labels)
            edge = float(labels.pop("le"))
            series.setdefault(tuple(labels.items()), []).append((edge, sample.value))
    assert series
    for labels, buckets in series.items():
        assert all(left[0] < right[0] and left[1] <= right[1] for left, right in pairwise(buckets))
        assert buckets[-1] == (float("inf"), 5.0)
        count = [
            each for each in family.samples if each.name == f"{name}_count" and tuple(each.labels.items()) == labels
        ]
        assert [each.value for each in count] == [5.0]


def test_buckets_hold_what_was_observed() -> None:
    families = scrape(counters())
    for bound in DURATION_BOUNDS:
        want = sum(seconds <= bound for seconds in (0.00005, 0.002, 0.002, 0.3, 99.0))
        assert value(families, "gateway_request_duration_seconds_bucket", le=str(bound)) == want
    assert value(families, "gateway_request_duration_seconds_sum") == pytest.approx(99.30405)
    assert value(families, "gateway_batch_size_sum") == 10


def test_an_empty_gateway_can_be_scraped() -> None:
    assert isinstance(exposition(GatewayCollector([], [], [], [])), bytes)


def test_no_series_stands_twice() -> None:
    families = scrape(counters())
    seen = [(each.name, tuple(sorted(each.labels.items()))) for family in families.values() for each in family.samples]
    assert len(seen) == len(set(seen))


def test_the_memory_of_a_process_is_measured() -> None:
    private, pss = read_memory(os.getpid())
    assert 0 < private <= pss < 1 << 40


async def test_an_instance_that_ended_is_left_out() -> None:
    version = version_of()
    loop = asyncio.get_running_loop()
    for index, pid in enumerate((os.getpid(), 2**22 + 1)):
        version.instances.append(
            Instance(version.artifact, f"i{index}", index, CPU, "", loop.create_future(), loop.create_future(), pid)
        )
    assert [each.instance for each in measure([version])] == ["0"]
