import os
import pickle
import shutil
import socket
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import ConfigError
from gateway.store import contents
from gateway.store.contents import MAX_DEPTH
from gateway.store.processing import Classes
from gateway.store.source import Artifact, Inventory, scan


def touch(store: Path, *files: str) -> None:
    for file in files:
        path = store / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def found(store: Path) -> dict[str, Artifact]:
    return {f"{artifact.model}/{artifact.version}": artifact for artifact in scan(store).artifacts}


@pytest.mark.parametrize(
    ("file", "platform", "path"),
    [
        ("model.pt", "pytorch_torchscript", "model.pt"),
        ("model.pth", "pytorch_torchscript", "model.pth"),
        ("model.ptl", "pytorch_torchscript", "model.ptl"),
        ("saved_model.pb", "tensorflow_savedmodel", "."),
        ("saved_model.pbtxt", "tensorflow_savedmodel", "."),
        ("model.savedmodel/saved_model.pb", "tensorflow_savedmodel", "model.savedmodel"),
    ],
)
def test_an_artifact_is_found_in_every_layout(tmp_path: Path, file: str, platform: str, path: str) -> None:
    touch(tmp_path, f"m/1/{file}")
    artifact = found(tmp_path)["m/1"]
    assert (artifact.platform, artifact.problem) == (platform, "")
    assert artifact.path == tmp_path / "m" / "1" / path
    assert artifact.framework == platform.split("_", maxsplit=1)[0]


def test_all_versions_of_a_model_are_found_in_their_order(tmp_path: Path) -> None:
    touch(tmp_path, *(f"m/{version}/model.pt" for version in (9, 10, 2)), "other/1/model.pt")
    inventory = scan(tmp_path)
    assert [artifact.version for artifact in inventory.model("m")] == [2, 9, 10]
    assert inventory.model("nobody") == []


def test_leading_zeros_do_not_count(tmp_path: Path) -> None:
    touch(tmp_path, "m/00000123/model.pt")
    assert found(tmp_path)["m/123"].path == tmp_path / "m/00000123/model.pt"


def test_of_two_directories_with_one_number_the_one_without_zeros_counts(tmp_path: Path) -> None:
    touch(tmp_path, "m/1/model.pt", "m/01/model.pt", "m/001/saved_model.pb")
    inventory = scan(tmp_path)
    assert [artifact.path for artifact in inventory.artifacts] == [tmp_path / "m/1/model.pt"]
    assert inventory.ignored == ["'m/01' is the same version as 'm/1'", "'m/001' is the same version as 'm/1'"]


@pytest.mark.parametrize(
    "name",
    ["latest", "1.0", "v1", "-1", "+1", "1_0", "١", "1 ", ".1", "9" * 200, "__pycache__", "1e3"],  # noqa: RUF001
)
def test_what_is_no_version_number_is_ignored(tmp_path: Path, name: str) -> None:
    touch(tmp_path, "m/2/model.pt", f"m/{name}/model.pt", "m/3")
    inventory = scan(tmp_path)
    assert [artifact.version for artifact in inventory.artifacts] == [2]
    hidden = name in (".1", "__pycache__")
    assert len(inventory.ignored) == (0 if hidden else 1)
    assert all("is no version" in sentence for sentence in inventory.ignored)
    assert scan(tmp_path).ignored == inventory.ignored


def test_a_model_without_versions_is_said_to_have_none(tmp_path: Path) -> None:
    touch(tmp_path, "m/model.pt", "good/1/model.pt")
    (tmp_path / "empty").mkdir()
    inventory = scan(tmp_path)
    assert [artifact.model for artifact in inventory.artifacts] == ["good"]
    assert len(inventory.ignored) == 2
    assert all("has no version directory" in sentence for sentence in inventory.ignored)


@pytest.mark.parametrize("name", ["a\nb", "a\x7f", "\x85", "bad\udcff"])
def test_what_is_no_model_name_is_ignored_with_a_sentence(tmp_path: Path, name: str) -> None:
    touch(tmp_path, f"{name}/1/model.pt")
    inventory = scan(tmp_path)
    assert inventory.artifacts == []
    assert "is no model name" in inventory.ignored[0]


