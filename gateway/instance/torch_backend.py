"""PyTorch: TorchScript archives loaded, examined without being trusted, and called with named arrays."""

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gateway.errors import GatewayError, LoadFailed, RequestError
from gateway.instance import torch_errors, torch_inputs, torch_signature, torch_types
from gateway.instance.backend import Tensors, nothing
from gateway.instance.handlers import with_image_input
from gateway.instance.probing import trouble_of
from gateway.instance.torch_graph import constant, examine
from gateway.instance.torch_inputs import Example
from gateway.instance.torch_recording import TorchTracer
from gateway.store.manifest import ModelConfig
from gateway.tensors import DTYPES, Array, Signature, TensorSpec

SIGNATURE = "forward"
_NO_FORWARD = "the archive has no forward method; script or trace a module that defines forward"
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

    def load(self, artifact: Path, config: ModelConfig, device: str) -> "TorchScriptModel":
        """Load a TorchScript archive; see `Backend.load`."""
        if not artifact.is_file():
            raise LoadFailed("the artifact is not a file; a TorchScript model is one file such as model.pt")
        if device != "cpu" and not torch.cuda.is_available():
            raise LoadFailed(torch_errors.no_gpu())
        torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2) if config.threads == "auto" else config.threads)
        # The profiling executor compiles a model again for its first calls and for new shapes: 8 to 30 ms each on a
        # tiny MLP with batches of 1 to 32, 20 µs of noise after that. Without it the first call takes 1 ms, the median
        # is the same (9 µs optimised, 11 plain) and no later call is slow.
        torch._C._jit_set_profiling_mode(False)  # noqa: SLF001 - no public name
        with _quiet():
            # PyTorch warns once in a process of arrays that are not writable; nothing here writes into inputs.
            torch.from_numpy(np.frombuffer(bytes(4), np.float32))
            module, typed = _open(artifact, device)
            self.before_test()
            model = TorchScriptModel(module, config, device, typed)
        model.artifact = artifact
        if torch_errors.is_flatbuffer(artifact):
            # Its weights point into the file's bytes, which live as long as the module that was read from them.
            model.owner = module
        return model


class TorchScriptModel:
    """A TorchScript module with one signature, its forward method."""

    platform = "pytorch_torchscript"
    default_signature = SIGNATURE
    owner: Any = None
    artifact = Path()

    def __init__(self, module: Any, config: ModelConfig, device: str, typed: Any) -> None:
        if not module._c._has_method("forward"):  # noqa: SLF001 - no public name
            raise LoadFailed(_NO_FORWARD)
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
        frozen, graph = _freeze(module)
        self._facts = examine(graph)
        self.stateful = config.stateful or self._facts.state or self._facts.opaque
        simple = all(argument.kind == "tensor" for argument in self._arguments)
        fast = simple and self._device is None and not self._facts.mutates_inputs
        self._names = [argument.name for argument in self._arguments] if fast else None
        self._set_call(module)
        self.trouble = ""
        self._example = None if self.stateful else self._find_example(config, graph, typed)
        self._pair = self._two_rows()
        self.notes = [f"optimize_for_inference: {self._optimise(module, frozen)}"]
        self.notes += torch_signature.naming_notes(self._arguments)
        self.signatures = {SIGNATURE: self._signature(config, graph)}

    # --- Calls

    def execute(self, signature: str, inputs: Tensors) -> dict[str, Array]:
        """Run forward; see `LoadedModel.execute`."""
        if signature != SIGNATURE:
            raise RequestError(f"the model has no signature '{signature}', only '{SIGNATURE}'")
        names = self._names
        if names is None or len(inputs) != len(names):
            return self._execute_any(inputs)
        try:
            values = [_from_numpy(inputs[name]) for name in names]
        except (KeyError, TypeError, ValueError, RuntimeError):
            return self._execute_any(inputs)
        try:
            with _InferenceMode(True):
                result = self._call(*values)
        except Exception as error:  # noqa: BLE001 - a model may raise whatever Python has
            raise torch_errors.failure(error) from None
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
        """Run forward with arguments of any kind, on any device."""
        values = torch_types.gather(self._arguments, inputs)
        if self._device is not None or self._facts.mutates_inputs:
            values = [_moved(value, self._device) for value in values]
        try:
            with _InferenceMode(True):
                result = self._call(*values)
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
        if signature != SIGNATURE:
            return f"the model has no signature '{signature}'"
        reason = self._facts.obstacle()
        if reason is None and self.stateful:
            reason = "model.yaml says that the model keeps state"
        return reason or next(filter(None, map(torch_types.joining_obstacle, self._arguments)), None)

    # --- Loading

    def _set_call(self, module: Any) -> None:
        core = module._c  # noqa: SLF001 - its method is called directly: 1 µs less than nn.Module.__call__
        hooked = core._get_forward_hooks() or core._get_forward_pre_hooks()  # noqa: SLF001
        self._call: Callable[..., Any] = module if hooked else core._get_method("forward")  # noqa: SLF001

    def _find_example(self, config: ModelConfig, graph: Any, typed: Any) -> Example | None:
        """A request that forward accepted: as declared, else as traced, else as the weights in the graph suggest."""
        guesses = torch_inputs.guesses(graph, self._arguments, _dtype_of(graph))
        failures: list[GatewayError] = []
        candidates = []
        if config.inputs:
            candidates.append(torch_inputs.declared(config.inputs, guesses))
        else:
            candidates.append({} if typed is None else torch_inputs.traced(typed, self._arguments, guesses))
            # A loop that runs until the values please it may never end on values that were made up.
            candidates.append({} if self._facts.value_loop else guesses)
        for each in filter(None, candidates):
            if (example := torch_inputs.search(each, self._try, failures)) is not None:
                return example
        self.trouble = trouble_of(failures)
        return None

    def _two_rows(self) -> Example | None:
        """The example with a second row, if the model takes that."""
        if self._example is None or self.batching_obstacle(SIGNATURE) is not None:
            return None
        if any(not array.ndim or len(array) != 1 for array in self._example.values()):
            return None
        other = torch_inputs.redraw(self._example, 1)
        pair = {name: np.concatenate([array, other[name]]) for name, array in self._example.items()}
        return None if self._answer(pair) is None else pair

    def _optimise(self, module: Any, frozen: Any) -> str:
        """Call the module through optimize_for_inference if that gives the same answers; what became of it."""
        reasons = (
            (self._device is not None, "only done on the CPU"),
            (self.stateful, "the model keeps state"),
            (self._example is None, "no example input is known, declare inputs in model.yaml"),
            (self._facts.random, "the model draws random numbers"),
            (frozen is None or self._call is module, "the model cannot be frozen"),
        )
        if (reason := next((reason for found, reason in reasons if found), None)) is not None:
            return f"not tried, {reason}; plain module used"
        checks = [self._example, torch_inputs.redraw(self._example or {}, 2), self._pair]
        # Convolutions take an image without a batch dimension, too; what worked plain must go on working.
        checks.append({name: array[0] for name, array in (self._example or {}).items() if array.ndim > 1})
        expected = [None if check is None else self._answer(check) for check in checks]
        try:
            self._set_call(torch.jit.optimize_for_inference(frozen))
        except Exception:  # noqa: BLE001 - a pass over the graph may fail in any way; the plain module stays
            return "failed, plain module used"
        for check, plain in zip(checks, expected, strict=True):
            if check is not None and plain is not None and not _same(plain, self._answer(check)):
                self._set_call(module)
                return "answers differ, plain module used"
        return "same answers, used"

    def _try(self, example: Tensors) -> Example:
        return self.execute(SIGNATURE, example)

    def _answer(self, example: Tensors | None) -> Example | None:
        try:
            return None if example is None else self._try(example)
        except GatewayError:
            return None

    def _signature(self, config: ModelConfig, graph: Any) -> Signature:
        inputs = torch_signature.inputs(self._arguments, graph, config, self._example, self._pair)
        answers = (self._answer(self._example), self._answer(self._pair))
        promised, more = torch_types.output_names(self._returns)
        outputs = torch_signature.outputs(config, promised, *answers)
        return Signature(SIGNATURE, inputs, outputs, torch_signature.takes_more(self._arguments), more)


