"""Compares what real requests get together with what each gets alone."""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from gateway.errors import OutOfMemory
from gateway.instance.batch_agreement import Scales, disagreement, is_sensitive, scales_of
from gateway.instance.batch_checks import BatchChecks, Trust
from gateway.instance.batching import join_inputs, part_outputs
from gateway.instance.queue import PendingRequest
from gateway.tensors import Array

Tensors = dict[str, Array]
Execute = Callable[[str, Tensors], Tensors]

BEARABLE_SECONDS = 0.05
"""Requests that took no longer than this alone, all together, are checked as one batch; else only some of them are."""
FEW_REQUESTS = 8
"""Requests of a batch that are checked where all of them would cost too much."""
SAMPLED_REQUESTS = 4
"""Requests of a batch of a trusted kind that are computed alone later."""
SHARE_OF_TIMEOUT = 0.25
"""Requests that took longer than this share of execution_timeout alone are not computed together for a check."""
SAMPLE_BYTES = 16 << 20
"""Inputs and outputs of a sample that is kept until the instance is idle; a larger sample is of one request."""


_UNDECIDED = "real requests have not shown that rows get the same answers together as alone: these change with rounding"


class _Sampled(NamedTuple):
    """One request of a batch that has been answered: its inputs and what it got."""

    signature: str
    inputs: Tensors
    answer: Tensors
    scales: Scales
    """Of the whole batch."""


