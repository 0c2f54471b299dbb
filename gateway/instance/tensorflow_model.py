"""A TensorFlow model in memory: checks requests, calls the prepared signatures, cleans what they return or raise."""

import itertools
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from gateway.errors import GatewayError, InferenceFailed, InputRefused, OutOfMemory, RequestError
from gateway.instance import tensorflow_rows
from gateway.instance.backend import nothing
from gateway.instance.probing import trouble_of
from gateway.instance.row_separation import RowSeparation
from gateway.instance.tensorflow_recording import TensorFlowTracer
from gateway.instance.tensorflow_signatures import SIDE_EFFECTS, STATE, Entry, GraphReader, batching_obstacle
from gateway.tensors import DATATYPES, DTYPES, Array, Signature, TensorSpec

Call = Callable[..., list[Any]]
"""Arrays in the order of a plan's feeds to values in the order of its fetches."""

_EXAMPLE_TRIES = 12
_EXAMPLE_SECONDS = 0.06
_EXAMPLE_SIZES = (4, 32, 1, 128, 224, 3, 16, 64)
_NOISE = re.compile(
    r"\s*\[\[\{\{.*?\}\}.*?\]\]|^\s*\[\[[^\s\]]*\]\]\s*$|\{\{(function_)?node [^}]*\}\}|\s*\[Op:\w+\]( name:.*)?"
    r"|^.*(Detected at node|Graph execution error|<stack traces unavailable>|root error\(s\) found).*$"
    r"|^.*defined at \(most recent.*$"
    r"|^Traceback.*$|^\s*File \".*(\n {4}.*)?$|^\s*Node: .*$|^\s*\(\d+\) ([A-Z_]+: |[A-Z][a-z ]+: )?",
    re.MULTILINE,
)
_PYTHON = re.compile(r"Could not find callback with key|callback pyfunc_\d+ is not found")
_REFUSALS = (tf.errors.InvalidArgumentError, tf.errors.OutOfRangeError)
"""What TensorFlow raises for values that an operation cannot take; TF Serving answers 400 to the first."""
_PATH = re.compile(r"(?<![\w}\])<:.-])(?:/[^\s/:;,'\"]+)+/([^\s/:;,'\"]+)")


def clean(error: BaseException, *, whole: bool = False) -> str:
    """The framework's first sentence, or its whole first line, without nodes, stack traces and paths."""
    text = _NOISE.sub("", str(getattr(error, "message", None) or error))
    line = next((stripped for line in text.splitlines() if (stripped := line.strip())), type(error).__name__)
    sentence = line if whole else re.split(r"(?<=[\w\])'\"])\.\s+(?=[A-Z])", line, maxsplit=1)[0]
    return _PATH.sub(r"\1", sentence).rstrip(" .:")[:400]


def _translated(error: Exception) -> GatewayError:
    if isinstance(error, GatewayError):
        return error
    if isinstance(error, (tf.errors.ResourceExhaustedError, MemoryError)):
        return OutOfMemory("the model needs more memory than there is for this request")
    if _PYTHON.search(str(error)):
        return InferenceFailed(
            "the model calls Python code (tf.py_function or tf.numpy_function), which a SavedModel does not contain; "
            "export it with TensorFlow operations in its place"
        )
    if isinstance(error, _REFUSALS):
        return InputRefused(clean(error, whole=True))
    sentence = clean(error)
    if isinstance(error, (TypeError, ValueError)) or sentence.startswith("Unsupported object type"):
        return RequestError(f"the inputs do not fit the signature: {sentence}")
    return InferenceFailed(sentence)


