import os
from pathlib import Path

import pytest

from gateway.errors import ConfigError
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


def test_the_highest_number_is_aspired_to(tmp_path: Path) -> None:
    touch(tmp_path, *(f"m/{version}/model.pt" for version in (9, 10, 2)), "other/1/model.pt")
    inventory = scan(tmp_path)
    assert sorted((artifact.model, artifact.version) for artifact in inventory.aspired()) == [("m", 10), ("other", 1)]
    assert [artifact.version for artifact in inventory.model("m")] == [2, 9, 10]
    assert inventory.model("nobody") == []


def test_leading_zeros_do_not_count(tmp_path: Path) -> None:
    touch(tmp_path, "m/00000123/model.pt")
    assert found(tmp_path)["m/123"].path == tmp_path / "m/00000123/model.pt"


def test_two_directories_of_one_number_are_one_version_to_serve(tmp_path: Path) -> None:
    touch(tmp_path, "m/1/model.pt", "m/01/model.pt", "m/001/saved_model.pb")
    assert [artifact.version for artifact in scan(tmp_path).aspired()] == [1]


@pytest.mark.parametrize(
    "name",
    ["latest", "1.0", "v1", "-1", "+1", "1_0", "١", "1 ", ".1", "9" * 200, "__pycache__", "1e3"],  # noqa: RUF001
)
def test_what_is_no_version_number_is_ignored(tmp_path: Path, name: str) -> None:
    touch(tmp_path, "m/2/model.pt", f"m/{name}/model.pt", "m/3")
    assert list(found(tmp_path)) == ["m/2"]


def test_a_model_without_versions_is_said_to_have_none(tmp_path: Path) -> None:
    touch(tmp_path, "m/model.pt", "good/1/model.pt")
    (tmp_path / "empty").mkdir()
    inventory = scan(tmp_path)
    assert [artifact.model for artifact in inventory.artifacts] == ["good"]
    assert len(inventory.ignored) == 2
    assert all("has no version directory" in sentence for sentence in inventory.ignored)


@pytest.mark.parametrize("name", ["a b", "ä", "-m", "a:b", "x" * 129, "a\nb", "$(ls)"])
def test_what_is_no_model_name_is_ignored_with_a_sentence(tmp_path: Path, name: str) -> None:
    touch(tmp_path, f"{name}/1/model.pt")
    inventory = scan(tmp_path)
    assert inventory.artifacts == []
    assert "is no model name" in inventory.ignored[0]


@pytest.mark.parametrize("name", ["m", "M-1.2_x", "_m", "0", "x" * 128])
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


def test_a_missing_artifact_is_said_with_what_is_there_instead(tmp_path: Path) -> None:
    touch(tmp_path, "m/1/weights.bin", "m/1/model.onnx")
    (tmp_path / "empty" / "1").mkdir(parents=True)
    artifacts = found(tmp_path)
    assert artifacts["m/1"].problem.endswith("found model.onnx, weights.bin")
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
    (tmp_path / "loop/model.yaml").symlink_to("model.yaml")
    (tmp_path / "up").mkdir()
    (tmp_path / "up/1").symlink_to("..")
    artifacts = found(tmp_path)
    assert artifacts["good/1"].problem == ""
    for name in ("pipe/1", "loop/1", "up/1"):
        assert "no artifact" in artifacts[name].problem
    assert set(artifacts) == {"good/1", "pipe/1", "loop/1", "up/1", "yaml/1"}


def test_a_link_to_a_version_is_followed(tmp_path: Path) -> None:
    touch(tmp_path, "m/1/model.pt")
    (tmp_path / "m/2").symlink_to("1")
    assert found(tmp_path)["m/2"].problem == ""


@pytest.mark.parametrize("closed", ["bad", "1"])
def test_a_directory_that_cannot_be_read_is_the_problem_of_its_own_model_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed: str
) -> None:
    touch(tmp_path, "bad/1/other", "good/2/model.pt")
    real = Path.iterdir

    def iterdir(path: Path):  # type: ignore[no-untyped-def]  # noqa: ANN202 - pathlib's generator
        if path.name == closed:
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    assert found(tmp_path)["good/2"].problem == ""


def test_a_store_that_cannot_be_read_is_a_config_error(tmp_path: Path) -> None:
    for store in (tmp_path / "nowhere", tmp_path / "file"):
        touch(tmp_path, "file")
        with pytest.raises(ConfigError, match=str(store)):
            scan(store)


def test_an_empty_store_is_an_empty_inventory(tmp_path: Path) -> None:
    assert scan(tmp_path) == Inventory()
