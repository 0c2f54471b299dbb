"""Finds out that an instance computes only requests that were all cancelled, so that it can be ended."""

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from gateway.ipc.arena import ExecutionNote

GRACE_SECONDS = 1.0
"""At the least so long a batch of cancelled requests is left to come to its end."""

MAX_INSTANCES = 1024
"""Of so many instances the supervisor remembers what was reported; the oldest go first."""
Report = Callable[[int, int, int], None]
"""Called with the number of the execution, how many of its requests are this worker's, and how many it has in all."""


class Cancellable(Protocol):
    """A call that was sent to an instance."""

    on_reply: Callable[..., None] | None
    cancelled: float
    """When its caller stopped waiting for it, by the monotonic clock; 0: it waits."""


class AbandonmentWatch:
    """Looks, some time after a cancellation, whether all that the instance computes for this worker was cancelled.

    `grace` are the seconds that a batch is given after the last of its requests was cancelled. What is reported holds
    for this worker's requests: those of others in the same batch may still be waited for.
    """

    def __init__(self, note: ExecutionNote, pending: Mapping[int, Cancellable]) -> None:
        self.grace = GRACE_SECONDS
        self.report: Report | None = None
        self._note = note
        self._pending = pending
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._reported = 0

    def cancelled(self) -> None:
        """A call was cancelled: look after the grace."""
        if self._timer is None and self.report is not None:
            self._timer = self._loop.call_later(self.grace, self._look)

    def close(self) -> None:
        """Look no more; the note is about to go."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.report = None

    def _look(self) -> None:
        self._timer = None
        execution, total, ids = self._note.read_execution()
        if not ids or execution == self._reported or self.report is None:
            return
        last = 0.0
        for request_id in ids:
            call = self._pending.get(request_id)
            if call is None or call.on_reply is not None:
                return  # answered just now, or waited for
            last = max(last, call.cancelled)
        left = last + self.grace - time.perf_counter()
        if left > 0.0:
            self._timer = self._loop.call_later(left, self._look)
            return
        self._reported = execution
        self.report(execution, len(ids), total)


class AbandonmentReports:
    """The supervisor's side: what workers have reported of the latest execution of each instance."""

    def __init__(self) -> None:
        self._reports: dict[str, tuple[int, dict[int, int]]] = {}
        """Instance → number of the execution, and by worker how many of its requests were cancelled."""

    def report(self, worker: int, instance: str, execution: int, requests: int, total: int) -> bool:
        """Whether with this report all `total` requests of an execution were cancelled."""
        known, by_worker = self._reports.pop(instance, (execution, {}))
        if known != execution:
            by_worker = {}
        by_worker[worker] = requests
        if sum(by_worker.values()) >= total:
            return True
        while len(self._reports) >= MAX_INSTANCES:
            del self._reports[next(iter(self._reports))]
        self._reports[instance] = execution, by_worker
        return False