def _open(artifact: Path, device: str) -> tuple[Any, Any]:
    """The module in evaluation mode, and its graph with the types of the inputs it was traced with, if known."""
    read: Callable[..., Any] = torch.jit.load
    typed = None
    try:
        if torch_errors.has_traced_inputs(artifact):
            with contextlib.suppress(RuntimeError):
                module = read(artifact, map_location=device, _restore_shapes=True)
                graph = module.graph
                typed = graph.copy()
                # The types are those of one example: no pass may take them for the shapes of all requests.
                torch._C._jit_pass_erase_shape_information(graph)  # noqa: SLF001 - no public name
        if typed is None:
            module = read(artifact, map_location=device)
        return module.eval(), typed
    except AttributeError:  # only traced modules without forward have no graph
        raise LoadFailed(_NO_FORWARD) from None
    except Exception as error:  # noqa: BLE001 - a damaged archive may raise anything
        if reason := torch_errors.refusal(artifact):
            raise LoadFailed(reason) from None
        raise torch_errors.unreadable(error) from None


def _freeze(module: Any) -> tuple[Any, Any]:
    """A frozen copy of the module (None where it cannot be frozen) and the graph that tells most about forward."""
    try:
        frozen = torch.jit.freeze(module, optimize_numerics=False)
        graph = frozen.graph.copy()
    except Exception:  # noqa: BLE001 - what cannot be folded can still be read
        frozen, graph = None, module.inlined_graph.copy()
    torch._C._jit_pass_inline_fork_wait(graph)  # noqa: SLF001 - no public name
    torch._C._jit_pass_inline(graph)  # noqa: SLF001 - what the forks called
    return frozen, graph


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


def _same(plain: Example, optimised: Example | None) -> bool:
    """Whether two answers agree to rounding."""
    if optimised is None or plain.keys() != optimised.keys():
        return False
    for name, want in plain.items():
        have = optimised[name]
        if want.shape != have.shape or want.dtype != have.dtype:
            return False
        if want.dtype.kind != "f" and want.dtype != DTYPES["BF16"]:
            if not np.array_equal(want, have):
                return False
            continue
        wide, other = want.astype(np.float64), have.astype(np.float64)
        scale = float(np.max(np.abs(wide), where=np.isfinite(wide), initial=0.0))
        if not np.allclose(wide, other, rtol=1e-4, atol=1e-5 * scale, equal_nan=True):
            return False
    return True


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings that TorchScript is deprecated: the user has the archive already."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
