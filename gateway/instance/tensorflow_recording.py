"""TensorFlow's profiler, and the graph of a SavedModel."""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorflow.python.profiler.internal import _pywrap_profiler
from tensorflow.python.saved_model import loader_impl

EVENTS = 100_000
"""2 MB of trace, written in a quarter of a second."""
CONSTANT_BYTES = 1024
"""Larger constants are weights, which are not drawn."""
_IN_MEMORY = "ram://recording"
"""TensorFlow makes directories for a trace, which the sandbox forbids on the disk."""
_EVENT_BYTES = 128
"""Of the format that `stop` returns, which is only looked at for its size."""


class TensorFlowTracer:
    """Records with TensorFlow's profiler; the graph is that of the SavedModel, read again."""

    most = EVENTS

    def __init__(self, artifact: Path, tags: Sequence[str]) -> None:
        self._artifact = artifact
        self._tags = list(tags)
        self._session: Any = None

    def cost(self, call: Callable[[], object]) -> int:
        """Events of a call."""
        self.start()
        try:
            call()
        finally:
            size = len(self._session.stop())
            self._session = None
        return size // _EVENT_BYTES

    def start(self) -> None:
        """Begin; see `Tracer.start`."""
        self._session = _pywrap_profiler.ProfilerSession()
        self._session.start(_IN_MEMORY, {})

    def stop(self, path: Path) -> None:
        """End, and write an XSpace, as TensorBoard's profile plugin and xprof read it."""
        session, self._session = self._session, None
        try:
            session.export_to_tb()
            (found,) = tf.io.gfile.glob(f"{_IN_MEMORY}/plugins/profile/*/*.xplane.pb")
            with tf.io.gfile.GFile(found, "rb") as file:
                trace = file.read()
        finally:  # the next recording must not find it
            with contextlib.suppress(tf.errors.NotFoundError):
                tf.io.gfile.rmtree(_IN_MEMORY)
        path.write_bytes(trace)

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
