"""Whether a model's graph keeps the rows of a batch apart, as far as reading it tells."""

from typing import Literal

import msgspec

Verdict = Literal["separate", "mixed", "unknown"]


class RowSeparation(msgspec.Struct, frozen=True):
    """What following the rows of the inputs through a graph found.

    `separate`: every operator between inputs and outputs is known to keep rows apart. `mixed`: the operator that
    `reason` names computes with several rows at once. `unknown`: `reason` says what prevents an answer.
    """

    verdict: Verdict
    reason: str


SEPARATE = RowSeparation("separate", "the graph keeps rows apart")
