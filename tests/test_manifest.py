import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.errors import ConfigError
from gateway.store.manifest import (
    MAX_BYTES,
    MAX_LABELS,
    InstanceGroup,
    ModelConfig,
    TensorConfig,
    VersionPolicy,
    Warmup,
    files,
    parse,
    read,
)
from gateway.store.processing import Classes, ImageConfig, Postprocessing, Preprocessing
from gateway.tensors import TensorSpec


def test_everything_can_be_said() -> None:
    text = """
        platform: pytorch_torchscript
        inputs: [{name: x, datatype: FP32, shape: [-1, 3]}]
        outputs: [{name: y, datatype: BYTES, shape: []}]
        max_batch_size: 16
        batching_check: off
        max_queue_delay_microseconds: 500
        max_queue_size: 10
        instance_group: [{count: 2, kind: gpu, gpus: [0, 1]}, {kind: cpu}]
        threads: 4
        stateful: true
        warmup: {iterations: 0, batch_sizes: [1, 8]}
        version_policy: {specific: [3, 1]}
        version_labels: {stable: 1, canary: 3}
        pinned: true
        idle_ttl: 600
        execution_timeout: 2.5
        memory_limit: 2GB
        max_queue_bytes: 64MiB
        preprocessing:
          image: {resize: 256, crop: [224, 200], mean: [0.5, 0.4, 0.3], std: [0.2, 0.2, 0.2], layout: NCHW, color: BGR,
                  scale: 255, interpolation: bicubic}
        postprocessing: {classes: {top: 3, softmax: false, labels: names.txt}}
    """
    assert parse(text) == ModelConfig(
        platform="pytorch_torchscript",
        inputs=[TensorConfig("x", "FP32", [-1, 3])],
        outputs=[TensorConfig("y", "BYTES", [])],
        max_batch_size=16,
        batching_check=False,
        max_queue_delay_microseconds=500,
        max_queue_size=10,
        instance_group=[InstanceGroup(2, "gpu", [0, 1]), InstanceGroup(kind="cpu")],
        threads=4,
        stateful=True,
        warmup=Warmup(0, [1, 8]),
        version_policy=VersionPolicy(specific=[3, 1]),
        version_labels={"stable": 1, "canary": 3},
        pinned=True,
        idle_ttl=600.0,
        execution_timeout=2.5,
        memory_limit="2GB",
        max_queue_bytes="64MiB",
        preprocessing=Preprocessing(
            ImageConfig(256, [224, 200], [0.5, 0.4, 0.3], [0.2, 0.2, 0.2], "NCHW", "BGR", 255.0, "bicubic")
        ),
        postprocessing=Postprocessing(Classes(3, softmax=False, labels="names.txt")),
    )
    assert (parse(text).memory_limit_bytes, parse(text).queue_bytes) == (2 * 10**9, 64 << 20)


@pytest.mark.parametrize("text", ["", "  \n", "{}", "---\n", "# max_batch_size: 8\n", "null"])
def test_a_file_that_says_nothing_means_the_defaults(text: str) -> None:
    assert parse(text) == ModelConfig()


def test_a_single_group_needs_no_list() -> None:
    assert parse("instance_group: {count: 3}").groups == [InstanceGroup(3)]
    assert ModelConfig().groups == [InstanceGroup()]


