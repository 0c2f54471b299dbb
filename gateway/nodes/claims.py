"""What an instance says of itself is a claim: a model that took over its process may say anything. Pure functions."""

import math

from gateway.errors import GatewayError, LoadFailed, OutOfMemory
from gateway.ipc.batching import Batching
from gateway.ipc.messages import EXAMPLE_BYTES, ExampleInput, Failed, Ready
from gateway.tensors import DEFINITION_BYTES, DTYPES, Signature, TensorSpec

SIGNATURES = 1000
TENSORS = 10_000
"""Of one signature, inputs and outputs together."""
RANK = 64
TEXT = 2000
"""Characters of a name or a sentence."""
NOTES = 100
ROWS = 1 << 31
MEMORY = 1 << 50


def objection(ready: Ready, platform: str) -> str | None:
    """Why a Ready cannot be true; None if it can."""
    texts = [ready.sandbox, ready.warning, ready.batching.reason, *ready.notes]
    found = (
        (ready.platform != platform, "another platform than its artifact's"),
        (ready.default_signature not in ready.signatures, "a default signature that it does not have"),
        (len(ready.signatures) > SIGNATURES, f"{len(ready.signatures)} signatures"),
        (len(ready.notes) > NOTES or max(map(len, texts)) > TEXT, "too many words"),
        (not math.isfinite(ready.load_seconds) or ready.load_seconds < 0, "a load that took no time there is"),
        (not 0 <= (ready.device_memory or 0) < MEMORY, "an absurd amount of memory"),
        (not _may_batch(ready.batching), "an absurd batch size"),
        (not all(map(_possible, ready.signatures.items())), "an absurd signature"),
        (not _may_be_shown(ready.example), "an absurd example"),
    )
    return next((words for wrong, words in found if wrong), None)


def _may_batch(batching: Batching) -> bool:
    proved = batching.proved or {}
    return (
        1 <= batching.max_batch_size <= ROWS and len(proved) <= SIGNATURES and sum(map(len, proved.values())) <= TENSORS
    )


def _may_be_shown(example: list[ExampleInput]) -> bool:
    return (
        len(example) <= TENSORS
        and sum(len(each.data) for each in example) <= EXAMPLE_BYTES
        and all(_plausible(TensorSpec(each.name, each.datatype, each.shape)) for each in example)
        and all(size >= 0 for each in example for size in each.shape)
    )


def _possible(named: tuple[str, Signature]) -> bool:
    name, signature = named
    specs = [*signature.inputs, *signature.outputs]
    return (
        name == signature.name
        and len(name) <= TEXT
        and len(signature.definition) <= DEFINITION_BYTES
        and len(specs) <= TENSORS
        and all(map(_plausible, specs))
    )


def _plausible(spec: TensorSpec) -> bool:
    shape = spec.shape or ()
    return (
        len(spec.name) <= TEXT
        and spec.datatype in DTYPES
        and len(shape) <= RANK
        and all(-1 <= size < 1 << 62 for size in shape)
    )


def reason(failed: Failed) -> GatewayError:
    """The error of an instance that says it failed."""
    kind = OutOfMemory if failed.code == OutOfMemory.code else LoadFailed
    text = "".join(each if each.isprintable() else " " for each in failed.reason[:TEXT])
    return kind(text or "it gave no reason")
