import asyncio
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from gateway.exposition import GatewayCollector, exposition
from gateway.lifecycle.placement import Device
from gateway.lifecycle.residency import Account
from gateway.lifecycle.state import State
from gateway.lifecycle.version import Version
from gateway.metrics import DURATION_BOUNDS, Timings, VersionCounters
from gateway.nodes.node import DeviceMemory, Footprint, Instance
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
    loop = asyncio.new_event_loop()
    try:
        version = version_of()
        cpu, gpu, ended = (
            Instance(version.artifact, f"i{index}", index, device, "", loop.create_future(), loop.create_future())
            for index, device in enumerate((Device("cpu"), Device("cuda:0"), Device("cpu")))
        )
        version.instances = [cpu, gpu, ended]
        memory = {cpu: Footprint(100, 300, 100), gpu: Footprint(200, 400, 200, 5000, "nvml")}
        account = Account({"cpu": 1000, "cuda:0": 9000}, {version: {"cpu": 300, "cuda:0": 5000}})
        account.evictions[version.key] = 3
        account.reclaimed["cpu"] = 77
        account.saw(cpu, 150)
        collector = GatewayCollector(
            counted,
            [version],
            memory,
            account,
            {(version.title, "signal 9"): 2},
            {"cuda:0": DeviceMemory(9, 5, 4)},
            {version.title: 1},
        )
        text = exposition(collector).decode()
    finally:
        loop.close()
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
    assert value(families, "gateway_batching_violations_total") == 1
    for kind, size in (("private", 100), ("pss", 300)):
        labels = {"instance": "0", "device": "cpu", "kind": kind, "source": "kernel"}
        assert value(families, "gateway_instance_memory_bytes", **labels) == size
    peaks = {}
    for instance, device in (("0", "cpu"), ("1", "cuda:0")):
        labels = {"instance": instance, "device": device, "kind": "peak", "source": "sampled"}
        peaks[instance] = value(families, "gateway_instance_memory_bytes", **labels)
    assert peaks == {"0": 150, "1": 200}  # seen before, seen now
    labels = {"instance": "1", "device": "cuda:0", "kind": "gpu", "source": "nvml"}
    assert value(families, "gateway_instance_memory_bytes", **labels) == 5000
    assert value(families, "gateway_evictions_total") == 3
    assert value(families, "gateway_memory_held_bytes", device="cuda:0") == 5000


def test_the_budget_of_each_device_is_told() -> None:
    families = scrape(counters())
    for name, expected in (
        ("gateway_memory_budget_bytes", {"cpu": 1000, "cuda:0": 9000}),
        ("gateway_memory_reclaimed_bytes", {"cpu": 77, "cuda:0": 0}),
    ):
        samples = [each for each in families[name].samples if not each.name.endswith("_created")]
        assert {each.labels["device"]: each.value for each in samples} == expected


def test_the_memory_of_each_gpu_is_told() -> None:
    samples = scrape(counters())["gateway_device_memory_bytes"].samples
    assert {each.labels["kind"]: each.value for each in samples} == {"total": 9, "free": 5, "used": 4}


def test_an_instance_that_ended_is_left_out() -> None:
    samples = scrape(counters())["gateway_instance_memory_bytes"].samples
    assert {sample.labels["instance"] for sample in samples} == {"0", "1"}


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
    assert isinstance(exposition(GatewayCollector([], [], {}, Account(), {}, {})), bytes)


def test_no_series_stands_twice() -> None:
    families = scrape(counters())
    seen = [(each.name, tuple(sorted(each.labels.items()))) for family in families.values() for each in family.samples]
    assert len(seen) == len(set(seen))
