import io
import json
import os
import shutil
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit")
ROWS = [0.5, 1.5, -2.0, 3.0]
PROGRAM_SECONDS = 30


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    from sys import executable  # noqa: PLC0415 - only to find the program

    program = Path(executable).with_name("gateway")
    return subprocess.run(
        [program, "import", *arguments], capture_output=True, text=True, timeout=PROGRAM_SECONDS, check=False
    )


def report(*arguments: str | Path) -> tuple[int, dict[str, dict[str, Any]]]:
    done = command(*arguments, "--json")
    assert done.stderr == ""
    return done.returncode, {each["model"]: each for each in json.loads(done.stdout)["models"]}


def classifier() -> nn.Module:
    """A model of images of 224 by 224 pixels, the same each time."""
    torch.manual_seed(0)
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 10)).eval()


def torchscript(module: nn.Module) -> bytes:
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(module), file)
    return file.getvalue()


def foreign(directory: Path, built: Path) -> dict[str, Path]:
    """A repository of each layout, of models that the tests have built."""
    torch, saved = built / "mlp" / "3" / "model.pt", built / "identity_tensorflow" / "1"
    found = {name: directory / name for name in ("tensorflow-serving", "triton", "torchserve", "mlserver")}
    shutil.copytree(saved, found["tensorflow-serving"] / "base" / "7")
    (found["tensorflow-serving"] / "models.config").write_text(
        "model_config_list { config { name: 'from_tfs' base_path: 'base' model_platform: 'tensorflow'"
        " version_labels { key: 'stable' value: 7 } logging_config {} } }"
    )
    (found["triton"] / "from_triton" / "2").mkdir(parents=True)
    shutil.copy(torch, found["triton"] / "from_triton" / "2" / "net.pt")
    (found["triton"] / "from_triton" / "config.pbtxt").write_text(
        'platform: "pytorch_libtorch" max_batch_size: 4 default_model_filename: "net.pt" dynamic_batching {}'
        ' input { name: "INPUT__0" data_type: TYPE_FP32 dims: 16 }'
        ' output { name: "OUTPUT__0" data_type: TYPE_FP32 dims: 4 } optimization {}'
    )
    found["torchserve"].mkdir()
    with zipfile.ZipFile(found["torchserve"] / "m.mar", "w") as archive:
        model = {"modelName": "from_torchserve", "serializedFile": "net.pt", "handler": "base_handler"}
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps({"model": model | {"modelVersion": "3.0"}}))
        archive.write(torch, "net.pt")
    with zipfile.ZipFile(found["torchserve"] / "images.mar", "w") as archive:
        model = {"modelName": "from_torchserve_images", "serializedFile": "net.pt", "handler": "image_classifier"}
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps({"model": model | {"modelVersion": "1.0"}}))
        archive.writestr("net.pt", torchscript(classifier()))
        archive.writestr("index_to_name.json", json.dumps({str(index): f"class {index}" for index in range(10)}))
    (found["mlserver"] / "one").mkdir(parents=True)
    shutil.copy(torch, found["mlserver"] / "one" / "net.pt")
    settings = {"name": "from_mlserver", "implementation": "mine.Torch", "parameters": {"uri": "./net.pt"}}
    (found["mlserver"] / "one" / "model-settings.json").write_text(json.dumps(settings))
    return found


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory, built: Path) -> dict[str, Path]:
    return foreign(tmp_path_factory.mktemp("foreign"), built)


@pytest.fixture(scope="module")
def imported(start_gateway: Callable[..., Any], repositories: dict[str, Path]) -> Iterator[Any]:
    def fill(store: Path) -> None:
        for name, path in repositories.items():
            done = command(path, store)
            assert done.returncode == 0, f"{name}: {done.stdout}{done.stderr}"

    with start_gateway(["mlp", "identity_tensorflow"], prepare=fill) as gateway:
        yield gateway


@pytest.mark.parametrize(
    ("model", "version", "like"),
    [
        ("from_tfs", 7, "identity_tensorflow"),
        ("from_triton", 2, "mlp"),
        ("from_torchserve", 3, "mlp"),
        ("from_mlserver", 1, "mlp"),
    ],
)
def test_an_imported_model_answers_as_before(imported: Any, helpers: Any, model: str, version: int, like: str) -> None:
    answers = []
    for name in (like, model):
        described = imported.http.get(f"/v2/models/{name}").json()
        width = described["inputs"][0]["shape"][-1]
        values = (ROWS * 4)[:width]
        body = {"inputs": [helpers.tensor(described["inputs"][0]["name"], "FP32", [1, width], values)]}
        answer = imported.infer(name, body)
        assert answer.status == 200
        answers.append([output["data"] for output in answer.json()["outputs"]])
    assert answers[0] == answers[1]
    assert imported.http.get(f"/v2/models/{model}").json()["versions"] == [str(version)]


