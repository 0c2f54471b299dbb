"""PyTorch's profiler, and a TorchScript graph as TensorBoard draws one."""

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch._C._autograd import _disable_profiler, _enable_profiler, _prepare_profiler
from torch._C._profiler import ProfilerActivity, ProfilerConfig, ProfilerState, _ExperimentalConfig

from gateway import graphdef
from gateway.graphdef import Node

EVENTS = 40_000
"""16 MB of trace, 160 MB of memory while it is written, which takes half a second."""
NODES = 20_000
_MODULE = re.compile(r"([^.()]+)\(")
_NO_MODULE = ("SELF", "UNKNOWN_", "CALL_FUNCTION")
"""What PyTorch calls the model itself, and functions that modules call."""
_ODD = re.compile(r"[^\w.-]+")


class TorchTracer:
    """Records with PyTorch's profiler; the graph is that of the archive, read again without its weights."""

    most = EVENTS

    def __init__(self, artifact: Path, *, gpu: bool) -> None:
        self._artifact = artifact
        self._activities = {ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])}

    def cost(self, call: Callable[[], object]) -> int:
        """Events of a call."""
        self.start()
        try:
            call()
        finally:
            results = _disable_profiler()
        return len(results.events())

    def start(self) -> None:
        """Begin; see `Tracer.start`.

        torch.profiler itself would import a compiler, and turn each event into an object of Python's.
        """
        shapes, memory, stacks, flops, modules = True, False, False, False, False
        config = ProfilerConfig(ProfilerState.KINETO, shapes, memory, stacks, flops, modules, _ExperimentalConfig(), "")
        _prepare_profiler(config, self._activities)
        _enable_profiler(config, self._activities)

    def stop(self, path: Path) -> None:
        """End, and write what Chrome and Perfetto read."""
        results = _disable_profiler()
        with _silent():
            results.save(str(path))

    def graph(self) -> bytes:
        """The graph of forward, by modules."""
        read: Callable[..., Any] = torch.jit.load
        module = read(self._artifact, map_location="meta")
        return graphdef.graph(_Graph().read(module.inlined_graph))


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without stderr: the profiler complains there that it may not rename its file, which is complete."""
    shown, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(shown, 2)
        os.close(shown)
        os.close(nowhere)


class _Graph:
    """Nodes by the module that they are in, named after what they do."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self._names: dict[str, int] = {}
        self._made: dict[str, str] = {}
        """Value → the node that makes it."""

    def read(self, graph: Any) -> list[Node]:
        """Inputs, operations, outputs; constants and the modules themselves are left out."""
        for value in list(graph.inputs())[1:]:
            self._add(value.debugName().partition(".")[0], "Input", (), [value])
        self._block(graph, "")
        self._add("output", "Output", self._sources(graph.outputs()), [])
        return self.nodes

    def _block(self, block: Any, scope: str) -> None:
        for node in block.nodes():
            if len(self.nodes) >= NODES:
                return
            kind = node.kind()
            modules = (each for each in _MODULE.findall(node.getModuleHierarchy()) if not each.startswith(_NO_MODULE))
            place = "/".join([scope, *modules]).strip("/")
            outputs = list(node.outputs())
            if kind == "prim::GetAttr":
                if outputs[0].type().kind() == "TensorType":
                    self._add(f"{place}/{node.s('name')}", "Parameter", (), outputs)
            elif kind != "prim::Constant":
                self._operation(node, f"{place}/{kind.rpartition('::')[2]}", outputs)

    def _operation(self, node: Any, name: str, outputs: list[Any]) -> None:
        inputs = list(node.inputs())
        inner = []
        blocks = list(node.blocks())
        if blocks:
            name = self._unique(name)
        for number, block in enumerate(blocks):
            # What a loop hands on comes after its bounds there, and after the turn here.
            for within, outside in zip(list(block.inputs())[1:], inputs[2:], strict=False):
                if made := self._made.get(outside.debugName()):
                    self._made[within.debugName()] = made
            self._block(block, f"{name}/branch_{number}" if len(blocks) > 1 else name)
            inner += list(block.outputs())
        leaf = name.rpartition("/")[2]
        self._add(f"{name}/{leaf}" if blocks else name, node.kind(), self._sources([*inputs, *inner]), outputs)

    def _sources(self, values: Any) -> tuple[str, ...]:
        found = (self._made.get(value.debugName()) for value in values)
        return tuple(dict.fromkeys(filter(None, found)))

    def _add(self, name: str, op: str, inputs: tuple[str, ...], outputs: list[Any]) -> None:
        name = self._unique(name)
        self.nodes.append(Node(name, op, inputs))
        for value in outputs:
            self._made[value.debugName()] = name

    def _unique(self, name: str) -> str:
        name = unique = "/".join(_ODD.sub("_", part) for part in name.strip("/").split("/"))
        while unique in self._names:
            self._names[name] += 1
            unique = f"{name}_{self._names[name]}"
        self._names[unique] = 0
        return unique
