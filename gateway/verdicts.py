"""What `gateway validate` says of a model store, as a table and as JSON: no input or output here."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gateway.errors import ConfigError
from gateway.ipc.messages import Ready
from gateway.lifecycle.policy import aspired, dangling_labels, missing
from gateway.sizes import format_size
from gateway.store.source import Artifact, Inventory
from gateway.tensors import Signature, TensorSpec

SHOWN = 4
"""So many inputs and outputs of a signature, and versions with the same note, are named; of more only their number."""
WHOLE_NAME = 40
"""Names of models are not broken if all of them are as short as this."""
COLUMNS = ("MODEL", "VERSION", "PLATFORM", "SIGNATURE", "BATCHING", "MEMORY", "LOAD", "PROBLEM")


class Verdict(msgspec.Struct, frozen=True):
    """What became of one version."""

    artifact: Artifact
    ready: Ready | None = None
    memory: Mapping[str, int] = {}
    """Measured bytes by device, of all its instances."""
    problem: str = ""
    """Why it cannot be served; empty if it can."""


class Report(msgspec.Struct, frozen=True):
    """What became of a store; its versions in the order they were tried in."""

    verdicts: list[Verdict]
    oddities: list[str]
    """What is wrong beside the versions, one sentence each."""

    @property
    def problems(self) -> int:
        """How many there are."""
        return len(self.oddities) + sum(bool(verdict.problem) for verdict in self.verdicts)


def chosen(inventory: Inventory, model: str | None) -> tuple[list[Artifact], list[str]]:
    """The versions to try, in order, and what is odd in the store without trying; of one model or of all.

    ConfigError if there is no such model.
    """
    artifacts = inventory.artifacts if model is None else inventory.model(model)
    mine = [
        sentence for sentence in inventory.ignored if model is None or sentence.startswith((f"'{model}'", f"'{model}/"))
    ]
    if model is not None and not artifacts and not mine:
        known = ", ".join(sorted({artifact.model for artifact in inventory.artifacts})) or "none"
        raise ConfigError(f"the store has no model '{model}'; it has: {known}")
    oddities = [f"ignored: {sentence}" for sentence in mine]
    by_model: dict[str, list[Artifact]] = {}
    for artifact in artifacts:
        by_model.setdefault(artifact.model, []).append(artifact)
    for name, versions in by_model.items():
        served = [artifact.version for artifact in aspired(versions)]
        found = [*missing(versions), *dangling_labels(versions[0].config, served)]
        oddities += [f"{name}: {sentence}" for sentence in found]
    return sorted(artifacts, key=lambda each: (each.model, each.version)), oddities


# --- For people -----------------------------------------------------------------------------------


def table(verdicts: Sequence[Verdict]) -> Table:
    """A row for each version."""
    found = Table(box=None, pad_edge=False, header_style="bold")
    short = max((len(verdict.artifact.model) for verdict in verdicts), default=0) <= WHOLE_NAME
    for column in COLUMNS:
        found.add_column(column, overflow="fold", no_wrap=column == "MODEL" and short)
    for verdict in verdicts:
        red = "red" if verdict.problem else ""
        found.add_row(*(Text(cell, style=red) for cell in row(verdict)))
    return found


def show(console: Console, report: Report) -> None:
    """The table, below it what is odd and what is worth knowing, and the sum."""
    if report.verdicts:
        console.print(table(report.verdicts))
    for sentence in report.oddities:
        console.print(sentence, style="red", markup=False, highlight=False)
    for note in notes(report.verdicts):
        console.print(note, style="dim", markup=False, highlight=False)
    console.print(summary(report), highlight=False)


def notes(verdicts: Sequence[Verdict]) -> list[str]:
    """What the loaders noted, each once, with the versions that it was noted of."""
    noted: dict[str, list[str]] = {}
    for verdict in verdicts:
        for note in verdict.ready.notes if verdict.ready else ():
            noted.setdefault(note, []).append(f"{verdict.artifact.model}/{verdict.artifact.version}")
    return [
        f"{', '.join(titles) if len(titles) <= SHOWN else f'{len(titles)} versions'}: {note}"
        for note, titles in noted.items()
    ]


def row(verdict: Verdict) -> tuple[str, ...]:
    """The cells of one version, in the order of COLUMNS."""
    artifact, ready = verdict.artifact, verdict.ready
    head = (artifact.model, str(artifact.version), artifact.platform or "?")
    if ready is None:
        return (*head, "", "", "", "", verdict.problem)
    reason = ready.batching.reason
    batching = f"{ready.batching.max_batch_size}, {'proved' if ready.batching.repeatable else reason}"
    memory = ", ".join(
        format_size(size) + (f" on {device}" if device != "cpu" else "") for device, size in verdict.memory.items()
    )
    return (*head, brief(ready), batching, memory, f"{ready.load_seconds * 1000:.0f} ms", verdict.problem)


def brief(ready: Ready) -> str:
    """The default signature in one line, such as `x FP32[-1,4] → y FP32[-1]`, and how many others there are."""
    signature = ready.signatures[ready.default_signature]
    others = len(ready.signatures) - 1
    more = f" (and {others} more)" if others else ""
    return f"{_side(signature.inputs)} → {_side(signature.outputs)}{more}"


def _side(specs: Sequence[TensorSpec]) -> str:
    names = [
        f"{spec.name}{'?' * spec.optional} {spec.datatype}{_shape(spec)}{' (a guess)' * spec.guessed}"
        for spec in specs[:SHOWN]
    ]
    if len(specs) > SHOWN:
        names.append(f"… {len(specs) - SHOWN} more")
    return ", ".join(names) or "nothing"


def _shape(spec: TensorSpec) -> str:
    return "[?]" if spec.shape is None else f"[{','.join(map(str, spec.shape))}]"


def summary(report: Report) -> str:
    """The last line."""
    versions = len(report.verdicts)
    tried = f"{versions} version{'s' * (versions != 1)}"
    count = report.problems
    return f"{tried}, {count} problem{'s' * (count != 1)}" if count else f"{tried}, no problems"


# --- For programs ---------------------------------------------------------------------------------


def as_json(report: Report) -> dict[str, Any]:
    """The report in types that JSON has; memory in bytes, times in seconds."""
    return {
        "versions": [_version(verdict) for verdict in report.verdicts],
        "oddities": report.oddities,
        "problems": report.problems,
    }


def _version(verdict: Verdict) -> dict[str, Any]:
    artifact, ready = verdict.artifact, verdict.ready
    found: dict[str, Any] = {
        "model": artifact.model,
        "version": artifact.version,
        "platform": artifact.platform or None,
        "problem": verdict.problem or None,
    }
    if ready is None:
        return found
    return found | {
        "default_signature": ready.default_signature,
        "signatures": {name: _signature(signature) for name, signature in ready.signatures.items()},
        "batching": {"max_batch_size": ready.batching.max_batch_size, "reason": ready.batching.reason},
        "memory_bytes": dict(verdict.memory),
        "load_seconds": ready.load_seconds,
        "sandbox": ready.sandbox,
        "notes": ready.notes,
    }


def _signature(signature: Signature) -> dict[str, Any]:
    sides = (("inputs", signature.inputs), ("outputs", signature.outputs))
    return {side: [msgspec.structs.asdict(spec) for spec in specs] for side, specs in sides}
