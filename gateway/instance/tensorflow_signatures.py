"""Reads the graph of a SavedModel, without running it, for what each signature takes, returns and does besides."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
from google.protobuf import json_format

from gateway.errors import LoadFailed
from gateway.store.manifest import ModelConfig, TensorConfig
from gateway.tensors import DEFINITION_BYTES, DTYPES, Array, Signature, TensorSpec

Described = tuple[str | None, tuple[int, ...] | None]
"""A tensor's datatype, None for one that the protocol lacks, and its shape, None where the rank is unknown."""
Describe = Callable[[str, str, str], Described | None]
"""(signature, "inputs" or "outputs", name) to what is known of the tensor; None where it is not in the graph."""

STATE, OUTSIDE, PYTHON, RANDOM, BRANCHES = "state", "outside", "python", "random", "branches"
SIDE_EFFECTS = frozenset({STATE, OUTSIDE})
OBSTACLES = {
    STATE: "the model keeps state between calls",
    OUTSIDE: "the model uses files, queues or networks outside its graph",
    PYTHON: "the model calls Python code (tf.py_function)",
    RANDOM: "the model draws random numbers",
    BRANCHES: "control flow depends on the values of a tensor",
}
_KINDS = {
    STATE: re.compile(
        r"Assign(Variable|Add|Sub)?(VariableOp)?|(Resource)?(Sparse)?Apply[A-Z].*|(Resource)?CountUpTo"
        r"|(Resource)?Scatter(Nd)?(Add|Sub|Mul|Div|Min|Max|Update)|(Resource)?StridedSliceAssign|QueueClose.*"
        r"|.*(Enqueue|Dequeue|GetNext).*|(Ordered)?Map(Stage|Unstage|Clear).*|Stage|Unstage|StageClear"
        r"|LookupTable(Insert|Import|Remove).*|Barrier(InsertMany|TakeMany|Close)|.*Accumulator(Take|Apply|Set).*"
    ),
    OUTSIDE: re.compile(
        r"ReadFile|WriteFile|MatchingFiles|Save(V2|Slices)?|Restore(V2|Slice)?|MergeV2Checkpoints"
        r"|Reader.*|Write.*Summary|Rpc.*|_?(Host)?(Send|Recv)|RemoteCall|RecordInput|FileSystemSetConfiguration"
    ),
    PYTHON: re.compile(r"(Eager)?PyFunc(Stateless)?"),
    RANDOM: re.compile(
        r".*(Random(?!.*(Queue|Dataset|Generator))|Multinomial|TruncatedNormal|CandidateSampler|DistortedBoundingBox).*"
        r"|Stateful(Uniform|StandardNormal).*|Rng(Read|Skip).*|NonDeterministicInts|Timestamp"
    ),
}
_COMPOSITE = {"composite_tensor": "ragged", "coo_sparse": "sparse"}
_ASSERTION = "AssertGuard"  # how TensorFlow names the branches of its assertions: they fail or change nothing


@dataclass(frozen=True, slots=True)
class Entry:
    """A signature and the graph's tensors behind it, in the order of the specs."""

    signature: Signature
    feeds: tuple[str, ...]
    fetches: tuple[str, ...]
    defaults: Mapping[str, Array] = field(default_factory=dict)
    """By name what is fed for inputs that a request leaves out."""


def _as_json(definition: Any, most: int) -> bytes:
    """A SignatureDef as TensorFlow Serving shows it; empty if that takes too many bytes, as large defaults may."""
    if definition.ByteSize() > most:
        return b""
    text = json_format.MessageToJson(
        definition, preserving_proto_field_name=True, always_print_fields_with_no_presence=True, indent=None
    ).encode()
    return text if len(text) <= most else b""


def _tensor(info: Any) -> str | None:
    """The graph's name of a TensorInfo's tensor; None for sparse, ragged and absent ones."""
    if info.WhichOneof("encoding") != "name" or not info.name:
        return None
    name: str = info.name
    return name if ":" in name else f"{name}:0"


