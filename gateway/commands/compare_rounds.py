"""Measures two models in alternating rounds: loads, memory, latencies and throughput."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, NamedTuple, Protocol

import numpy as np
import uvloop

from gateway.commands.bench import prebuilt
from gateway.commands.client import Client, model_path, segment
from gateway.commands.compare_data import Data
from gateway.commands.load_generator import ClosedLoop, Shot, Tally, any_200
from gateway.commands.model import Model
from gateway.commands.own_server import ending_is_an_exception
from gateway.commands.printing import warn
from gateway.comparing.document import Cell, Figure
from gateway.comparing.schedule import order, steps
from gateway.comparing.spread import contrast, exactly, histogram
from gateway.errors import CallFailed

SHOTS = 8
"""So many different requests take turns, for a model's time may depend on its data."""
_POLL_SECONDS = 0.01
_METRICS = {
    "gateway_instance_ready_seconds": "load_seconds",
    "private": "memory_bytes",
    "peak": "memory_peak_bytes",
    "gpu": "gpu_memory_bytes",
}
_TITLES = {
    "load_seconds": "Load time",
    "memory_idle_bytes": "Memory when loaded",
    "memory_bytes": "Memory after requests",
    "memory_peak_bytes": "Peak of memory seen",
    "gpu_memory_bytes": "Memory on GPU",
    "artifact_bytes": "Files",
}
Scrape = dict[str, float]
"""What the gateway's metrics say of one version now, by the names of _TITLES."""


class Progress(Protocol):
    """Who is told how far it is."""

    def say(self, text: str) -> None:
        """What is done now."""

    def expect(self, total: float) -> None:
        """It takes so many seconds of load."""

    async def wait(self, seconds: float) -> None:
        """Let so many of them pass."""


class Plan(NamedTuple):
    """What is measured, for how long, and how often."""

    batches: list[int]
    connections: list[int]
    rounds: int
    seconds: float
    warmup: float
    reload: bool

    @property
    def places(self) -> list[tuple[int, int]]:
        """(rows, connections) of every cell, the smallest first."""
        return [(rows, connections) for rows in self.batches for connections in self.connections]

    @property
    def total_seconds(self) -> float:
        """Of all loads."""
        return 2 * self.rounds * len(self.places) * (self.seconds + self.warmup)


class Side(NamedTuple):
    """One of the models."""

    model: Model

    @property
    def version(self) -> str | None:
        """Which is asked for, even if others serve too or instead; None if the server does not tell versions."""
        return self.model.version

    @property
    def title(self) -> str:
        """name/version."""
        return f"{self.model.name}/{self.model.version or '?'}"


class Measurement(NamedTuple):
    """One model in one place in one round."""

    tally: Tally
    generator_cpu: float


class Results:
    """What all rounds have found, as they come."""

    def __init__(self, places: Sequence[tuple[int, int]]) -> None:
        self.places = places
        self.cells: list[tuple[list[Measurement], list[Measurement]]] = [([], []) for _ in places]
        self.scrapes: list[tuple[Scrape, Scrape]] = []
        """What the metrics said of both models in each round; in the last one only, if nothing was loaded anew."""


def measure(client: Client, sides: tuple[Side, Side], data: Data, plan: Plan, progress: Progress) -> Results:
    """All rounds; CallFailed if a model does not answer."""
    results = Results(plan.places)
    requests = {
        (model, rows): _shots(client, sides[model], data, model, rows) for model in (0, 1) for rows in plan.batches
    }
    with _left_loaded(client) as unloaded:
        for number in range(plan.rounds):
            progress.say(f"round {number + 1} of {plan.rounds}")
            before: tuple[Scrape, Scrape] = ({}, {})
            if plan.reload:
                _load_anew(client, sides, number, unloaded)
                before = _scraped(client, sides)
            for step in steps(number, len(plan.places)):
                rows, connections = plan.places[step.place]
                found = measured(client, sides[step.model], requests[step.model, rows], connections, plan, progress)
                results.cells[step.place][step.model].append(found)
            if plan.reload or number == plan.rounds - 1:
                after = _scraped(client, sides)
                for idle, figures in zip(before, after, strict=True):
                    if "memory_bytes" in idle:
                        figures["memory_idle_bytes"] = idle["memory_bytes"]
                results.scrapes.append(after)
    return results


# One step


def _shots(client: Client, side: Side, data: Data, model: int, rows: int) -> list[Shot]:
    path = model_path(side.model.name, side.version)
    places = [[(number * rows + row) % data.rows for row in range(rows)] for number in range(SHOTS)]
    bodies = [prebuilt(client, path, data.part(model, each), None, binary=True) for each in places]
    return [Shot(body, any_200) for body in dict.fromkeys(bodies)]


def _load_anew(client: Client, sides: tuple[Side, Side], number: int, unloaded: list[str]) -> None:
    """Unload both models and load them one after the other; `unloaded` are those that are still to be loaded."""
    names = list(dict.fromkeys(sides[model].model.name for model in order(number)))
    for name in names:
        unloaded.append(name)
        _repository(client, name, "unload")
    for name in names:
        _repository(client, name, "load")
        unloaded.remove(name)


