"""What a request says of itself beyond its tensors: how long it may take, how urgent it is, which version it means."""

from collections.abc import Mapping
from typing import Any

import msgspec

from gateway.errors import RequestError
from gateway.ipc.framing import DEFAULT_PRIORITY

LAST_PRIORITY = 100
LONGEST_MICROSECONDS = 10**12
"""Days: longer than anybody waits, and a number that becomes seconds."""
KEYS = frozenset({"timeout", "priority", "version_label"})
"""The parameters of a request that are read here."""


class Wishes(msgspec.Struct, frozen=True):
    """The wishes of one request."""

    timeout: float | None = None
    """Seconds."""
    priority: int = DEFAULT_PRIORITY
    """1 to 100, smaller ones first."""
    label: str | None = None


NONE = Wishes()


class OtherVersion(RequestError):
    """The request names a version by a label, and it is not the one that it was about to be sent to."""

    def __init__(self, label: str) -> None:
        super().__init__(f"version_label '{label[:40]}' is not a label of the version in the path")
        self.label = label


def wishes_of(parameters: Mapping[str, Any]) -> Wishes:
    """Read a request's parameters; RequestError names one that makes no sense."""
    if KEYS.isdisjoint(parameters):
        return NONE
    label = parameters.get("version_label")
    if label is not None and not isinstance(label, str):
        raise RequestError("parameter version_label must be a string")
    microseconds = _number(parameters, "timeout")
    if microseconds < 0:
        raise RequestError("parameter timeout must be a whole number of microseconds greater than 0")
    priority = _number(parameters, "priority")
    if not 0 <= priority <= LAST_PRIORITY:
        raise RequestError(f"parameter priority must be a whole number from 1 (first) to {LAST_PRIORITY}")
    microseconds = min(microseconds, LONGEST_MICROSECONDS)
    return Wishes(microseconds / 1e6 if microseconds else None, priority or DEFAULT_PRIORITY, label)


def _number(parameters: Mapping[str, Any], key: str) -> int:
    """A parameter that is a whole number; 0, as Triton has it, if it is left out."""
    value = parameters.get(key)
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int):
        raise RequestError(f"parameter {key} must be a whole number")
    return value
