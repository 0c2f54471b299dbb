"""Runs a TorchScript graph with symbolic values."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from gateway.instance.row_numbers import arithmetic
from gateway.instance.row_values import (
    Doubt,
    Number,
    Size,
    Tensor,
    doubt_of,
    mixed,
    rows_axis,
    size_of,
    unclear,
    worst,
)
from gateway.instance.torch_row_calls import (
    MISSING,
    RULES,
    Call,
    Items,
    deep_doubt,
    depends,
    from_constant,
    join,
    parsed,
    same,
)
from gateway.instance.torch_row_effects import (
    READ_SHAPES,
    SINGLE_VALUES,
    TYPE_QUESTIONS,
    doubted,
    doubted_where_lost,
    either,
    made_tensors,
    places_of_rows,
    spoil,
)
from gateway.instance.torch_row_rules import scalar_tensor

_SECONDS = 0.5  # for one model; a graph of 1,000 operators takes about 20 ms
_ROUNDS = 8  # of a loop, until its values settle
_RETURN_THEIR_ARGUMENT = frozenset({"aten::dropout", "aten::feature_dropout", "aten::alpha_dropout"})
_UNKNOWN_OPERATOR = "the graph has {}, about which nothing is known"


class _Attributes:
    """A module or submodule of a graph that was not frozen."""

    def __init__(self, module: Any) -> None:
        self.module = module


class Reader:
    """Runs a graph with symbolic values."""

    def __init__(self, module: Any) -> None:
        self._values: dict[int, Any] = {}
        self._module = module
        self._level = 0
        self._condition: Doubt | None = None  # that of the branches and loops around
        self._deadline = time.perf_counter() + _SECONDS
        self._prim: dict[str, Callable[[Any], Any]] = {
            "prim::Constant": lambda node: from_constant(node.output().toIValue()),
            "prim::GetAttr": self._attribute,
            "prim::SetAttr": self._set_attribute,
            "prim::ListConstruct": lambda node: Items(self._inputs(node), level=self._level),
            "prim::TupleConstruct": lambda node: tuple(self._inputs(node)),
            "prim::DictConstruct": self._dictionary,
            "prim::ListUnpack": self._unpack,
            "prim::TupleUnpack": self._unpack,
            "prim::TupleIndex": lambda node: self._element(*self._inputs(node)),
            "prim::NumToTensor": lambda node: scalar_tensor("the model", self._first(node)),
            "prim::unchecked_cast": self._first,
            "prim::unchecked_unwrap_optional": self._first,
            "aten::_unwrap_optional": self._first,
            "prim::data": self._first,
            "prim::Uninitialized": lambda _: MISSING,
            "prim::RaiseException": lambda _: None,
            "prim::If": self._if,
            "prim::Loop": self._loop,
            "prim::min": self._extreme,
            "prim::max": self._extreme,
            "prim::tolist": lambda node: Items(None, self._single(node)),
            "prim::is_nested": lambda _: False,
            "aten::__getitem__": lambda node: self._element(*self._inputs(node)),
            "aten::append": self._append,
            "aten::len": self._length,
            "aten::__is__": lambda node: self._is(node, wanted=True),
            "aten::__isnot__": lambda node: self._is(node, wanted=False),
            "aten::__not__": self._not,
            "aten::list": lambda node: self._copy(self._first(node)),
            "aten::warn": lambda _: None,
            "prim::Print": lambda _: None,
            **dict.fromkeys(SINGLE_VALUES, self._single),
            **dict.fromkeys(TYPE_QUESTIONS, lambda _: Number()),
        }

    def read(self, graph: Any, values: Sequence[Any]) -> list[Any]:
        """The values of the outputs for these arguments after self."""
        inputs = list(graph.inputs())
        if inputs and self._module is not None:
            self._values[inputs[0].unique()] = _Attributes(self._module._c)  # noqa: SLF001 - attributes as the graph names them
        for value, given in zip(inputs[1:], values, strict=True):
            self._values[value.unique()] = given
        self._run(graph)
        return [self._value(value) for value in graph.outputs()]

    # Values

    def _value(self, value: Any) -> Any:
        found = self._values[value.unique()]
        return found.current() if isinstance(found, Tensor) else found

    def _inputs(self, node: Any) -> list[Any]:
        return [self._value(value) for value in node.inputs()]

    def _first(self, node: Any) -> Any:
        return self._value(node.inputsAt(0))

    def _run(self, block: Any) -> None:
        for node in block.nodes():
            kind = node.kind()
            step = self._prim.get(kind)
            result = self._operator(node, kind) if step is None else step(node)
            self._bind(node, result)
        if time.perf_counter() > self._deadline:
            raise TimeoutError

    def _bind(self, node: Any, result: Any) -> None:
        outputs = list(node.outputs())
        if len(outputs) == 1:
            self._values[outputs[0].unique()] = result
        elif outputs:
            for output, value in zip(outputs, result, strict=True):
                self._values[output.unique()] = value

    # Operators

    def _operator(self, node: Any, kind: str) -> Any:
        places, writes, views = parsed(node.schema())
        args = self._inputs(node)
        in_place = bool(writes) and kind.endswith("_") and not kind.endswith("__")
        call = Call(kind[:-1] if in_place else kind, args, places, node.outputsSize(), self._level)
        rule = RULES.get(call.op)
        if rule is None or (writes and not in_place):
            result = self._unknown(node, kind, args)
        else:
            try:
                result = rule(call)
                if kind not in READ_SHAPES:
                    result = doubted_where_lost(result, args)
            except (
                AttributeError,
                TypeError,
                ValueError,
                IndexError,
                KeyError,
            ):  # arguments of kinds it does not expect
                result = self._unknown(node, kind, args)
        if writes:
            return self._written(args, writes, result, kind)
        if views is not None and (views or kind in _RETURN_THEIR_ARGUMENT):
            self._share(args[views[0] if views else 0], result)
        return result

    @staticmethod
    def _share(source: Any, result: Any) -> None:
        if isinstance(source, Tensor):
            for leaf in made_tensors(result):
                leaf.store = source.store.root() if leaf is source else source.store.join(leaf.store)

    def _written(self, args: list[Any], writes: tuple[int, ...], result: Any, kind: str) -> Any:
        """Let all that share the memory see what was written."""
        first = args[writes[0]]
        if not isinstance(first, Tensor) or len(writes) > 1 or not isinstance(result, Tensor):
            doubt = worst(unclear(_UNKNOWN_OPERATOR.format(kind)), *map(deep_doubt, args))
            for place in writes:
                spoil(args[place], doubt)
            return result
        doubt = worst(result.doubt, self._condition)
        if doubt is None and places_of_rows(first) != places_of_rows(result):
            doubt = unclear(f"{kind} writes rows of the batch where there were none")
        first.store.write(doubt)
        return Tensor(first.dims, worst(first.doubt, doubt), boolean=first.boolean, store=first.store)

    def _unknown(self, node: Any, kind: str, args: list[Any]) -> Any:
        """The result of an operator without a rule: constant if all arguments are, else not known."""
        doubt = unclear(_UNKNOWN_OPERATOR.format(kind)) if depends(tuple(args)) else None
        results: list[Any] = []
        for output in node.outputs():
            kind_of = output.type().kind()
            if kind_of == "ListType":
                inner = output.type().getElementType().kind()
                results.append(Items(None, Tensor(None, doubt) if inner == "TensorType" else Number(doubt)))
            else:
                results.append(Tensor(None, doubt) if kind_of == "TensorType" else Number(doubt))
        return results[0] if len(results) == 1 else tuple(results)

    # Numbers, lists, attributes

    def _single(self, node: Any) -> Any:
        value = self._first(node)
        if not isinstance(value, Tensor):
            return value if isinstance(value, int | float | Size) else Number(deep_doubt(value))
        if isinstance(value.content, int | float | Size):
            return value.content
        if value.doubt is None and rows_axis(value.dims) is not None:
            return Number(mixed(f"{node.kind()} takes one value from the whole batch"))
        return Number(value.doubt)

    def _extreme(self, node: Any) -> Any:
        values = self._inputs(node)
        if len(values) == 1:
            return Number(deep_doubt(values[0]))
        return arithmetic(node.kind().partition("::")[2], values[0], values[1])

    def _is(self, node: Any, *, wanted: bool) -> Any:
        left, right = self._inputs(node)
        if left is None or right is None:
            other = right if left is None else left
            if isinstance(other, Number):
                return Number(other.doubt)
            return (other is None) is wanted
        return Number(worst(deep_doubt(left), deep_doubt(right)))

    def _not(self, node: Any) -> Any:
        value = self._first(node)
        return not value if isinstance(value, bool | int) else Number(doubt_of(value))

    def _length(self, node: Any) -> Any:
        value = self._first(node)
        if isinstance(value, Tensor):
            return size_of(value.dims[0]) if value.dims else Number(value.doubt)
        if isinstance(value, Items) and value.items is not None:
            return len(value.items)
        return len(value) if isinstance(value, dict | str) else Number(deep_doubt(value))

    @staticmethod
    def _copy(value: Any) -> Any:
        return (
            Items(None if value.items is None else list(value.items), value.each, 0)
            if isinstance(value, Items)
            else Number(deep_doubt(value))
        )

    def _append(self, node: Any) -> Any:
        target, item = self._inputs(node)
        if isinstance(target, Items):
            target.append(doubted(item, self._condition), self._level)
        return target

    @staticmethod
    def _element(container: Any, index: Any) -> Any:
        if isinstance(container, Items):
            return container.element(index)
        if isinstance(container, tuple) and isinstance(index, int):
            return container[index]
        if isinstance(container, dict) and index in container:
            return container[index]
        return Number(unclear("the model takes an element of what cannot be followed"))

    def _dictionary(self, node: Any) -> Any:
        values = self._inputs(node)
        return dict(zip(values[::2], values[1::2], strict=True))

    def _unpack(self, node: Any) -> Any:
        value, count = self._first(node), node.outputsSize()
        found = [self._element(value, place) for place in range(count)]
        return found[0] if count == 1 else found

    def _attribute(self, node: Any) -> Any:
        owner = self._first(node)
        if not isinstance(owner, _Attributes):
            return Number(unclear("the model reads an attribute that cannot be followed"))
        value = owner.module.getattr(node.s("name"))
        return _Attributes(value) if hasattr(value, "getattr") else from_constant(value)

    def _set_attribute(self, node: Any) -> Any:
        raise ValueError(node.kind())

    # Branches and loops

    def _if(self, node: Any) -> Any:
        condition = self._first(node)
        blocks = list(node.blocks())
        if isinstance(condition, bool | int):
            block = blocks[0 if condition else 1]
            self._run(block)
            return self._results(block)
        doubt = deep_doubt(condition)
        raising = [any(inner.kind() == "prim::RaiseException" for inner in block.nodes()) for block in blocks]
        found = []
        with _Under(self, doubt if not any(raising) else None):
            for block, raises in zip(blocks, raising, strict=True):
                self._run(block)
                if not raises:
                    found.append(block)
        results = [[self._value(value) for value in block.outputs()] for block in found or blocks[:1]]
        merged = [either(values) for values in zip(*results, strict=True)]
        if not any(raising):
            merged = [doubted(value, doubt) for value in merged]
        return merged[0] if len(merged) == 1 else merged

    def _results(self, block: Any) -> Any:
        found = [self._value(value) for value in block.outputs()]
        return found[0] if len(found) == 1 else found

    def _loop(self, node: Any) -> Any:
        count, condition, *carried = self._inputs(node)
        block = next(iter(node.blocks()))
        place, *parameters = [value.unique() for value in block.inputs()]
        doubt = worst(deep_doubt((count,)), deep_doubt((condition,)))
        self._values[place] = Number(doubt)
        for round_ in range(_ROUNDS):
            for parameter, value in zip(parameters, carried, strict=True):
                self._values[parameter] = value
            with _Under(self, doubt):
                self._run(block)
            going_on, *results = [self._value(value) for value in block.outputs()]
            doubt = worst(doubt, deep_doubt(going_on))
            after = [join(before, result) for before, result in zip(carried, results, strict=True)]
            settled = round_ > 0 and same(after, carried)
            carried = after
            if settled:
                break
        else:
            raise TimeoutError
        carried = [doubted(value, doubt) for value in carried]
        return carried[0] if len(carried) == 1 else carried


class _Under:
    """What happens in a branch or a loop, under its condition."""

    def __init__(self, reader: Reader, doubt: Doubt | None) -> None:
        self._reader, self._doubt = reader, doubt

    def __enter__(self) -> None:
        self._before = self._reader._condition  # noqa: SLF001 - a part of the reader
        self._reader._condition = worst(self._before, self._doubt)  # noqa: SLF001
        self._reader._level += 1  # noqa: SLF001

    def __exit__(self, *_: object) -> None:
        self._reader._condition = self._before  # noqa: SLF001
        self._reader._level -= 1  # noqa: SLF001
