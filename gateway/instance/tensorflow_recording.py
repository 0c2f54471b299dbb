"""TensorFlow's profiler, and the graph of a SavedModel."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tensorflow.python.profiler.internal import _pywrap_profiler
from tensorflow.python.saved_model import loader_impl

TRACE_BYTES = 12 << 20
"""Of the largest trace; it is written in half a second."""
CONSTANT_BYTES = 1024
"""Larger constants are weights, which are not drawn."""


class TensorFlowTracer:
    """Records with TensorFlow's profiler; the graph is that of the SavedModel, read again."""

    most = TRACE_BYTES

    def __init__(self, artifact: Path, tags: Sequence[str]) -> None:
        self._artifact = artifact
        self._tags = list(tags)
        self._session: Any = None

    def cost(self, call: Callable[[], object]) -> int:
        """Bytes of the trace of a call."""
        self.start()
        try:
            call()
        finally:
            trace = self._stop()
        return len(trace)

    def start(self) -> None:
        """Begin; see `Tracer.start`. tf.profiler.experimental would make directories, which the sandbox forbids."""
        self._session = _pywrap_profiler.ProfilerSession()
        self._session.start("", {})

    def stop(self, path: Path) -> None:
        """End, and write an XSpace."""
        path.write_bytes(self._stop())

    def _stop(self) -> bytes:
        session, self._session = self._session, None
        trace: bytes = session.stop()
        return trace

    def graph(self) -> bytes:
        """The GraphDef, with its functions."""
        loader = loader_impl.SavedModelLoader(str(self._artifact))
        graph = loader.get_meta_graph_def_from_tags(self._tags).graph_def
        for nodes in (graph.node, *(function.node_def for function in graph.library.function)):
            for node in nodes:
                _without_weights(node)
        found: bytes = graph.SerializeToString()
        return found


def _without_weights(node: Any) -> None:
    for value in node.attr.values():
        if value.WhichOneof("value") == "tensor" and value.ByteSize() > CONSTANT_BYTES:
            tensor = value.tensor
            kept = type(tensor)(dtype=tensor.dtype, tensor_shape=tensor.tensor_shape)
            tensor.CopyFrom(kept)
