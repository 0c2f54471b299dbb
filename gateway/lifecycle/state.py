"""The states of a model version and every way from one to another.

Side effects come in this order: LOADING is entered before anything is spawned; READY after every instance
answered and before any route is published; COLD (wanted, not resident, loaded by its first request) before the
routes that say so are published; DRAINING before the routes without it are published; UNLOADED
when the last process has ended.
"""

from enum import StrEnum


class State(StrEnum):
    """Where a version stands."""

    NEW = "NEW"
    LOADING = "LOADING"
    READY = "READY"
    DRAINING = "DRAINING"
    UNLOADED = "UNLOADED"
    COLD = "COLD"
    FAILED = "FAILED"


_NEXT: dict[State, frozenset[State]] = {
    State.NEW: frozenset({State.LOADING, State.COLD, State.FAILED}),
    State.LOADING: frozenset({State.READY, State.COLD, State.FAILED}),
    State.READY: frozenset({State.LOADING, State.DRAINING, State.FAILED}),
    State.DRAINING: frozenset({State.UNLOADED, State.COLD, State.FAILED}),
    State.UNLOADED: frozenset({State.LOADING}),
    State.COLD: frozenset({State.LOADING, State.DRAINING, State.FAILED}),
    State.FAILED: frozenset({State.LOADING, State.DRAINING}),
}


def next_state(current: State, wanted: State) -> State:
    """`wanted`, if there is a way to it; ValueError if not (a bug of the caller's)."""
    if wanted not in _NEXT[current]:
        raise ValueError(f"no way from {current} to {wanted}")
    return wanted
