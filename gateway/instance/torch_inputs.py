"""Finding a request that a TorchScript model accepts: from its declaration, its traced inputs or its graph."""

import dataclasses
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from gateway.errors import GatewayError
from gateway.instance.torch_graph import constant, flows, option, walk
from gateway.instance.torch_types import LIST_DATATYPES, SCALAR_DATATYPES, TORCH_DATATYPES, Argument
from gateway.store.manifest import TensorConfig
from gateway.tensors import DTYPES, Array

BUDGET_SECONDS = 0.06
_TRIES = 48
_REACH = 400  # values looked at on the way from an argument to a weight
_SPATIAL = {
    1: (64, 512, 16, 1024, 4096, 16000),
    # Small images first: a refusal of a large one costs a large convolution.
    2: (32, 28, 64, 224, 96, 16, 8, 84, 48, 128, 256, 299, 227, 112, 160, 192, 20, 40),
    3: (16, 8, 32, 64),
}
_FREE_SIZES = (1, 8, 16, 32, 64, 3, 128, 224, 4, 256)  # for the dimensions that a declaration leaves open
_GENERIC = ((1, 4), (1,), (1, 1), (1, 8), (1, 3, 32, 32), (1, 3, 4), (1, 2), (1, 3), (1, 16), ())

Example = dict[str, Array]
Try = Callable[[Example], Any]


@dataclasses.dataclass(frozen=True)
class Guess:
    """One input as it may be wanted; whole numbers are drawn below `high`."""

    datatype: str
    shape: tuple[int, ...]
    high: int = 2

    def array(self, generator: np.random.Generator) -> Array:
        """Random values: floats in [-1, 1], whole numbers in [0, high)."""
        dtype = DTYPES[self.datatype]
        if self.datatype == "BYTES":
            strings = np.empty(self.shape, dtype=object)
            strings[...] = b"a"
            return strings
        if dtype.kind in "iu":
            most = (1 << 8 * dtype.itemsize - (dtype.kind == "i")) - 1
            return generator.integers(0, max(1, min(self.high, most)), self.shape).astype(dtype)
        if self.datatype == "BOOL":
            return np.ones(self.shape, dtype=bool)
        return np.asarray(generator.uniform(-1, 1, self.shape)).astype(dtype)


Guesses = dict[str, list[Guess]]


def redraw(example: Example, seed: int) -> Example:
    """The same request with other values where other values are safe: floating point tensors."""
    generator = np.random.default_rng(seed)
    drawn = {}
    for name, array in example.items():
        floating = array.dtype == DTYPES["BF16"] or (array.dtype.kind == "f" and array.ndim > 0)
        drawn[name] = np.asarray(generator.uniform(-1, 1, array.shape)).astype(array.dtype) if floating else array
    return drawn


def search(
    candidates: dict[str, list[Guess]], attempt: Try, failures: list[GatewayError], seconds: float = BUDGET_SECONDS
) -> Example | None:
    """The first combination of guesses that the model accepts, within the time; likelier guesses come first.

    What the model said of the others is appended to `failures`.
    """
    generator = np.random.default_rng(0)
    deadline = time.perf_counter() + seconds
    for tried, combination in enumerate(_combinations(list(candidates.values()))):
        if tried and (tried >= _TRIES or time.perf_counter() > deadline):
            return None
        example = {name: guess.array(generator) for name, guess in zip(candidates, combination, strict=True)}
        try:
            attempt(example)
        except GatewayError as error:
            failures.append(error)
            continue
        return example
    return None


def _combinations(guesses: list[list[Guess]]) -> Iterator[tuple[Guess, ...]]:
    """All first guesses, all second ones, …; then the rest of the product of the first few."""
    if not guesses:
        yield ()
        return
    longest = max(map(len, guesses))
    together = [tuple(group[min(index, len(group) - 1)] for group in guesses) for index in range(longest)]
    yield from together
    if len(guesses) > 1:
        seen = set(together)
        product = itertools.islice(itertools.product(*(group[:4] for group in guesses)), 256)
        yield from (combination for combination in product if combination not in seen)


# --- Declared in model.yaml -----------------------------------------------------------------------


def declared_shapes(configs: Sequence[TensorConfig]) -> Example | None:
    """Arrays of the declared ranks and datatypes, one element an axis, for a model of which no example is known."""
    return {one.name: np.empty((1,) * len(one.shape), DTYPES[one.datatype]) for one in configs} or None


