from pathlib import Path
from typing import Any

import pytest

from gateway.errors import ConfigError
from gateway.importing.triton import translate
from gateway.store.foreign import config_of
from gateway.store.manifest import TensorConfig
from gateway.store.source import scan

WHOLE = b"""
name: "m"
backend: "pytorch"
max_batch_size: 8
input [
  { name: "INPUT__1" data_type: TYPE_STRING dims: [ 1 ] reshape { shape: [] } },
  { name: "INPUT__0" data_type: TYPE_FP32 dims: [ 3, -1 ] format: FORMAT_NONE }
]
output { name: "OUTPUT__0" data_type: TYPE_INT64 dims: 4 }
instance_group [ { count: 2 kind: KIND_CPU name: "x" } ]
dynamic_batching {
  preferred_batch_size: [ 4, 8 ] max_queue_delay_microseconds: 100
  default_queue_policy { max_queue_size: 7 timeout_action: DELAY }
}
version_policy: { specific { versions: [ 1, 3 ] } }
model_warmup { name: "w" batch_size: 4 count: 2 inputs { key: "INPUT__0" value { zero_data: true } } }
optimization { cuda { graphs: true } }
parameters { key: "INTRA_OP_THREAD_COUNT" value { string_value: "3" } }
parameters { key: "OTHER" value { string_value: "x" } }
future_key: 1
"""


def test_every_key_is_translated_or_named() -> None:
    translation = translate(WHOLE, "m").translation
    assert translation.keys == {
        "platform": "pytorch_torchscript",
        "max_batch_size": 8,
        "inputs": [
            {"name": "INPUT__0", "datatype": "FP32", "shape": [-1, 3, -1]},
            {"name": "INPUT__1", "datatype": "BYTES", "shape": [-1]},
        ],
        "outputs": [{"name": "OUTPUT__0", "datatype": "INT64", "shape": [-1, 4]}],
        "instance_group": [{"count": 2, "kind": "cpu"}],
        "max_queue_delay_microseconds": 100,
        "max_queue_size": 7,
        "version_policy": {"specific": [1, 3]},
        "warmup": {"batch_sizes": [4], "iterations": 2},
        "threads": 3,
    }
    config_of(translation.keys, "t")
    fates = {finding.key: finding.fate for finding in translation.findings}
    for key in ("optimization", "parameters.OTHER", "future_key", "instance_group.name"):
        assert fates[key] == "dropped"
    assert fates["dynamic_batching.preferred_batch_size"] == "dropped"
    assert fates["dynamic_batching.default_queue_policy.timeout_action"] == "dropped"
    assert fates["input[0].reshape"] == "changed"


def test_without_a_batch_dimension_the_dimensions_are_whole() -> None:
    for text in (b'max_batch_size: 0 input { name: "x" data_type: TYPE_FP32 dims: [2] }',
                 b'input { name: "x" data_type: TYPE_FP32 dims: [2] }'):  # fmt: skip
        keys = translate(text).translation.keys
        assert keys["inputs"][0]["shape"] == [2]
        assert keys["max_batch_size"] == 1


