"""How many requests a key may make: the generic cell rate algorithm, over a memory that all workers share.

Of each key one number is kept: when its requests so far are used up at its rate. Workers read and write it without a
lock; two that do so in the same microsecond count one request for two, which is harmless.
"""

import mmap
from typing import TYPE_CHECKING

from gateway.keys import MAX_KEYS

if TYPE_CHECKING:
    Memory = memoryview[float]
else:
    Memory = memoryview  # which takes no parameters when it runs


def take(used_up: Memory, place: int, now: float, interval: float, ahead: float) -> float:
    """Make a request at `now`: 0 if it may be made, else the seconds after which another may.

    A request every `interval` seconds is allowed, and `ahead` seconds of them before their time.
    """
    until = max(used_up[place], now)
    wait: float = until - now - ahead
    if wait > 0.0:
        return wait
    used_up[place] = until + interval
    return 0.0


def own_memory() -> Memory:
    """A place for each key, for one process alone."""
    return memoryview(bytearray(MAX_KEYS * 8)).cast("d")


def shared_memory(descriptor: int) -> Memory:
    """A place for each key, in the memory that the supervisor has made."""
    return memoryview(mmap.mmap(descriptor, MAX_KEYS * 8)).cast("d")
