"""What a comparison found, as the typed document that is written as JSON and drawn as a page."""

from typing import Literal

import msgspec

from gateway.comparing.agreement import Accuracy, OutputAgreement
from gateway.comparing.pairing import Pair
from gateway.comparing.spread import Contrast, Histogram

VERSION = 1
"""Of this format: raised when a field changes its meaning or goes."""


class Model(msgspec.Struct, frozen=True):
    """One of the two models, as the gateway describes it."""

    name: str
    version: str
    platform: str
    devices: list[str]
    max_batch_size: int | None
    batching: str
    """What was decided about batching, and why."""

    @property
    def title(self) -> str:
        """name/version."""
        return f"{self.name}/{self.version}"


class Figure(msgspec.Struct, frozen=True):
    """One figure of both models that does not depend on the requests."""

    name: str
    """Such as load_seconds."""
    title: str
    unit: Literal["s", "B"]
    contrast: Contrast


class Cell(msgspec.Struct, frozen=True):
    """Both models under requests of so many rows on so many connections; each contrast is over the rounds."""

    rows: int
    connections: int
    p50_ms: Contrast
    p95_ms: Contrast
    p99_ms: Contrast
    requests_per_second: Contrast
    answers: tuple[int, int]
    """Requests of each model that were answered with 200, over all rounds."""
    errors: tuple[int, int]
    generator_cpu: float
    """The largest share of its core that the load generator had; near 1 it was itself the limit."""
    latencies_ms: Histogram
    """Over all rounds."""


class Settings(msgspec.Struct, frozen=True):
    """How it was measured."""

    rounds: int
    seconds: float
    warmup: float
    seed: int
    data: str
    """Where the requests come from: the name of a file, or that they were made up."""
    rows_of_data: int
    reloaded: bool
    """Whether every round began with loading both models anew."""
    load_before: float | None
    """How many processes wanted a CPU of this machine in the minute before; None if the gateway is on another one."""
    cpus: int
    """Of this machine."""


class Verdict(msgspec.Struct, frozen=True):
    """The comparison in sentences."""

    speed: str = ""
    size: str = ""
    answers: str = ""


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """The whole document."""

    format: Literal["gateway-comparison"] = "gateway-comparison"
    format_version: int = VERSION
    created: str
    """ISO 8601, UTC."""
    gateway: str
    """Version of the program."""
    machine: str
    """That the command ran on; it may not be the gateway's."""
    settings: Settings
    models: tuple[Model, Model]
    inputs: list[Pair]
    outputs: list[Pair]
    figures: list[Figure]
    cells: list[Cell]
    agreement: list[OutputAgreement]
    accuracy: Accuracy | None = None
    verdict: Verdict = Verdict()
    warnings: list[str] = []
