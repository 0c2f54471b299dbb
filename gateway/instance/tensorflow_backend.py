"""Loads TensorFlow SavedModels, old and new: into a session if one takes them, else the way of TensorFlow 2."""

import contextlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before the import: TensorFlow reads it once

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import config_pb2
from tensorflow.python.saved_model import loader_impl

from gateway import cpus
from gateway.errors import GatewayError, LoadFailed, OutOfMemory
from gateway.instance import libraries
from gateway.instance.backend import nothing
from gateway.instance.handlers import with_image_input
from gateway.instance.tensorflow_model import Call, Plan, TensorFlowModel, clean
from gateway.instance.tensorflow_signatures import (
    Describe,
    Described,
    default_signature,
    read_entries,
    with_declared,
    with_defaults,
)
from gateway.store.manifest import ModelConfig
from gateway.tensors import DATATYPES, Array

tf.get_logger().setLevel("ERROR")

_CUSTOM_OP = re.compile(r"Op type not registered '([^']+)'")


def _described(dtype: Any, shape: Any) -> Described:
    """A TensorFlow dtype and TensorShape as the protocol writes them."""
    base = dtype.base_dtype
    known = base.is_bool or base.is_integer or base.is_floating or base == tf.string
    datatype = DATATYPES.get(np.dtype(base.as_numpy_dtype)) if known and not base.is_quantized else None
    return datatype, None if shape.rank is None else tuple(-1 if size is None else size for size in shape.as_list())


def _tags(meta_graphs: Any, device: str) -> list[str]:
    """The tags of the meta graph to serve: one for serving, and without an accelerator that is not there."""
    tags: list[list[str]] = [list(meta.meta_info_def.tags) for meta in meta_graphs]
    foreign = {"tpu"} if device.startswith("cuda") else {"tpu", "gpu"}
    serving = [each for each in tags if "serve" in each]
    return next((each for each in serving if not foreign & set(each)), (serving or tags)[0])