@pytest.mark.parametrize(
    "name", ["m", "M-1.2_x", "_m", "__m", "0", "x" * 255, "a b", "ä", "模型", "-m", "a:b", "50%", "$(ls)", "a?b#c"]
)
def test_these_are_model_names(tmp_path: Path, name: str) -> None:
    touch(tmp_path, f"{name}/1/model.pt")
    assert list(found(tmp_path)) == [f"{name}/1"]


def test_hidden_directories_and_files_are_passed_over_in_silence(tmp_path: Path) -> None:
    touch(tmp_path, ".git/1/model.pt", "__pycache__/1/model.pt", "README.md", "m/1/model.pt")
    inventory = scan(tmp_path)
    assert [artifact.model for artifact in inventory.artifacts] == ["m"]
    assert inventory.ignored == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("max_batchsize: 8", "max_batchsize"),
        ("threads: 0", "threads"),
        ("a: [", "not YAML"),
        ("platform: tensorflow_savedmodel", "model.yaml says tensorflow_savedmodel"),
        ("threads: 2024-13-45", "model.yaml"),
        ("[" * 3000, "model.yaml"),
    ],
)
def test_a_bad_model_yaml_is_the_problem_of_its_own_model_only(tmp_path: Path, text: str, problem: str) -> None:
    touch(tmp_path, "bad/1/model.pt", "good/1/model.pt")
    (tmp_path / "bad" / "model.yaml").write_text(text)
    artifacts = found(tmp_path)
    assert problem in artifacts["bad/1"].problem
    assert artifacts["good/1"].problem == ""


def test_weights_without_a_model_are_called_what_they_are(tmp_path: Path) -> None:
    touch(tmp_path, "weights/1/model.safetensors", "pickled/1/model.pkl", "saved/1/pytorch_model.bin")
    (tmp_path / "pickled" / "1" / "model.pkl").write_bytes(pickle.dumps({"a": [1, 2]}))
    with zipfile.ZipFile(tmp_path / "saved" / "1" / "pytorch_model.bin", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
    artifacts = found(tmp_path)
    assert "model.safetensors is no model: it holds weights" in artifacts["weights/1"].problem
    assert "model.pkl is a Python pickle" in artifacts["pickled/1"].problem
    assert "pytorch_model.bin is a Python pickle" in artifacts["saved/1"].problem


def test_a_missing_artifact_is_said_with_what_is_there_instead(tmp_path: Path) -> None:
    touch(tmp_path, "m/1/readme.txt", "m/1/model.onnx")
    (tmp_path / "empty" / "1").mkdir(parents=True)
    artifacts = found(tmp_path)
    assert artifacts["m/1"].problem.endswith("found model.onnx, readme.txt")
    assert artifacts["empty/1"].problem.endswith("found nothing")
    assert artifacts["m/1"].framework == ""


def test_pipes_and_links_that_lead_nowhere_neither_hang_nor_crash(tmp_path: Path) -> None:
    touch(tmp_path, "good/1/model.pt")
    for directory in ("pipe/1", "loop/1", "yaml/1"):
        (tmp_path / directory).mkdir(parents=True)
    os.mkfifo(tmp_path / "pipe/1/model.pt")
    os.mkfifo(tmp_path / "pipe/2")
    os.mkfifo(tmp_path / "fifo")
    os.mkfifo(tmp_path / "yaml/model.yaml")
    touch(tmp_path, "yaml/1/model.pt")
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop/1/model.pt").symlink_to("model.pt")
    (tmp_path / "loop/2").symlink_to("2")
    (tmp_path / "up").mkdir()
    (tmp_path / "up/1").symlink_to("..")
    problems = {name: artifact.problem for name, artifact in found(tmp_path).items()}
    assert problems.pop("loop/1").startswith("no artifact")
    assert problems == {
        "good/1": "",
        "pipe/1": "'model.pt' is a FIFO",
        "up/1": "its directory is a link to a directory above it",
        "yaml/1": "model.yaml cannot be read: it is no regular file",
    }


def test_a_socket_in_a_version_is_its_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "m/1/model.pt")
    monkeypatch.chdir(tmp_path / "m/1")  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("extra")
    assert found(tmp_path)["m/1"].problem == "'extra' is a socket"


