"""Triton's statistics of models, from the counters of all workers. Pure functions.

Source: Triton's extension_statistics.md.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from gateway import metrics
from gateway.metrics import STAGES, VersionCounters


def _duration(count: int, seconds: float) -> dict[str, int]:
    return {"count": count, "ns": round(seconds * 1e9)}


def _batches(counters: VersionCounters) -> list[dict[str, Any]]:
    """By the number of rows; what surrounds the model's own time is not measured batch by batch."""
    return [
        {
            "batch_size": rows,
            "compute_input": _duration(number, 0.0),
            "compute_infer": _duration(number, seconds),
            "compute_output": _duration(number, 0.0),
        }
        for rows, (number, seconds) in sorted(counters.by_rows.items())
    ]


def _version(counters: VersionCounters) -> dict[str, Any]:
    done = sum(counters.duration.counts)
    failed = sum(number for key, number in counters.requests.items() if not key.startswith("200"))
    stages = {stage: _duration(done, each.total) for stage, each in zip(STAGES, counters.stages, strict=True)}
    return {
        "name": counters.model,
        "version": counters.version,
        "last_inference": counters.last_inference,
        "inference_count": counters.inferences,
        "execution_count": counters.executions,
        "inference_stats": {
            "success": _duration(done, counters.duration.total),
            "fail": _duration(failed, counters.failed_seconds),
            "queue": stages["queue"],
            "compute_input": stages["decode"],
            "compute_infer": stages["compute"],
            "compute_output": stages["encode"],
            "cache_hit": _duration(0, 0.0),
            "cache_miss": _duration(0, 0.0),
        },
        "response_stats": {},  # of models that answer one request several times
        "batch_stats": _batches(counters),
        "memory_usage": [],
    }


def statistics(wanted: Iterable[tuple[str, Sequence[int]]], packed: bytes) -> dict[str, Any]:
    """The statistics of these models' versions; one that was never asked for anything has zeros."""
    counted = {(each.model, each.version): each for each in metrics.unpack(packed)}
    return {
        "model_stats": [
            _version(counted.get((model, str(version))) or VersionCounters(model, str(version), ""))
            for model, versions in wanted
            for version in versions
        ]
    }
