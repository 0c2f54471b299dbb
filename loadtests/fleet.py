"""Small models whose answers tell which of them gave it: y = factor * x; and one that is busy as long as it is told."""

import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import orjson
from client import RIGHT, Check, Shot, request

X = (1.0, 2.0, 3.0, 4.0)
BUILD_SECONDS = 600
_TENSORS = "inputs: [{name: x, datatype: FP32, shape: [-1, 4]}]\noutputs: [{name: y, datatype: FP32, shape: [-1, 4]}]\n"
_BUSY = (
    "inputs: [{name: rounds, datatype: INT64, shape: [-1]}]\noutputs: [{name: y, datatype: FP32, shape: [-1]}]\n"
    "max_batch_size: 1\n"
)


class Scale(NamedTuple):
    """A model version that multiplies by `factor`; `framework` is pytorch, tensorflow, or busy for the busy one."""

    directory: Path
    """Of the version."""
    framework: str
    factor: int = 0
    config: str = ""
    """Lines of model.yaml beside the declaration of its tensors; none is written into a directory that has one."""


def build(models: Iterable[Scale]) -> None:
    """Make these models, each framework in a process of its own."""
    models = list(models)
    for model in models:
        model.directory.mkdir(parents=True)
        config = model.directory.parent / "model.yaml"
        if not config.exists():
            config.write_text((_BUSY if model.framework == "busy" else _TENSORS) + model.config)
    with tempfile.TemporaryDirectory() as name:
        builders = []
        for framework in ("pytorch", "tensorflow"):
            plan = [
                [str(model.directory), model.factor]
                for model in models
                if ("tensorflow" if model.framework == "tensorflow" else "pytorch") == framework
            ]
            if plan:
                path = Path(name) / framework
                path.write_text(json.dumps(plan))
                builders.append(subprocess.Popen([sys.executable, __file__, framework, str(path)]))
        codes = [builder.wait(BUILD_SECONDS) for builder in builders]
    if any(codes):
        raise RuntimeError("building the models failed")


def scale_shot(model: str, factors: Mapping[str, int], path: str = "") -> Shot:
    """A request whose answer must be right for the version that it names; `factors` may grow while it is used."""
    body = orjson.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": X}]})
    return Shot(request("POST", path or f"/v2/models/{model}/infer", body), scale_check(model, factors))


def scale_check(model: str, factors: Mapping[str, int]) -> Check:
    """Each different body is looked at once; most are the same."""
    seen: dict[bytes, str] = {}

    def check(status: int, _head: bytes, body: bytes) -> str:
        if status != 200:
            return f"status {status}"
        verdict = seen.get(body)
        if verdict is None:
            verdict = seen[body] = RIGHT if _answers(model, factors, body) else "wrong answer"
        return verdict

    return check


def _answers(model: str, factors: Mapping[str, int], body: bytes) -> bool:
    try:
        answer: Any = orjson.loads(body)
        factor = factors[answer["model_version"]]
        (output,) = answer["outputs"]
        return bool(
            answer["model_name"] == model and output["shape"] == [1, 4] and output["data"] == [x * factor for x in X]
        )
    except (orjson.JSONDecodeError, KeyError, ValueError, TypeError):
        return False


def busy_body(rounds: int, **more: Any) -> bytes:
    """A request that keeps the busy model for so many rounds."""
    return orjson.dumps({"inputs": [{"name": "rounds", "datatype": "INT64", "shape": [1], "data": [rounds]}], **more})


def _torch(plan: Sequence[tuple[str, int]]) -> None:
    import torch  # noqa: PLC0415 - one framework per process
    from torch import nn  # noqa: PLC0415 - as above

    class Factor(nn.Module):
        def __init__(self, factor: int) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.full((4,), float(factor)), requires_grad=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.factor

    class Busy(nn.Module):
        def forward(self, rounds: torch.Tensor) -> torch.Tensor:
            y = torch.zeros(1)
            for _ in range(int(rounds[0])):
                y = torch.tanh(y + 1.0)
            return y

    warnings.simplefilter("ignore")  # TorchScript is deprecated, and what is served here
    for directory, factor in plan:
        module = Factor(factor) if factor else Busy()
        torch.jit.script(module.eval()).save(f"{directory}/model.pt")


def _tensorflow(plan: Sequence[tuple[str, int]]) -> None:
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import tensorflow as tf  # noqa: PLC0415 - one framework per process

    spec = [tf.TensorSpec([None, 4], tf.float32, "x")]

    def save(directory: str, factor: int) -> None:
        module = tf.Module()
        module.factor = tf.Variable(tf.fill([4], float(factor)))
        module.call = tf.function(lambda x: {"y": x * module.factor}, input_signature=spec)
        tf.saved_model.save(module, directory, signatures=module.call.get_concrete_function())

    for directory, factor in plan:
        save(directory, factor)


if __name__ == "__main__":
    {"pytorch": _torch, "tensorflow": _tensorflow}[sys.argv[1]](json.loads(Path(sys.argv[2]).read_text()))
