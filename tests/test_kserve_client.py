"""KServe's own Python client, unmodified, in an environment of its own: it asks for other versions than we have."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

HERE = Path(__file__).parent
PYTHON = HERE.parent / ".venv-clients" / "bin" / "python"


@pytest.fixture(scope="module")
def found(gateway: Any) -> Any:
    assert PYTHON.exists(), "its environment is not there: make clients"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [PYTHON, HERE / "fixtures" / "kserve_client.py", gateway.url],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_it_learns_what_is_ready(found: Any) -> None:
    assert found["live"] is found["ready"] is found["model_ready"] is True
    assert not found["failed_ready"]


def test_it_gets_the_same_answers_in_each_form(found: Any) -> None:
    (first, binary), (second, plain), (none, given) = found["infer_True"], found["infer_False"], found["infer_dict"]
    assert first == second == "seven"
    assert not none
    assert np.shape(binary) == np.shape(plain) == (2, 4)
    assert np.array_equal(binary, plain)
    assert np.array_equal(binary, given)


def test_it_sends_and_reads_text(found: Any) -> None:
    assert found["words"] == ["grüße", ""]


def test_it_raises_what_went_wrong(found: Any) -> None:
    status, message = found["error"]
    assert status == 404
    assert "Request for unknown model: 'nobody' is not found" in message
