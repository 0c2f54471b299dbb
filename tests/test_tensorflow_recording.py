"""TensorFlow's profiler and graphs, in this process."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.compat.proto.graph_pb2 import GraphDef

from gateway.commands import xspace

tf = pytest.importorskip("tensorflow")

from gateway.instance.tensorflow_recording import CONSTANT_BYTES, TensorFlowTracer  # noqa: E402 - as above

WEIGHTS = 1000


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    class Weighted(tf.Module):  # type: ignore[misc, name-defined] # TensorFlow has no types
        @tf.function(input_signature=[tf.TensorSpec([None, WEIGHTS], tf.float32, "x")])
        def __call__(self, x: Any) -> dict[str, Any]:
            return {"y": tf.nn.relu(x * tf.constant(np.arange(WEIGHTS), tf.float32) + tf.constant(0.5))}

    module = Weighted()
    place = tmp_path_factory.mktemp("saved") / "1"
    tf.saved_model.save(module, str(place), signatures=module.__call__)
    return module, place


def test_the_graph_has_its_functions_and_small_constants_but_no_weights(saved: tuple[Any, Path]) -> None:
    graph = GraphDef.FromString(TensorFlowTracer(saved[1], ["serve"]).graph())
    nodes = [node for function in graph.library.function for node in function.node_def]
    assert {"Mul", "Relu"} <= {node.op for node in nodes}
    constants = [node.attr["value"].tensor for node in nodes if node.op == "Const"]
    sizes = [[each.size for each in tensor.tensor_shape.dim] for tensor in constants]
    assert [WEIGHTS] in sizes
    assert all(tensor.ByteSize() <= CONSTANT_BYTES for tensor in constants)
    assert 0.5 in [tensor.float_val[0] for tensor in constants if tensor.float_val]


def test_what_is_called_between_start_and_stop_is_in_the_trace_and_nothing_else(
    saved: tuple[Any, Path], tmp_path: Path
) -> None:
    call, x = saved[0].__call__, tf.ones([1, WEIGHTS])
    call(x)
    tracer = TensorFlowTracer(saved[1], ["serve"])
    for name in ("first", "second"):
        assert tracer.cost(lambda: call(x)) > 1
        tracer.start()
        for _ in range(3):
            call(x)
        tracer.stop(tmp_path / name)
        names = [span.name for span in xspace.spans((tmp_path / name).read_bytes())]
        assert names.count("ExecutorState::Process") == names.count("Relu") == 3
        assert not tf.io.gfile.glob("ram://recording/*"), "memory is given back"
