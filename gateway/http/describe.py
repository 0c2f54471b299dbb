"""What the gateway says about models: metadata, configuration, index. Pure functions."""

from collections.abc import Sequence
from typing import Any

import msgspec

from gateway.http.wishes import LAST_PRIORITY
from gateway.ipc.framing import DEFAULT_PRIORITY
from gateway.ipc.messages import VersionRoute
from gateway.routing import RoutingTable, Target
from gateway.store.manifest import InstanceGroup, ModelConfig, VersionPolicy
from gateway.tensors import TensorSpec


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "name": spec.name,
        "datatype": spec.datatype,
        "shape": list(spec.shape) if spec.shape is not None else [-1],
    }
    if spec.optional:
        shown["optional"] = True
    if spec.guessed:
        shown["guessed"] = True
    return shown


def _tensor_in_full(spec: TensorSpec) -> dict[str, Any]:
    return _tensor(spec) | ({"any_rank": True} if spec.shape is None else {})


def metadata(target: Target, versions: Sequence[int]) -> dict[str, Any]:
    """OIP's model metadata; what is ours stands under `parameters`."""
    route, ready = target.route, target.route.ready
    assert ready is not None
    signature = ready.signatures[ready.default_signature]
    shadow = route.config.shadow
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
            **({"warning": ready.warning} if ready.warning else {}),
            "sandbox": ready.sandbox,
            **({} if shadow is None else {"shadow": msgspec.to_builtins(shadow)}),
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
    return {
        "name": spec.name,
        "data_type": kind,
        "dims": shape[1:] if batched else shape,
        "is_shape_tensor": False,
        "is_non_linear_format_io": False,
    }


def _config_input(spec: TensorSpec, *, batched: bool) -> dict[str, Any]:
    more = {"format": "FORMAT_NONE", "allow_ragged_batch": False, "optional": spec.optional}
    return _config_tensor(spec, batched=batched) | more


def _config_output(spec: TensorSpec, labels: Sequence[str], *, batched: bool) -> dict[str, Any]:
    shown = _config_tensor(spec, batched=batched) | {"label_filename": ""}
    return shown | ({"labels": labels} if labels else {})


def _version_policy(config: ModelConfig) -> dict[str, Any]:
    policy = config.version_policy
    if policy == "all":
        return {"all": {}}
    if isinstance(policy, VersionPolicy) and policy.specific is not None:
        return {"specific": {"versions": policy.specific}}
    return {"latest": {"num_versions": policy.latest if isinstance(policy, VersionPolicy) else 1}}


def _config_group(name: str, group: InstanceGroup) -> dict[str, Any]:
    return {
        "name": name,
        "kind": f"KIND_{group.kind.upper()}",
        "count": group.count,
        "gpus": group.gpus,
        "secondary_devices": [],
        "profile": [],
        "passive": False,
        "host_policy": "",
    }


def configuration(target: Target) -> dict[str, Any]:
    """Triton's model configuration, as far as it has words for what we do."""
    route, ready = target.route, target.route.ready
    assert ready is not None
    signature, batching, config = ready.signatures[ready.default_signature], ready.batching, route.config
    batched = batching.shown_batch_size > 1
    shown: dict[str, Any] = {
        "name": target.model,
        "platform": ready.platform,
        "backend": route.framework,
        "runtime": "",
        "version_policy": _version_policy(config),
        "max_batch_size": batching.shown_batch_size if batched else 0,
        "input": [_config_input(spec, batched=batched) for spec in signature.inputs],
        "output": [
            _config_output(spec, target.labels.get(spec.name, ()), batched=batched) for spec in signature.outputs
        ],
        "batch_input": [],
        "batch_output": [],
        "instance_group": [
            _config_group(f"{target.model}_{index}", group) for index, group in enumerate(config.groups)
        ],
        "default_model_filename": route.file,
        "cc_model_filenames": {},
        "metric_tags": {},
        "parameters": {},
        "model_warmup": [],
    }
    if batched:
        shown["dynamic_batching"] = {
            "preferred_batch_size": [],
            "max_queue_delay_microseconds": config.max_queue_delay_microseconds,
            "preserve_ordering": False,
            "priority_levels": LAST_PRIORITY,
            "default_priority_level": DEFAULT_PRIORITY,
            "default_queue_policy": {
                "timeout_action": "REJECT",
                "default_timeout_microseconds": 0,
                "allow_timeout_override": True,
                "max_queue_size": config.max_queue_size,
            },
        }
    return shown


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
        "artifact_bytes": route.artifact_bytes,
    }
