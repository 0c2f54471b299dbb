"""Graphs of TorchScript as TensorBoard is to draw them."""

import json
from pathlib import Path

import pytest
import torch
from tensorboard.compat.proto.graph_pb2 import GraphDef
from torch import Tensor, nn

from gateway.instance.torch_recording import TorchTracer

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor, times: int) -> Tensor:
        for _ in range(times):
            x = self.blocks(x)
        return x * self.scale if bool(x.sum() > 0) else -x


def tracer(module: nn.Module, folder: Path) -> TorchTracer:
    path = folder / "model.pt"
    torch.jit.script(module.eval()).save(str(path))
    return TorchTracer(path, gpu=False)


def test_nodes_lie_in_their_modules_and_blocks_and_know_where_their_inputs_come_from(tmp_path: Path) -> None:
    nodes = {node.name: node for node in GraphDef.FromString(tracer(Branches(), tmp_path).graph()).node}
    assert nodes["x"].op == "Input"
    first = nodes["Loop/blocks/0/linear"]
    assert first.op == "aten::linear"
    assert list(first.input) == ["x", "Loop/blocks/0/weight", "Loop/blocks/0/bias"]
    assert nodes["Loop/blocks/0/weight"].op == "Parameter"
    assert list(nodes["Loop/blocks/1/relu"].input) == ["Loop/blocks/0/linear"]
    assert "Loop/blocks/2/linear" in nodes["Loop/Loop"].input
    assert list(nodes["If/branch_0/mul"].input) == ["Loop/Loop", "If/branch_0/scale"]
    assert nodes["If/branch_1/neg"].op == "aten::neg"
    assert list(nodes["output"].input) == ["If/If"]
    for node in nodes.values():
        assert set(node.input) <= nodes.keys(), "every edge ends at a node"


def test_names_are_given_once(tmp_path: Path) -> None:
    class Same(nn.Module):
        def forward(self, x: Tensor, relu_1: Tensor) -> Tensor:
            return torch.relu(torch.relu(torch.relu(x))) + relu_1

    names = [node.name for node in GraphDef.FromString(tracer(Same(), tmp_path).graph()).node]
    assert len(set(names)) == len(names)
    assert {"relu", "relu_1", "relu_2"} <= set(names)


def test_what_is_called_between_start_and_stop_is_in_the_trace_and_nothing_else(tmp_path: Path) -> None:
    made = tracer(Branches(), tmp_path)
    module = torch.jit.load(tmp_path / "model.pt")
    x = torch.ones(1, 4)
    assert made.cost(lambda: module(x, 1)) > 3
    made.start()
    module(x, 2)
    made.stop(tmp_path / "trace")
    module(x, 3)
    events = json.loads((tmp_path / "trace").read_text())["traceEvents"]
    assert [each["name"] for each in events].count("aten::linear") == 4
