"""Follows the rows of a batch through a GraphDef and its functions: does an operator compute with several of them?"""

import time
from collections.abc import Iterable, Sequence
from typing import Any

from tensorflow.python.framework import op_def_registry, tensor_util

from gateway.instance import tensorflow_row_rules, tensorflow_row_shapes, tensorflow_row_tables  # noqa: F401 - they register their rules
from gateway.instance.row_separation import SEPARATE, RowSeparation
from gateway.instance.row_values import (
    ROWS,
    Dims,
    Doubt,
    Tensor,
    dim_of,
    doubt_of,
    fresh,
    join_tensors,
    one_entry_a_row,
    rows_axis,
    unclear,
    worst,
)
from gateway.instance.tensorflow_row_calls import RULES, Resource, Step, TensorList
from gateway.instance.tensorflow_signatures import Entry

_SECONDS = 0.5  # for one signature; a graph of 1,000 nodes takes about 20 ms
_ROUNDS = 8  # of a loop, until its values settle
_MOST_CONTENT = 64  # numbers; shapes and axes are shorter
_UNKNOWN_OPERATOR = "the graph has {}, about which nothing is known"
_READ_SHAPES = frozenset({"Shape", "Size", "Rank", "ZerosLike", "OnesLike"})
_RESOURCES = frozenset({"VarHandleOp", "VariableV2", "Variable", "HashTableV2", "MutableHashTableV2", "HashTable"})


def row_separation(graph: Any, entry: Entry) -> RowSeparation:
    """Whether a signature of a GraphDef keeps rows apart. Never raises: what cannot be followed is `unknown`."""
    shapes = [spec.shape for spec in entry.signature.inputs]
    if not shapes or any(shape is None or not shape for shape in shapes):
        return RowSeparation("unknown", "the number of axes of an input is not known")
    try:
        reader = _Reader(graph)
        values: dict[str, Any] = {}
        for tensor, shape in zip(entry.feeds, shapes, strict=True):
            inner = (dim_of(size) if size > 0 else fresh()[0] for size in (shape or ())[1:])
            values[tensor.partition(":")[0]] = [Tensor(((ROWS,), *inner))]
        return _verdict(reader.fetch(entry.fetches, values))
    except Exception as error:  # noqa: BLE001 - a graph may hold anything, and this must not fail a load
        return RowSeparation("unknown", f"the graph cannot be followed ({type(error).__name__})")


def _verdict(outputs: Iterable[Any]) -> RowSeparation:
    doubt: Doubt | None = None
    for value in outputs:
        found = doubt_of(value) if isinstance(value, Tensor) else unclear("an output is no tensor")
        if found is None and rows_axis(value.dims) != 0:
            found = unclear("an output does not have the rows of the batch on its first axis")
        elif found is None and not one_entry_a_row(value.dims[0]):
            found = unclear("an output has several entries for each row")
        doubt = worst(doubt, found)
    return SEPARATE if doubt is None else RowSeparation("mixed" if doubt.mixed else "unknown", doubt.reason)


class _Body:
    """The nodes of a graph or a function, by name."""

    def __init__(self, nodes: Iterable[Any]) -> None:
        self.nodes = {node.name: node for node in nodes}


def _port(source: str, body: _Body) -> tuple[str, int]:
    """(node, which of its outputs) of an input of a node in a graph (`n:1`) or in a function (`n:output:1`)."""
    name, *rest = source.split(":")
    if not rest:
        return name, 0
    if len(rest) == 1:
        return name, int(rest[0])
    node = body.nodes[name]
    place = 0
    for argument in op_def_registry.get(node.op).output_arg:
        if argument.name == rest[0]:
            break
        place += _length(node, argument)
    return name, place + int(rest[1])


def _length(node: Any, argument: Any) -> int:
    """How many tensors an output of an operator's definition is."""
    if argument.number_attr:
        return int(node.attr[argument.number_attr].i)
    return len(node.attr[argument.type_list_attr].list.type) if argument.type_list_attr else 1


