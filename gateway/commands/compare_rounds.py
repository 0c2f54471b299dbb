"""Measures two models in alternating rounds: loads, memory, latencies and throughput."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple, Protocol
from urllib.parse import urlsplit

import numpy as np
import uvloop

from gateway.commands.bench import prebuilt
from gateway.commands.client import Client, model_path, segment
from gateway.commands.compare_data import Data
from gateway.commands.load_generator import ClosedLoop, Shot, Tally, any_200
from gateway.commands.model import Model
from gateway.comparing.document import Cell, Figure
from gateway.comparing.schedule import order, steps
from gateway.comparing.spread import contrast, exactly, histogram
from gateway.errors import CallFailed

SHOTS = 8
"""So many different requests take turns, for a model's time may depend on its data."""
_TICK_SECONDS, _POLL_SECONDS = 0.25, 0.01
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

    def advance(self, seconds: float) -> None:
        """So much more is done."""


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
    """One of the models, and which version of it was asked for."""

    model: Model
    version: str | None

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
        self.scrapes: dict[str, tuple[list[float], list[float]]] = {}

    def note(self, model: int, figures: Scrape) -> None:
        """What the metrics said of a model in this round."""
        for name, value in figures.items():
            self.scrapes.setdefault(name, ([], []))[model].append(value)


def measure(client: Client, sides: tuple[Side, Side], data: Data, plan: Plan, progress: Progress) -> Results:
    """All rounds; CallFailed if a model does not answer."""
    results = Results(plan.places)
    requests = {
        (model, rows): _shots(client, sides[model], data, model, rows) for model in (0, 1) for rows in plan.batches
    }
    for number in range(plan.rounds):
        progress.say(f"round {number + 1} of {plan.rounds}")
        if plan.reload:
            _load_anew(client, sides, number)
        ready = [_scrape(client, side) for side in sides]
        for step in steps(number, len(plan.places)):
            rows, connections = plan.places[step.place]
            found = _measured(client, sides[step.model], requests[step.model, rows], connections, plan, progress)
            results.cells[step.place][step.model].append(found)
        for model, side in enumerate(sides):
            figures = _scrape(client, side)
            if plan.reload and "memory_bytes" in ready[model]:
                figures["memory_idle_bytes"] = ready[model]["memory_bytes"]
            results.note(model, figures)
    return results


# One step


def _shots(client: Client, side: Side, data: Data, model: int, rows: int) -> list[Shot]:
    path = model_path(side.model.name, side.version)
    places = [[(number * rows + row) % data.rows for row in range(rows)] for number in range(SHOTS)]
    bodies = [prebuilt(client, path, data.part(model, each), None, binary=True) for each in places]
    return [Shot(body, any_200) for body in dict.fromkeys(bodies)]


def _load_anew(client: Client, sides: tuple[Side, Side], number: int) -> None:
    """Unload both models and load them one after the other."""
    names = list(dict.fromkeys(sides[model].model.name for model in order(number)))
    for action in ("unload", "load"):
        for name in names:
            client.json("POST", f"/v2/repository/models/{segment(name, 'a model')}/{action}", {})


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


def _measured(
    client: Client, side: Side, shots: list[Shot], connections: int, plan: Plan, progress: Progress
) -> Measurement:
    parts = urlsplit(client.url)
    address = (parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))
    load = ClosedLoop(address, shots, connections, client.timeout, tls=client.tls())
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
        await _pass(plan.warmup, progress)
        load.take()
        cpu, began = time.process_time(), time.perf_counter()
        await _pass(plan.seconds, progress)
        async with asyncio.timeout(patience):  # for the first answer, if the model is slower than that
            while not load.tally.total:  # noqa: ASYNC110 - the tally is filled without events, for speed
                await asyncio.sleep(_POLL_SECONDS)
        tally = load.take()
        busy = (time.process_time() - cpu) / (time.perf_counter() - began)
    tally.failures.update(load.tally.failures)  # of what was under way then
    return Measurement(tally, busy)


async def _pass(seconds: float, progress: Progress) -> None:
    end = time.perf_counter() + seconds
    while (left := end - time.perf_counter()) > 0:
        await asyncio.sleep(min(left, _TICK_SECONDS))
        progress.advance(min(left, _TICK_SECONDS))


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


def figures(results: Results, artifact_bytes: tuple[int, int] | None, *, reloaded: bool) -> list[Figure]:
    """Those that are known of both models, in the order of _TITLES."""
    found = []
    for name, title in _TITLES.items():
        if name == "artifact_bytes" and artifact_bytes is not None:
            found.append(Figure(name, title, "B", exactly(*artifact_bytes)))
            continue
        a, b = results.scrapes.get(name, ([], []))
        if not a or len(a) != len(b):
            continue
        if not reloaded and name != "memory_bytes":  # the same measurement in every round
            a, b = a[-1:], b[-1:]
        found.append(Figure(name, title, "s" if name == "load_seconds" else "B", contrast(a, b)))
    return found
