"""The busy model for load tests: how many rounds make a millisecond on this machine, and requests of a given length."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from client import RIGHT, Shot, request
from fleet import Scale, busy_body
from running import Running

MODEL = "busy"
PATH = f"/v2/models/{MODEL}/infer"
BUSY = 1.0
"""Seconds that calibration computes for, about."""


def model(store: Path, config: str = "") -> Scale:
    """The model as `fleet.build` takes it; `config` are more lines of its model.yaml."""
    return Scale(store / MODEL / "1", "busy", config=config)


def executions(gateway: Running) -> tuple[float, float]:
    """How often the model was executed, and for how many seconds."""
    metrics = gateway.metrics()
    return (
        metrics.of("gateway_executions_total", model=MODEL),
        metrics.of("gateway_execution_duration_seconds_sum", model=MODEL),
    )


def rounds_per_second(gateway: Running) -> float:
    """Measured with requests that grow until they take long enough to tell."""
    rounds = 1000
    while True:
        before = executions(gateway)[1]
        status, body = gateway.call("POST", PATH, busy_body(rounds))
        if status != 200:
            raise RuntimeError(f"the busy model answered {status}: {body!r}")
        seconds = executions(gateway)[1] - before
        if seconds > BUSY / 4:
            return rounds / seconds
        rounds *= 4


def shot(rounds: int, check: Callable[[int, bytes, bytes], str], *headers: str, **more: Any) -> Shot:
    """A request of so many rounds; `more` goes into its JSON."""
    return Shot(request("POST", PATH, busy_body(rounds, **more), *headers), check)


def answers(status: int, head: bytes, body: bytes) -> str:
    """The check of a busy request: an answer, or 429 that says when to come again."""
    if status == 200:
        return RIGHT if _is_answer(body) else "wrong answer"
    if status != 429:
        return f"status {status}"
    return "429" if retry_after(head) is not None else "429 without Retry-After"


def _is_answer(body: bytes) -> bool:
    try:
        (output,) = json.loads(body)["outputs"]
    except (ValueError, KeyError, TypeError):
        return False
    return bool(output["shape"] == [1] and 0.7 < output["data"][0] < 1.0)


def retry_after(head: bytes) -> int | None:
    """The seconds that a response says to wait; None if it says none."""
    for line in head.lower().split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name == b"retry-after" and value.strip().isdigit() and int(value) > 0:
            return int(value)
    return None