@pytest.mark.parametrize("place", ["m", "m/1", "m/1/model.pt", "m/1/extra", "m/1/deep/er/extra", "m/model.yaml"])
@pytest.mark.parametrize("relative", [True, False])
def test_a_link_out_of_the_store_is_the_problem_of_what_it_is_in(tmp_path: Path, place: str, relative: bool) -> None:
    store, outside = tmp_path / "store", tmp_path / "outside"
    touch(store, "m/1/model.pt", "good/1/model.pt")
    touch(outside, "1/model.pt", "model.pt", "extra")
    link = store / place
    if link.is_dir():
        shutil.rmtree(link)
    link.unlink(missing_ok=True)
    link.parent.mkdir(parents=True, exist_ok=True)
    target = outside / "extra" if link.suffix else outside
    link.symlink_to(os.path.relpath(target, link.parent) if relative else target)
    artifacts = found(store)
    assert artifacts["good/1"].problem == ""
    problem = artifacts["m/1"].problem
    assert problem.endswith("is a link that leads out of the model store")
    assert "outside" not in problem
    assert artifacts["m/1"].stamp == found(store)["m/1"].stamp


def test_nothing_outside_of_the_store_is_watched_or_weighed(tmp_path: Path) -> None:
    store = tmp_path / "store"
    touch(store, "m/1/model.pt", "n/1/model.pt")
    (tmp_path / "outside" / "2").mkdir(parents=True)
    (tmp_path / "outside" / "weights").write_bytes(b"x" * 1000)
    (store / "m/1/all").symlink_to("../../../outside")
    (store / "m/2").symlink_to("../../outside")
    (store / "out").symlink_to("../outside")
    inventory = scan(store)
    watched = {os.path.relpath(path, store.resolve()) for path, _, _ in inventory.directories}
    assert watched == {".", "m", "m/1", "n", "n/1"}
    assert {artifact.contents.size for artifact in inventory.artifacts} == {0}


def test_a_name_that_is_no_text_can_be_said(tmp_path: Path) -> None:
    (tmp_path / "m/1").mkdir(parents=True)
    os.close(os.open(os.fsencode(tmp_path) + b"/m/1/\xff\n", os.O_CREAT | os.O_WRONLY))
    (tmp_path / "m/\udcff").mkdir()
    inventory = scan(tmp_path)
    assert inventory.artifacts[0].problem.endswith(r"found \udcff\n")
    assert inventory.ignored == [r"'m/\udcff' is no version: the name of a version's directory is an integer"]


def test_links_of_kubernetes_are_followed(tmp_path: Path) -> None:
    touch(tmp_path, "m/1/..2025_01_01/model.pt")
    (tmp_path / "m/1/..data").symlink_to("..2025_01_01")
    (tmp_path / "m/1/model.pt").symlink_to("..data/model.pt")
    (tmp_path / "m/..2025_01_01").mkdir()
    (tmp_path / "m/..data").symlink_to("..2025_01_01")
    (tmp_path / "m/..2025_01_01/model.yaml").write_text("threads: 3")
    (tmp_path / "m/model.yaml").symlink_to("..data/model.yaml")
    before = found(tmp_path)["m/1"]
    assert (before.problem, before.config.threads, before.contents.linked) == ("", 3, ())
    touch(tmp_path, "m/1/..2025_02_02/model.pt")
    (tmp_path / "m/1/..data_tmp").symlink_to("..2025_02_02")
    (tmp_path / "m/1/..data_tmp").rename(tmp_path / "m/1/..data")
    assert found(tmp_path)["m/1"].stamp != before.stamp