class _Reader:
    """Runs a graph with symbolic values."""

    def __init__(self, graph: Any) -> None:
        self._functions = {function.signature.name: function for function in graph.library.function}
        self._bodies: dict[str, _Body] = {}
        self._main = _Body(graph.node)
        self._deadline = time.perf_counter() + _SECONDS

    def fetch(self, fetches: Sequence[str], values: dict[str, Any]) -> list[Any]:
        """The values of these tensors of the main graph, where those of some nodes are given."""
        return self._run(self._main, list(fetches), values)

    def _run(self, body: _Body, wanted: Sequence[str], values: dict[str, Any]) -> list[Any]:
        ports = [_port(source, body) for source in wanted]
        stack = [name for name, _ in ports]
        while stack:
            name = stack[-1]
            if name in values:
                stack.pop()
                continue
            node = body.nodes[name]
            sources = [_port(source, body) for source in node.input if source[0] != "^"]
            missing = [source for source, _ in sources if source not in values]
            if missing:
                if len(stack) > len(body.nodes):
                    raise RecursionError  # a loop of TensorFlow 1
                stack += missing
                continue
            if time.perf_counter() > self._deadline:
                raise TimeoutError
            values[name] = self._step(node, [values[source][port] for source, port in sources])
            stack.pop()
        return [values[name][port] for name, port in ports]

    def _step(self, node: Any, inputs: list[Any]) -> list[Any]:
        definition = op_def_registry.get(node.op)
        count = 1 if definition is None else sum(_length(node, argument) for argument in definition.output_arg)
        if node.op == "Const":
            return [_constant(node)]
        if node.op in _RESOURCES:
            return [Resource(_static_shape(node))]
        if node.op in ("PartitionedCall", "StatefulPartitionedCall"):
            return self._call(node.attr["f"].func.name, inputs)
        if node.op in self._functions:
            return self._call(node.op, inputs)
        if node.op in ("If", "StatelessIf"):
            return self._if(node, inputs)
        if node.op in ("While", "StatelessWhile"):
            return self._while(node, inputs)
        if node.op == "TensorListSetItem":
            return [TensorList(_join(inputs[0].each, inputs[2]))]
        return self._operator(node, inputs, count)

    @staticmethod
    def _operator(node: Any, inputs: list[Any], count: int) -> list[Any]:
        rule = RULES.get(node.op)
        found = None
        if rule is not None:
            try:
                found = rule(Step(node, inputs, count))
            except (AttributeError, TypeError, ValueError, IndexError, KeyError):
                found = None
        if found is None:
            depends = any(_depends(value) for value in inputs)
            doubt = unclear(_UNKNOWN_OPERATOR.format(node.op)) if depends else None
            return [Tensor(None, doubt) for _ in range(max(1, count))]
        results = list(found) if isinstance(found, tuple) else [found]
        if node.op in _READ_SHAPES:
            return results
        # A result of doubtful inputs is doubtful, whatever its rule says; where contents are known, rules look at them.
        lost = worst(*(v.doubt for v in inputs if isinstance(v, Tensor) and v.content is None and not v.position))
        return [_doubted(value, lost) if lost and doubt_of(value) is None else value for value in results]

    # Functions, branches, loops

    def _call(self, name: str, inputs: list[Any]) -> list[Any]:
        function = self._functions[name]
        body = self._bodies.get(name)
        if body is None:
            body = self._bodies[name] = _Body(function.node_def)
        arguments = [argument.name for argument in function.signature.input_arg]
        values: dict[str, Any] = {key: [value] for key, value in zip(arguments, inputs, strict=True)}
        return self._run(body, [function.ret[argument.name] for argument in function.signature.output_arg], values)

    def _if(self, node: Any, inputs: list[Any]) -> list[Any]:
        condition = inputs[0]
        taken = condition.content if isinstance(condition, Tensor) else None
        branches = [node.attr[name].func.name for name in ("then_branch", "else_branch")]
        if isinstance(taken, bool):
            return self._call(branches[0 if taken else 1], inputs[1:])
        results = [self._call(name, inputs[1:]) for name in branches]
        return [_doubted(_join(left, right), _condition(condition)) for left, right in zip(*results, strict=True)]

    def _while(self, node: Any, inputs: list[Any]) -> list[Any]:
        carried = [_open(value) for value in inputs]
        doubt: Doubt | None = None
        for round_ in range(_ROUNDS):
            going_on = self._call(node.attr["cond"].func.name, carried)[0]
            doubt = worst(doubt, _condition(going_on))
            results = self._call(node.attr["body"].func.name, carried)
            after = [_open(_join(before, result)) for before, result in zip(carried, results, strict=True)]
            settled = round_ > 0 and all(map(_same, carried, after))
            carried = after
            if settled:
                return [_doubted(value, doubt) for value in carried]
        raise TimeoutError


def _constant(node: Any) -> Tensor:
    proto = node.attr["value"].tensor
    shape = [dim.size for dim in proto.tensor_shape.dim]
    count = 1
    for size in shape:
        count *= size
    content = None
    if count <= _MOST_CONTENT and len(shape) < 3 and proto.dtype in (3, 9, 10):  # int32, int64, bool
        content = tensor_util.MakeNdarray(proto).tolist()
    return Tensor(tuple(dim_of(size) for size in shape), content=content)


def _static_shape(node: Any) -> Dims | None:
    shape = node.attr["shape"].shape
    if "shape" not in node.attr or shape.unknown_rank:
        return None
    return tuple(dim_of(dim.size) if dim.size > 0 else fresh()[0] for dim in shape.dim)


def _depends(value: Any) -> bool:
    if isinstance(value, TensorList):
        return value.each is not None and value.each.varies
    return isinstance(value, Tensor) and value.varies


def _condition(value: Any) -> Doubt | None:
    """What a decision by this value does to all that hangs on it."""
    if not isinstance(value, Tensor):
        return unclear("the model branches on what cannot be followed")
    if value.doubt is None and rows_axis(value.dims) is not None:
        return unclear("the model branches on the values of a row")
    return value.doubt


def _open(value: Any) -> Any:
    """A counter of a loop, of which only the first value is known."""
    if isinstance(value, Tensor) and value.content is not None:
        return Tensor(value.dims, value.doubt)
    return value


def _join(left: Any, right: Any) -> Any:
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return join_tensors(left, right)
    if isinstance(left, TensorList) and isinstance(right, TensorList):
        return TensorList(_join(left.each, right.each))
    if left is None or right is None or type(left) is type(right):
        return right if left is None else left
    return Tensor(None, worst(doubt_of(left), doubt_of(right)) or unclear("has branches of different kinds"))


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return left.like(right)
    if isinstance(left, TensorList) and isinstance(right, TensorList):
        return left.each is right.each or (
            left.each is not None and right.each is not None and _same(left.each, right.each)
        )
    return type(left) is type(right)


def _doubted(value: Any, doubt: Doubt | None) -> Any:
    if isinstance(value, TensorList):
        return TensorList(None if value.each is None else value.each.doubted(doubt))
    return value.doubted(doubt) if isinstance(value, Tensor) else value
