import errno
import json
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import ConfigError
from gateway.importing import archive, layouts, torchserve
from gateway.importing.plan import Plan, refusing
from gateway.store.foreign import config_of

MANIFEST = "MAR-INF/MANIFEST.json"


def mar(path: Path, files: dict[str, bytes], **model: Any) -> Path:
    described = {"modelName": "m", "serializedFile": "model.pt", "handler": "base_handler", "modelVersion": "1.0"}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(MANIFEST, json.dumps({"model": described | model}))
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def torchscript(path: Path) -> bytes:
    """As much of TorchScript as its names tell."""
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("m/constants.pkl", "m/data.pkl", "m/code/m.py"):
            archive.writestr(name, b"")
    return path.read_bytes()


def climbs(archive: zipfile.ZipFile) -> None:
    archive.writestr("../evil", b"")


def absolute(archive: zipfile.ZipFile) -> None:
    archive.writestr("/evil", b"")


def link(archive: zipfile.ZipFile) -> None:
    info = zipfile.ZipInfo("link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    archive.writestr(info, b"/etc/passwd")


def bomb(archive: zipfile.ZipFile) -> None:
    archive.writestr("zeros", bytes(40 << 20))


def bzip2(archive: zipfile.ZipFile) -> None:
    archive.writestr("tight", b"", zipfile.ZIP_BZIP2)


def lzma(archive: zipfile.ZipFile) -> None:
    archive.writestr("tight", b"", zipfile.ZIP_LZMA)


def crowd(archive: zipfile.ZipFile) -> None:
    for number in range(10_001):
        archive.writestr(str(number), b"")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def twice(archive: zipfile.ZipFile) -> None:
    archive.writestr("again/", b"")
    archive.writestr("again/", b"")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (climbs, "no name of a file"),
        (absolute, "no name of a file"),
        (link, "link"),
        (bomb, "plausible"),
        (bzip2, "than by deflate"),
        (lzma, "than by deflate"),
        (crowd, "more than 10000 entries"),
        (twice, "two entries"),
    ],
)
def test_a_hostile_archive_is_refused(tmp_path: Path, fault: Callable[[zipfile.ZipFile], None], sentence: str) -> None:
    path = mar(tmp_path / "m.mar", {"model.pt": torchscript(tmp_path / "t")})
    assert torchserve.plan(path, tmp_path).refused == ""
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        fault(archive)
    assert sentence in torchserve.plan(path, tmp_path).refused


@pytest.mark.parametrize("size", [0, 10, 100, 400])
def test_an_archive_that_was_cut_off_is_refused(tmp_path: Path, size: int) -> None:
    path = mar(tmp_path / "m.mar", {"model.pt": torchscript(tmp_path / "t")})
    path.write_bytes(path.read_bytes()[:size])
    assert "sound" in torchserve.plan(path, tmp_path).refused


def test_a_member_that_lies_before_the_archive_is_refused(tmp_path: Path) -> None:
    path = mar(tmp_path / "m.mar", {"model.pt": torchscript(tmp_path / "t")})
    data = path.read_bytes()
    # The directory is said to lie further on than it does, so that members seem to lie as much before the beginning.
    place = int.from_bytes(data[-6:-2], "little")
    path.write_bytes(data[:-6] + (place + 100).to_bytes(4, "little") + data[-2:])
    assert "sound" in torchserve.plan(path, tmp_path).refused


def test_what_goes_wrong_with_a_copy_is_no_fault_of_the_archive(tmp_path: Path) -> None:
    path = mar(tmp_path / "m.mar", {"model.pt": torchscript(tmp_path / "t")})
    with pytest.raises(OSError, match="too large"), archive.opened(path):
        raise OSError(errno.EFBIG, "too large")


def test_a_fault_of_the_archive_that_is_found_late_is_one_all_the_same(tmp_path: Path) -> None:
    path = mar(tmp_path / "m.mar", {"model.pt": bytes(1000)})
    data = path.read_bytes()
    start = data.index(b"model.pt") + len("model.pt")
    path.write_bytes(data[:start] + b"\xff" + data[start + 1 :])
    with pytest.raises(ConfigError, match="sound"), archive.opened(path) as opened:
        archive.content(opened, "model.pt", 1000)


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ({"handler": "my_handler.py"}, "no handler code is run"),
        ({"handler": "text_classifier"}, "text_classifier"),
        ({"modelFile": "model.py"}, "modelFile"),
        ({"serializedFile": "gone.pt"}, "no such file"),
        ({"serializedFile": "weights.pth"}, "no zip"),
        ({"serializedFile": "model.onnx"}, "not served here"),
        ({"modelVersion": "latest"}, "no number"),
        ({"configFile": "bomb.yaml"}, "YAML|values|nested"),
        ({"modelName": 5}, "not text"),
    ],
)
def test_what_is_no_torchscript_with_a_built_in_handler_is_refused(
    tmp_path: Path, model: dict[str, Any], sentence: str
) -> None:
    laughs = "a: &a {x: [1,1,1,1,1,1,1,1,1,1]}\n" + "".join(
        f"{name}: &{name} {{x: [{','.join([f'*{before}'] * 10)}]}}\n"
        for before, name in zip("abcdefg", "bcdefgh", strict=True)
    )
    files = {"weights.pth": b"", "model.onnx": b"", "bomb.yaml": laughs.encode()}
    path = mar(tmp_path / "m.mar", files | {"model.pt": torchscript(tmp_path / "t")}, **model)
    assert any(each in torchserve.plan(path, tmp_path).refused for each in sentence.split("|"))


def test_a_classifier_of_images_is_declared(tmp_path: Path) -> None:
    files = {"model.pt": torchscript(tmp_path / "t"), "index_to_name.json": b"{}", "c.yaml": b"batchSize: 4\nodd: 1"}
    path = mar(tmp_path / "m.mar", files, handler="image_classifier", configFile="c.yaml", requirementsFile="r.txt")
    plan = torchserve.plan(path, tmp_path)
    assert plan.refused == ""
    assert plan.translation.keys["preprocessing"]["image"]["crop"] == 224
    assert plan.translation.keys["postprocessing"] == {
        "classes": {"top": 5, "softmax": True, "labels": "index_to_name.json"}
    }
    assert plan.translation.keys["max_batch_size"] == 4
    assert [piece.target for piece in plan.beside] == ["index_to_name.json"]
    assert config_of(plan.translation.keys, "t").max_batch_size == 4
    assert {"odd", "model.requirementsFile"} <= {f.key for f in plan.translation.findings if f.fate == "dropped"}


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ("responseTimeout: 1" + "0" * 400, "responseTimeout has more than 64 bits"),
        ("batchSize: 1" + "0" * 30, "batchSize has more than 64 bits"),
        ("deviceIds: [-1" + "0" * 30 + "]", "deviceIds has more than 64 bits"),
        ("deviceIds: [-1]", "gpus"),
    ],
)
def test_a_number_out_of_bounds_refuses_a_model(tmp_path: Path, config: str, sentence: str) -> None:
    files = {"model.pt": torchscript(tmp_path / "t"), "c.yaml": config.encode()}
    mar(tmp_path / "a.mar", files, configFile="c.yaml")
    mar(tmp_path / "b.mar", files, modelName="good")
    _, (good, refused) = layouts.plans(tmp_path)
    assert good.refused == ""
    assert sentence in refused.refused


def test_what_nobody_has_thought_of_refuses_one_model_alone() -> None:
    found = Plan("m", "m")
    with refusing(found):
        raise OverflowError("int too large")
    assert found.refused == "it cannot be imported: OverflowError('int too large')"