def test_what_a_version_links_to_elsewhere_in_the_store_is_told(tmp_path: Path) -> None:
    touch(tmp_path, "m/1/model.pt", "m/2/other", "shared/1/model.pt")
    (tmp_path / "m/2/model.pt").symlink_to("../1/model.pt")
    assert found(tmp_path)["m/2"].problem == ""
    assert found(tmp_path)["m/2"].contents.linked == (str(tmp_path.resolve() / "m/1/model.pt"),)


def test_a_version_with_too_many_or_too_deep_files_is_its_own_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contents, "MAX_ENTRIES", 50)
    touch(
        tmp_path, "good/1/model.pt", "deep/1/" + "a/" * (MAX_DEPTH + 1) + "model.pt", "deep/2/" + "a/" * MAX_DEPTH + "x"
    )
    touch(tmp_path, *(f"many/1/{number}" for number in range(51)), *(f"good/1/{number}" for number in range(49)))
    problems = {name: artifact.problem for name, artifact in found(tmp_path).items()}
    assert problems["good/1"] == ""
    assert problems["many/1"] == "it holds more than 50 files"
    assert problems["deep/1"] == f"its directories are nested more than {MAX_DEPTH} deep"
    assert problems["deep/2"].startswith("no artifact")


def test_the_stamp_tells_every_change_of_the_files_and_of_model_yaml(tmp_path: Path) -> None:
    touch(tmp_path, "m/1/model.pt", "m/1/assets/words", "n/1/model.pt")
    version, config, other = tmp_path / "m/1", tmp_path / "m/model.yaml", found(tmp_path)["n/1"].stamp
    steps = [
        partial((version / "model.pt").write_bytes, b"x"),
        partial(os.utime, version / "model.pt", ns=(0, 0)),
        partial((version / "assets/words").rename, version / "assets/more"),
        (version / "assets/empty").mkdir,
        (version / "assets/empty").rmdir,
        partial((version / "link").symlink_to, "model.pt"),
        (version / "link").unlink,
        partial(config.write_text, "threads: 1"),
        partial(config.write_text, "threads: 12"),
        partial(config.write_text, "outputs: [{name: y, datatype: FP32, shape: [], labels: names}]"),
        partial((tmp_path / "m/names").write_text, "cat"),
        partial((tmp_path / "m/names").write_text, "cats"),
        partial(os.utime, tmp_path / "m/names", ns=(0, 0)),
        (tmp_path / "m/names").unlink,
        config.unlink,
    ]
    before = found(tmp_path)["m/1"].stamp
    for step in steps:
        step()
        after = found(tmp_path)["m/1"].stamp
        assert after != before
        assert found(tmp_path)["m/1"].stamp == after
        before = after
    assert found(tmp_path)["n/1"].stamp == other


def test_a_change_of_the_labels_is_a_change_of_all_versions(tmp_path: Path) -> None:
    touch(tmp_path, "m/1/model.pt", "m/2/model.pt", "m/labels.txt", "other/1/model.pt")
    (tmp_path / "m" / "model.yaml").write_text("postprocessing: {classes: {labels: labels.txt}}")
    empty = found(tmp_path)["m/1"]
    assert empty.problem == "labels.txt holds no labels"
    (tmp_path / "m" / "labels.txt").write_text("cat\n")
    cat = found(tmp_path)
    assert cat["m/1"].config.postprocessing.classes == Classes(labels="labels.txt", names=["cat"])
    assert not cat["m/1"].problem
    (tmp_path / "m" / "labels.txt").write_text("dog\n")
    os.utime(tmp_path / "m" / "labels.txt", (1, 1))
    dog = found(tmp_path)
    for name in ("m/1", "m/2"):
        assert cat[name].stamp != dog[name].stamp
        assert cat[name].contents.stamp == dog[name].contents.stamp
        assert dog[name].changed >= cat[name].changed
        assert dog[name].config.named([]) == cat[name].config.named([]) != cat[name].config
    assert cat["other/1"].stamp == dog["other/1"].stamp
    (tmp_path / "m" / "labels.txt").unlink()
    assert "'labels.txt' cannot be read" in found(tmp_path)["m/2"].problem


