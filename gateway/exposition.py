"""The gateway's state in Prometheus' words: counters of all workers, memory measured at the time of asking."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway.lifecycle.residency import Account
from gateway.lifecycle.state import State
from gateway.lifecycle.version import Version
from gateway.metrics import (
    BATCH_BOUNDS,
    DIFFERENCE_BOUNDS,
    DURATION_BOUNDS,
    STAGE_BOUNDS,
    STAGES,
    Histogram,
    VersionCounters,
)
from gateway.nodes.node import DeviceMemory, Footprint, Instance

_VERSION = ["model", "version", "framework"]


def _histogram(
    name: str, help_text: str, bounds: tuple[float, ...], labels: list[str], rows: Iterable[tuple[list[str], Histogram]]
) -> Metric:
    family = HistogramMetricFamily(name, help_text, labels=labels)
    edges = [*map(str, bounds), "+Inf"]
    for values, histogram in rows:
        family.add_metric(values, list(zip(edges, accumulate(histogram.counts), strict=True)), histogram.total)
    return family


class GatewayCollector(Collector):
    """One scrape: everything is gathered before, nothing is kept after."""

    def __init__(
        self,
        counters: Sequence[VersionCounters],
        versions: Iterable[Version],
        memory: Mapping[Instance, Footprint],
        account: Account,
        restarts: Mapping[tuple[str, str], int],
        gpus: Mapping[str, DeviceMemory],
        violations: Mapping[str, int] | None = None,
    ) -> None:
        self._counters = [(counter, [counter.model, counter.version, counter.framework]) for counter in counters]
        self._versions = [
            (version, [version.artifact.model, str(version.artifact.version), version.artifact.framework])
            for version in versions
        ]
        self._memory = memory
        self._account = account
        self._restarts = restarts
        self._gpus = gpus
        self._violations = violations or {}

    def collect(self) -> Iterable[Metric]:
        """Called by prometheus_client."""
        yield from self._latencies()
        yield from self._counts()
        yield from self._shadows()
        yield from self._lifecycle()
        yield from self._memory_of_instances()
        yield from self._budgets()

    def _latencies(self) -> Iterable[Metric]:
        yield _histogram(
            "gateway_request_duration_seconds",
            "From the end of a request's headers to its response being written.",
            DURATION_BOUNDS,
            _VERSION,
            ((labels, counter.duration) for counter, labels in self._counters),
        )
        yield _histogram(
            "gateway_stage_duration_seconds",
            "Time of a request in each stage on its way.",
            STAGE_BOUNDS,
            [*_VERSION, "stage"],
            (
                ([*labels, stage], histogram)
                for counter, labels in self._counters
                for stage, histogram in zip(STAGES, counter.stages, strict=True)
            ),
        )
        yield _histogram(
            "gateway_execution_duration_seconds",
            "Time inside the framework, once per batch; the rate of its sum is how busy an instance is.",
            STAGE_BOUNDS,
            _VERSION,
            ((labels, counter.execution) for counter, labels in self._counters),
        )
        yield _histogram(
            "gateway_batch_size",
            "Rows per execution.",
            BATCH_BOUNDS,
            _VERSION,
            ((labels, counter.batch) for counter, labels in self._counters),
        )

    def _counts(self) -> Iterable[Metric]:
        requests = CounterMetricFamily("gateway_requests", "Requests answered.", labels=[*_VERSION, "code", "protocol"])
        dropped = CounterMetricFamily(
            "gateway_requests_dropped", "Requests given up before they were computed.", labels=[*_VERSION, "reason"]
        )
        retries = CounterMetricFamily(
            "gateway_retries", "Requests sent again because their instance died.", labels=_VERSION
        )
        inferences = CounterMetricFamily("gateway_inferences", "Rows computed.", labels=_VERSION)
        executions = CounterMetricFamily("gateway_executions", "Executions of the model.", labels=_VERSION)
        pending = GaugeMetricFamily("gateway_pending_requests", "Requests under way to an instance.", labels=_VERSION)
        for counter, labels in self._counters:
            for key, number in sorted(counter.requests.items()):
                requests.add_metric([*labels, *key.split(" ")], number)
            for reason, number in sorted(counter.dropped.items()):
                dropped.add_metric([*labels, reason], number)
            retries.add_metric(labels, counter.retries)
            inferences.add_metric(labels, counter.inferences)
            executions.add_metric(labels, counter.executions)
            pending.add_metric(labels, counter.pending)
        yield from (requests, dropped, retries, inferences, executions, pending)

    def _shadows(self) -> Iterable[Metric]:
        names = [*_VERSION, "shadow_model", "shadow_version"]
        rows = [
            ([*labels, *key.split(" ")], shadow)
            for counter, labels in self._counters
            for key, shadow in sorted(counter.shadows.items())
        ]
        requests = CounterMetricFamily(
            "gateway_shadow_requests",
            "Copies of requests for a shadow: agreed, differed, failed (no answer of it), dropped (no room).",
            labels=[*names, "outcome"],
        )
        classes = CounterMetricFamily(
            "gateway_shadow_rows",
            "Rows of scores of both, by whether the same class is the highest.",
            labels=[*names, "class"],
        )
        for labels, shadow in rows:
            for outcome, number in sorted(shadow.requests.items()):
                requests.add_metric([*labels, outcome], number)
            for which, number in sorted(shadow.classes.items()):
                classes.add_metric([*labels, which], number)
        yield from (requests, classes)
        yield _histogram(
            "gateway_shadow_difference",
            "Largest absolute difference of the outputs of each copy.",
            DIFFERENCE_BOUNDS,
            names,
            ((labels, shadow.difference) for labels, shadow in rows),
        )
        yield _histogram(
            "gateway_shadow_duration_seconds",
            "From being sent to an instance to its answer, of requests that both have answered.",
            DURATION_BOUNDS,
            [*names, "answer"],
            (
                ([*labels, answer], histogram)
                for labels, shadow in rows
                for answer, histogram in (("live", shadow.live), ("shadow", shadow.shadow))
            ),
        )

    def _lifecycle(self) -> Iterable[Metric]:
        states = GaugeMetricFamily(
            "gateway_version_state", "1 for the state a version is in.", labels=[*_VERSION, "state"]
        )
        load = GaugeMetricFamily("gateway_model_load_seconds", "From the wish to ready.", labels=_VERSION)
        ready = GaugeMetricFamily(
            "gateway_instance_ready_seconds", "From an instance's fork to its being ready.", labels=_VERSION
        )
        rejected = GaugeMetricFamily(
            "gateway_version_rejected", "1 while newer files of a version have failed to load.", labels=_VERSION
        )
        restarts = CounterMetricFamily(
            "gateway_instance_restarts", "Instances replaced after their end.", labels=[*_VERSION, "reason"]
        )
        violations = CounterMetricFamily(
            "gateway_batching_violations",
            "Times that requests got other answers together than alone, by instances that then joined none any more.",
            labels=_VERSION,
        )
        for version, labels in self._versions:
            for state in State:
                states.add_metric([*labels, state.value], float(version.state is state))
            rejected.add_metric(labels, float(version.rejected is not None))
            violations.add_metric(labels, self._violations.get(version.title, 0))
            if version.load_seconds:
                load.add_metric(labels, version.load_seconds)
            if version.ready is not None:
                ready.add_metric(labels, version.ready.load_seconds)
            for (title, reason), number in sorted(self._restarts.items()):
                if title == version.title:
                    restarts.add_metric([*labels, reason], number)
        yield from (states, rejected, load, ready, restarts, violations)

    def _memory_of_instances(self) -> Iterable[Metric]:
        memory = GaugeMetricFamily(
            "gateway_instance_memory_bytes",
            "Measured memory of an instance: private to it, the most of that which was seen (peak), with its share of "
            "what is shared (pss), on its GPU (gpu).",
            labels=[*_VERSION, "instance", "device", "kind", "source"],
        )
        for version, labels in self._versions:
            for instance in version.instances:
                if (footprint := self._memory.get(instance)) is None:
                    continue  # it ended just now
                mine = [*labels, str(instance.index), instance.device.name]
                memory.add_metric([*mine, "private", "kernel"], footprint.private)
                memory.add_metric([*mine, "peak", "sampled"], self._account.saw(instance, footprint.private))
                memory.add_metric([*mine, "pss", "kernel"], footprint.pss)
                if footprint.gpu_source:
                    memory.add_metric([*mine, "gpu", footprint.gpu_source], footprint.gpu)
        yield memory

    def _budgets(self) -> Iterable[Metric]:
        budget = GaugeMetricFamily(
            "gateway_memory_budget_bytes", "What all instances together may take.", labels=["device"]
        )
        held = GaugeMetricFamily(
            "gateway_memory_held_bytes",
            "What versions in memory count for in the budget.",
            labels=[*_VERSION, "device"],
        )
        evictions = CounterMetricFamily(
            "gateway_evictions", "Times a version was made COLD, for its memory or its idle_ttl.", labels=_VERSION
        )
        reclaimed = CounterMetricFamily(
            "gateway_memory_reclaimed_bytes",
            "Memory that versions gave back when they were made COLD.",
            labels=["device"],
        )
        for device, size in self._account.budgets.items():
            budget.add_metric([device], size)
            reclaimed.add_metric([device], self._account.reclaimed[device])
        for version, labels in self._versions:
            for device, size in self._account.held.get(version, {}).items():
                held.add_metric([*labels, device], size)
            if number := self._account.evictions[version.key]:
                evictions.add_metric(labels, number)
        devices = GaugeMetricFamily(
            "gateway_device_memory_bytes", "Memory of a GPU, taken by whomever.", labels=["device", "kind"]
        )
        for device, memory in self._gpus.items():
            devices.add_metric([device, "total"], memory.total)
            devices.add_metric([device, "free"], memory.free)
            devices.add_metric([device, "used"], memory.used)
        yield from (budget, held, evictions, reclaimed, devices)


def exposition(collector: GatewayCollector) -> bytes:
    """One scrape in Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    return generate_latest(registry)