def _read(name: str, definition: Any, describe: Describe, notes: list[str]) -> Entry | None:
    ends: dict[str, list[tuple[TensorSpec, str]]] = {"inputs": [], "outputs": []}
    for side, infos in (("inputs", definition.inputs), ("outputs", definition.outputs)):
        for key in sorted(infos):
            tensor = _tensor(infos[key])
            found = describe(name, side, key) if tensor else None
            if tensor and found and found[0]:
                ends[side].append((TensorSpec(key, found[0], found[1]), tensor))
            elif side == "inputs":
                kind = "is sparse, ragged or not in the graph" if found is None else "has a type the protocol lacks"
                notes.append(f"Signature '{name}' is left out because its input '{key}' {kind}.")
                return None
            elif tensor is None and (composite := _COMPOSITE.get(infos[key].WhichOneof("encoding"))):
                notes.append(
                    f"Signature '{name}' is left out because its output '{key}' is {composite}, which the protocol has "
                    "no tensors for; return its parts or a dense tensor."
                )
                return None
            elif tensor is None or found:
                notes.append(f"Output '{key}' of signature '{name}' is left out: the protocol has no such tensor.")
    if not ends["outputs"]:
        return None  # an operation such as __saved_model_init_op, which returns nothing
    (inputs, outputs) = ends["inputs"], ends["outputs"]
    specs = tuple(spec for spec, _ in inputs), tuple(spec for spec, _ in outputs)
    signature = Signature(name, *specs, method=definition.method_name)
    return Entry(signature, tuple(tensor for _, tensor in inputs), tuple(tensor for _, tensor in outputs))


def read_entries(meta: Any, describe: Describe, notes: list[str]) -> dict[str, Entry]:
    """Every callable signature of a MetaGraphDef by name; LoadFailed where there is none."""
    found, left = {}, DEFINITION_BYTES
    for name in sorted(meta.signature_def):
        entry = _read(name, meta.signature_def[name], describe, notes)
        if entry is not None:
            definition = _as_json(meta.signature_def[name], left)
            left -= len(definition)
            found[name] = replace(entry, signature=msgspec.structs.replace(entry.signature, definition=definition))
    if not found:
        why = notes[0] if notes else "Export it again with tf.saved_model.save(model, path, signatures=...)."
        raise LoadFailed(f"the SavedModel has no signature that can be called. {why}")
    return found


def default_signature(entries: dict[str, Entry]) -> str:
    """The signature that a request without one means."""
    if "serving_default" in entries:
        return "serving_default"
    return next((name for name, entry in entries.items() if entry.feeds), next(iter(entries)))


def with_declared(entry: Entry, config: ModelConfig) -> Entry:
    """The entry with the shapes that model.yaml declares; LoadFailed where the two contradict each other."""
    signature = entry.signature
    inputs = _declared("input", signature.inputs, config.inputs)
    outputs = _declared("output", signature.outputs, config.outputs)
    return replace(entry, signature=msgspec.structs.replace(signature, inputs=inputs, outputs=outputs))


def with_defaults(entry: Entry, defaults: Mapping[str, Any], array_of: Callable[[Any], Array]) -> Entry:
    """The entry with its SignatureDef's defaults, which are fed for the inputs that a request leaves out."""
    datatypes = {spec.name: DTYPES[spec.datatype] for spec in entry.signature.inputs}
    arrays = {name: array_of(tensor) for name, tensor in defaults.items() if name in datatypes}
    found = {name: array for name, array in arrays.items() if array.dtype == datatypes[name]}
    inputs = tuple(msgspec.structs.replace(spec, optional=spec.name in found) for spec in entry.signature.inputs)
    return replace(entry, signature=msgspec.structs.replace(entry.signature, inputs=inputs), defaults=found)


def _declared(side: str, specs: tuple[TensorSpec, ...], declared: Sequence[TensorConfig]) -> tuple[TensorSpec, ...]:
    by_name = {spec.name: spec for spec in specs}
    for tensor in declared:
        spec = by_name.get(tensor.name)
        if spec is None:
            known = ", ".join(by_name) or "none"
            raise LoadFailed(f"model.yaml declares {side} '{tensor.name}'; the model's {side}s are: {known}")
        if spec.datatype != tensor.datatype:
            raise LoadFailed(
                f"model.yaml says {side} '{spec.name}' is {tensor.datatype}; in the model it is {spec.datatype}"
            )
        by_name[spec.name] = msgspec.structs.replace(tensor.spec(), optional=spec.optional)
    return tuple(by_name.values())