def test_neither_reading_nor_renaming_a_version_changes_its_stamp(tmp_path: Path) -> None:
    touch(tmp_path, "m/staged/model.pt")
    (tmp_path / "m/staged").rename(tmp_path / "m/1")
    before = found(tmp_path)["m/1"]
    assert (tmp_path / "m/1/model.pt").read_bytes() == b""
    (tmp_path / "m/1").rename(tmp_path / "m/2")
    after = found(tmp_path)["m/2"]
    assert (before.stamp, before.changed) == (after.stamp, after.changed)


def test_a_file_with_several_names_weighs_once(tmp_path: Path) -> None:
    touch(tmp_path, "m/1/model.pt")
    (tmp_path / "m/1/model.pt").write_bytes(b"x" * 1000)
    (tmp_path / "m/1/soft").symlink_to("model.pt")
    (tmp_path / "m/1/hard").hardlink_to(tmp_path / "m/1/model.pt")
    (tmp_path / "m/1/more").write_bytes(b"x" * 10)
    assert found(tmp_path)["m/1"].contents.size == 1010


def test_a_link_to_a_version_is_followed(tmp_path: Path) -> None:
    touch(tmp_path, "m/1/model.pt")
    (tmp_path / "m/2").symlink_to("1")
    assert found(tmp_path)["m/2"].problem == ""


def test_a_directory_that_cannot_be_read_is_the_problem_of_its_own_model_only(tmp_path: Path, helpers: Any) -> None:
    touch(tmp_path, "bad/1/model.pt", "worse/1/model.pt", "deep/1/model.pt", "deep/1/in/x", "good/2/model.pt")
    for closed in ("bad", "worse/1", "deep/1/in"):
        (tmp_path / closed).chmod(0)
    with helpers.ordinary_user():
        inventory = scan(tmp_path)
    problems = {artifact.model: artifact.problem for artifact in inventory.artifacts}
    denied = "it cannot be read: Permission denied"
    assert problems == {"good": "", "worse": denied, "deep": denied}
    assert inventory.unreadable == {"bad"}
    assert inventory.ignored == ["'bad' cannot be read: Permission denied"]
    assert {artifact.model for artifact in inventory.artifacts if artifact.contents.unreadable} == {"worse", "deep"}


def test_a_store_that_is_taken_away_while_it_is_read_is_not_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "store/m/1/model.pt", "store/n/1/model.pt")
    real = contents.look

    def look(version: Path, root: str) -> contents.Contents:
        if version.parent.name == "m":
            (tmp_path / "store").rename(tmp_path / "gone")
        return real(version, root)

    monkeypatch.setattr(contents, "look", look)
    with pytest.raises(ConfigError, match="was replaced"):
        scan(tmp_path / "store")


def test_a_store_that_cannot_be_read_is_a_config_error(tmp_path: Path) -> None:
    for store in (tmp_path / "nowhere", tmp_path / "file"):
        touch(tmp_path, "file")
        with pytest.raises(ConfigError, match=str(store)):
            scan(store)


def test_an_empty_store_is_an_empty_inventory(tmp_path: Path) -> None:
    assert scan(tmp_path) == Inventory()


def test_the_links_on_the_way_to_a_store_are_known(tmp_path: Path) -> None:
    (tmp_path / "releases" / "first" / "models").mkdir(parents=True)
    (tmp_path / "releases" / "current").symlink_to("first")
    (tmp_path / "store").symlink_to("releases/../releases/current/models")
    assert scan(tmp_path / "store").links == {str(tmp_path / "store"), str(tmp_path / "releases" / "current")}
    assert scan(tmp_path / "releases" / "first").links == set()


def test_a_version_with_more_links_than_an_instance_can_be_granted_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, *(f".pool/{number}" for number in range(257)), "m/1/model.pt")
    for number in range(256):
        (tmp_path / "m" / "1" / str(number)).symlink_to(f"../../.pool/{number}")
    assert not scan(tmp_path).artifacts[0].problem
    (tmp_path / "m" / "1" / "256").symlink_to("../../.pool/256")
    assert "more than 256 links" in scan(tmp_path).artifacts[0].problem
