"""What becomes of a call to an instance: its reply, or that the instance is gone."""

from collections.abc import Callable, Sequence

import msgspec

from gateway.errors import GatewayError, InstanceDied
from gateway.ipc.framing import ResultHeader
from gateway.tensors import Buffer

DIED = "the model's process ended before it answered; trying again may help"


class Reply(msgspec.Struct, gc=False):
    """What came back for one request; `error` is set or `header` and `tensors` are.

    `tensors` are views that hold only until the callback that got them returns. Times are seconds;
    `received` is of the monotonic clock.
    """

    error: GatewayError | None
    header: ResultHeader | None
    tensors: Sequence[Buffer]
    queue_seconds: float
    compute_seconds: float
    batch_rows: int
    received: float


class Call(msgspec.Struct, gc=False):
    """One request that an instance has; its arena regions and its load are given back with the reply."""

    on_reply: Callable[[Reply], None] | None
    """None once the caller has stopped waiting."""
    regions: list[int]
    deadline: float
    rows: int
    size: int
    cancelled: float = 0.0
    """When the caller stopped waiting, by the monotonic clock."""


class InstanceLost(InstanceDied):
    """The instance is gone; `executing` says that this very call was being computed.

    `verdict` is the error that such a call deserves: `instance_died` if the call itself may be the cause, `deadline` or
    `out_of_memory` if it took too much.
    """

    def __init__(self, *, executing: bool = False, verdict: str = InstanceDied.code, reason: str = "") -> None:
        super().__init__(DIED)
        self.executing = executing
        self.verdict = verdict
        self.reason = reason
