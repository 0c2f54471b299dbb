"""The signature of a TorchScript model, from what was declared, what its graph shows and what a run returned."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from gateway.instance.torch_inputs import Example, dictionary_keys
from gateway.instance.torch_types import LIST_DATATYPES, SCALAR_DATATYPES, Argument
from gateway.store.manifest import ModelConfig
from gateway.tensors import DATATYPES, Array, TensorSpec


class Known(NamedTuple):
    """What was found out of inputs that nobody declared."""

    traced: bool
    """Their datatypes and shapes are those of the inputs that the module was traced with."""
    floats_only: frozenset[str]
    """Those that do not take whole numbers as they are."""


def inputs(
    arguments: Sequence[Argument],
    graph: Any,
    config: ModelConfig,
    examples: tuple[Example | None, Example | None],
    known: "Known",
) -> tuple[TensorSpec, ...]:
    """One spec for each input; those that model.yaml declares are strict, all others are the best that is known.

    `examples` are a request of one row that forward accepted, and the same with a second row.
    """
    declared = {tensor.name: tensor.spec() for tensor in config.inputs}
    found: dict[str, TensorSpec] = {}
    certain = {out.unique() for node in graph.nodes() for out in node.outputs()}
    for argument, value in zip(arguments, list(graph.inputs())[1:], strict=False):
        optional = {argument.name: argument.optional}
        if argument.kind == "default":
            continue
        if argument.kind == "entries":
            # A key that is only looked up inside a branch may be left out.
            looked_up = {} if argument.elements else dictionary_keys(value)
            optional = {key: argument.optional or tensor.unique() not in certain for key, tensor in looked_up.items()}
        if argument.kind == "tensors" and not argument.elements:
            # Sent under this name, or element by element under numbered ones; the instance says if there is neither.
            first = _undeclared(f"{argument.name}_0", argument, (examples[0], None), known)
            found[argument.name] = TensorSpec(argument.name, first.datatype, None, optional=True, strict=False)
            continue
        if argument.elements:
            optional = dict.fromkeys(argument.elements, argument.optional)
        for name, may_miss in optional.items():
            spec = declared.get(name) or _undeclared(name, argument, examples, known)
            found[name] = msgspec.structs.replace(spec, optional=may_miss)
    return tuple(found.values())


def outputs(
    config: ModelConfig, promised: tuple[str, ...], answer: Example | None, answer_to_pair: Example | None
) -> tuple[TensorSpec, ...]:
    """One spec for each output that is declared, promised by forward's type or was returned for the example."""
    declared = {tensor.name: tensor.spec() for tensor in config.outputs}
    if answer is not None:
        pair = answer_to_pair or {}
        return tuple(declared.get(name) or _seen(name, array, pair.get(name)) for name, array in answer.items())
    names = [*declared, *promised[len(declared) :]]
    return tuple(declared.get(name) or TensorSpec(name, "FP32", None, strict=False, guessed=True) for name in names)


def naming_notes(arguments: Sequence[Argument]) -> list[str]:
    """How lists of tensors are sent, one sentence for each."""
    return [
        f"input '{a.name}' is a list of tensors: send them as {a.name}_0, {a.name}_1, … of any sizes, "
        f"or as one tensor '{a.name}' that is taken apart along its first dimension"
        for a in arguments
        if a.kind == "tensors" and not a.elements
    ]


def takes_more(arguments: Sequence[Argument]) -> bool:
    """Whether names beyond the signature's are handed on, to a dictionary or to a list of any length."""
    return any(a.kind == "entries" or (a.kind == "tensors" and not a.elements) for a in arguments)


def _undeclared(
    name: str, argument: Argument, examples: tuple[Example | None, Example | None], known: "Known"
) -> TensorSpec:
    if argument.scalar:
        return TensorSpec(name, SCALAR_DATATYPES[argument.kind], (), strict=False, plain=True)
    if argument.kind in LIST_DATATYPES:
        return TensorSpec(name, LIST_DATATYPES[argument.kind], (-1,), strict=False, plain=True)
    example, pair = examples
    if example is None or name not in example:
        spec = TensorSpec(name, "FP32", None, strict=False)
    else:
        spec = _seen(name, example[name], (pair or {}).get(name))
    return msgspec.structs.replace(spec, guessed=not known.traced, integers=name not in known.floats_only)


def _seen(name: str, array: Array, for_pair: Array | None) -> TensorSpec:
    """An array seen once; its first dimension is open where a second row changed it."""
    shape: tuple[int, ...] = array.shape
    if for_pair is not None and array.ndim == for_pair.ndim > 0 and len(array) != len(for_pair):
        shape = (-1, *array.shape[1:])
    return TensorSpec(name, DATATYPES[array.dtype], shape, strict=False)