def test_an_imported_image_classifier_classifies_as_torchserve_does(imported: Any) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((320, 256), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, "PNG")
    pixels = np.asarray(image.crop((48, 16, 272, 240))).transpose(2, 0, 1).astype(np.float32) / 255
    mean, std = (np.array(each, np.float32)[:, None, None] for each in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    with torch.inference_mode():
        found, classes = torch.topk(
            torch.softmax(classifier()(torch.from_numpy((pixels - mean) / std)[None]), dim=1), 5
        )
    wanted = {f"class {index}": share for index, share in zip(classes[0].tolist(), found[0].tolist(), strict=True)}
    answer = imported.http.post("/predictions/from_torchserve_images", content=file.getvalue())
    assert list(answer.json()) == list(wanted)
    assert answer.json() == pytest.approx(wanted, rel=1e-4)


def test_names_of_triton_are_those_of_the_imported_model(imported: Any) -> None:
    described = imported.http.get("/v2/models/from_triton").json()
    assert [each["name"] for each in (*described["inputs"], *described["outputs"])] == ["INPUT__0", "OUTPUT__0"]


def test_a_report_names_every_key(repositories: dict[str, Path], tmp_path: Path) -> None:
    code, models = report(repositories["tensorflow-serving"], tmp_path, "--dry-run")
    assert code == 0
    fates = {each["key"]: each["fate"] for each in models["from_tfs"]["findings"]}
    assert {key.rpartition(".")[2]: fate for key, fate in fates.items()} == {
        "name": "kept",
        "base_path": "kept",
        "model_platform": "kept",
        "version_labels": "kept",
        "logging_config": "dropped",
    }
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_is_there_is_replaced_by_force_only(repositories: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "from_triton").mkdir()
    (tmp_path / "from_triton" / "mine").touch()
    code, models = report(repositories["triton"], tmp_path)
    assert (code, "--force" in models["from_triton"]["refused"]) == (1, True)
    assert [path.name for path in tmp_path.rglob("*")] == ["from_triton", "mine"]
    code, _ = report(repositories["triton"], tmp_path, "--force")
    assert code == 0
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["2", "from_triton", "model.pt", "model.yaml"]


@pytest.mark.parametrize("kind", ["file", "link", "fifo"])
def test_force_replaces_what_is_no_directory(repositories: dict[str, Path], tmp_path: Path, kind: str) -> None:
    there, elsewhere = tmp_path / "store" / "from_triton", tmp_path / "elsewhere"
    there.parent.mkdir()
    elsewhere.mkdir()
    {"file": there.touch, "link": lambda: there.symlink_to(elsewhere), "fifo": lambda: os.mkfifo(there)}[kind]()
    code, models = report(repositories["triton"], there.parent, "--force")
    assert (code, models["from_triton"]["refused"]) == (0, None)
    assert [path.name for path in there.parent.iterdir()] == ["from_triton"]
    assert (there / "2" / "model.pt").is_file()
    assert elsewhere.is_dir()


def test_a_link_that_leads_out_of_the_source_is_refused(tmp_path: Path, built: Path) -> None:
    (tmp_path / "source/m/1").mkdir(parents=True)
    (tmp_path / "source/m/config.pbtxt").write_text("")
    (tmp_path / "source/m/1/model.pt").symlink_to(built / "mlp" / "3" / "model.pt")
    shutil.copytree(built / "identity_tensorflow/1", tmp_path / "source/n/1/model.savedmodel")
    (tmp_path / "source/n/1/model.savedmodel/secret").symlink_to("/etc/passwd")
    code, models = report(tmp_path / "source", tmp_path / "store")
    assert code == 1
    assert all("leads out of the source" in models[name]["refused"] for name in ("m", "n"))
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("base_path", ["gs://bucket/m", "../elsewhere", "", "missing"])
def test_a_base_path_that_is_none_is_refused(tmp_path: Path, base_path: str) -> None:
    config = tmp_path / "source" / "models.config"
    config.parent.mkdir()
    config.write_text(f"model_config_list {{ config {{ name: 'm' base_path: '{base_path}' }} }}")
    code, models = report(config, tmp_path / "store")
    assert code == 1
    assert models["m"]["refused"]


def test_a_runtime_of_mlserver_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    settings = {"name": "m", "implementation": "mlserver_sklearn.SKLearnModel", "parameters": {"uri": "m.joblib"}}
    (tmp_path / "model-settings.json").write_text(json.dumps(settings))
    code, models = report(tmp_path / "model-settings.json", tmp_path / "store")
    assert (code, "SKLearnModel" in models["m"]["refused"]) == (1, True)


def test_of_two_directories_of_one_version_the_second_is_dropped(tmp_path: Path, built: Path) -> None:
    for number in ("001", "01", "1", "2"):
        (tmp_path / "source" / "m" / number).mkdir(parents=True)
        shutil.copy(built / "mlp" / "3" / "model.pt", tmp_path / "source" / "m" / number)
    code, models = report(tmp_path / "source", tmp_path / "store", "--dry-run")
    assert (code, models["m"]["versions"]) == (0, [1, 2])
    assert [each["key"] for each in models["m"]["findings"] if each["fate"] == "dropped"] == ["01/", "001/"]


def test_a_number_without_bounds_in_settings_of_mlserver_is_refused(tmp_path: Path) -> None:
    settings = '{"name": "m", "implementation": "mine.Torch", "max_batch_time": 1' + "0" * 400 + "}"
    (tmp_path / "model-settings.json").write_text(settings)
    code, models = report(tmp_path / "model-settings.json", tmp_path / "store")
    assert (code, models["m"]["refused"]) == (1, "max_batch_time has more than 64 bits")


def test_a_name_that_is_no_text_is_reported(tmp_path: Path, built: Path) -> None:
    version = Path(os.fsdecode(os.fsencode(tmp_path) + b"/source/bad\xff/1"))
    version.mkdir(parents=True)
    shutil.copy(built / "mlp" / "3" / "model.pt", version)
    code, models = report(tmp_path / "source", tmp_path / "store")
    assert code == 1
    assert "no model name" in models["bad\ufffd"]["refused"]


def test_a_source_that_is_no_repository_is_a_mistake(tmp_path: Path) -> None:
    for arguments in (
        (tmp_path, tmp_path / "store"),
        (tmp_path / "gone", tmp_path),
        (tmp_path, tmp_path, "--from", "x"),
    ):
        done = command(*arguments)
        assert done.returncode == 2
        assert done.stderr.startswith("gateway: ")
        assert done.stderr.count("\n") == 1
