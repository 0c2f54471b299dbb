"""Packages with operators: what is said of one that is lacking."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import LoadFailed
from gateway.instance import libraries

PACKAGES = Path(__file__).parent / "fixtures" / "packages"


def test_the_sentence_on_a_foreign_operator_names_its_package_and_the_option() -> None:
    told = libraries.lacking("pytorch", "torchvision::nms", "PyTorch 2.13")
    assert "torchvision::nms" in told
    assert "--torch-library torchvision" in told
    assert "--tensorflow-library tensorflow_text" in libraries.lacking("tensorflow", "CaseFoldUTF8", "TensorFlow 2.21")


def test_a_library_that_is_not_installed_or_not_allowed_is_one_sentence() -> None:
    with pytest.raises(LoadFailed, match="--torch-library no_such_package: no package of that name is installed"):
        libraries.load("pytorch", ["no_such_package"])
    with pytest.raises(LoadFailed, match="the operator can allow it with --torch-library no_such_package"):
        libraries.check("pytorch", ["no_such_package"])
    libraries.load("pytorch", ["json"])
    libraries.check("pytorch", ["json"])


def test_a_model_with_an_operator_of_a_library_is_served_with_the_option_and_named_without_it(
    start_gateway: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [str(PACKAGES), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))

    def prepare(store: Path) -> None:
        (store / "doubles" / "1").mkdir(parents=True)
        program = [sys.executable, str(PACKAGES / "stand_in_operators.py"), str(store / "doubles" / "1" / "model.pt")]
        subprocess.run(program, check=True, timeout=60, capture_output=True)

    body = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1.5, 2.0]}]}
    with start_gateway(["mlp"], "--torch-library", "stand_in_operators", prepare=prepare) as gateway:
        answer = gateway.http.post("/v2/models/doubles/infer", json=body)
        assert answer.status_code == 200, answer.text
        assert answer.json()["outputs"][0]["data"] == [3.0, 4.0]
    with start_gateway(["mlp"], prepare=prepare) as gateway:
        index = {each["name"]: each for each in gateway.http.post("/v2/repository/index", json={}).json()}
        assert "stand_in_operators::twice" in index["doubles"]["reason"]
        assert "--torch-library stand_in_operators" in index["doubles"]["reason"]
        assert index["mlp"]["state"] == "READY"
