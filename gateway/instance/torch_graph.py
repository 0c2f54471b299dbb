"""What a TorchScript graph tells before it is run: state, randomness, control flow that depends on the data."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import torch

# Reads the shape or the kind of a tensor, never its values.
_METADATA = frozenset(
    {
        "aten::size",
        "aten::dim",
        "aten::len",
        "aten::numel",
        "aten::stride",
        "aten::is_floating_point",
        "aten::is_complex",
        "aten::is_signed",
        "aten::__is__",
        "aten::__isnot__",
        "aten::ndimension",
        "aten::is_contiguous",
        "aten::element_size",
        "aten::get_device",
        "aten::is_same_size",
        "aten::storage_offset",
        "aten::sym_size",
        "aten::result_type",
        "aten::can_cast",
    }
)
_RANDOM_IN_PLACE = frozenset(
    {
        "aten::bernoulli_",
        "aten::normal_",
        "aten::uniform_",
        "aten::random_",
        "aten::exponential_",
        "aten::cauchy_",
        "aten::geometric_",
        "aten::log_normal_",
        "aten::dropout_",
        "aten::rrelu_",
        "aten::rrelu_with_noise",
    }
)
_DROPOUTS = frozenset(
    {
        "aten::dropout",
        "aten::dropout_",
        "aten::feature_dropout",
        "aten::alpha_dropout",
        "aten::feature_alpha_dropout",
        "aten::feature_dropout_",
        "aten::alpha_dropout_",
        "aten::feature_alpha_dropout_",
    }
)
_SIZED_BY_VALUES = frozenset({"aten::nonzero", "aten::masked_select", "aten::unique_consecutive", "aten::unique_dim"})
_OPAQUE = frozenset({"prim::CallMethod", "prim::CallFunction", "prim::fork", "prim::PythonOp", "prim::rpc_async"})
_CONSTRUCTORS = frozenset({"prim::ListConstruct", "prim::TupleConstruct", "prim::DictConstruct"})
_ELEMENTS = frozenset({"aten::__getitem__", "prim::ListUnpack", "prim::TupleUnpack", "prim::TupleIndex"})
_NUMBERS = ("IntType", "BoolType", "FloatType")
_SAME_ROWS = frozenset(
    {"aten::to", "aten::contiguous", "aten::clone", "aten::detach", "aten::type_as", "prim::unchecked_cast"}
)

UNKNOWN = object()
"""What `constant` answers for a value that is only known when the model runs."""


@dataclasses.dataclass(frozen=True)
class Facts:
    """What reading a model's graph found; each flag errs on the side of saying yes."""

    state: bool = False
    opaque: bool = False
    random: bool = False
    value_control: bool = False
    value_loop: bool = False
    row_control: bool = False
    value_sizes: bool = False
    mutates_inputs: bool = False

    def obstacle(self) -> str | None:
        """Why requests must not be joined, in one sentence; None where the graph shows no reason."""
        reasons = (
            (self.state, "the model keeps state between calls"),
            (self.opaque, "the model calls code that cannot be examined"),
            (self.random, "the model draws random numbers"),
            (self.value_control, "control flow depends on the values of a tensor"),
            (self.row_control, "control flow depends on the number of rows"),
            (self.value_sizes, "the size of a result depends on the values of a tensor"),
        )
        return next((sentence for found, sentence in reasons if found), None)


def constant(value: Any) -> Any:
    """The Python value of a graph value that is constant, else UNKNOWN."""
    return value.toIValue() if value.node().kind() == "prim::Constant" else UNKNOWN


@functools.lru_cache(maxsize=4096)
def _parsed(schema: str) -> Any:
    try:
        return torch._C.parse_schema(schema)  # noqa: SLF001 - the only reader of schemas there is
    except RuntimeError:  # prim operators have none
        return None


def option(node: Any, name: str) -> Any:
    """The constant given for an operator's argument of this name, UNKNOWN if none is; None without such an argument."""
    arguments = getattr(_parsed(node.schema()), "arguments", ())
    position = next((index for index, argument in enumerate(arguments) if argument.name == name), None)
    return None if position is None else constant(node.inputsAt(position))


def walk(block: Any) -> Iterator[Any]:
    """All nodes of a graph or block in order, with those of the blocks inside."""
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from walk(inner)


