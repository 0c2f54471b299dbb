"""Calls that ask for a handwritten digit in the words of each API, and the digit in their answers: pure functions."""

import json
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

DIALECTS = ("OIP JSON", "OIP binary", "TF Serving", "TorchServe")
MODELS = {"PyTorch": "digits_torch", "TensorFlow": "digits_tensorflow"}
_SIZE = "inference-header-content-length"

Image = NDArray[np.float32]


class Call(NamedTuple):
    """A POST request."""

    path: str
    headers: dict[str, str]
    body: bytes


def call(dialect: str, model: str, image: Image) -> Call:
    """What to send for one image of 64 numbers in 0..1."""
    kind = {"Content-Type": "application/json"}
    if dialect == "TF Serving":
        return Call(f"/v1/models/{model}:predict", kind, json.dumps({"instances": [image.tolist()]}).encode())
    if dialect == "TorchServe":
        return Call(f"/predictions/{model}", kind, json.dumps(image.tolist()).encode())
    if dialect == "OIP binary":
        return batch(model, image[None])
    tensor = {"name": "image", "shape": [1, 64], "datatype": "FP32", "data": image.tolist()}
    return Call(f"/v2/models/{model}/infer", kind, json.dumps({"inputs": [tensor]}).encode())


def batch(model: str, images: Image) -> Call:
    """What to send for images [n, 64] together, as binary tensors of the Open Inference Protocol."""
    raw = images.astype("<f4").tobytes()
    tensor = {"name": "image", "shape": images.shape, "datatype": "FP32", "parameters": {"binary_data_size": len(raw)}}
    text = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(text))}
    return Call(f"/v2/models/{model}/infer", headers, text + raw)


def digits_in(headers: Mapping[str, str], body: bytes) -> list[int]:
    """The digits that an answer to a batch finds the most probable."""
    size = next(int(value) for name, value in headers.items() if name.lower() == _SIZE)
    found: list[int] = np.frombuffer(body[size:], "<f4").reshape(-1, 10).argmax(axis=1).tolist()
    return found


def digit(dialect: str, headers: Mapping[str, str], body: bytes) -> int:
    """The digit that an answer finds the most probable; ValueError if it is no answer to such a call."""
    try:
        return int(np.argmax(_probabilities(dialect, headers, body)))
    except (KeyError, IndexError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(f"no probabilities in {body[:80]!r}") from error


def _probabilities(dialect: str, headers: Mapping[str, str], body: bytes) -> NDArray[np.float32]:
    if dialect == "OIP binary":
        size = next(int(value) for name, value in headers.items() if name.lower() == _SIZE)
        found = np.frombuffer(body[size:], "<f4")
    else:
        answer = json.loads(body)
        if dialect == "OIP JSON":
            answer = answer["outputs"][0]["data"]
        elif dialect == "TF Serving":
            answer = answer["predictions"][0]
        found = np.asarray(answer, np.float32)
    if found.shape != (10,):
        raise ValueError(f"{found.shape} probabilities, not 10")
    return found