def batching_obstacle(signature: Signature, findings: Iterable[str]) -> str | None:
    """Why requests to this signature must not be joined along their first dimension; None if nothing speaks against."""
    for kind, sentence in OBSTACLES.items():
        if kind in findings:
            return sentence
    if not signature.inputs:
        return f"signature '{signature.name}' has no inputs to join"
    for spec in signature.inputs:
        if spec.shape is None or spec.shape[:1] != (-1,):
            shape = "of unknown rank" if spec.shape is None else f"fixed to {list(spec.shape)}"
            return f"input '{spec.name}' has no batch dimension, its shape is {shape}"
    for spec in signature.outputs:
        if spec.shape is not None and spec.shape[:1] != (-1,):
            return f"output '{spec.name}' has no batch dimension, its shape is fixed to {list(spec.shape)}"
    return None


def _port(source: str) -> tuple[str, str]:
    """(node, which of its outputs) of a node's input: `n`, `n:1`, `^n`, in functions `n:output_true:0`."""
    if source[0] == "^":
        return source[1:], "^"
    node, _, port = source.partition(":")
    return node, {"output_false:0": "0", "output_true:0": "1"}.get(port, port or "0")


class _Body:
    """The nodes of a graph or of a function, and who consumes whom."""

    def __init__(self, nodes: Iterable[Any]) -> None:
        self.nodes = {node.name: node for node in nodes}
        self.sources = {name: [_port(source) for source in node.input] for name, node in self.nodes.items()}
        self.users: dict[str, list[tuple[str, str]]] = {}
        for name, sources in self.sources.items():
            for source, port in sources:
                self.users.setdefault(source, []).append((name, port))

    def depending_on(self, names: Iterable[str]) -> set[str]:
        """The names and all nodes that compute with their values."""
        found, stack = set(names), list(names)
        while stack:
            fresh = {user for user, port in self.users.get(stack.pop(), ()) if port != "^" and user not in found}
            found |= fresh
            stack.extend(fresh)
        return found

    def constant(self, name: str, fed: Iterable[str]) -> bool | None:
        """The value of a scalar bool that no request can change, such as a learning phase's default."""
        for _ in range(16):
            node = self.nodes.get(name)
            if node is None or name in fed:
                return None
            if node.op == "Const":
                value = node.attr["value"].tensor
                return bool(value.bool_val[0]) if value.bool_val else any(value.tensor_content)
            if node.op not in {"Identity", "PlaceholderWithDefault", "Switch"}:
                return None
            name = self.sources[name][0][0]
        return None

    def dead(self, fed: Iterable[str]) -> set[str]:
        """The nodes of TF1 conditional branches that are never taken."""
        found: set[str] = set()
        stack: list[tuple[str, str | None]] = []
        for name, node in self.nodes.items():
            if node.op in {"Switch", "RefSwitch"}:
                value = self.constant(self.sources[name][1][0], fed)
                if value is not None:
                    stack.append((name, "0" if value else "1"))
        while stack:
            source, only = stack.pop()
            for user, port in self.users.get(source, ()):
                if user not in found and only in {None, port} and self.nodes[user].op not in {"Merge", "RefMerge"}:
                    found.add(user)
                    stack.append((user, None))
        return found

    def reached(self, fetches: Iterable[str], stop: set[str]) -> set[str]:
        """The nodes that the fetches need, not going beyond the nodes of `stop`."""
        found: set[str] = set()
        stack = [name for name in fetches if name in self.nodes and name not in stop]
        while stack:
            name = stack.pop()
            if name not in found:
                found.add(name)
                stack.extend(source for source, _ in self.sources[name] if source in self.nodes and source not in stop)
        return found