def examine(graph: Any) -> Facts:
    """Read a graph (best a frozen one: its constants are folded) without running anything."""
    nodes = list(walk(graph))
    kinds = {node.kind() for node in nodes}
    steps = list(_steps(graph))
    written = _written(graph, steps)
    values, rows = _taint(graph, steps)
    loops = _conditions(nodes, "prim::Loop")
    branches = _conditions(nodes, "prim::If")
    return Facts(
        state="attribute" in written or "prim::SetAttr" in kinds or any(map(_updates_statistics, nodes)),
        opaque=not kinds.isdisjoint(_OPAQUE),
        random=any(map(_is_random, nodes)),
        value_control=any(unique in values for unique, _ in loops + branches),
        value_loop=any(unique in values for unique, _ in loops),
        row_control=any(unique in rows and not check for unique, check in loops + branches),
        value_sizes=any(kind in _SIZED_BY_VALUES or kind.startswith("aten::_unique") for kind in kinds),
        mutates_inputs="input" in written,
    )


def _is_random(node: Any) -> bool:
    kind = node.kind()
    if option(node, "train") is False or option(node, "training") is False:
        return False  # dropout and its like, turned off
    if kind == "aten::scaled_dot_product_attention":
        return bool(option(node, "dropout_p") != 0)
    if option(node, "dropout") == 0:
        return False  # a recurrent layer without dropout
    drawn = kind in _DROPOUTS or kind in _RANDOM_IN_PLACE or kind.startswith(("aten::rand", "aten::normal"))
    return drawn or bool(node.isNondeterministic())


def _updates_statistics(node: Any) -> bool:
    # Both take (input, weight, bias, running_mean, running_var, training, …), and their schemas hide the update.
    if node.kind() not in ("aten::batch_norm", "aten::instance_norm"):
        return False
    return constant(node.inputsAt(5)) is not False and constant(node.inputsAt(3)) is not None


# --- Which memory is written: attributes are state, inputs belong to the caller -------------------


@functools.lru_cache(maxsize=4096)
def _effects(schema: str) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    """Indices of arguments that an operator writes, and of those its results may be views of (None: all)."""
    parsed = _parsed(schema)
    if parsed is None:
        return (), None
    writes = tuple(index for index, argument in enumerate(parsed.arguments) if argument.is_write)
    if not any(result.alias_info for result in parsed.returns):
        return writes, ()
    views = tuple(index for index, argument in enumerate(parsed.arguments) if argument.alias_info)
    return writes, views or None


def _node_effects(node: Any) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    schema = node.schema()
    # In evaluation dropout returns its argument itself, which its schema does not say.
    return ((), None) if schema == "(no schema)" or node.kind() in _DROPOUTS else _effects(schema)


def flows(node: Any) -> list[tuple[Any, Any]]:
    """Pairs (value, value it becomes) across the borders of a branch or a loop."""
    outputs = list(node.outputs())
    if node.kind() == "prim::If":
        return [pair for block in node.blocks() for pair in zip(block.outputs(), outputs, strict=False)]
    if node.kind() != "prim::Loop":
        return []
    body = next(iter(node.blocks()))
    carried, parameters, results = list(node.inputs())[2:], list(body.inputs())[1:], list(body.outputs())[1:]
    pairs: list[tuple[Any, Any]] = []
    for sources in (carried, results):
        pairs += [*zip(sources, parameters, strict=False), *zip(sources, outputs, strict=False)]
    return pairs


class _Step:
    """One operator, or a value that crosses a border (kind "flow"), read from the graph once."""

    __slots__ = ("inputs", "kind", "node", "outputs", "results", "sources")

    def __init__(self, node: Any, kind: str, inputs: list[Any], outputs: list[Any]) -> None:
        self.node, self.kind, self.inputs, self.outputs = node, kind, inputs, outputs
        self.sources = [value.unique() for value in inputs]
        self.results = [value.unique() for value in outputs]


def _steps(block: Any) -> Iterator[_Step]:
    """The steps of a graph in the order of their execution, so that one pass carries a property to the end."""
    for node in block.nodes():
        kind = node.kind()
        if kind not in ("prim::If", "prim::Loop"):
            yield _Step(node, kind, list(node.inputs()), list(node.outputs()))
            continue
        crossings = [_Step(None, "flow", [source], [target]) for source, target in flows(node)]
        if kind == "prim::Loop":
            yield from crossings
        for inner in node.blocks():
            yield from _steps(inner)
        yield from crossings


def _written(graph: Any, steps: list[_Step]) -> set[str]:
    """Which of "attribute" and "input" some operator writes into."""
    origins: dict[int, str] = {value.unique(): "input" for value in list(graph.inputs())[1:]}
    parents: dict[int, list[int]] = {}
    fresh: set[int] = set()  # containers made here: writing to them leaves their elements alone
    targets: list[tuple[int, bool]] = []
    for step in steps:
        if step.kind in ("prim::GetAttr", "prim::Constant"):
            origins.update((out.unique(), "attribute") for out in step.outputs if _holds_tensors(out))
            continue
        writes, views = ((), None) if step.node is None else _node_effects(step.node)
        targets += [(step.sources[index], _is_tensor(step.inputs[index])) for index in writes]
        sources = step.sources if views is None else [step.sources[index] for index in views]
        for result in step.results:
            parents.setdefault(result, []).extend(sources)
        if step.kind in _CONSTRUCTORS:
            fresh.update(step.results)
    return {origin for target, is_tensor in targets for origin in _origins(target, is_tensor, origins, parents, fresh)}


