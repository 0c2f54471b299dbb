"""The proof, made at load, that requests joined into a batch get the answers they would get alone."""

from collections.abc import Callable, Mapping

import numpy as np

from gateway.errors import GatewayError, InferenceFailed
from gateway.instance.backend import LoadedModel
from gateway.ipc.framing import RequestHeader
from gateway.ipc.messages import Batching
from gateway.store.manifest import ModelConfig
from gateway.tensors import Array, raw_from_array

AUTO_BATCH_SIZE = 32
ROWS = 5
WORDS = ("where is the library", "wo ist der Bahnhof, bitte", "", "¿dónde está?")
Tensors = dict[str, Array]
Execute = Callable[[Mapping[str, Array]], Tensors]


def decide_batching(model: LoadedModel, config: ModelConfig) -> Batching:
    """Whether and how far to batch: what model.yaml says, else what a test of the default signature shows."""
    if config.stateful:
        return Batching(1, "model.yaml says that the model keeps state")
    if config.max_batch_size != "auto":
        return Batching(config.max_batch_size, "model.yaml says so")
    signature = model.default_signature
    if obstacle := model.batching_obstacle(signature):
        return Batching(1, f"off: {obstacle}")
    example = model.example(signature)
    if not example:
        return Batching(
            1, "off: no example request is known to test it with; declare inputs or max_batch_size in model.yaml"
        )
    try:
        doubt = doubt_about(lambda inputs: model.execute(signature, inputs), example)
    except GatewayError as error:
        return Batching(1, f"off: the model does not take several rows at once ({error.message})")
    if doubt:
        return Batching(1, f"off: {doubt}")
    form = {name: (raw_from_array(array)[0], array.ndim) for name, array in example.items()}
    reason = f"on: {ROWS} different rows together gave the same answers as each alone"
    if len(model.signatures) > 1:
        reason += f" (signature {signature}; the others are not batched)"
    return Batching(AUTO_BATCH_SIZE, reason, {signature: form})


def may_join(batching: Batching, header: RequestHeader) -> bool:
    """Whether a request may be joined with its like: only what was proved, or what the user vouches for.

    The proof holds for the signature, datatypes and ranks it was made with; sizes beyond the first may differ.
    """
    if batching.max_batch_size < 2 or batching.proved is None:
        return batching.max_batch_size > 1
    form = {tensor.name: (tensor.datatype, len(tensor.shape)) for tensor in header.inputs}
    return batching.proved.get(header.signature) == form


def doubt_about(execute: Execute, example: Mapping[str, Array]) -> str | None:
    """Run different rows alone and together; a sentence if the answers differ, None if they agree.

    Rows of the batch differ in sign and scale, so that a model which mixes rows, normalises over the
    batch or takes a branch for all rows by the values of one is found out. Raises what `execute` raises.
    """
    if any(not array.ndim or len(array) != 1 for array in example.values()):
        return "an input has no batch dimension"
    rows, alone = _different_rows(execute, example)
    again = execute(rows[0])
    together = execute({name: np.concatenate([row[name] for row in rows]) for name in example})
    if len({frozenset(answer) for answer in (*alone, again, together)}) > 1:
        return "the names of the outputs change"
    if any(not agree(alone[0][name], again[name]) for name in again):
        return "the same request gave two different answers"
    for name, array in together.items():
        if not array.ndim or len(array) != ROWS:
            return f"output '{name}' has shape {list(array.shape)} for {ROWS} rows"
        for index, answer in enumerate(alone):
            if not answer[name].ndim or len(answer[name]) != 1 or not agree(answer[name], array[index : index + 1]):
                return f"a row's output '{name}' depends on the rows beside it"
    return None if _tell_apart(alone) else "no test request was found whose rows get different answers"


def _different_rows(execute: Execute, example: Mapping[str, Array]) -> tuple[list[Tensors], list[Tensors]]:
    """Rows like the example, and their answers alone; text is varied in the first way that tells the rows apart."""
    ways: list[tuple[str, ...]] = [(), WORDS] if any(array.dtype == object for array in example.values()) else [()]
    found: tuple[list[Tensors], list[Tensors]] | None = None
    for words in ways:
        rng = np.random.default_rng(0)
        rows = [{name: _vary(array, index, rng, words) for name, array in example.items()} for index in range(ROWS)]
        try:
            alone = [execute(row) for row in rows]
        except InferenceFailed:
            if found is None:
                raise
            break  # the model takes numbers as text, say, and no words
        found = rows, alone
        if _tell_apart(alone):
            break
    assert found is not None
    return found


def _tell_apart(answers: list[Tensors]) -> bool:
    first = answers[0]
    return any(
        other.keys() != first.keys() or any(not agree(first[name], other[name]) for name in other)
        for other in answers[1:]
    )


def _vary(example: Array, index: int, rng: np.random.Generator, words: tuple[str, ...]) -> Array:
    """A row like the example's: the example itself first, then values of other signs and scales."""
    if index == 0 or example.dtype == object:
        return example if index == 0 else _vary_strings(example, index, words)
    if example.dtype.kind == "b":
        return np.asarray(rng.random(example.shape) < 0.5)
    if example.dtype.kind in "iu":
        # Indices into tables are the common case: stay within what the example shows to be allowed.
        low, high = min(0, int(example.min(initial=0))), int(example.max(initial=0))
        return rng.integers(low, high + 1, example.shape).astype(example.dtype)
    scale = (1.0, 0.01, 3.0, 1.0)[(index - 1) % 4]
    noise = rng.standard_normal(example.shape) * scale
    return np.asarray(np.abs(noise) if index == 1 else -np.abs(noise) if index == 2 else noise).astype(example.dtype)


def _vary_strings(example: Array, index: int, words: tuple[str, ...]) -> Array:
    varied = np.empty(example.size, dtype=object)
    varied[:] = [words[index - 1].encode() if words else item * (index + 1) for item in example.ravel().tolist()]
    return varied.reshape(example.shape)


def agree(left: Array, right: Array) -> bool:
    """Whether two answers are the same but for the rounding that another batch size may bring."""
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    if left.dtype == object or left.dtype.kind in "biuSU":
        return bool(np.array_equal(left, right))
    coarse = 1e-2 if left.dtype.itemsize < 4 else 1e-4
    a, b = left.astype(np.float64), right.astype(np.float64)
    scale = float(np.max(np.abs(a[np.isfinite(a)]), initial=0.0))
    return bool(np.allclose(a, b, rtol=coarse, atol=coarse * 0.1 * scale, equal_nan=True))