class Plan:
    """One signature, prepared to be called."""

    def __init__(self, entry: Entry, findings: frozenset[str], *, keeps_state: bool) -> None:
        self.entry = entry
        self.findings = findings
        self.call: Call | None = None
        self.feeds = tuple(dict.fromkeys(entry.feeds))
        self.fetches = tuple(tensor for tensor in dict.fromkeys(entry.fetches) if tensor not in self.feeds)
        self._inputs = [(spec.name, DTYPES[spec.datatype], spec.datatype) for spec in entry.signature.inputs]
        self._outputs = [(spec.name, DTYPES[spec.datatype]) for spec in entry.signature.outputs]
        # A variable may keep the very buffer that is assigned to it, and lend its own to whoever reads it.
        self._copy_inputs = STATE in findings
        self._copy_outputs = keeps_state
        self._same_inputs = [
            (names[0], other) for tensor in self.feeds if len(names := self._named(tensor)) > 1 for other in names[1:]
        ]
        self._feed_names = [self._named(tensor)[0] for tensor in self.feeds]
        self._direct = self.fetches == entry.fetches

    def _named(self, tensor: str) -> list[str]:
        return [
            spec.name
            for spec, feed in zip(self.entry.signature.inputs, self.entry.feeds, strict=True)
            if feed == tensor
        ]

    def arrays(self, inputs: Mapping[str, Array]) -> list[Array]:
        """The inputs in the order of the feeds; RequestError names the one that is missing or wrong."""
        if self.entry.defaults and len(inputs) < len(self._inputs):
            inputs = {**self.entry.defaults, **inputs}
        for name, dtype, datatype in self._inputs:
            array = inputs.get(name)
            if array is None:
                raise RequestError(f"input '{name}' is missing")
            if array.dtype != dtype:
                given = DATATYPES.get(array.dtype, array.dtype)
                raise RequestError(f"input '{name}' is {given}, the model takes {datatype}")
        if len(inputs) != len(self._inputs):
            unknown = next(name for name in inputs if name not in {known for known, _, _ in self._inputs})
            raise RequestError(f"input '{unknown}' is none of signature '{self.entry.signature.name}'")
        for name, other in self._same_inputs:
            if not np.array_equal(inputs[name], inputs[other]):
                raise RequestError(f"inputs '{name}' and '{other}' are one tensor of the model and must be equal")
        if self._copy_inputs:
            return [inputs[name].copy() for name in self._feed_names]
        return [inputs[name] for name in self._feed_names]

    def results(self, values: list[Any], arrays: list[Array]) -> dict[str, Array]:
        """The outputs by name, none of which shares memory with an input or with a variable that changes."""
        if not self._direct:
            by_tensor = dict(zip(self.feeds, arrays, strict=True)) | dict(zip(self.fetches, values, strict=True))
            values = [by_tensor[tensor] for tensor in self.entry.fetches]
        found = {}
        for (name, dtype), value in zip(self._outputs, values, strict=True):
            output = value
            if type(value) is not np.ndarray:
                output = np.array(value, dtype)  # scalars come as numpy's or Python's own
            elif self._copy_outputs or any(np.may_share_memory(value, array) for array in arrays):
                output = value.copy()
            found[name] = output
        return found