def declared(configs: Sequence[TensorConfig], graph: dict[str, list[Guess]]) -> dict[str, list[Guess]]:
    """Guesses for declared inputs: one row, the other open dimensions of a few sizes, small whole numbers."""
    candidates = {}
    for config in configs:
        hinted = [guess for guess in graph.get(config.name, ()) if guess.datatype == config.datatype]
        high = hinted[0].high if hinted else 100
        shapes = [guess.shape for guess in hinted if _fits(guess.shape, config.shape)]
        for size in _FREE_SIZES if -1 in config.shape[1:] else (1,):
            filled = (
                1 if not index and dim < 0 else size if dim < 0 else dim for index, dim in enumerate(config.shape)
            )
            shapes.append(tuple(filled))
        highs = dict.fromkeys((high, 2, 1)) if DTYPES[config.datatype].kind in "iu" else (high,)
        candidates[config.name] = [
            Guess(config.datatype, shape, top) for top in highs for shape in dict.fromkeys(shapes)
        ]
    return candidates


def _fits(shape: tuple[int, ...], wanted: list[int]) -> bool:
    return len(shape) == len(wanted) and all(want in (-1, size) for size, want in zip(shape, wanted, strict=True))


# --- Stored with a traced model -------------------------------------------------------------------


def traced(graph: Any, arguments: Sequence[Argument], hints: dict[str, list[Guess]]) -> dict[str, list[Guess]]:
    """Guesses for a module whose inputs at tracing are known, if all are tensors: their first row, then all of them.

    An archive of a traced module keeps the datatypes and shapes of those inputs, not their values.
    torch.jit.load(_restore_shapes=True) has read them with TorchScript's own unpickler and left them in `graph`.
    """
    types = [value.type() for value in list(graph.inputs())[1:]]
    if not types or len(types) != len(arguments) or any(argument.kind != "tensor" for argument in arguments):
        return {}
    if any(
        kind.kind() != "TensorType" or kind.sizes() is None or kind.dtype() not in TORCH_DATATYPES for kind in types
    ):
        return {}
    shapes = [tuple(kind.sizes()) for kind in types]
    # A leading dimension that all share may be a batch, so that one row is enough.
    rows = {shape[0] if shape else 0 for shape in shapes}
    one_row = len(rows) == 1 and rows.pop() > 1
    candidates = {}
    for argument, kind, shape in zip(arguments, types, shapes, strict=True):
        datatype, hinted = TORCH_DATATYPES[kind.dtype()], hints.get(argument.name)
        tried = [(1, *shape[1:]), shape] if one_row else [shape]
        highs = dict.fromkeys((hinted[0].high if hinted else 2, 1))
        candidates[argument.name] = [Guess(datatype, shape, high) for high in highs for shape in tried]
    return candidates


# --- Read from the graph --------------------------------------------------------------------------


def guesses(weighed: Guesses, dtype: torch.dtype) -> Guesses:
    """What each required input may want, most telling first, also where its values meet no weight that tells."""
    groups = weighed.values()
    hinted = next((group for group in groups if group and group[0].datatype != "BYTES" and group[0].shape), [])
    default = TORCH_DATATYPES.get(dtype, "FP32")
    return {name: group or _generic(hinted, default) for name, group in weighed.items()}


def weighed(graph: Any, arguments: Sequence[Argument]) -> Guesses:
    """What each required input of a model may want, most telling first, from the weights its values meet.

    Dictionaries contribute the keys that the graph looks up, lists one tensor. Empty where no weight tells.
    """
    further: dict[int, list[Any]] = {}
    for node in walk(graph):
        for source, target in flows(node):
            further.setdefault(source.unique(), []).append(target)
    found: dict[str, list[Guess]] = {}
    values = list(graph.inputs())[1:]
    for argument, value in zip(arguments, values, strict=False):
        if argument.optional:
            continue
        if argument.scalar:
            found[argument.name] = [Guess(SCALAR_DATATYPES[argument.kind], (), high) for high in (2, 1)]
        elif argument.kind in LIST_DATATYPES:
            found[argument.name] = [
                Guess(LIST_DATATYPES[argument.kind], (1,)),
                Guess(LIST_DATATYPES[argument.kind], (2,)),
            ]
        else:
            for name, source in _tensors_of(argument, value):
                found[name] = _follow(source, further)
    return found


def _tensors_of(argument: Argument, value: Any) -> list[tuple[str, Any]]:
    if argument.kind == "entries":
        keys = dictionary_keys(value)
        return list(keys.items()) or [(name, value) for name in argument.elements]
    if argument.kind == "tuple" or argument.elements:
        return [(name, value) for name in argument.elements]
    if argument.kind == "tensors":
        # As many as the graph takes out of the list: an unpacking into n values, or the largest constant index.
        users = [use.user for use in value.uses()]
        unpacked = max((user.outputsSize() for user in users if user.kind() == "prim::ListUnpack"), default=1)
        indices = [constant(user.inputsAt(1)) for user in users if user.kind() == "aten::__getitem__"]
        count = max([unpacked, *(index + 1 for index in indices if isinstance(index, int))])
        return [(f"{argument.name}_{index}", value) for index in range(count)]
    return [(argument.name, value)]