def test_a_declared_tensor_is_a_spec() -> None:
    assert TensorConfig("x", "FP32", [-1, 3]).spec() == TensorSpec("x", "FP32", (-1, 3))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("max_batchsize: 8", "max_batchsize"),
        ("max_batch_size: 0", "max_batch_size"),
        ("max_batch_size: 1000000000000000000000", "max_batch_size"),
        ("memory_limit: 1000000000000000000000", "no amount of memory"),
        ("traffic: {1: 50, 2: 40}", "90, not to 100"),
        ("traffic: {1: 101}", "traffic"),
        ("shadow: {percent: 5}", "shadow takes 'model: NAME', 'version: NUMBER' or both"),
        ("shadow: {model: b, percent: 0}", "shadow.percent"),
        ("shadow: {model: b}", "percent"),
        ("shadow: {model: my/model, percent: 5}", "shadow.model"),
        ("version_labels: {a: 10000000000000000000}", "version_labels"),
        ("max_batch_size: none", "max_batch_size"),
        ("batching_check: never", "batching_check"),
        ("max_batch_size: 1.5", "max_batch_size"),
        ("max_queue_size: 0", "max_queue_size"),
        ("max_queue_delay_microseconds: -1", "max_queue_delay_microseconds"),
        ("max_queue_delay_microseconds: 10000001", "max_queue_delay_microseconds"),
        ("threads: 0", "threads"),
        ("stateful: maybe", "stateful"),
        ("version_policy: newest", "version_policy"),
        ("version_policy: {}", "version_policy"),
        ("version_policy: {latest: 1, specific: [1]}", "version_policy"),
        ("version_policy: {latest: 0}", "latest"),
        ("version_policy: {specific: []}", "specific"),
        ("version_policy: {specific: [-1]}", "specific"),
        ("version_labels: {stable: x}", "version_labels"),
        ("version_labels: {'1': 1}", "'1'"),
        ("version_labels: {'a b': 1}", "'a b'"),
        ("pinned: 3", "pinned"),
        ("idle_ttl: 0", "idle_ttl"),
        ("execution_timeout: 0", "execution_timeout"),
        ("memory_limit: much", "much"),
        ("max_queue_bytes: -1", "-1"),
        ("platform: onnx", "platform"),
        ("instance_group: []", "instance_group"),
        ("instance_group: {count: 0}", "count"),
        ("instance_group: {kind: tpu}", "kind"),
        ("instance_group: {gpus: [-1]}", "gpus"),
        ("instance_group: [{cuont: 1}]", "cuont"),
        ("warmup: {iterations: -1}", "iterations"),
        ("warmup: {batch_sizes: [0]}", "batch_sizes"),
        ("inputs: [{name: x, datatype: FP32}]", "shape"),
        ("inputs: [{name: '', datatype: FP32, shape: []}]", "name"),
        ("inputs: [{name: x, datatype: float, shape: []}]", "float"),
        ("outputs: [{name: x, datatype: FP32, shape: [-2]}]", "shape"),
        ("inputs: [{name: x, datatype: FP32, shape: []}, {name: x, datatype: FP32, shape: []}]", "inputs"),
        ("outputs: [{name: x, datatype: FP32, shape: [], labels: [1]}]", "labels"),
        ("outputs: [{name: x, datatype: FP32, shape: [], labels: 5}]", "labels"),
        ("outputs: [{name: x, datatype: FP32, shape: [], labels: ../labels.txt}]", "labels"),
        ("outputs: [{name: x, datatype: FP32, shape: [], labels: ..}]", "labels"),
        ("outputs: [{name: x, datatype: FP32, shape: [], labels: /etc/passwd}]", "labels"),
        ("outputs: [{name: x, datatype: FP32, shape: [], labels: 1/labels.txt}]", "labels"),
        ("outputs: [{name: x, datatype: FP32, shape: [], labels: ''}]", "labels"),
        ("outputs: [{name: x, datatype: FP32, shape: [], labels: model.yaml}]", "labels"),
        ("inputs: [{name: x, datatype: FP32, shape: [], labels: [a]}]", "input 'x' has labels"),
        (f"outputs: [{{name: x, datatype: FP32, shape: [], labels: {list('a' * (MAX_LABELS + 1))}}}]", "65537 labels"),
        ("- a", "object"),
        ("just text", "object"),
    ],
)
def test_what_is_wrong_is_named(text: str, named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert caught.value.message.startswith("model.yaml")
    assert named in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    "text", ["a: [", "\tx", "a: b: c", b"\x80\x81", "x: *nothing", "!!python/object/apply:os.system [ls]"]
)
def test_what_is_no_yaml_is_refused(text: Any) -> None:
    with pytest.raises(ConfigError, match=r"model\.yaml"):
        parse(text)


alphabet = st.text("abn1209:-[]{}&*!?,#\n \t'\"_.~<>|%@`x", max_size=30)


@settings(max_examples=300, deadline=None)
@given(alphabet | st.binary(max_size=20) | st.builds("max_batch_size: {}".format, alphabet))
@example("threads: 2024-13-45")
@example("threads: 0b_")
@example("threads: 0x_")
@example("threads: !!int a")
@example("threads: !!float a")
@example("? {a: 1}\n: 2")
@example("[" * 5000)
@example("a: " * 3000)
@example("- " * 3000)
@example("inputs: &a [*a]")
@example("instance_group: &a [*a]")
def test_any_text_is_a_configuration_or_a_config_error(text: Any) -> None:
    try:
        config = parse(text)
    except ConfigError:
        return
    assert isinstance(config, ModelConfig)


def test_a_model_without_model_yaml_has_the_defaults(tmp_path: Path) -> None:
    assert read(tmp_path) == ModelConfig()
    (tmp_path / "model.yaml").write_text("threads: 3")
    assert read(tmp_path).threads == 3


def test_a_model_yaml_that_cannot_be_read_is_a_config_error(tmp_path: Path, helpers: Any) -> None:
    (tmp_path / "model.yaml").write_text("threads: 3")
    (tmp_path / "model.yaml").chmod(0)
    with helpers.ordinary_user(), pytest.raises(ConfigError, match="Permission denied"):
        read(tmp_path)


def test_a_model_yaml_that_is_no_file_is_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.yaml")
    with pytest.raises(ConfigError, match="regular file"):
        read(tmp_path)


