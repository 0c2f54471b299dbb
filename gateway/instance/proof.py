"""The proof, made at load, that requests joined into a batch get the answers they would get alone."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from gateway.errors import GatewayError, InferenceFailed, RequestError
from gateway.instance.backend import LoadedModel
from gateway.instance.batch_agreement import agree, disagreement, is_exact, is_sensitive, magnitudes
from gateway.instance.batch_checks import FIRST_BATCHES
from gateway.instance.proof_rows import rows_like
from gateway.instance.row_separation import RowSeparation
from gateway.ipc.batching import Batching
from gateway.ipc.framing import RequestHeader
from gateway.store.manifest import ModelConfig
from gateway.tensors import Array, raw_from_array

AUTO_BATCH_SIZE = 32
PROOF_SECONDS = 1.0
"""After so long no further row and no further pair is tried, but for the fewest of them."""
FEWEST_ROWS = 6
LARGEST_BATCH = 128
"""Rows of the largest batch that is tried; `max_batch_size` may be any number."""
NO_EXAMPLE = "no example request is known to test it with"
DECLARE = "; declare inputs or max_batch_size in model.yaml"
ANYWAY = "; batching_check: off in model.yaml joins requests without any check"
Tensors = dict[str, Array]
Execute = Callable[[Tensors], Tensors]


class Evidence(NamedTuple):
    """What running made-up rows together and alone has shown."""

    doubt: str = ""
    """Why requests must not be joined."""
    unknown: str = ""
    """Why nothing was shown, if so."""
    rows: int = 0
    pairs: int = 0
    possible: int = 0
    """Pairs that there were; time may end the proof before the last one."""

    def words(self) -> str:
        """What was tried, as part of a sentence."""
        share = "" if self.pairs == self.possible else f" of {self.possible}"
        return f"{self.rows} different rows in {self.pairs}{share} pairs gave the same answers together as alone"


def decide_batching(
    model: LoadedModel, config: ModelConfig, found: str = "", separation: RowSeparation | None = None
) -> Batching:
    """Whether and how far to batch the default signature.

    `found` is what the traffic of another instance of the same files has shown against it, `separation` what is known
    of the graph. A `max_batch_size` of model.yaml is used where nothing speaks against it, also without a proof.
    """
    if config.stateful:
        return Batching(1, "model.yaml says that the model keeps state")
    declared = 0 if config.max_batch_size == "auto" else config.max_batch_size
    if declared == 1:
        return Batching(1, "model.yaml says so")
    if declared and not config.batching_check:
        return Batching(declared, "on: model.yaml says so, and batching_check: off that it is not checked")
    if found:
        return Batching(1, f"off: {found}", shown=declared or AUTO_BATCH_SIZE)
    signature = model.default_signature
    against = model.batching_obstacle(signature)
    if against is None and separation is not None and separation.verdict == "mixed":
        against = separation.reason
    evidence = Evidence(against) if against else _evidence(model, declared or AUTO_BATCH_SIZE)
    if evidence.doubt or (evidence.unknown and not declared):
        hint = ANYWAY if declared else DECLARE if evidence.unknown == NO_EXAMPLE else ""
        return Batching(1, f"off: {evidence.doubt or evidence.unknown}{hint}", shown=declared)
    return _joined(model, config, evidence, separation)


def _joined(model: LoadedModel, config: ModelConfig, evidence: Evidence, separation: RowSeparation | None) -> Batching:
    """Batching that nothing speaks against, and what speaks for it."""
    signature, auto = model.default_signature, config.max_batch_size == "auto"
    reasons = [] if auto else ["model.yaml says so"]
    if separation is not None and separation.verdict == "separate":
        reasons.append(separation.reason)
    reasons.append(f"it was not tested at load: {evidence.unknown}" if evidence.unknown else evidence.words())
    reason = f"on: {'; '.join(reasons)}"
    if auto and len(model.signatures) > 1:
        reason += f" (signature {signature}; the others are not batched)"
    form = {name: (raw_from_array(array)[0], array.ndim) for name, array in (model.example(signature) or {}).items()}
    return Batching(
        AUTO_BATCH_SIZE if auto else int(config.max_batch_size),
        reason,
        {signature: form} if auto else None,
        checked=FIRST_BATCHES if config.batching_check else 0,
        repeatable="" if evidence.unknown else signature,
        alone=() if auto else tuple(name for name in model.signatures if model.batching_obstacle(name)),
    )


def _evidence(model: LoadedModel, largest: int) -> Evidence:
    """What running the default signature shows."""
    signature = model.default_signature
    example = model.example(signature)
    if not example:
        return Evidence(unknown=NO_EXAMPLE)
    try:
        return examine(lambda inputs: model.execute(signature, inputs), example, largest)
    except GatewayError as error:
        return Evidence(f"the model does not take several rows at once ({error.message})")


def may_join(batching: Batching, header: RequestHeader) -> bool:
    """Whether a request may be joined with its like: only what was proved, or what the user vouches for.

    The proof holds for the signature, datatypes and ranks it was made with; sizes beyond the first may differ.
    """
    if batching.max_batch_size < 2 or batching.proved is None:
        return batching.max_batch_size > 1 and header.signature not in batching.alone
    form = {tensor.name: (tensor.datatype, len(tensor.shape)) for tensor in header.inputs}
    return batching.proved.get(header.signature) == form


def examine(execute: Execute, example: Mapping[str, Array], largest: int = AUTO_BATCH_SIZE) -> Evidence:
    """Run different rows alone and together, in larger batches and in pairs of both orders.

    Raises what `execute` raises of the example or of rows together; rows that are refused alone are left out.
    """
    if any(not array.ndim or len(array) != 1 for array in example.values()):
        return Evidence(unknown="an input has no batch dimension")
    proof = _Proof(execute, time.perf_counter() + PROOF_SECONDS)
    return proof.run(rows_like(example), max(2, min(largest, LARGEST_BATCH)))


class _Proof:
    """One run of `examine`."""

    def __init__(self, execute: Execute, deadline: float) -> None:
        self._execute = execute
        self._deadline = deadline
        self._rows: list[Tensors] = []
        self._alone: list[Tensors] = []
        self._sensitive: dict[int, bool] = {}

    def run(self, rows: Sequence[Tensors], largest: int) -> Evidence:
        """Try these rows."""
        self._run_alone(rows)
        count = len(self._rows)
        every = list(range(count))
        fewest = every[:FEWEST_ROWS]
        doubt = (
            self._repeat(fewest)
            or self._compare(fewest)
            or self._compare((every * (largest // count + 1))[:largest])
            or self._compare(every[::-1])
        )
        if doubt:
            return Evidence(doubt)
        if not self._tell_apart():
            return Evidence(unknown="no test request was found whose rows get different answers")
        pairs = [(first, second) for first in every for second in every[:first]]
        tried = 0
        for first, second in pairs:
            if tried and time.perf_counter() > self._deadline:
                break
            if doubt := self._compare((first, second)) or self._compare((second, first)):
                return Evidence(doubt)
            tried += 1
        return Evidence(rows=count, pairs=tried, possible=len(pairs))

    def _run_alone(self, rows: Sequence[Tensors]) -> None:
        """Find the rows that the model takes, and their answers."""
        for index, row in enumerate(rows):
            try:
                answer = self._execute(row)
            except (RequestError, InferenceFailed):
                if not index:
                    raise
                continue  # such as words where numbers are written as text
            self._rows.append(row)
            self._alone.append(answer)
            if len(self._rows) >= FEWEST_ROWS and time.perf_counter() > self._deadline - PROOF_SECONDS / 2:
                break

    def _repeat(self, indices: Sequence[int]) -> str:
        """Run rows alone again, in the other order: a model that draws random numbers or keeps state is found."""
        for index in reversed(indices):
            again = self._execute(self._rows[index])
            if self._alone[index].keys() != again.keys():
                return "the names of the outputs change"
            if disagreement(self._alone[index], again):
                return "the same request gave two different answers"
        return ""

    def _compare(self, indices: Sequence[int]) -> str:
        """Run these rows together; a sentence if one of them gets another answer than alone."""
        batch = {name: np.concatenate([self._rows[each][name] for each in indices]) for name in self._rows[0]}
        together = self._execute(batch)
        if any(self._alone[index].keys() != together.keys() for index in indices):
            return "the names of the outputs change"
        for name, array in together.items():
            if not array.ndim or len(array) != len(indices):
                return f"output '{name}' has shape {list(array.shape)} for {len(indices)} rows"
            scale = None if is_exact(array) else magnitudes(array)
            for place, index in enumerate(indices):
                alone = self._alone[index][name]
                if alone.ndim and len(alone) == 1 and agree(alone, array[place : place + 1], scale):
                    continue
                if not self._is_sensitive(index):
                    return f"a row's output '{name}' depends on the rows next to it"
        return ""

    def _is_sensitive(self, index: int) -> bool:
        """Whether rounding alone explains that a row's answer differs."""
        if index not in self._sensitive:
            self._sensitive[index] = is_sensitive(self._execute, self._rows[index], self._alone[index])
        return self._sensitive[index]

    def _tell_apart(self) -> bool:
        return any(disagreement(self._alone[0], other) is not None for other in self._alone[1:])
