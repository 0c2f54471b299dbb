"""All that the console shows of the gateway at one moment, as JSON: a pure function of what the supervisor knows."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson

from gateway.ipc.messages import Ready
from gateway.lifecycle.residency import Account
from gateway.lifecycle.version import Version
from gateway.lifecycle.wanted import default_now
from gateway.metrics import DURATION_BOUNDS, STAGES, ShadowCounters, VersionCounters


def overview(
    counters: Sequence[VersionCounters],
    versions: Iterable[Version],
    account: Account,
    restarts: Mapping[tuple[str, str], int],
    chosen: Mapping[str, int | None],
    now: float,
) -> bytes:
    """`{"time": …, "constants": …, "devices": …, "versions": {"MODEL/VERSION": …}}`; all counts are since the start.

    `chosen` are the default versions that somebody has set, by model. Bytes, seconds, and the counts of requests by the
    bounds of their durations, as in the metrics.
    """
    versions = list(versions)
    serving: dict[str, set[int]] = {}
    for version in versions:
        if version.serves():
            serving.setdefault(version.artifact.model, set()).add(version.artifact.version)
    defaults = {model: default_now(chosen.get(model), numbers) for model, numbers in serving.items()}
    counted = {(each.model, each.version): each for each in counters}
    restarted: Counter[str] = Counter()
    for (title, _), number in restarts.items():
        restarted[title] += number
    shown = {
        version.title: _version(version, account, restarted[version.title])
        | {"default": defaults.get(version.artifact.model) == version.artifact.version}
        | _counts(counted.get((version.artifact.model, str(version.artifact.version))))
        for version in versions
    }
    devices = {device: {"budget": size} for device, size in account.budgets.items()}
    constants = {"bounds": DURATION_BOUNDS, "stages": STAGES}
    return orjson.dumps({"time": now, "constants": constants, "devices": devices, "versions": shown})


def _version(version: Version, account: Account, restarts: int) -> dict[str, Any]:
    artifact, ready = version.artifact, version.ready
    return {
        "model": artifact.model,
        "version": str(artifact.version),
        "framework": artifact.framework,
        "state": version.state.value,
        "reason": version.reason or (version.ready.warning if version.ready and version.is_ready() else ""),
        "rejected": version.rejected is not None,
        "disagreement": version.disagreement,
        "devices": [instance.device.name for instance in version.instances],
        "held": account.held.get(version, {}),
        "load_seconds": version.load_seconds,
        "inputs": _inputs(ready) if ready is not None else [],
        "restarts": restarts,
        "evictions": account.evictions[version.key],
    }


def _counts(counted: VersionCounters | None) -> dict[str, Any]:
    if counted is None:
        return {}
    failed = sum(number for key, number in counted.requests.items() if not key.startswith("2"))
    return {
        "requests": sum(counted.requests.values()),
        "failed": failed,
        "durations": counted.duration.counts,
        "stages": [stage.total for stage in counted.stages],
        "shadows": {key.replace(" ", "/"): _shadow(shadow) for key, shadow in counted.shadows.items()},
    }


def _inputs(ready: Ready) -> list[tuple[str, str, list[int] | None]]:
    """Name, datatype and shape of what a request to the default signature brings."""
    specs = ready.signatures[ready.default_signature].inputs
    return [(spec.name, spec.datatype, None if spec.shape is None else list(spec.shape)) for spec in specs]


def _shadow(shadow: ShadowCounters) -> dict[str, Any]:
    return {"requests": shadow.requests, "classes": shadow.classes}
