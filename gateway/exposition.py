"""The gateway's state in Prometheus' words: counters of all workers, memory measured at the time of asking."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway.lifecycle.manager import Version
from gateway.lifecycle.state import State
from gateway.metrics import BATCH_BOUNDS, DURATION_BOUNDS, STAGE_BOUNDS, STAGES, Histogram, VersionCounters

_VERSION = ["model", "version", "framework"]


@dataclass(frozen=True)
class InstanceMemory:
    """Memory of one instance in bytes."""

    model: str
    version: str
    framework: str
    instance: str
    device: str
    private: int
    pss: int


def read_memory(pid: int) -> tuple[int, int]:
    """(private, proportional) bytes of a process; OSError if it is gone.

    Private is what only this process has and only memory can hold (the kernel's Private_Dirty): what comes back
    when the process ends. Clean pages of libraries are cache, whether one process maps them or ten.
    """
    fields: dict[str, int] = {}
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as lines:  # noqa: PTH123 - a kernel file, line by line
        next(lines)
        for line in lines:
            name, value, *_ = line.split()
            fields[name] = int(value) * 1024
    return fields["Private_Dirty:"], fields["Pss:"]


def measure(versions: Iterable[Version]) -> list[InstanceMemory]:
    """The memory of every running instance."""
    measured = []
    for version in versions:
        artifact = version.artifact
        for instance in version.instances:
            try:
                private, pss = read_memory(instance.pid)
            except OSError:
                continue  # it ended just now
            measured.append(
                InstanceMemory(
                    artifact.model,
                    str(artifact.version),
                    artifact.framework,
                    str(instance.index),
                    instance.device.name,
                    private,
                    pss,
                )
            )
    return measured


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
        versions: Sequence[Version],
        memory: Sequence[InstanceMemory],
        restarts: Iterable[tuple[Version, str, int]],
    ) -> None:
        self._counters = [(counter, [counter.model, counter.version, counter.framework]) for counter in counters]
        self._versions = versions
        self._memory = memory
        self._restarts = restarts

    def collect(self) -> Iterable[Metric]:
        """Called by prometheus_client."""
        yield from self._latencies()
        yield from self._counts()
        yield from self._lifecycle()

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
        inferences = CounterMetricFamily("gateway_inferences", "Rows computed.", labels=_VERSION)
        executions = CounterMetricFamily("gateway_executions", "Executions of the model.", labels=_VERSION)
        pending = GaugeMetricFamily("gateway_pending_requests", "Requests under way to an instance.", labels=_VERSION)
        for counter, labels in self._counters:
            for key, number in sorted(counter.requests.items()):
                requests.add_metric([*labels, *key.split(" ")], number)
            for reason, number in sorted(counter.dropped.items()):
                dropped.add_metric([*labels, reason], number)
            inferences.add_metric(labels, counter.inferences)
            executions.add_metric(labels, counter.executions)
            pending.add_metric(labels, counter.pending)
        yield from (requests, dropped, inferences, executions, pending)

    def _lifecycle(self) -> Iterable[Metric]:
        memory = GaugeMetricFamily(
            "gateway_instance_memory_bytes",
            "Measured memory of an instance: private to it, and with its share of what is shared (pss).",
            labels=[*_VERSION, "instance", "device", "kind"],
        )
        for each in self._memory:
            labels = [each.model, each.version, each.framework, each.instance, each.device]
            memory.add_metric([*labels, "private"], each.private)
            memory.add_metric([*labels, "pss"], each.pss)
        states = GaugeMetricFamily(
            "gateway_version_state", "1 for the state a version is in.", labels=[*_VERSION, "state"]
        )
        load = GaugeMetricFamily("gateway_model_load_seconds", "From the wish to ready.", labels=_VERSION)
        ready = GaugeMetricFamily(
            "gateway_instance_ready_seconds", "From an instance's fork to its being ready.", labels=_VERSION
        )
        for version in self._versions:
            artifact = version.artifact
            labels = [artifact.model, str(artifact.version), artifact.framework]
            for state in State:
                states.add_metric([*labels, state.value], float(version.state is state))
            if version.load_seconds:
                load.add_metric(labels, version.load_seconds)
            if version.ready is not None:
                ready.add_metric(labels, version.ready.load_seconds)
        restarts = CounterMetricFamily(
            "gateway_instance_restarts", "Instances replaced after their end.", labels=[*_VERSION, "reason"]
        )
        for version, reason, number in self._restarts:
            artifact = version.artifact
            restarts.add_metric([artifact.model, str(artifact.version), artifact.framework, reason], number)
        yield from (memory, states, load, ready, restarts)


def exposition(collector: GatewayCollector) -> bytes:
    """One scrape in Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    return generate_latest(registry)