def test_a_huge_model_yaml_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "model.yaml").write_text("# " + "x" * MAX_BYTES)
    with pytest.raises(ConfigError, match="larger than"):
        read(tmp_path)


def test_links_to_model_yaml_are_followed_inside_the_store_only(tmp_path: Path) -> None:
    model = tmp_path / "store" / "m"
    (model / "..1").mkdir(parents=True)
    (model / "..1" / "model.yaml").write_text("threads: 3")
    (model / "..data").symlink_to("..1")
    (model / "model.yaml").symlink_to("..data/model.yaml")
    root = str((tmp_path / "store").resolve())
    assert read(model, root).threads == 3
    (model / "model.yaml").unlink()
    (tmp_path / "secret").write_text("threads: 4")
    (model / "model.yaml").symlink_to(tmp_path / "secret")
    with pytest.raises(ConfigError, match=r"^model\.yaml is a link that leads out of the model store$"):
        read(model, root)


def test_a_link_that_leads_nowhere_is_no_model_yaml(tmp_path: Path) -> None:
    (tmp_path / "model.yaml").symlink_to("model.yaml")
    with pytest.raises(ConfigError, match=r"model\.yaml cannot be read"):
        read(tmp_path)


def labelled(directory: Path, name: str = "labels.txt", more: str = "") -> None:
    """A model.yaml whose output is labelled by a file."""
    text = f"outputs: [{{name: y, datatype: FP32, shape: [-1, 3], labels: {name}}}{more}]"
    (directory / "model.yaml").write_text(text)


@pytest.mark.parametrize(
    ("text", "want"),
    [
        (b"cat\ndog\n", ["cat", "dog"]),
        (b"cat\r\ndog", ["cat", "dog"]),
        (b"\xef\xbb\xbfcat\n\ndog  \n", ["cat", "", "dog"]),
        ("gr\u00fcn\u2028blau\x85rot\n".encode(), ["gr\u00fcn\u2028blau\x85rot"]),
        (b"", []),
    ],
)
def test_a_label_file_is_replaced_by_its_lines(tmp_path: Path, text: bytes, want: list[str]) -> None:
    labelled(tmp_path)
    (tmp_path / "labels.txt").write_bytes(text)
    assert read(tmp_path).outputs[0].labels == want
    assert files(tmp_path) == ("model.yaml", "labels.txt")


def test_labels_may_stand_in_model_yaml_itself(tmp_path: Path) -> None:
    labelled(tmp_path, "[cat, dog]")
    assert read(tmp_path).outputs[0].labels == ["cat", "dog"]
    assert files(tmp_path) == ("model.yaml",)
    assert read(tmp_path).of_instance.outputs == [TensorConfig("y", "FP32", [-1, 3])]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"\xff", "'labels.txt' is not UTF-8 text"),
        (b"a\n" * (MAX_LABELS + 1), "65537 labels"),
        (b"x" * (MAX_BYTES + 1), "'labels.txt' is larger than"),
    ],
)
def test_a_label_file_that_cannot_be_used_is_a_config_error(tmp_path: Path, text: bytes, message: str) -> None:
    labelled(tmp_path)
    (tmp_path / "labels.txt").write_bytes(text)
    with pytest.raises(ConfigError, match=message):
        read(tmp_path)


def test_a_label_file_that_is_not_there_is_a_config_error(tmp_path: Path) -> None:
    labelled(tmp_path)
    with pytest.raises(ConfigError, match=r"^'labels\.txt' cannot be read: No such file"):
        read(tmp_path)
    os.mkfifo(tmp_path / "labels.txt")
    with pytest.raises(ConfigError, match="regular file"):
        read(tmp_path)


def test_a_label_file_that_leads_out_of_the_store_is_not_read(tmp_path: Path) -> None:
    model = tmp_path / "store" / "m"
    model.mkdir(parents=True)
    (tmp_path / "secret").write_text("key")
    labelled(model)
    (model / "labels.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(ConfigError, match=r"^'labels\.txt' is a link that leads out of the model store$"):
        read(model, str((tmp_path / "store").resolve()))


def test_many_outputs_with_the_same_long_labels_are_refused(tmp_path: Path) -> None:
    more = "".join(f", {{name: y{at}, datatype: FP32, shape: [], labels: labels.txt}}" for at in range(20))
    labelled(tmp_path, more=more)
    (tmp_path / "labels.txt").write_text("x" * 100_000)
    with pytest.raises(ConfigError, match="the labels of all outputs are more than"):
        read(tmp_path)


def test_a_model_yaml_that_makes_no_sense_names_no_further_files(tmp_path: Path) -> None:
    (tmp_path / "model.yaml").write_text("outputs: 5")
    assert files(tmp_path) == ("model.yaml",)
