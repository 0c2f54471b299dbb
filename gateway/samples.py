"""What people are shown that a model may be asked: plausible values, and values in lists as their shape says."""

from collections.abc import Sequence
from typing import Any

from gateway.tensors import TensorSpec


def plausible(datatype: str) -> Any:
    """A value of a datatype, as JSON has it."""
    if datatype == "BYTES":
        return "hello"
    return True if datatype == "BOOL" else 0.5 if datatype in ("FP16", "BF16", "FP32", "FP64") else 1


def smallest(spec: TensorSpec) -> tuple[int, ...]:
    """The shape of the smallest input: one of every dimension whose size is open."""
    return (1,) if spec.shape is None else tuple(1 if size < 0 else size for size in spec.shape)


def nested(values: Sequence[Any], shape: Sequence[int]) -> Any:
    """Values in row-major order as lists in lists; a single value where there is no dimension."""
    found = list(values)
    for size in reversed(shape[1:]):
        found = [found[at : at + size] for at in range(0, len(found), size)] if size else []
    return found if len(shape) else found[0]
