"""What TensorFlowBackend promises, on small SavedModels built here in the styles of TensorFlow 1 and 2."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gateway.errors import InferenceFailed, LoadFailed, OutOfMemory, RequestError
from gateway.store.manifest import ModelConfig, TensorConfig
from gateway.tensors import DTYPES, TensorSpec

tf = pytest.importorskip("tensorflow")
saved_model_pb2 = pytest.importorskip("tensorflow.core.protobuf.saved_model_pb2")
tensorflow_model = pytest.importorskip("gateway.instance.tensorflow_model")
TensorFlowBackend = pytest.importorskip("gateway.instance.tensorflow_backend").TensorFlowBackend

v1 = tf.compat.v1
CONFIG = ModelConfig()
TRACE = """Detected at node 'a' defined at (most recent call last):
  File "/home/me/train.py", line 3, in f
    y = f(x)
Node: 'a'"""
NUMERIC = [name for name in DTYPES if name != "BYTES"]


def wants(*shape: int | None, dtype: Any = tf.float32, name: str = "x") -> Any:
    return tf.TensorSpec(shape, dtype, name)


def signature(*specs: Any) -> Callable[[Any], Any]:
    return tf.function(input_signature=specs, autograph=False)


class Zoo(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kept = tf.Variable(tf.zeros([4]))
        self.table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(["a"], [1]), 0)

    @signature(wants(None, 4))
    def double(self, x: Any) -> Any:
        return {"y": x * 2.0}

    @signature(wants(None, 4))
    def identity(self, x: Any) -> Any:
        return {"reshaped": tf.reshape(x, [-1]), "y": tf.identity(x)}

    @signature({name: wants(None, dtype=DTYPES[name].type, name=name) for name in NUMERIC})
    def types(self, inputs: Any) -> Any:
        return {name: tf.identity(value) for name, value in inputs.items()}

    @signature(wants(None, dtype=tf.string))
    def strings(self, x: Any) -> Any:
        return {"found": self.table.lookup(x), "first": x[0], "y": tf.strings.join([x, "!"])}

    @signature()
    def constant(self) -> Any:
        return {"pi": tf.constant(3.0), "word": tf.constant("hey")}

    @signature(wants(None, 4))
    def keep(self, x: Any) -> Any:
        with tf.control_dependencies([self.kept.assign(tf.reshape(x, [4]), read_value=False)]):
            return {"y": tf.identity(x)}

    @signature()
    def kept_value(self) -> Any:
        return {"y": self.kept.read_value()}

    @signature(wants(None, 4))
    def branch(self, x: Any) -> Any:
        return {"y": tf.cond(tf.reduce_sum(x) > 0, lambda: x * 2.0, lambda: x)}

    @signature(wants(None, 4))
    def noise(self, x: Any) -> Any:
        return {"y": x + tf.random.normal(tf.shape(x))}

    @signature(wants(None, 4))
    def checked(self, x: Any) -> Any:
        with tf.control_dependencies([tf.debugging.assert_greater(x, -5.0, message="x is too small")]):
            return {"y": tf.identity(x)}

    @signature(wants(None, 4))
    def loop(self, x: Any) -> Any:
        return {"y": tf.while_loop(lambda i, _: i < 3, lambda i, a: (i + 1, a * 2.0), [0, x])[1]}

    @signature(wants(None, 4))
    def python(self, x: Any) -> Any:
        return {"y": tf.ensure_shape(tf.numpy_function(lambda a: a, [x], tf.float32), [None, 4])}

    @signature(wants(None, None))
    def multiply(self, x: Any) -> Any:
        return {"complex": tf.complex(x, x), "y": tf.matmul(x, tf.ones([224, 2]))}


ZOO = [
    "identity", "types", "strings", "constant", "keep", "kept_value", "branch", "noise", "checked", "loop", "python",
    "multiply",
]  # fmt: skip


def build_tf1(path: Path) -> None:
    build, info = v1.saved_model.signature_def_utils.build_signature_def, v1.saved_model.build_tensor_info
    v1.disable_control_flow_v2()  # the Switch and Merge of graphs from before 2019
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None, 4], "x")
        learning = v1.placeholder_with_default(False, [], "learning")
        count = v1.get_variable("count", initializer=0.0, use_resource=False)
        weights = v1.get_variable("weights", initializer=np.eye(4, dtype=np.float32))
        hidden = tf.matmul(x, weights)
        dropped = v1.cond(learning, lambda: tf.nn.dropout(hidden, rate=0.5), lambda: tf.identity(hidden))
        with tf.control_dependencies([v1.assert_greater(x, -5.0)]):
            dropped = tf.identity(dropped)
        sparse = v1.sparse_placeholder(tf.float32, [None, 4], "sparse")
        lying = info(x)
        lying.tensor_shape.Clear()
        lying.dtype = tf.int32.as_datatype_enum
        definitions = {
            "predict": build({"in": lying}, {"y": info(dropped)}),
            "branch": build({"x": info(x)}, {"y": info(v1.cond(tf.reduce_sum(x) > 0, lambda: hidden, lambda: x))}),
            "same": build({"a": info(x), "b": info(x)}, {"p": info(dropped), "q": info(dropped), "x": info(x)}),
            "through": build({"x": info(x)}, {"x": info(x)}),
            "count": build({}, {"n": info(count)}),
            "increment": build({}, {"n": info(v1.assign_add(count, 1.0))}),
            "sparse": build({"s": info(sparse)}, {"y": info(v1.sparse_tensor_to_dense(sparse))}),
        }
        session.run(v1.global_variables_initializer())
        builder = v1.saved_model.Builder(str(path))
        builder.add_meta_graph_and_variables(session, ["gpu", "serve"], definitions)
        builder.add_meta_graph(["serve"], definitions)
        builder.save(as_text=True)
    v1.enable_control_flow_v2()


def edited(source: Path, target: Path, edit: Callable[[Any], None]) -> Path:
    shutil.copytree(source, target)
    file = target / "saved_model.pb"
    model = saved_model_pb2.SavedModel()
    model.ParseFromString(file.read_bytes())
    edit(model.meta_graphs[0])
    file.write_bytes(model.SerializeToString())
    return target


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    zoo = Zoo()
    signatures = {name: getattr(zoo, name) for name in ZOO} | {"serving_default": zoo.double}
    tf.saved_model.save(zoo, str(root / "zoo"), signatures=signatures)
    build_tf1(root / "tf1")
    edited(root / "zoo", root / "nosaver", lambda meta: meta.ClearField("saver_def"))
    return root


@pytest.fixture(scope="module")
def zoo(store: Path) -> Any:
    return TensorFlowBackend().load(store / "zoo", CONFIG, "cpu")


@pytest.fixture(scope="module")
def tf1(store: Path) -> Any:
    return TensorFlowBackend().load(store / "tf1", CONFIG, "cpu")


@pytest.fixture(scope="module")
def tf2(store: Path) -> Any:
    return TensorFlowBackend().load(store / "nosaver", CONFIG, "cpu")


@pytest.fixture(scope="module", params=["zoo", "tf2"])
def either(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def row(value: float = 1.0) -> Any:
    return np.full((1, 4), value, np.float32)


def objects(*items: bytes) -> Any:
    array = np.empty(len(items), object)
    array[:] = items
    return array


def test_importing_the_backend_starts_no_thread() -> None:
    script = "import os, gateway.instance.tensorflow_backend; print(len(os.listdir('/proc/self/task')))"
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"


def test_a_model_says_who_it_is(zoo: Any) -> None:
    assert (zoo.platform, TensorFlowBackend.framework) == ("tensorflow_savedmodel", "tensorflow")
    assert zoo.default_signature == "serving_default"
    assert list(zoo.signatures) == sorted([*ZOO, "serving_default"])
    assert "Loaded into a session." in zoo.notes


def test_specs_come_with_unknown_dimensions_as_minus_one(either: Any) -> None:
    assert either.signatures["serving_default"].inputs == (TensorSpec("x", "FP32", (-1, 4)),)
    assert either.signatures["serving_default"].outputs == (TensorSpec("y", "FP32", (-1, 4)),)
    assert [spec.name for spec in either.signatures["types"].inputs] == sorted(NUMERIC)


def test_every_datatype_goes_in_and_comes_out(either: Any) -> None:
    inputs = {name: np.array([0, 1, 1]).astype(DTYPES[name]) for name in NUMERIC}
    outputs = either.execute("types", inputs)
    for name, array in inputs.items():
        assert outputs[name].dtype == array.dtype
        np.testing.assert_array_equal(outputs[name], array)


def test_strings_are_object_arrays_of_bytes_even_when_scalar(either: Any) -> None:
    outputs = either.execute("strings", {"x": objects(b"a", b"\xff\0c")})
    assert outputs["y"].tolist() == [b"a!", b"\xff\0c!"]
    assert outputs["found"].tolist() == [1, 0]
    assert (outputs["first"].dtype, outputs["first"].shape, outputs["first"][()]) == (object, (), b"a")


def test_a_signature_without_inputs_is_called_with_nothing(either: Any) -> None:
    outputs = either.execute("constant", {})
    assert list(outputs) == ["pi", "word"]
    assert all(isinstance(output, np.ndarray) for output in outputs.values())
    assert (outputs["pi"][()], outputs["word"][()]) == (3.0, b"hey")
    assert either.example("constant") == {}


def test_no_output_shares_memory_with_an_input(either: Any) -> None:
    memory = np.zeros(64, np.float32)
    x = memory[-memory.ctypes.data % 64 // 4 :][:16].reshape(4, 4)  # aligned, so that TensorFlow takes it as it is
    outputs = either.execute("identity", {"x": x})
    x[:] = 7
    assert outputs["y"].tolist() == [[0.0] * 4] * 4
    assert not any(np.may_share_memory(output, memory) for output in outputs.values())


def test_a_variable_does_not_keep_the_memory_it_was_assigned_from(either: Any) -> None:
    memory = np.full(64, 5, np.float32)
    x = memory[-memory.ctypes.data % 64 // 4 :][:4].reshape(1, 4)
    either.execute("keep", {"x": x})
    x[:] = 9
    assert either.execute("kept_value", {})["y"].tolist() == [5.0] * 4


def test_read_only_unaligned_and_strided_inputs_work(zoo: Any) -> None:
    raw = b"\0" + np.arange(8, dtype=np.float32).tobytes()
    unaligned = np.frombuffer(raw, np.uint8)[1:].view(np.float32).reshape(2, 4)
    assert not unaligned.flags.writeable
    wide = np.arange(16, dtype=np.float32).reshape(2, 8)
    for x in (unaligned, wide[:, ::2], np.asfortranarray(unaligned)):
        np.testing.assert_array_equal(zoo.execute("serving_default", {"x": x})["y"], x * 2)


def test_a_missing_input_is_named(zoo: Any) -> None:
    with pytest.raises(RequestError, match="input 'x' is missing"):
        zoo.execute("serving_default", {})


def test_a_wrong_datatype_and_an_unknown_input_are_named(zoo: Any) -> None:
    with pytest.raises(RequestError, match="input 'x' is FP64, the model takes FP32"):
        zoo.execute("serving_default", {"x": np.zeros((1, 4))})
    with pytest.raises(RequestError, match="input 'z' is none of signature 'serving_default'"):
        zoo.execute("serving_default", {"x": row(), "z": row()})


def test_an_unknown_signature_is_answered_with_the_known_ones(tf1: Any) -> None:
    with pytest.raises(RequestError, match="no signature 'nope'; it has: branch, count, increment, predict"):
        tf1.execute("nope", {})


def test_what_the_model_raises_comes_as_one_sentence(either: Any) -> None:
    with pytest.raises(InferenceFailed) as failed:
        either.execute("multiply", {"x": np.zeros((1, 3), np.float32)})
    assert failed.value.message == "Matrix size-incompatible: In[0]: [1,3], In[1]: [224,2]"
    with pytest.raises(InferenceFailed, match=r"^assertion failed: \[x is too small"):
        either.execute("checked", {"x": row(-6)})


@pytest.mark.parametrize(
    ("said", "cleaned"),
    [
        ("Bad input\n\t [[{{node a/b}}]]\n\t [[c/_3]]", "Bad input"),
        ("2 root error(s) found.\n  (0) INVALID_ARGUMENT: Bad [[1 2]]\n\t [[{{node a}}]]\n  (1) x: y", "Bad [[1 2]]"),
        (f"Graph execution error:\n\n{TRACE}\nBad input. Look there", "Bad input"),
        ("{{function_node __wrapped__MatMul_device_}} Bad input [Op:MatMul] name: ", "Bad input"),
        ("cannot open /srv/secret/models/vocab.txt; No such file", "cannot open vocab.txt; No such file"),
        ("Value at a/b/c is 1/2 on /job:localhost", "Value at a/b/c is 1/2 on /job:localhost"),
    ],
)
def test_nodes_traces_and_paths_are_cut_from_errors(said: str, cleaned: str) -> None:
    assert tensorflow_model.clean(tf.errors.InvalidArgumentError(None, None, said)) == cleaned


@pytest.mark.parametrize(
    ("raised", "kind", "sentence"),
    [
        (tf.errors.ResourceExhaustedError(None, None, "OOM when allocating"), OutOfMemory, "needs more memory"),
        (MemoryError(), OutOfMemory, "needs more memory"),
        (ValueError("Cannot feed value of shape (3,)"), RequestError, "do not fit the signature: Cannot feed value"),
        (
            tf.errors.UnknownError(None, None, "Could not find callback with key=1"),
            InferenceFailed,
            "calls Python code",
        ),
    ],
)
def test_errors_are_told_apart(
    tf1: Any, monkeypatch: pytest.MonkeyPatch, raised: Exception, kind: type[Exception], sentence: str
) -> None:
    def fail(*_: Any) -> Any:
        raise raised

    monkeypatch.setattr(tf1._plans["branch"], "call", fail)  # noqa: SLF001 - no small model exhausts a test machine
    with pytest.raises(kind, match=sentence):
        tf1.execute("branch", {"x": row()})


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("serving_default", None),
        ("types", None),
        ("loop", None),
        ("checked", None),
        ("keep", "the model keeps state between calls"),
        ("branch", "control flow depends on the values of a tensor"),
        ("noise", "the model draws random numbers"),
        ("python", "the model calls Python code (tf.py_function)"),
        ("constant", "signature 'constant' has no inputs to join"),
        ("strings", "output 'first' has no batch dimension, its shape is fixed to []"),
    ],
)
def test_batching_is_refused_for_a_reason(either: Any, name: str, why: str | None) -> None:
    assert either.batching_obstacle(name) == why


def test_an_example_is_one_row_that_works(either: Any) -> None:
    assert either.example("serving_default")["x"].shape == (1, 4)
    assert either.example("strings")["x"].tolist() == [b"1"]
    assert either.example("multiply")["x"].shape == (1, 224)


def test_no_example_is_tried_on_what_changes_something(either: Any, tf1: Any) -> None:
    assert either.example("keep") is None
    assert tf1.example("increment") is None


def test_an_output_the_protocol_lacks_is_left_out_with_a_note(either: Any) -> None:
    assert [spec.name for spec in either.signatures["multiply"].outputs] == ["y"]
    assert any("'complex' of signature 'multiply'" in note for note in either.notes)


def test_a_tf1_graph_in_text_form_believes_its_tensors_and_not_its_signature(tf1: Any) -> None:
    assert tf1.signatures["predict"].inputs == (TensorSpec("in", "FP32", (-1, 4)),)
    assert tf1.default_signature == "branch"  # no serving_default: the first in the alphabet that has inputs
    np.testing.assert_array_equal(tf1.execute("predict", {"in": row(3)})["y"], row(3))


def test_a_learning_phase_that_stays_at_its_default_is_no_control_flow(tf1: Any) -> None:
    assert tf1.batching_obstacle("predict") is None
    assert tf1.batching_obstacle("branch") == "control flow depends on the values of a tensor"


def test_names_that_share_a_tensor_work(tf1: Any) -> None:
    outputs = tf1.execute("same", {"a": row(2), "b": row(2)})
    for name in ("p", "q", "x"):
        np.testing.assert_array_equal(outputs[name], row(2))
    with pytest.raises(RequestError, match="inputs 'a' and 'b' are one tensor"):
        tf1.execute("same", {"a": row(1), "b": row(2)})


def test_an_output_that_is_an_input_is_a_copy_of_it(tf1: Any) -> None:
    x = row(2)
    output = tf1.execute("through", {"x": x})["x"]
    x[:] = 0
    np.testing.assert_array_equal(output, row(2))


def test_a_reference_variable_does_not_change_an_earlier_answer(tf1: Any) -> None:
    before = tf1.execute("count", {})["n"]
    after = tf1.execute("increment", {})["n"]
    assert (after - before, before.shape, before.dtype) == (1, (), np.float32)
    assert tf1.batching_obstacle("increment") == "the model keeps state between calls"


def test_a_signature_of_sparse_tensors_is_left_out_with_a_note(tf1: Any) -> None:
    assert "sparse" not in tf1.signatures
    assert any("'sparse' is left out because its input 's'" in note for note in tf1.notes)


def test_a_signature_with_a_ragged_or_sparse_output_is_left_out_by_name(tmp_path: Path) -> None:
    class Words(tf.Module):
        @signature(wants(None, dtype=tf.string))
        def ragged(self, x: Any) -> Any:
            return {"words": tf.strings.split(x), "count": tf.strings.length(x)}

        @signature(wants(None, dtype=tf.string))
        def sparse(self, x: Any) -> Any:
            return {"words": tf.strings.split(x).to_sparse()}

        @signature(wants(None, dtype=tf.string))
        def dense(self, x: Any) -> Any:
            return {"count": tf.strings.length(x)}

    words = Words()
    signatures = {"serving_default": words.dense, "ragged": words.ragged, "sparse": words.sparse}
    tf.saved_model.save(words, str(tmp_path / "some"), signatures=signatures)
    model = TensorFlowBackend().load(tmp_path / "some", CONFIG, "cpu")
    assert set(model.signatures) == {"serving_default"}
    for kind in ("ragged", "sparse"):
        assert any(f"Signature '{kind}' is left out because its output 'words' is {kind}" in n for n in model.notes)
    tf.saved_model.save(words, str(tmp_path / "none"), signatures=words.ragged)
    with pytest.raises(LoadFailed, match="its output 'words' is ragged"):
        TensorFlowBackend().load(tmp_path / "none", CONFIG, "cpu")


def test_a_graph_that_cannot_restore_its_variables_in_a_session_opens_as_tensorflow_2(tf2: Any) -> None:
    assert any(note.startswith("Loaded as a TensorFlow 2 object") for note in tf2.notes)
    np.testing.assert_array_equal(tf2.execute("serving_default", {"x": row(2)})["y"], row(4))


def test_model_yaml_may_say_more_of_a_shape(store: Path) -> None:
    declared = ModelConfig(inputs=[TensorConfig("x", "FP32", [8, 4])])
    model = TensorFlowBackend().load(store / "zoo", declared, "cpu")
    assert model.signatures["serving_default"].inputs == (TensorSpec("x", "FP32", (8, 4)),)
    assert (
        model.batching_obstacle("serving_default") == "input 'x' has no batch dimension, its shape is fixed to [8, 4]"
    )


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (ModelConfig(inputs=[TensorConfig("z", "FP32", [-1])]), "declares input 'z'; the model's inputs are: x"),
        (ModelConfig(outputs=[TensorConfig("y", "INT8", [-1])]), "says output 'y' is INT8; in the model it is FP32"),
    ],
)
def test_model_yaml_may_not_contradict_the_model(store: Path, config: ModelConfig, reason: str) -> None:
    with pytest.raises(LoadFailed, match=reason):
        TensorFlowBackend().load(store / "zoo", config, "cpu")


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        ("export.meta", "session bundle from before SavedModel"),
        ("model.keras", "Keras file"),
        ("model.ckpt.index", "training checkpoint"),
        ("frozen.pb", "only another .pb file"),
        ("notes.txt", "there is no saved_model.pb in the version's directory"),
    ],
)
def test_a_directory_without_a_saved_model_is_told_what_it_is(tmp_path: Path, file: str, reason: str) -> None:
    (tmp_path / file).touch()
    with pytest.raises(LoadFailed, match=reason):
        TensorFlowBackend().load(tmp_path, CONFIG, "cpu")


def test_a_damaged_or_empty_saved_model_is_refused(tmp_path: Path) -> None:
    for content, reason in ((b"nonsense" * 9, "is damaged or no SavedModel"), (b"", "holds no graph")):
        (tmp_path / "saved_model.pb").write_bytes(content)
        with pytest.raises(LoadFailed, match=reason):
            TensorFlowBackend().load(tmp_path, CONFIG, "cpu")


def test_missing_variables_are_no_puzzle(store: Path, tmp_path: Path) -> None:
    shutil.copytree(store / "zoo", tmp_path / "zoo")
    shutil.rmtree(tmp_path / "zoo" / "variables")
    with pytest.raises(LoadFailed, match="copy the whole SavedModel") as failed:
        TensorFlowBackend().load(tmp_path / "zoo", CONFIG, "cpu")
    assert str(tmp_path) not in failed.value.message


def test_a_missing_custom_operation_is_named(store: Path, tmp_path: Path) -> None:
    def customise(meta: Any) -> None:
        for node in (node for function in meta.graph_def.library.function for node in function.node_def):
            node.op = "MyOwnOp" if node.op == "Mul" else node.op

    with pytest.raises(LoadFailed, match="the operator MyOwnOp, which is not part of TensorFlow"):
        TensorFlowBackend().load(edited(store / "zoo", tmp_path / "custom", customise), CONFIG, "cpu")


def test_a_model_without_signatures_is_told_how_to_get_one(store: Path, tmp_path: Path) -> None:
    path = edited(store / "zoo", tmp_path / "none", lambda meta: meta.signature_def.clear())
    with pytest.raises(LoadFailed, match=r"no signature that can be called. Export it again"):
        TensorFlowBackend().load(path, CONFIG, "cpu")


def test_a_model_says_what_tensorflow_has_taken_on_the_gpu_and_nothing_where_there_is_none(
    store: Path, monkeypatch: Any
) -> None:
    model = TensorFlowBackend().load(store / "zoo", CONFIG, "cpu")
    assert model.device_memory() is None
    model.on_gpu = True
    if not tf.config.list_physical_devices("GPU"):
        assert model.device_memory() is None
    taken = {"GPU:0": {"current": 5, "peak": 7}}
    monkeypatch.setattr(tf.config.experimental, "get_memory_info", lambda device: taken[device])
    assert model.device_memory() == 7


@pytest.mark.skipif(tf.test.is_built_with_cuda(), reason="this TensorFlow has CUDA")
def test_a_gpu_is_refused_by_a_build_for_the_cpu(store: Path) -> None:
    with pytest.raises(LoadFailed, match=r"^TensorFlow \S+ is a build for the CPU only; install one with CUDA, or"):
        TensorFlowBackend().load(store / "zoo", CONFIG, "cuda:0")
