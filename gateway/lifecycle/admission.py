"""Whether a version may be loaded within the memory budgets, and what must go for it: pure functions."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gateway.sizes import format_size
from gateway.store.source import Key

SPARE = 0.03
"""This part of a budget stays free for what those in memory grow by before it is noticed."""


@dataclass(frozen=True)
class Resident:
    """What one version holds of the budgets, in bytes by device."""

    key: Key
    holds: Mapping[str, int]
    last_used: float = 0.0
    """Of the monotonic clock."""
    evictable: bool = False
    """Ready, idle and not pinned."""


@dataclass(frozen=True)
class Admission:
    """`fits` now, or once the versions in `evict` are gone, or `never`: a sentence with both numbers."""

    fits: bool = False
    evict: tuple[Key, ...] = ()
    never: str = ""


def admit(need: Mapping[str, int], budgets: Mapping[str, int], residents: Sequence[Resident]) -> Admission:
    """Decide about a version that needs so many bytes on each device; the least recently used go first.

    A device without a budget is not limited.
    """
    for device, wanted in need.items():
        if wanted > budgets.get(device, wanted):
            return Admission(never=never_fits(device, wanted, budgets[device]))
    room = {device: budget * (1 - SPARE) for device, budget in budgets.items()}
    held: Counter[str] = Counter()
    for resident in residents:
        held.update(resident.holds)

    def short() -> set[str]:
        return {d for d, wanted in need.items() if d in budgets and held[d] and held[d] + wanted > room[d]}

    chosen: list[Key] = []
    for resident in sorted((each for each in residents if each.evictable), key=lambda each: each.last_used):
        missing = short()
        if not missing:
            break
        if any(resident.holds.get(device) for device in missing):
            chosen.append(resident.key)
            held.subtract(resident.holds)
    if short():
        return Admission()
    return Admission(fits=not chosen, evict=tuple(chosen))


def never_fits(device: str, need: int, budget: int) -> str:
    """Why a version cannot be served at all."""
    where = "memory" if device == "cpu" else f"memory on {device}"
    return f"it needs {format_size(need)} of {where} and the budget is {format_size(budget)}"


def excess(budgets: Mapping[str, int], residents: Sequence[Resident]) -> dict[str, int]:
    """By how many bytes the versions together are over each budget; only devices that are over."""
    held: Counter[str] = Counter()
    for resident in residents:
        held.update(resident.holds)
    return {device: held[device] - budget for device, budget in budgets.items() if held[device] > budget}