def test_requests_are_joined_only_if_triton_joined_them() -> None:
    assert translate(b"max_batch_size: 8 dynamic_batching {}").translation.keys["max_batch_size"] == 8
    assert translate(b"max_batch_size: 8").translation.keys["max_batch_size"] == 1


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b'platform: "tensorrt_plan"', "tensorrt_plan"),
        (b'backend: "onnxruntime"', "onnxruntime"),
        (b'backend: "python"', "python"),
        (b'platform: "ensemble"', "ensemble"),
        (b"ensemble_scheduling { step {} }", "ensembles"),
        (b"model_transaction_policy { decoupled: true }", "decoupled"),
        (b'default_model_filename: "../../etc/passwd"', "default_model_filename"),
        (b'output { name: "y" data_type: TYPE_FP32 label_filename: "/etc/passwd" }', "label_filename"),
        (b"max_batch_size: -1", "negative"),
        (b'max_batch_size: "8"', "integer"),
        (b'input { name: "x" data_type: TYPE_NEW }', "TYPE_NEW"),
        (b'input { name: "A__0" data_type: TYPE_FP32 } input { name: "A__2" data_type: TYPE_FP32 }', "gap"),
        (b"sequence_batching { control_input { } }", "control_input"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(text: bytes, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        translate(text)


def test_a_model_in_the_store_is_configured_by_its_config_pbtxt(tmp_path: Path) -> None:
    (tmp_path / "m/1").mkdir(parents=True)
    (tmp_path / "m/1/model.pt").touch()
    (tmp_path / "m/config.pbtxt").write_bytes(WHOLE)
    inventory = scan(tmp_path)
    (artifact,) = inventory.artifacts
    assert artifact.config.max_batch_size == 8
    assert artifact.config.outputs[0] == TensorConfig(name="OUTPUT__0", datatype="INT64", shape=[-1, 4])
    assert any("future_key is dropped" in note for note in inventory.notes)
    (tmp_path / "m/config.pbtxt").write_bytes(WHOLE + b"\n")
    assert scan(tmp_path).artifacts[0].stamp != artifact.stamp
    (tmp_path / "m/config.pbtxt").write_bytes(b'backend: "python"')
    assert scan(tmp_path).misconfigured == {"m"}
    assert "python" in scan(tmp_path).artifacts[0].problem
    (tmp_path / "m/model.yaml").write_text("max_batch_size: 5")
    assert scan(tmp_path).artifacts[0].config.max_batch_size == 5


def test_labels_of_an_output_are_read_where_they_lie(tmp_path: Path) -> None:
    (tmp_path / "m/1").mkdir(parents=True)
    (tmp_path / "m/1/model.pt").touch()
    output = 'output { name: "y" data_type: TYPE_FP32 dims: 2 label_filename: "l.txt" }'
    (tmp_path / "m/config.pbtxt").write_text(output)
    (tmp_path / "m/l.txt").write_text("cat\ndog\n")
    (artifact,) = scan(tmp_path).artifacts
    assert artifact.problem == ""
    assert artifact.config.outputs[0].labels == ["cat", "dog"]
    (tmp_path / "m/l.txt").write_text("cat\nhorse\n")
    assert scan(tmp_path).artifacts[0].stamp != artifact.stamp


def test_a_config_pbtxt_that_leads_out_of_the_store_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "store/m/1").mkdir(parents=True)
    (tmp_path / "store/m/1/model.pt").touch()
    (tmp_path / "outside").write_bytes(WHOLE)
    (tmp_path / "store/m/config.pbtxt").symlink_to(tmp_path / "outside")
    assert "leads out" in scan(tmp_path / "store").artifacts[0].problem


def test_a_base_path_of_tensorflow_serving_is_one_model(tmp_path: Path) -> None:
    for version in ("1", "00000123"):
        (tmp_path / "half" / version).mkdir(parents=True)
        (tmp_path / "half" / version / "saved_model.pb").touch()
    artifacts = scan(tmp_path / "half").artifacts
    assert [(each.model, each.version, each.problem) for each in artifacts] == [("half", 1, ""), ("half", 123, "")]
    assert [each.model for each in scan(tmp_path).artifacts] == ["half", "half"]


def test_a_savedmodel_in_the_wrong_place_does_not_hide_models(tmp_path: Path) -> None:
    for directory in ("7", "m/1"):
        (tmp_path / directory).mkdir(parents=True)
        (tmp_path / directory / "saved_model.pb").touch()
    assert [each.model for each in scan(tmp_path).artifacts] == ["m"]


def test_a_copy_beside_the_versions_of_a_base_path_changes_nothing(tmp_path: Path) -> None:
    for directory in ("half/7", "half/tmp/variables"):
        (tmp_path / directory).mkdir(parents=True)
    (tmp_path / "half/7/saved_model.pb").touch()
    assert [(each.model, each.version) for each in scan(tmp_path / "half").artifacts] == [("half", 7)]


def test_a_directory_that_cannot_be_read_does_not_hide_models(tmp_path: Path, helpers: Any) -> None:
    for directory in ("7", "m/1"):
        (tmp_path / directory).mkdir(parents=True)
    (tmp_path / "m/1/saved_model.pb").touch()
    (tmp_path / "7").chmod(0)
    with helpers.ordinary_user():
        assert [each.model for each in scan(tmp_path).artifacts] == ["m"]


def test_a_number_of_threads_without_bounds_is_not_read() -> None:
    text = 'parameters { key: "INTRA_OP_THREAD_COUNT" value { string_value: "%s" } }' % ("1" * 5000)
    translation = translate(text.encode()).translation
    assert translation.keys == {}
    assert [finding.fate for finding in translation.findings] == ["dropped"]