class TensorFlowBackend:
    """TensorFlow, imported; nothing of it runs before a model is loaded."""

    framework = "tensorflow"
    cuda: bool = tf.test.is_built_with_cuda()

    def __init__(self) -> None:
        self.before_test: Callable[[], None] = nothing

    def load(self, artifact: Path, config: ModelConfig, device: str, *, plain: str = "") -> TensorFlowModel:  # noqa: ARG002 - there is no other form
        """Load the SavedModel in a directory; LoadFailed tells the user what to do."""
        _check_directory(artifact)
        if device != "cpu":
            # Processes share a GPU; without this the first use of it in one of them would take all its memory.
            os.environ["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"
            if not tf.config.list_physical_devices("GPU"):
                raise LoadFailed(_no_gpu())
        try:
            loader = loader_impl.SavedModelLoader(str(artifact))
            meta_graphs = loader.saved_model.meta_graphs
        except Exception as error:
            raise LoadFailed("saved_model.pb is damaged or no SavedModel; copy or export the model again") from error
        if not meta_graphs:
            raise LoadFailed("saved_model.pb holds no graph; copy or export the model again")
        tags = _tags(meta_graphs, device)
        try:
            model = _load_v1(loader, tags, config, device)
            model.notes.append("Loaded into a session.")
            self.before_test()
            if (better := _other_way(model, loader, tags, config, device)) is not None:
                model.close()
                model = better
        except LoadFailed:
            raise
        except Exception as first:  # noqa: BLE001 - loading runs whatever the artifact says; the reason is reported below
            meta = loader.get_meta_graph_def_from_tags(tags)
            self.before_test()  # such a model runs its initialisers in Python
            try:
                model = _load_v2(artifact, meta, config, device)
            except LoadFailed:
                raise
            except Exception as second:  # noqa: BLE001 - as above
                raise _load_failure(artifact, first, second) from None
            model.notes.append(
                "Loaded as a TensorFlow 2 object, because it does not open in a session; calls are slower."
            )
        model.on_gpu = device != "cpu"
        model.artifact, model.tags = artifact, tags
        return model


def _other_way(
    model: TensorFlowModel, loader: Any, tags: list[str], config: ModelConfig, device: str
) -> TensorFlowModel | None:
    """The same as a TensorFlow 2 object, if only that answers; None if the session will do.

    Some SavedModels open in a session and miss their variables there: tf.saved_model.save of a Keras model.
    """
    if config.stateful or model.example(model.default_signature) is not None or not model.broken:
        return None
    try:
        meta = loader.get_meta_graph_def_from_tags(tags)
        other = _load_v2(Path(os.fsdecode(loader.export_dir)), meta, config, device)
        if other.example(other.default_signature) is None:
            return None
    except Exception:  # noqa: BLE001 - loading runs whatever the artifact says; the session has its own reason to tell
        return None
    other.notes.append("Loaded as a TensorFlow 2 object, because no call succeeds in a session; calls are slower.")
    return other


def _no_gpu() -> str:
    """Why there is no GPU for TensorFlow in a process that was given one; it would run on the CPU and not say so."""
    if not TensorFlowBackend.cuda:
        return f"TensorFlow {tf.__version__} is a build for the CPU only; install one with CUDA, or set kind: cpu"
    return f"TensorFlow {tf.__version__} finds no GPU that it can use; it also needs the CUDA libraries it is built for"


def _threads(config: ModelConfig) -> int:
    return cpus.threads(config.threads)


def _session_options(config: ModelConfig, device: str) -> Any:
    options = tf.compat.v1.ConfigProto(
        allow_soft_placement=True,  # the graph may name devices of the machine that trained it
        inter_op_parallelism_threads=1,  # operations run in the calling thread
        intra_op_parallelism_threads=_threads(config),
        device_count={"GPU": 0} if device == "cpu" else {},
    )
    options.gpu_options.allow_growth = True
    return options


def _load_v1(loader: Any, tags: list[str], config: ModelConfig, device: str) -> TensorFlowModel:
    """Load into a session, whose callables cost a tenth of a TensorFlow 2 signature's."""
    graph = tf.Graph()
    session = tf.compat.v1.Session(graph=graph, config=_session_options(config, device))
    try:
        meta = _restore(loader, tags, session, device)

        def describe(name: str, side: str, key: str) -> Described | None:
            info = getattr(meta.signature_def[name], side)[key]
            try:
                tensor = graph.get_tensor_by_name(info.name if ":" in info.name else f"{info.name}:0")
            except (KeyError, ValueError):
                return None
            return _described(tensor.dtype, tensor.shape)

        def prepare(plan: Plan) -> Call:
            if not plan.fetches:
                return lambda *_: []  # every output is an input
            wanted = config_pb2.CallableOptions(feed=plan.feeds, fetch=plan.fetches)
            wanted.run_options.inter_op_thread_pool = -1
            call: Call = session._make_callable_from_options(wanted)  # noqa: SLF001 - what Keras and Estimator call too
            return call

        model = _model(meta, config, describe, prepare)
    except Exception:
        session.close()
        raise
    model.close = session.close
    return model


def _restore(loader: Any, tags: list[str], session: Any, device: str) -> Any:
    """Build the graph, restore its variables, fill its tables, and return the MetaGraphDef."""
    with session.graph.as_default():
        saver, _ = loader.load_graph(session.graph, tags, clear_devices=device == "cpu")
        if saver is None and tf.io.gfile.exists(os.fsdecode(loader.variables_path) + ".index"):
            raise ValueError("the graph has no operation that restores its variables")
        loader.restore_variables(session, saver)
        loader.run_init_ops(session, tags)
    return loader.get_meta_graph_def_from_tags(tags)


def _load_v2(artifact: Path, meta: Any, config: ModelConfig, device: str) -> TensorFlowModel:
    """Load as an object, the way of TensorFlow 2."""
    with contextlib.suppress(RuntimeError):  # TensorFlow runs already in this process and stays as it was set up
        tf.config.threading.set_intra_op_parallelism_threads(_threads(config))
        tf.config.threading.set_inter_op_parallelism_threads(1)
        if device == "cpu":
            tf.config.set_visible_devices([], "GPU")
        for gpu in tf.config.get_visible_devices("GPU"):
            tf.config.experimental.set_memory_growth(gpu, enable=True)
    loaded = tf.saved_model.load(str(artifact), tags=list(meta.meta_info_def.tags))
    functions = dict(loaded.signatures)

    def describe(name: str, side: str, key: str) -> Described | None:
        if name not in functions:
            return None
        function = functions[name]
        found = (function.structured_input_signature[1] if side == "inputs" else function.structured_outputs).get(key)
        return _described(found.dtype, found.shape) if hasattr(found, "dtype") else None

    def prepare(plan: Plan) -> Call:
        function, entry = functions[plan.entry.signature.name], plan.entry
        named = dict(zip(entry.fetches, (spec.name for spec in entry.signature.outputs), strict=True))
        places = [
            (plan.feeds.index(tensor), spec.name)
            for tensor, spec in zip(entry.feeds, entry.signature.inputs, strict=True)
        ]

        def call(*arrays: Array) -> list[Any]:
            outputs = function(**{name: tf.constant(arrays[index]) for index, name in places})
            return [outputs[named[tensor]].numpy() for tensor in plan.fetches]

        call.model = loaded  # type: ignore[attr-defined] # its variables die with it
        return call

    return _model(meta, config, describe, prepare)


def _model(meta: Any, config: ModelConfig, describe: Describe, prepare: Callable[[Plan], Call]) -> TensorFlowModel:
    notes: list[str] = []
    entries = {
        name: with_defaults(entry, meta.signature_def[name].defaults, tf.make_ndarray)
        for name, entry in read_entries(meta, describe, notes).items()
    }
    default = default_signature(entries)
    config = with_image_input(config, entries[default].signature.inputs, TensorFlowModel.platform)
    entries[default] = with_declared(entries[default], config)
    model = TensorFlowModel(entries, default, meta.graph_def, prepare)
    model.notes += notes
    return model


def _check_directory(artifact: Path) -> None:
    """LoadFailed, with what to do, unless the directory holds a SavedModel."""
    try:
        names = {path.name for path in artifact.iterdir()}
    except OSError:
        raise LoadFailed("the artifact is no directory that can be read; a SavedModel is a directory") from None
    if names & {"saved_model.pb", "saved_model.pbtxt"}:
        return
    again = "export the model again with tf.saved_model.save or model.export"
    if "export.meta" in names:
        raise LoadFailed(f"this is a session bundle from before SavedModel (export.meta, no saved_model.pb); {again}")
    if any(name.endswith((".keras", ".h5", ".hdf5")) for name in names):
        raise LoadFailed(f"this is a Keras file and no SavedModel; {again}")
    if "checkpoint" in names or any(name.endswith((".index", ".meta")) for name in names):
        raise LoadFailed(f"this is a training checkpoint, which holds no graph to serve; {again}")
    if any(name.endswith(".pb") for name in names):
        raise LoadFailed(f"there is no saved_model.pb here, only another .pb file; {again}")
    raise LoadFailed(f"there is no saved_model.pb in the version's directory; copy the whole SavedModel, or {again}")


def _load_failure(artifact: Path, first: Exception, second: Exception) -> GatewayError:
    """What both loaders said, as one sentence."""
    for error in (first, second):
        missing = _CUSTOM_OP.search(str(error))
        if missing:
            return LoadFailed(libraries.lacking("tensorflow", missing[1], f"TensorFlow {tf.__version__}"))
        if isinstance(error, (tf.errors.ResourceExhaustedError, MemoryError)):
            return OutOfMemory("the model needs more memory to load than it may have")
    said = clean(first).replace(f"{artifact}/", "")
    return LoadFailed(f"TensorFlow cannot open the model: {said}; copy the whole SavedModel or export it again")
