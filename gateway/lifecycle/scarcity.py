"""Which instance is ended before the machine runs out of memory: pure functions."""

from collections.abc import Mapping
from typing import TypeVar

RESERVE_BYTES = 256 << 20
"""With less available memory the kernel is about to end processes of its own choice."""
SHARE_OF_START = 8
"""A machine or container that had less at the start keeps this part of it, for it runs with less all the time."""
SHARE_THAT_MATTERS = 4
"""An instance that has grown by less than this part of the reserve is not ended: that would give back too little."""

T = TypeVar("T")


def reserve(available: int) -> int:
    """Bytes below which memory is scarce, where so many were available at the start."""
    return min(RESERVE_BYTES, available // SHARE_OF_START)


def matters(reserved: int) -> int:
    """Bytes that an instance must have grown by for its end to help."""
    return reserved // SHARE_THAT_MATTERS


def to_end(left: int, reserved: int, growth: Mapping[T, int]) -> T | None:
    """The instance to end when so many bytes are left, by how far each has grown since it was loaded.

    None while enough is left, and where no instance has grown enough to matter: then other programs have the memory.
    """
    grown = {each: size for each, size in growth.items() if size >= max(1, matters(reserved))}
    if left >= reserved or not grown:
        return None
    return max(grown, key=lambda each: grown[each])