def _repository(client: Client, name: str, action: str) -> None:
    client.json("POST", f"/v2/repository/models/{segment(name, 'a model')}/{action}", {})


@contextmanager
def _left_loaded(client: Client) -> Iterator[list[str]]:
    """Models that are added to the list are loaded in the end, whatever the end is: others may want them."""
    unloaded: list[str] = []
    with ending_is_an_exception():
        try:
            yield unloaded
        finally:
            for name in unloaded:
                try:
                    _repository(client, name, "load")
                except CallFailed as error:
                    warn(f"{name} was unloaded for this and may still be: {error.message}")


def _scraped(client: Client, sides: tuple[Side, Side]) -> tuple[Scrape, Scrape]:
    return _scrape(client, sides[0]), _scrape(client, sides[1])


def _scrape(client: Client, side: Side) -> Scrape:
    """Figures of a version by the gateway's metrics; none if they are not for us, or not a gateway's."""
    from prometheus_client.parser import text_string_to_metric_families  # noqa: PLC0415 - slow to import

    found: defaultdict[str, float] = defaultdict(float)
    try:
        text = client.send("GET", "/metrics").text
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                labels = sample.labels
                if (labels.get("model"), labels.get("version")) == (side.model.name, side.model.version):
                    kind = labels.get("kind", "") if family.name == "gateway_instance_memory_bytes" else family.name
                    if kind in _METRICS:
                        found[_METRICS[kind]] += sample.value
    except CallFailed as error:
        if error.status is None:
            raise
    except ValueError:
        pass
    return dict(found)


def measured(
    client: Client, side: Side, shots: list[Shot], connections: int, plan: Plan, progress: Progress
) -> Measurement:
    """One model under load for once; CallFailed if it gives no right answer."""
    load = ClosedLoop(client.address, shots, connections, client.timeout, tls=client.tls())
    try:
        found = uvloop.run(_counted(load, plan, progress, client.timeout))
    except TimeoutError:
        raise CallFailed(
            f"{side.title} answered nothing on {connections} connections within {client.timeout:g} s"
        ) from None
    if not found.tally.right:
        errors = ", ".join(f"{times} x {kind}" for kind, times in found.tally.failures.items())
        raise CallFailed(f"{side.title} answered no request on {connections} connections with 200: {errors}")
    return found


async def _counted(load: ClosedLoop, plan: Plan, progress: Progress, patience: float) -> Measurement:
    async with load:
        await progress.wait(plan.warmup)
        load.take()
        cpu, began = time.process_time(), time.perf_counter()
        await progress.wait(plan.seconds)
        async with asyncio.timeout(patience):  # for the first answer, if the model is slower than that
            while not load.tally.total:  # noqa: ASYNC110 - the tally is filled without events, for speed
                await asyncio.sleep(_POLL_SECONDS)
        tally = load.take()
        busy = (time.process_time() - cpu) / (time.perf_counter() - began)
    tally.failures.update(load.tally.failures)  # of what was under way then
    return Measurement(tally, busy)


# What it comes to


def cells(results: Results) -> list[Cell]:
    """The figures of each place."""
    return [
        _cell(rows, connections, *measurements)
        for (rows, connections), measurements in zip(results.places, results.cells, strict=True)
    ]


def _cell(rows: int, connections: int, a: list[Measurement], b: list[Measurement]) -> Cell:
    def percentile(percent: float) -> tuple[list[float], list[float]]:
        return [each.tally.percentile(percent) for each in a], [each.tally.percentile(percent) for each in b]

    latencies = [np.concatenate([np.frombuffer(each.tally.latencies) for each in side]) * 1000 for side in (a, b)]
    return Cell(
        rows,
        connections,
        contrast(*percentile(50)),
        contrast(*percentile(95)),
        contrast(*percentile(99)),
        contrast([each.tally.rate for each in a], [each.tally.rate for each in b]),
        (sum(each.tally.right for each in a), sum(each.tally.right for each in b)),
        (sum(each.tally.failed for each in a), sum(each.tally.failed for each in b)),
        round(max(each.generator_cpu for each in (*a, *b)), 3),
        histogram(latencies[0].tolist(), latencies[1].tolist()),
    )


def figures(results: Results, artifact_bytes: tuple[int, int] | None) -> list[Figure]:
    """Those that are known of both models, in the order of _TITLES; of a GPU a model that is on none has 0 bytes."""
    found = []
    for name, title in _TITLES.items():
        if name == "artifact_bytes" and artifact_bytes is not None:
            found.append(Figure(name, title, "B", exactly(*artifact_bytes)))
            continue
        rounds = [each for each in results.scrapes if any(name in side for side in each)]
        if name == "gpu_memory_bytes":
            rounds = [({name: 0.0} | a, {name: 0.0} | b) for a, b in rounds if a and b]
        pairs = [(a[name], b[name]) for a, b in rounds if name in a and name in b]
        if pairs:
            unit: Literal["s", "B"] = "s" if name == "load_seconds" else "B"
            found.append(Figure(name, title, unit, contrast(*map(list, zip(*pairs, strict=True)))))
    return found
