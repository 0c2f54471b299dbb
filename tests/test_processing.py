import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import ConfigError
from gateway.store.manifest import MAX_BYTES, parse, read
from gateway.store.processing import MAX_LABELS, parse_labels

Labels = dict[str, object] | list[object]


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ("{resize: 256}", r"needs crop, or resize as \[HEIGHT, WIDTH\]"),
        ("{mean: [0.5, 0.5, 0.5]}", "needs crop"),
        ("{crop: 0}", "crop"),
        ("{crop: 100000}", "crop"),
        ("{crop: [1, 2, 3]}", "crop"),
        ("{crop: 8, mean: [0.5]}", "mean has 1 values, RGB needs 3"),
        ("{crop: 8, color: L, std: [1, 1, 1]}", "std has 3 values, L needs 1"),
        ("{crop: 8, std: [1, 0, 1]}", "std has a value that is not greater than 0"),
        ("{crop: 8, scale: 0}", "scale"),
        ("{crop: 8, layout: CHW}", "layout"),
        ("{crop: 8, color: CMYK}", "color"),
        ("{crop: 8, interpolation: best}", "interpolation"),
        ("{crop: 8, colour: RGB}", "colour"),
    ],
)
def test_what_cannot_be_meant_of_images_is_refused_by_its_key(image: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse(f"preprocessing: {{image: {image}}}")


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        ("{top: 0}", "top"),
        ("{labels: a.json, names: [cat]}", "labels or names, not both"),
        ("{labels: ../a.json}", "name of a .json or .txt file"),
        ("{labels: /etc/passwd.txt}", "name of a .json or .txt file"),
        ("{labels: a.yaml}", "name of a .json or .txt file"),
        ('{labels: "a\\0.txt"}', "name of a .json or .txt file"),
        ('{names: ["\\ud800"]}', "YAML|no text"),
        (f"{{names: [{'x' * (MAX_LABELS + 1)}]}}", "the most"),
    ],
)
def test_what_cannot_be_meant_of_classes_is_refused_by_its_key(classes: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse(f"postprocessing: {{classes: {classes}}}")


@pytest.mark.parametrize(
    ("content", "labels"),
    [
        ({"0": "cat", "1": "dog"}, ["cat", "dog"]),
        ({"1": "dog", "0": "cat"}, ["cat", "dog"]),
        ({"0": ["n02123045", "cat"], "1": ["n02084071", "dog"]}, ["cat", "dog"]),
        ({"object_type_names": ["cat", "dog"]}, ["cat", "dog"]),
        (["cat", "dog"], ["cat", "dog"]),
        ({"2": "dog"}, ["0", "1", "dog"]),
    ],
)
def test_labels_are_read_as_torchserve_reads_them(content: Labels, labels: list[str]) -> None:
    assert list(parse_labels(json.dumps(content).encode(), "index_to_name.json")) == labels


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "no JSON"),
        (b"\xff\xfe", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b'"cat"', "must map classes to labels"),
        (b"{}", "no labels"),
        (b'{"cat": 0}', "'cat' is no class"),
        (b'{"-1": "cat"}', "no class"),
        (b'{"999999999999999999999999": "cat"}', "no class"),
        (b'{"100000": "cat"}', "no class"),
        (b'{"99999": "cat"}', "the most"),
        (b'{"0": 7}', "class 0 has no label"),
        (b'{"0": []}', "class 0 has no label"),
        (b'{"0": {"0": "cat"}}', "class 0 has no label"),
        (json.dumps({"0": "x" * (MAX_LABELS + 1)}).encode(), "the most"),
    ],
)
def test_labels_that_make_no_sense_are_refused_in_one_sentence(content: bytes, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_labels(content, "index_to_name.json")


def test_a_text_file_has_one_label_a_line() -> None:
    assert list(parse_labels("\ufeffcat\r\nsea lion \n\nhéron\n\n".encode(), "labels.txt")) == [
        "cat",
        "sea lion",
        "",
        "héron",
    ]
    with pytest.raises(ConfigError, match="no labels"):
        parse_labels(b"\n\n", "labels.txt")
    with pytest.raises(ConfigError, match="no UTF-8"):
        parse_labels(b"\xff", "labels.txt")


@given(st.binary(max_size=200), st.sampled_from(["a.json", "a.txt"]))
def test_whatever_a_file_of_labels_holds_it_is_labels_or_one_sentence(content: bytes, file: str) -> None:
    try:
        said = list(parse_labels(content, file))
    except ConfigError as error:
        said = error.message.splitlines()
    assert said
    assert all(isinstance(label, str) for label in said)


def labels_in(model: Path, file: str, root: str) -> list[str]:
    """The labels of a model whose model.yaml names this file."""
    (model / "model.yaml").write_text(f"postprocessing: {{classes: {{labels: {file}}}}}\n")
    classes = read(model, root).postprocessing.classes
    assert classes is not None
    return classes.names


def test_a_file_of_labels_is_read_only_if_it_is_one_and_lies_in_the_store(tmp_path: Path) -> None:
    model = tmp_path.resolve() / "store" / "m"
    model.mkdir(parents=True)
    root = str(model.parent)
    (model / "good.txt").write_text("cat\n")
    (model / "large.txt").write_bytes(b"x" * (MAX_BYTES + 1))
    (tmp_path / "outside.txt").write_text("secret\n")
    (model / "out.txt").symlink_to(tmp_path / "outside.txt")
    (model.parent / "beside.txt").write_text("dog\n")
    (model / "beside.txt").symlink_to("../beside.txt")
    os.mkfifo(model / "fifo.txt")
    assert labels_in(model, "good.txt", root) == ["cat"]
    assert labels_in(model, "beside.txt", root) == ["dog"]
    for file, words in {
        "large.txt": "is larger than",
        "out.txt": "leads out of the model store",
        "fifo.txt": "cannot be read: it is no regular file",
        "gone.txt": "cannot be read: No such file",
    }.items():
        with pytest.raises(ConfigError, match=words) as refused:
            labels_in(model, file, root)
        assert str(tmp_path) not in refused.value.message
