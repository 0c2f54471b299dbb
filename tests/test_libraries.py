"""Packages with operators: what is said of one that is lacking."""

import pytest

from gateway.errors import LoadFailed
from gateway.instance import libraries


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
