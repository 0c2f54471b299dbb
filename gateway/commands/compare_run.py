"""One whole comparison: pairs the signatures, asks both models the same, measures them, and draws the conclusions."""

import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import numpy as np

from gateway import __version__
from gateway.commands import compare_data, compare_rounds
from gateway.commands.client import Client
from gateway.commands.compare_data import Data
from gateway.commands.compare_rounds import Plan, Progress, Side
from gateway.commands.infer import ask
from gateway.commands.model import describe
from gateway.comparing import conclusions
from gateway.comparing.agreement import Accuracy, OutputAgreement, accuracy, agreement
from gateway.comparing.conclusions import counted
from gateway.comparing.document import Comparison, Settings
from gateway.comparing.document import Model as Described
from gateway.comparing.pairing import Pair, paired, rows_at_once
from gateway.errors import CallFailed, RequestError
from gateway.tensors import Array, Signature, TensorSpec

MADE_UP_ROWS = 64
_NO_CLASSES = (
    "The labels are of no use: no output has several scores for each row, or one integer or text of the labels' kind."
)


def run(
    client: Client,
    names: tuple[str, str],
    file: Path | None,
    seed: int,
    plan: Plan,
    progress: Progress,
    load_before: float | None,
) -> Comparison:
    """Compare two models given as NAME or NAME/VERSION; `load_before` is None if the gateway is on another machine.

    RequestError if they cannot be compared or the data are not for them; CallFailed if the gateway or a model fails.
    """
    notes = []
    sides = _side(client, names[0]), _side(client, names[1])
    a, b = (_required(side.model.signature(None)) for side in sides)
    inputs = paired("input", names, a, b)
    at_once = rows_at_once([spec.shape for spec in (*a, *b)])
    if at_once is not None and plan.batches != [at_once]:
        asked = ",".join(map(str, plan.batches))
        notes.append(f"The models take {counted(at_once, 'row')} at once and nothing else: not --batch {asked}.")
        plan = plan._replace(batches=[at_once])
        progress.expect(plan.total_seconds)
    rows = max(MADE_UP_ROWS, *plan.batches)
    if file is not None:
        data = compare_data.read(file, inputs, a, b)
    else:
        data = compare_data.made_up(inputs, a, b, rows if at_once is None else at_once, seed)
    if at_once is not None:
        if data.rows < at_once:
            raise RequestError(f"the models take {at_once} rows at once, and the data have {data.rows}")
        data = data.first(data.rows - data.rows % at_once)
    progress.say("answers")
    outputs, agreed, judged = _answers(client, sides, names, data, max(plan.batches))
    if data.labels is not None and judged is None:
        notes.append(_NO_CLASSES)
    results = compare_rounds.measure(client, sides, data, plan, progress)
    found = Comparison(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        gateway=__version__,
        machine=f"{platform.system()} {platform.machine()}",
        settings=_settings(plan, seed, data, load_before),
        models=(_described(sides[0]), _described(sides[1])),
        inputs=inputs,
        outputs=outputs,
        figures=compare_rounds.figures(results, _artifact_bytes(client, sides)),
        cells=compare_rounds.cells(results),
        agreement=agreed,
        accuracy=judged,
    )
    warnings = notes + conclusions.warnings(found)
    return msgspec.structs.replace(found, verdict=conclusions.verdict(found), warnings=warnings)


def _settings(plan: Plan, seed: int, data: Data, load_before: float | None) -> Settings:
    cpus, load = os.cpu_count() or 1, None if load_before is None else round(load_before, 2)
    return Settings(plan.rounds, plan.seconds, plan.warmup, seed, data.source, data.rows, plan.reload, load, cpus)


def _side(client: Client, name: str) -> Side:
    model, slash, version = name.partition("/")
    if not model or (slash and not version):
        raise RequestError(f"'{name}' is no model; write NAME or NAME/VERSION")
    return Side(describe(client, model, version or None))


def _required(signature: Signature) -> list[TensorSpec]:
    """The inputs that are given; those that may be left out are."""
    return [spec for spec in signature.inputs if not spec.optional]


def _described(side: Side) -> Described:
    ours = side.model.metadata.get("parameters") or {}
    most = ours.get("max_batch_size")
    return Described(
        side.model.name,
        side.model.version or "",
        side.model.platform,
        [str(each) for each in ours.get("devices") or []],
        most if isinstance(most, int) else None,
        str(ours.get("batching", "")),
    )


def _artifact_bytes(client: Client, sides: tuple[Side, Side]) -> tuple[int, int] | None:
    """Of both models' files, if the gateway tells."""
    try:
        known = {
            (each["name"], each.get("version")): (each.get("parameters") or {}).get("artifact_bytes")
            for each in client.index()
        }
    except CallFailed:
        return None
    a, b = (known.get((side.model.name, side.model.version)) for side in sides)
    return (a, b) if isinstance(a, int) and isinstance(b, int) else None


# Answers


def _answers(
    client: Client, sides: tuple[Side, Side], names: tuple[str, str], data: Data, at_once: int
) -> tuple[list[Pair], list[OutputAgreement], Accuracy | None]:
    """Ask both for all rows, so many at a time, and compare; outputs are paired by what came back."""
    starts = range(0, data.rows, at_once)
    ours, theirs = (_all_rows(client, side, data, model, starts, at_once) for model, side in enumerate(sides))
    pairs = paired("output", names, *([spec for spec, _ in each] for each in (ours, theirs)))
    by_name = {spec.name: (spec.datatype, array) for spec, array in ours}
    others = {spec.name: array for spec, array in theirs}
    agreed = [agreement(pair, by_name[pair.a][0], by_name[pair.a][1], others[pair.b]) for pair in pairs]
    if data.labels is None:
        return pairs, agreed, None
    both = [(pair.a, by_name[pair.a][1], others[pair.b]) for pair in pairs]
    return pairs, agreed, accuracy(both, data.labels)


def _all_rows(
    client: Client, side: Side, data: Data, model: int, starts: Sequence[int], at_once: int
) -> list[tuple[TensorSpec, Array]]:
    """Each output of a model over all rows."""
    answers = []
    for start in starts:
        some = data.part(model, list(range(start, min(start + at_once, data.rows))))
        answers.append(ask(client, side.model, side.version, some, [], None))
    found = []
    for name, first in answers[0].outputs.items():
        try:
            array = np.concatenate([answer.outputs[name] for answer in answers])
        except (KeyError, ValueError):
            raise CallFailed(f"output '{name}' of {side.title} is not the same for all rows") from None
        found.append((TensorSpec(name, answers[0].datatypes[name], (-1, *first.shape[1:])), array))
    return found