def dictionary_keys(value: Any) -> dict[str, Any]:
    """The keys that a graph looks up in a dictionary argument, each with the tensor it gets."""
    keys: dict[str, Any] = {}
    for use in value.uses():
        if use.user.kind() == "aten::__getitem__" and isinstance(key := constant(use.user.inputsAt(1)), str):
            keys.setdefault(key, use.user.output())
    return keys


def _generic(hinted: list[Guess], default: str) -> list[Guess]:
    alike = [Guess(datatype, guess.shape) for guess in hinted for datatype in (guess.datatype, default)]
    return alike[:8] + [Guess(datatype, shape) for datatype in (default, "INT64") for shape in _GENERIC]


def _follow(value: Any, further: dict[int, list[Any]]) -> list[Guess]:
    """Breadth first from a value to the nearest operators that tell, by a constant weight, what they want."""
    queue, seen = deque([value]), {value.unique()}
    while queue and len(seen) < _REACH:
        current = queue.popleft()
        outputs = list(further.get(current.unique(), ()))
        for use in current.uses():
            if found := _wanted(use.user, use.offset):
                return found
            outputs += use.user.outputs()
        for output in outputs:
            if output.unique() not in seen:
                seen.add(output.unique())
                queue.append(output)
    return []


def _tensor(node: Any, index: int) -> torch.Tensor | None:
    found = constant(node.inputsAt(index)) if index < node.inputsSize() else None
    return found if isinstance(found, torch.Tensor) else None


def _wanted(node: Any, offset: int) -> list[Guess]:
    """Guesses for the argument at `offset` of an operator; none where it has no telling weight."""
    kind = node.kind().removeprefix("aten::")
    if kind in ("linear", "matmul", "mm", "bmm", "addmm"):
        return _wanted_by_product(node, kind, offset)
    if kind in ("embedding", "embedding_bag") and offset == 1 and (weight := _tensor(node, 0)) is not None:
        return [Guess("INT64", shape, weight.shape[0]) for shape in ((1, 8), (1,), (1, 1), (1, 16), (1, 4))]
    if offset:
        return []
    if "conv" in kind and (weight := _tensor(node, 1)) is not None:
        return _wanted_by_convolution(node, kind, weight)
    if kind in ("batch_norm", "instance_norm", "group_norm", "layer_norm"):
        return _wanted_by_norm(node, kind)
    if kind in ("lstm", "gru", "rnn_tanh", "rnn_relu") and isinstance(weights := constant(node.inputsAt(2)), list):
        return [_like(weights[0], (1, *middle, weights[0].shape[1])) for middle in ((8,), (1,), ())]
    if kind in ("mul", "add", "sub", "div") and (weight := _tensor(node, 1)) is not None and weight.ndim:
        return [_like(weight, (1, *weight.shape[skip:])) for skip in (0, 1)]
    return []


def _wanted_by_norm(node: Any, kind: str) -> list[Guess]:
    weights = [_tensor(node, index) for index in ((2,) if kind in ("group_norm", "layer_norm") else (1, 3))]
    weight = next((found for found in weights if found is not None), None)
    if kind == "layer_norm" and isinstance(features := constant(node.inputsAt(1)), list):
        like = torch.empty(0) if weight is None else weight
        return [_like(like, (1, *middle, *features)) for middle in ((), (8,))]
    if weight is None:
        return []
    return [_like(weight, (1, len(weight), *rest)) for rest in ((), (8,), (32, 32), (8, 8, 8))]


def _like(weight: torch.Tensor, shape: tuple[int, ...]) -> Guess:
    datatype = TORCH_DATATYPES.get(weight.dtype, "FP32")
    return Guess(datatype if weight.is_floating_point() else "FP32", shape)


def _wanted_by_product(node: Any, kind: str, offset: int) -> list[Guess]:
    position = 1 if kind == "addmm" else 0
    if offset == position and (weight := _tensor(node, position + 1)) is not None:
        features = weight.shape[-1] if kind == "linear" else weight.shape[-2 if weight.ndim > 1 else -1]
        return [_like(weight, (1, *middle, features)) for middle in ((), (8,), (1,), (8, 8))]
    if offset == position + 1 and kind != "linear" and (weight := _tensor(node, position)) is not None:
        return [
            _like(weight, shape) for shape in ((1, weight.shape[-1], 1), (weight.shape[-1], 1), (weight.shape[-1],))
        ]
    return []


def _wanted_by_convolution(node: Any, kind: str, weight: torch.Tensor) -> list[Guess]:
    """Channels from the weight, tried with the spatial sizes that models are usually made for."""
    transposed, groups = "transpose" in kind or option(node, "transposed") is True, option(node, "groups")
    channels = weight.shape[0] if transposed else weight.shape[1] * (groups if isinstance(groups, int) else 1)
    dimensions = weight.ndim - 2
    return [_like(weight, (1, channels, *[size] * dimensions)) for size in _SPATIAL.get(dimensions, ())]