class GraphReader:
    """Finds what calling a signature does, in a GraphDef and its library of functions."""

    def __init__(self, graph: Any) -> None:
        self._functions = {function.signature.name: function for function in graph.library.function}
        self._main = _Body(graph.node)
        self._bodies: dict[str, _Body] = {}
        self._seen: set[tuple[str, frozenset[int]]] = set()
        self._kinds: dict[str, str | None] = {}
        self._calling: dict[str, bool] = {}

    def findings(self, entry: Entry) -> frozenset[str]:
        """Which of STATE, OUTSIDE, PYTHON, RANDOM and BRANCHES a call of this signature meets."""
        fed = {tensor.partition(":")[0] for tensor in entry.feeds}
        reached = self._main.reached(
            [tensor.partition(":")[0] for tensor in entry.fetches], stop=fed | self._main.dead(fed)
        )
        self._seen.clear()
        return frozenset(self._scan(self._main, reached, self._main.depending_on(fed), fed))

    def _kind(self, op: str) -> str | None:
        if op not in self._kinds:
            self._kinds[op] = next((kind for kind, pattern in _KINDS.items() if pattern.fullmatch(op)), None)
        return self._kinds[op]

    def _scan(self, body: _Body, names: Iterable[str], varying: set[str], fed: set[str]) -> Iterator[str]:
        """The findings among these nodes of a body, whose `varying` nodes depend on what is fed."""
        for name in names:
            node = body.nodes[name]
            kind = self._kind(node.op)
            if kind is not None:
                yield kind
            sources = [source for source, port in body.sources[name] if port != "^"]
            if node.op in {"Switch", "RefSwitch"}:
                if sources[1] in varying and not self._harmless(body, name, sources[1]):
                    yield BRANCHES
            elif node.op in {"If", "StatelessIf", "Case", "StatelessCase"}:
                if sources[0] in varying and _ASSERTION not in name:
                    yield BRANCHES
                taken = body.constant(sources[0], fed) if node.op.endswith("If") else None
                branches = {True: ["then_branch"], False: ["else_branch"]}.get(taken) if taken is not None else None
                yield from self._calls(node, [source in varying for source in sources[1:]], branches)
            else:
                yield from self._calls(node, [source in varying for source in sources])

    @staticmethod
    def _harmless(body: _Body, name: str, predicate: str) -> bool:
        """Whether a Switch belongs to an assertion or to a loop, which decides per step and not per row."""
        if _ASSERTION in name:
            return True
        node = body.nodes.get(predicate)
        while node is not None and node.op == "Identity":
            node = body.nodes.get(body.sources[node.name][0][0])
        return node is not None and node.op == "LoopCond"

    def _calls(self, node: Any, varying: list[bool], only: list[str] | None = None) -> Iterator[str]:
        if node.op not in self._calling:
            self._calling[node.op] = node.op in self._functions or any(
                attr.HasField("func") or attr.list.func for attr in node.attr.values()
            )
        if not self._calling[node.op]:
            return
        called = [node.op] if node.op in self._functions else []
        for key, attr in node.attr.items():
            if only is None or key in only:
                called += [attr.func.name] if attr.HasField("func") else [each.name for each in attr.list.func]
        plain = node.op in self._functions or node.op in _PASSING_ON
        for name in called:
            function = self._functions.get(name)
            if function is not None:
                # Loops and dataset operations hand arguments on in ways of their own: all vary if one does.
                flags = varying if plain else [any(varying)] * len(function.signature.input_arg)
                yield from self._function(function, flags)

    def _function(self, function: Any, varying: list[bool]) -> Iterator[str]:
        name = function.signature.name
        arguments = [
            argument.name for argument, flag in zip(function.signature.input_arg, varying, strict=False) if flag
        ]
        key = (name, frozenset(index for index, flag in enumerate(varying) if flag))
        if key in self._seen:
            return
        self._seen.add(key)
        body = self._bodies.get(name)
        if body is None:
            body = self._bodies[name] = _Body(function.node_def)
        # A function runs whatever in it has side effects, wanted or not, so all of its living nodes count.
        living = body.nodes.keys() - body.dead(())
        yield from self._scan(body, living, body.depending_on(arguments), set())


_PASSING_ON = {
    "PartitionedCall",
    "StatefulPartitionedCall",
    "If",
    "StatelessIf",
    "Case",
    "StatelessCase",
    "SymbolicGradient",
}