class TensorFlowModel:
    """A SavedModel in memory."""

    platform = "tensorflow_savedmodel"
    on_gpu = False
    broken = False
    """Whether a test request ended in an error that is not for what was sent."""
    artifact = Path()
    tags: Sequence[str] = ()

    def __init__(self, entries: dict[str, Entry], default: str, graph: Any, prepare: Callable[[Plan], Call]) -> None:
        reader = GraphReader(graph)
        findings = {name: reader.findings(entry) for name, entry in entries.items()}
        self._rows: dict[str, RowSeparation] = {
            name: tensorflow_rows.row_separation(graph, entry) for name, entry in entries.items()
        }
        keeps_state = any(STATE in each for each in findings.values())
        self.signatures: dict[str, Signature] = {name: entry.signature for name, entry in entries.items()}
        self.default_signature: str = default
        self.notes: list[str] = []
        self.trouble = ""
        self.close: Callable[[], object] = nothing
        self._prepare = prepare
        self._plans = {name: Plan(entry, findings[name], keeps_state=keeps_state) for name, entry in entries.items()}
        # The others cost time and memory, and wait for their first request.
        self._plans[default].call = prepare(self._plans[default])

    def execute(self, signature: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run one signature and return its outputs in the signature's order."""
        plan = self._plan(signature)
        arrays = plan.arrays(inputs)
        try:
            call = plan.call
            if call is None:
                call = plan.call = self._prepare(plan)
            values = call(*arrays)
        except Exception as error:  # noqa: BLE001 - whatever TensorFlow raises becomes an error of the gateway
            raise _translated(error) from None
        return plan.results(values, arrays)

    def example(self, signature: str) -> dict[str, Array] | None:
        """One request of one row that works; None where none is known or a call would change something."""
        plan = self._plan(signature)
        if plan.findings & SIDE_EFFECTS:
            return None
        deadline = None
        failures: list[GatewayError] = []
        for made_up in itertools.islice(_candidates(plan.entry.signature), _EXAMPLE_TRIES):
            inputs = {**made_up, **plan.entry.defaults}
            try:
                self.execute(signature, inputs)
            except GatewayError as error:
                failures.append(error)
                # The first call compiles the graph, which says nothing of how long the next ones take.
                deadline = deadline or time.monotonic() + _EXAMPLE_SECONDS
                if time.monotonic() > deadline:
                    break
            else:
                return inputs
        if signature == self.default_signature:
            self.trouble = trouble_of(failures)
            self.broken = any(not isinstance(error, RequestError | InputRefused | OutOfMemory) for error in failures)
        return None

    optimised = False

    def rest(self) -> float:
        """Nothing is let go of; see `LoadedModel.rest`."""
        return -1.0

    def device_memory(self) -> int | None:
        """The most that TensorFlow has had in use on the GPU, for what it has taken once it does not give back."""
        if not self.on_gpu:
            return None
        try:
            return int(tf.config.experimental.get_memory_info("GPU:0")["peak"])
        except (ValueError, RuntimeError, tf.errors.OpError):
            return None

    def tracer(self) -> TensorFlowTracer:
        """What records its calls; see `LoadedModel.tracer`."""
        return TensorFlowTracer(self.artifact, self.tags)

    def batching_obstacle(self, signature: str) -> str | None:
        """Why requests to this signature must not be joined whatever a test shows; else None."""
        plan = self._plan(signature)
        reason = batching_obstacle(plan.entry.signature, plan.findings)
        rows = self._rows[signature]
        return rows.reason if reason is None and rows.verdict == "mixed" else reason

    def row_separation(self, signature: str) -> RowSeparation:
        """What the graph tells about rows; see `LoadedModel.row_separation`."""
        found = self._rows.get(signature)
        return found or RowSeparation("unknown", f"the model has no signature '{signature}'")

    def _plan(self, signature: str) -> Plan:
        plan = self._plans.get(signature)
        if plan is None:
            raise RequestError(f"the model has no signature '{signature}'; it has: {', '.join(self.signatures)}")
        return plan


def _candidates(signature: Signature) -> Iterator[dict[str, Array]]:
    """Plausible requests of one row, the likeliest first."""
    specs = signature.inputs
    sizes = _EXAMPLE_SIZES if any(spec.shape and -1 in spec.shape[1:] for spec in specs) else _EXAMPLE_SIZES[:1]
    texts = (b"1", b"") if any(spec.datatype == "BYTES" for spec in specs) else (b"",)
    unknown: tuple[tuple[int, ...], ...] = ((1,), (1, 1)) if any(spec.shape is None for spec in specs) else ((1,),)
    for size, text, shape in itertools.product(sizes, texts, unknown):
        yield {spec.name: _sample(spec, size, text, shape) for spec in specs}


def _sample(spec: TensorSpec, size: int, text: bytes, unknown: tuple[int, ...]) -> Array:
    dims = unknown if spec.shape is None else spec.shape
    shape = tuple(each if each >= 0 else size if axis else 1 for axis, each in enumerate(dims))
    dtype = DTYPES[spec.datatype]
    if spec.datatype == "BYTES":
        return np.full(shape, text, dtype)
    generator = np.random.default_rng(0)
    if spec.datatype in {"FP16", "BF16", "FP32", "FP64"}:
        return np.asarray(generator.uniform(-1, 1, shape)).astype(dtype)
    return np.asarray(generator.integers(0, 2 if spec.datatype == "BOOL" else 4, shape)).astype(dtype)