class CheckedBatches:
    """The checks of one instance.

    `execute` runs the model under its timeout, `on_trusted` and `on_violated` are called once each. `repeatable` is the
    signature that is known to give the same answer to the same request, if any.
    """

    def __init__(
        self,
        checks: BatchChecks,
        execute: Execute,
        execution_timeout: float,
        on_trusted: Callable[[int], None],
        on_violated: Callable[[str], None],
        repeatable: str = "",
    ) -> None:
        self.checks = checks
        self._execute = execute
        self._most_seconds = execution_timeout * SHARE_OF_TIMEOUT
        self._on_trusted = on_trusted
        self._on_violated = on_violated
        self._repeatable = repeatable
        self._reported = False
        self._sampled: deque[_Sampled] = deque()
        self._rng = np.random.default_rng()

    @property
    def has_work(self) -> bool:
        """Whether sampled requests wait for being computed alone."""
        return bool(self._sampled)

    def are_equal(self, batch: Sequence[PendingRequest]) -> bool:
        """Whether all requests of a batch are the same, of a signature for which one answer then serves them all."""
        first = batch[0]
        if first.plan.signature != self._repeatable or any(tensor.in_arena for tensor in first.plan.inputs):
            return False
        payload, plan = first.payload, first.plan
        return all(each.payload == payload and (each.plan is plan or each.plan.rows == plan.rows) for each in batch)

    # Before a kind of request is trusted

    def prove(self, batch: Sequence[PendingRequest], run_alone: Callable[[PendingRequest], Tensors | None]) -> None:
        """Have each request computed and answered alone, then compute them together and compare.

        `run_alone` returns a request's outputs, or None if it failed or was not computed.
        """
        try:
            joined = join_inputs(batch)  # a copy: what lies in the arena is free once its request is answered
        except MemoryError:
            joined = {}
        started = time.perf_counter()
        alone = [run_alone(request) for request in batch]
        seconds = time.perf_counter() - started
        trust, count = batch[0].plan.trust, len(batch)
        if seconds > BEARABLE_SECONDS:
            count = min(FEW_REQUESTS, int(count * self._most_seconds / seconds))
        group, answers = batch[:count], [answer for answer in alone[:count] if answer is not None]
        if self.checks.violation or trust is None or not joined or count < 2 or len(answers) < count:
            return
        rows = sum(request.plan.rows for request in group)
        inputs = {name: array[:rows] for name, array in joined.items()}
        try:
            if not _are_different(part_outputs(inputs, group)):
                return
            agreed = self._agree(group, inputs, answers)
        except (MemoryError, OutOfMemory):
            agreed = False
        if agreed:
            self._agreed(trust)
        elif self.checks.tried(trust):
            self._violate(_UNDECIDED)

    def _agree(self, group: Sequence[PendingRequest], inputs: Tensors, alone: Sequence[Tensors]) -> bool:
        """Compute requests together and compare with what each got alone; what differs is a violation.

        MemoryError or OutOfMemory where that needs more memory than there is.
        """
        signature = group[0].plan.signature
        parts = part_outputs(inputs, group)
        try:
            outputs = self._execute(signature, inputs)
            together, scales = part_outputs(outputs, group), scales_of(outputs)
        except (MemoryError, OutOfMemory):
            raise
        except Exception as error:  # noqa: BLE001 - whatever a model does, its instance goes on serving
            self.refused_together(error)
            return False
        return all(
            self._same(_Sampled(signature, mine, joint, scales), answer)
            for mine, joint, answer in zip(parts, together, alone, strict=True)
        )

    def _agreed(self, trust: Trust) -> None:
        if self.checks.agreed(trust) and not self._reported:
            self._reported = True
            self._on_trusted(trust.agreed)

    def refused_together(self, error: Exception) -> None:
        """Requests that are answered alone have failed together."""
        if not isinstance(error, MemoryError | OutOfMemory):
            said = f": {error}" if isinstance(error, ValueError) else ""
            self._violate(f"the model refuses requests together that it answers alone{said}")

    # Later

    def sample(self, batch: Sequence[PendingRequest], inputs: Tensors, outputs: Tensors) -> None:
        """Keep a part of a batch that has been answered, to be computed alone when the instance is idle.

        What is still there of the sample before is computed now instead, a request a batch.
        """
        trust = batch[0].plan.trust
        if trust is None:
            return
        if self._sampled:
            self.step()
            return
        try:
            self._keep(batch, trust, inputs, outputs)
        except MemoryError:
            self._sampled.clear()

    def _keep(self, batch: Sequence[PendingRequest], trust: Trust, inputs: Tensors, outputs: Tensors) -> None:
        parts = part_outputs(inputs, batch)
        different = _are_different(parts)
        self.checks.taken(trust, different=different)
        if not different:
            return
        answers, scales, size = part_outputs(outputs, batch), scales_of(outputs), 0
        for index in self._rng.permutation(len(batch))[:SAMPLED_REQUESTS].tolist():
            size += _size(parts[index]) + _size(answers[index])
            if self._sampled and size > SAMPLE_BYTES:
                break
            mine, got = ({name: array.copy() for name, array in each[index].items()} for each in (parts, answers))
            self._sampled.append(_Sampled(batch[0].plan.signature, mine, got, scales))

    def step(self) -> None:
        """Compute one sampled request alone and compare."""
        sampled = self._sampled.popleft()
        try:
            alone = self._execute(sampled.signature, sampled.inputs)
            self._same(sampled, alone)
        except (MemoryError, OutOfMemory):
            return
        except Exception:  # noqa: BLE001 - as above
            self._violate("the model refuses a request alone that it answers together with others")

    def stop(self) -> None:
        """Check nothing any more."""
        self._sampled.clear()

    def _same(self, sampled: _Sampled, alone: Tensors) -> bool:
        """Whether a request got the same together with others as alone, or nearly; if not, that is a violation."""
        scales = sampled.scales
        difference = disagreement(alone, sampled.answer, scales)
        if difference is None:
            return True
        if not is_sensitive(lambda inputs: self._execute(sampled.signature, inputs), sampled.inputs, alone, scales):
            self._violate(difference)
        return False

    def _violate(self, difference: str) -> None:
        self.stop()
        if self.checks.violate(difference):
            self._on_violated(difference)


def _are_different(parts: Sequence[Mapping[str, Array]]) -> bool:
    """Whether the inputs of at least two requests differ."""
    first = parts[0]
    return any(not _identical(array, other[name]) for other in parts[1:] for name, array in first.items())


def _identical(left: Array, right: Array) -> bool:
    if left.shape != right.shape:
        return False
    return left.tolist() == right.tolist() if left.dtype == object else left.tobytes() == right.tobytes()


def _size(arrays: Mapping[str, Array]) -> int:
    """Bytes of arrays, with their strings."""
    return sum(
        sum(map(len, array.ravel().tolist())) if array.dtype == object else array.nbytes for array in arrays.values()
    )
