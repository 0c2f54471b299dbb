"""What the gateway says about models: metadata, configuration, statistics, index. Pure functions."""

from collections.abc import Sequence
from typing import Any

from gateway import metrics
from gateway.ipc.messages import VersionRoute
from gateway.routing import RoutingTable, Target
from gateway.tensors import TensorSpec


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "name": spec.name,
        "datatype": spec.datatype,
        "shape": list(spec.shape) if spec.shape is not None else [-1],
    }
    if spec.optional:
        shown["optional"] = True
    return shown


def _tensor_in_full(spec: TensorSpec) -> dict[str, Any]:
    return _tensor(spec) | ({"any_rank": True} if spec.shape is None else {})


def metadata(target: Target, versions: Sequence[int]) -> dict[str, Any]:
    """OIP's model metadata; what is ours stands under `parameters`."""
    route, ready = target.route, target.route.ready
    assert ready is not None
    signature = ready.signatures[ready.default_signature]
    return {
        "name": target.model,
        "versions": [str(version) for version in versions],
        "platform": ready.platform,
        "inputs": [_tensor(spec) for spec in signature.inputs],
        "outputs": [_tensor(spec) for spec in signature.outputs],
        "parameters": {
            "version": target.version,
            "framework": route.framework,
            "devices": [instance.device for instance in route.instances],
            "max_batch_size": ready.batching.max_batch_size,
            "batching": ready.batching.reason,
            "notes": ready.notes,
            "sandbox": ready.sandbox,
            "default_signature": ready.default_signature,
            "signatures": {
                name: {
                    "inputs": [_tensor_in_full(spec) for spec in each.inputs],
                    "outputs": [_tensor_in_full(spec) for spec in each.outputs],
                }
                for name, each in ready.signatures.items()
            },
        },
    }


def _config_tensor(spec: TensorSpec, *, batched: bool) -> dict[str, Any]:
    shape = list(spec.shape) if spec.shape is not None else [-1]
    kind = "TYPE_STRING" if spec.datatype == "BYTES" else f"TYPE_{spec.datatype}"
    return {"name": spec.name, "data_type": kind, "dims": shape[1:] if batched else shape}


def configuration(target: Target) -> dict[str, Any]:
    """Triton's model configuration, as far as it has words for what we do."""
    route, ready = target.route, target.route.ready
    assert ready is not None
    signature, batching = ready.signatures[ready.default_signature], ready.batching
    batched = batching.max_batch_size > 1
    shown: dict[str, Any] = {
        "name": target.model,
        "platform": ready.platform,
        "backend": route.framework,
        "max_batch_size": batching.max_batch_size if batched else 0,
        "input": [_config_tensor(spec, batched=batched) for spec in signature.inputs],
        "output": [_config_tensor(spec, batched=batched) for spec in signature.outputs],
        "instance_group": [
            {"name": target.model, "kind": f"KIND_{group.kind.upper()}", "count": group.count, "gpus": group.gpus}
            for group in route.config.groups
        ],
    }
    if batched:
        delay = route.config.max_queue_delay_microseconds
        shown["dynamic_batching"] = {
            "max_queue_delay_microseconds": delay,
            "default_queue_policy": {"max_queue_size": route.config.max_queue_size},
        }
    return shown


def statistics(model: str, versions: Sequence[int], packed: bytes) -> dict[str, Any]:
    """Triton's statistics of these versions, from the counters of all workers."""
    counted = {(each.model, each.version): each for each in metrics.unpack(packed)}
    stats = []
    for version in versions:
        each = counted.get((model, str(version))) or metrics.VersionCounters(model, str(version), "")
        done = sum(each.duration.counts)
        failed = sum(number for key, number in each.requests.items() if not key.startswith("200"))
        decode, queue, compute, _, encode = (
            {"count": done, "ns": round(histogram.total * 1e9)} for histogram in each.stages
        )
        stats.append(
            {
                "name": model,
                "version": str(version),
                "inference_count": each.inferences,
                "execution_count": each.executions,
                "inference_stats": {
                    "success": {"count": done, "ns": round(each.duration.total * 1e9)},
                    "fail": {"count": failed, "ns": 0},
                    "queue": queue,
                    "compute_input": decode,
                    "compute_infer": compute,
                    "compute_output": encode,
                },
                "batch_stats": [],
            }
        )
    return {"model_stats": stats}


def index(table: RoutingTable, *, only_ready: bool, details: bool = False) -> list[dict[str, Any]]:
    """Triton's repository index; the details, which it does not have, stand under `parameters`."""
    return [
        {"name": route.model, "version": str(route.version), "state": route.state, "reason": route.reason}
        | ({"parameters": _details(route)} if details else {})
        for _, versions in sorted(table.models.items())
        for _, route in sorted(versions.items())
        if route.state == "READY" or not only_ready
    ]


def _details(route: VersionRoute) -> dict[str, Any]:
    return {
        "platform": route.platform,
        "framework": route.framework,
        "labels": route.labels,
        "devices": [instance.device for instance in route.instances],
        "max_batch_size": route.ready.batching.max_batch_size if route.ready else None,
    }