def _origins(
    target: int, is_tensor: bool, origins: dict[int, str], parents: dict[int, list[int]], fresh: set[int]
) -> Iterator[str]:
    stack, seen = [target], {target}
    while stack:
        value = stack.pop()
        if value in origins:
            yield origins[value]
        if not is_tensor and value in fresh:
            continue
        for parent in parents.get(value, ()):
            if parent not in seen:
                seen.add(parent)
                stack.append(parent)


# --- Which values depend on the values, or on the number of rows, of the inputs -----------------


def _is_tensor(value: Any) -> bool:
    return bool(value.type().kind() == "TensorType")


def _holds_tensors(value: Any) -> bool:
    kind = value.type().kind()
    return kind == "TensorType" or (kind != "ClassType" and "Tensor" in str(value.type()))


def _taint(graph: Any, steps: list[_Step]) -> tuple[set[int], set[int]]:
    """The values that depend on the inputs' values, and the numbers that depend on how many rows they have."""
    inputs = list(graph.inputs())[1:]
    # A scalar argument decides for a whole request; joining requests with one is refused elsewhere.
    values, rows = {value.unique() for value in inputs if _holds_tensors(value)}, set[int]()
    leading = {value.unique() for value in inputs}
    size = -1
    while size != (size := len(values) + len(rows) + len(leading)):  # more than twice only where loops feed back
        for step in steps:
            _taint_values(step, values)
            _taint_rows(step, leading, rows)
    return values, rows


def _taint_values(step: _Step, values: set[int]) -> None:
    if values.isdisjoint(step.sources) or (step.results and values.issuperset(step.results)):
        return
    kind = step.kind
    reads_values = kind == "prim::tolist" or (
        kind not in _METADATA and kind != "flow" and not kind.startswith("prim::")
    )
    tainted = [value for value, source in zip(step.inputs, step.sources, strict=True) if source in values]
    to_scalar = any((_is_tensor(value) and reads_values) or not _holds_tensors(value) for value in tainted)
    values.update(out.unique() for out in step.outputs if to_scalar or _holds_tensors(out))


def _taint_rows(step: _Step, leading: set[int], rows: set[int]) -> None:
    kind, inputs, sources = step.kind, step.inputs, step.sources
    if leading.isdisjoint(sources) and rows.isdisjoint(sources):
        return
    if sources[0] not in leading or kind == "flow":
        if not rows.isdisjoint(sources):
            rows.update(out.unique() for out in step.outputs if out.type().kind() in _NUMBERS)
    elif _counts_rows(step):
        rows.add(step.results[0])
    elif kind in _SAME_ROWS or (kind in _ELEMENTS and not _is_list_of_int(inputs[0])):
        leading.update(step.results)  # as many rows in another dtype, or one of a list or dictionary
    elif kind == "aten::size" and len(inputs) == 1:
        leading.update(step.results)  # the whole shape; its first element is the number of rows


def _counts_rows(step: _Step) -> bool:
    """Whether the first result of a step on a tensor, or on its shape, is its number of rows."""
    kind, inputs = step.kind, step.inputs
    if _is_list_of_int(inputs[0]):
        return kind == "prim::ListUnpack" or (kind == "aten::__getitem__" and constant(inputs[1]) == 0)
    if kind == "aten::size":
        return len(inputs) == 2 and constant(inputs[1]) == 0
    return kind == "aten::len" and _is_tensor(inputs[0])


def _is_list_of_int(value: Any) -> bool:
    return bool(value.type().annotation_str == "List[int]")


def _conditions(nodes: list[Any], kind: str) -> list[tuple[int, bool]]:
    """The values that steer branches or loops, and whether all that hangs on one is an exception."""
    found: list[tuple[int, bool]] = []
    for node in nodes:
        if node.kind() != kind:
            continue
        blocks = list(node.blocks())
        if kind == "prim::If":
            check = any(inner.kind() == "prim::RaiseException" for block in blocks for inner in block.nodes())
            found.append((node.inputsAt(0).unique(), check))
        else:
            steering = (node.inputsAt(0), node.inputsAt(1), next(iter(blocks[0].outputs())))
            found += [(value.unique(), False) for value in steering]
    return found
