"""PyTorch: TorchScript archives loaded, examined without being trusted, and called with named arrays."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gateway import cpus
from gateway.errors import GatewayError, LoadFailed, OutOfMemory, RequestError
from gateway.instance import torch_errors, torch_inputs, torch_integers, torch_rows, torch_signature, torch_types
from gateway.instance.backend import Tensors, nothing
from gateway.instance.handlers import with_image_input
from gateway.instance.probing import trouble_of
from gateway.instance.row_separation import RowSeparation
from gateway.instance.torch_archive import read_archive, without_warnings
from gateway.instance.torch_forms import Forms, PlainForm, freeze, optimise
from gateway.instance.torch_graph import constant, examine
from gateway.instance.torch_inputs import Example, Guesses
from gateway.instance.torch_recording import TorchTracer
from gateway.store.manifest import ModelConfig
from gateway.tensors import Array, Signature, TensorSpec

SIGNATURE = "forward"
# The guard behind torch.inference_mode(), at a third of its price (0.45 against 1.15 µs a call).
_InferenceMode = torch._C._InferenceMode  # noqa: SLF001
_DATATYPES = torch_types.TORCH_DATATYPES
_from_numpy = torch.from_numpy
_is_alias_of: Callable[[torch.Tensor, torch.Tensor], bool] = torch._C._is_alias_of  # type: ignore[attr-defined]  # noqa: SLF001


class TorchBackend:
    """Loads TorchScript archives."""

    framework = "pytorch"
    cuda = torch.version.cuda is not None

    def __init__(self) -> None:
        self.before_test: Callable[[], None] = nothing

    def load(self, artifact: Path, config: ModelConfig, device: str, *, plain: str = "") -> "TorchScriptModel":
        """Load a TorchScript archive; see `Backend.load`."""
        if not artifact.is_file():
            raise LoadFailed("the artifact is not a file; a TorchScript model is one file such as model.pt")
        if device != "cpu" and not torch.cuda.is_available():
            raise LoadFailed(torch_errors.no_gpu())
        threads = cpus.threads(config.threads)
        torch.set_num_threads(threads)
        with contextlib.suppress(RuntimeError):  # it is set already in this process
            torch.set_num_interop_threads(threads)  # for torch.jit.fork; PyTorch's default is the host's cores
        # The profiling executor compiles a model again for its first calls and for new shapes: 8 to 30 ms each on a
        # tiny MLP with batches of 1 to 32, 20 µs of noise after that. Without it the first call takes 1 ms, the median
        # is the same (9 µs optimised, 11 plain) and no later call is slow.
        torch._C._jit_set_profiling_mode(False)  # noqa: SLF001 - no public name
        with without_warnings():
            # PyTorch warns once in a process of arrays that are not writable; nothing here writes into inputs.
            torch.from_numpy(np.frombuffer(bytes(4), np.float32))
            form = PlainForm(artifact)
            module, typed = read_archive(artifact, device)
            form.hold(module, artifact)
            if torch_errors.is_flatbuffer(artifact):
                # Its weights point into the file's bytes, which live as long as the module that was read from them.
                form.lasting = True
            self.before_test()
            model = TorchScriptModel(module, config, device, typed, form, plain)
        model.artifact = artifact
        return model


class TorchScriptModel:
    """A TorchScript module with one signature, its forward method."""

    platform = "pytorch_torchscript"
    default_signature = SIGNATURE
    artifact = Path()

    def __init__(
        self, module: Any, config: ModelConfig, device: str, typed: Any, plain: PlainForm, only_plain: str = ""
    ) -> None:
        """`only_plain` says why no optimised form may be tried; empty: it may."""
        schema = module._c._get_method("forward").schema  # noqa: SLF001 - no public name
        arguments = torch_types.arguments_of(schema)
        if all(argument.kind == "tensor" for argument in arguments):
            config = with_image_input(
                config, [TensorSpec(each.name, "FP32", None) for each in arguments], self.platform
            )
        self._arguments = torch_types.bind(arguments, config.inputs)
        self._returns = schema.returns[0].type
        self._renamed = [output.name for output in config.outputs]
        self._single = (self._renamed or ["output_0"])[0]
        self._device = None if device == "cpu" else torch.device(device)
        frozen, graph = freeze(module)
        self._facts = examine(graph)
        self.stateful = config.stateful or self._facts.state or self._facts.opaque
        simple = all(argument.kind == "tensor" for argument in self._arguments)
        fast = simple and self._device is None and not self._facts.mutates_inputs
        self._names = [argument.name for argument in self._arguments] if fast else None
        self.plain = plain
        self._call = plain.call()
        self.forms: Forms | None = None
        self.trouble = ""
        self._traced = False
        weighed = torch_inputs.weighed(graph, self._arguments)
        guesses = torch_inputs.guesses(weighed, _dtype_of(graph))
        self._example = None if self.stateful else self._find_example(config, guesses, typed)
        pair = self._two_rows()
        shapes = self._example or torch_inputs.declared_shapes(config.inputs)
        self._rows = torch_rows.row_separation(graph, self._arguments, shapes, frozen or module)
        undeclared = not (config.inputs or self._traced)
        floats_only = torch_integers.floats_only(self._answer, self._example, weighed) if undeclared else frozenset()
        self._known = torch_signature.Known(self._traced, floats_only)
        reason = f"not tried, {only_plain}; plain module used" if only_plain else self._optimise(frozen, pair)
        self.notes = [f"optimize_for_inference: {reason}", *torch_signature.naming_notes(self._arguments)]
        self.signatures = {SIGNATURE: self._signature(config, graph, pair)}

    # --- Calls

    def execute(self, signature: str, inputs: Tensors) -> dict[str, Array]:
        """Run forward; see `LoadedModel.execute`."""
        if signature != SIGNATURE:
            raise RequestError(f"the model has no signature '{signature}', only '{SIGNATURE}'")
        names = self._names
        if names is None or len(inputs) != len(names):
            return self._execute_any(inputs)
        try:
            arrays = [inputs[name] for name in names]
            values = [_from_numpy(array) for array in arrays]
        except (KeyError, TypeError, ValueError, RuntimeError):
            return self._execute_any(inputs)
        forms = self.forms
        if forms is not None and tuple([(array.dtype.char, array.shape) for array in arrays]) not in forms.proved:
            return self._execute_any(inputs)
        try:
            with _InferenceMode(True):
                result = self._call(*values)
        except Exception as error:  # noqa: BLE001 - a model may raise whatever Python has
            return self._failed(error, inputs)
        if type(result) is torch.Tensor and result.dtype in _DATATYPES and not self.stateful:
            for value in values:
                if _is_alias_of(result, value):
                    return self._outputs(result, values)
            try:
                return {self._single: result.numpy()}
            except (TypeError, RuntimeError):  # a datatype or layout that numpy has not
                pass
        return self._outputs(result, values)

    def _execute_any(self, inputs: Tensors) -> dict[str, Array]:
        """Run forward with arguments of any kind, on any device, in the form that is right for them."""
        if self.forms is None:
            return self._run(self._call, inputs)
        torch_types.gather(self._arguments, inputs)  # what is refused here is no business of either form
        return self.forms.execute(self._in_order(inputs), self._run)

    def _failed(self, error: Exception, inputs: Tensors) -> dict[str, Array]:
        """Raise what the model raised; if that was its optimised form, answer what the plain one does."""
        failure = torch_errors.failure(error)
        if self.forms is None or isinstance(failure, OutOfMemory):
            raise failure from None
        return self.forms.as_plain(self._in_order(inputs), self._run)

    def _in_order(self, inputs: Tensors) -> Tensors:
        """The inputs in the order of the model's own."""
        names = self._names
        return inputs if names is None else {name: inputs[name] for name in names if name in inputs}

    def _run(self, call: Callable[..., Any], inputs: Tensors) -> dict[str, Array]:
        """Run a form of forward with arguments of any kind, on any device."""
        values = torch_types.gather(self._arguments, inputs)
        if self._device is not None or self._facts.mutates_inputs:
            values = [_moved(value, self._device) for value in values]
        try:
            with _InferenceMode(True):
                result = call(*values)
        except Exception as error:  # noqa: BLE001 - a model may raise whatever Python has
            raise torch_types.no_text(error, inputs) or torch_errors.failure(error) from None
        return self._outputs(result, values)

    def _outputs(self, result: Any, values: list[Any]) -> dict[str, Array]:
        """The result as named arrays that share no memory with the inputs or with what a later call writes."""
        sources = list(_tensors(values))
        outputs: dict[str, Array] = {}
        try:
            if isinstance(result, list) and not result:
                empty = torch_types.empty_list(self._returns)
                return {} if empty is None else {self._single: empty}
            for name, leaf in torch_types.leaves(result):
                if isinstance(leaf, torch.Tensor):
                    copy = self.stateful or any(_shared(leaf, source) for source in sources)
                    outputs[name] = torch_types.to_array(name, leaf, copy=copy)
                else:
                    outputs[name] = torch_types.plain_array(name, leaf)
        except Exception as error:  # noqa: BLE001 - copying from a device reports what the model's kernels did
            raise torch_errors.failure(error) from None
        return self._rename(outputs)

    def _rename(self, outputs: dict[str, Array]) -> dict[str, Array]:
        if not self._renamed:
            return outputs
        if all(name in outputs for name in self._renamed):  # declared in another order than the model's
            return {name: outputs[name] for name in (*self._renamed, *outputs)}
        names = [*self._renamed, *list(outputs)[len(self._renamed) :]]
        return dict(zip(names, outputs.values(), strict=False))

    def example(self, signature: str) -> dict[str, Array] | None:
        """A request of one row that was accepted; None for a model that keeps state or hides what it wants."""
        if signature != SIGNATURE or self._example is None:
            return None
        return {name: array.copy() for name, array in self._example.items()}

    def device_memory(self) -> int | None:
        """What PyTorch's allocator holds on the GPU; see `LoadedModel.device_memory`."""
        return None if self._device is None else int(torch.cuda.memory_reserved(self._device))

    def tracer(self) -> TorchTracer:
        """What records its calls; see `LoadedModel.tracer`."""
        return TorchTracer(self.artifact, gpu=self._device is not None)

    def batching_obstacle(self, signature: str) -> str | None:
        """Why requests must not be joined; see `LoadedModel.batching_obstacle`."""
        if (reason := self._plain_obstacle(signature)) is not None:
            return reason
        return self._rows.reason if self._rows.verdict == "mixed" else None

    def row_separation(self, signature: str) -> RowSeparation:
        """What the graph tells about rows; see `LoadedModel.row_separation`."""
        if signature != SIGNATURE:
            return RowSeparation("unknown", f"the model has no signature '{signature}'")
        return self._rows

    def _plain_obstacle(self, signature: str) -> str | None:
        """What speaks against joining requests wherever the rows go."""
        if signature != SIGNATURE:
            return f"the model has no signature '{signature}'"
        reason = self._facts.obstacle()
        if reason is None and self.stateful:
            reason = "model.yaml says that the model keeps state"
        return reason or next(filter(None, map(torch_types.joining_obstacle, self._arguments)), None)

    # --- Loading

    def _find_example(self, config: ModelConfig, guesses: Guesses, typed: Any) -> Example | None:
        """A request that forward accepted: as declared, else as traced, else as the weights in the graph suggest."""
        failures: list[GatewayError] = []
        if config.inputs:
            candidates = [(torch_inputs.declared(config.inputs, guesses), False)]
        else:
            traced = {} if typed is None else torch_inputs.traced(typed, self._arguments, guesses)
            # A loop that runs until the values please it may never end on values that were made up.
            candidates = [(traced, True), ({} if self._facts.value_loop else guesses, False)]
        for candidate, is_traced in candidates:
            if candidate and (example := torch_inputs.search(candidate, self._try, failures)) is not None:
                self._traced = is_traced
                return example
        self.trouble = trouble_of(failures)
        return None

    def _two_rows(self) -> Example | None:
        """The example with a second row, if the model takes that."""
        if self._example is None or self._plain_obstacle(SIGNATURE) is not None:
            return None
        if any(not array.ndim or len(array) != 1 for array in self._example.values()):
            return None
        other = torch_inputs.redraw(self._example, 1)
        pair = {name: np.concatenate([array, other[name]]) for name, array in self._example.items()}
        return None if self._answer(pair) is None else pair

    def _optimise(self, frozen: Any, pair: Example | None) -> str:
        """Call the module through optimize_for_inference where that gives the same answers; what became of it."""
        tensors = ("tensor", "tensors", "tuple", "entries", "default")
        reasons = (
            (self._device is not None, "only done on the CPU"),
            (self.stateful, "the model keeps state"),
            (self._example is None, "no example input is known, declare inputs in model.yaml"),
            (self._facts.random, "the model draws random numbers"),
            (any(each.kind not in tensors for each in self._arguments), "an input is not a tensor"),
            (frozen is None or isinstance(self._call, torch.nn.Module), "the model cannot be frozen"),
        )
        if (reason := next((reason for found, reason in reasons if found), None)) is not None:
            return f"not tried, {reason}; plain module used"
        example = self._example or {}
        checks = [example, torch_inputs.redraw(example, 2), *([pair] if pair else [])]
        checks = [dict(self._in_order(check)) for check in checks]
        self.forms, said = optimise(frozen, self.plain, checks, self._run, rows=pair is not None)
        if self.forms is not None:
            self._call = self.forms.optimised
        return said

    @property
    def optimised(self) -> bool:
        """Whether requests may be computed in another form than the artifact's; see `LoadedModel.optimised`."""
        return self.forms is not None

    def rest(self) -> float:
        """Let go of the plain form if it is not needed; see `LoadedModel.rest`."""
        return -1.0 if self.forms is None else self.plain.rest()

    def _try(self, example: Tensors) -> Example:
        return self.execute(SIGNATURE, example)

    def _answer(self, example: Tensors | None) -> Example | None:
        try:
            return None if example is None else self._try(example)
        except GatewayError:
            return None

    def _signature(self, config: ModelConfig, graph: Any, pair: Example | None) -> Signature:
        inputs = torch_signature.inputs(self._arguments, graph, config, (self._example, pair), self._known)
        answers = (self._answer(self._example), self._answer(pair))
        promised, more = torch_types.output_names(self._returns)
        outputs = torch_signature.outputs(config, promised, *answers)
        return Signature(SIGNATURE, inputs, outputs, torch_signature.takes_more(self._arguments), more)


def _dtype_of(graph: Any) -> torch.dtype:
    """The datatype of the largest floating point weight."""
    found = (constant(value) for node in graph.nodes() for value in node.outputs())
    weights = [value for value in found if isinstance(value, torch.Tensor) and value.is_floating_point()]
    return max(weights, key=torch.Tensor.numel).dtype if weights else torch.float32


def _moved(value: Any, device: torch.device | None) -> Any:
    """The tensors in an argument on the device, or copied where the model would write into the caller's memory."""
    if isinstance(value, torch.Tensor):
        return value.clone() if device is None else value.to(device)
    if isinstance(value, dict):
        return {key: _moved(item, device) for key, item in value.items()}
    return type(value)(_moved(item, device) for item in value) if isinstance(value, list | tuple) else value


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)


def _shared(tensor: torch.Tensor, source: torch.Tensor) -> bool:
    return tensor.layout == torch.strided and tensor.device == source.device and _is_alias_of(tensor, source)
