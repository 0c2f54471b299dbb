"""What model.yaml may declare to happen before and after a model: images in and classes out, as TorchServe has it."""

import re
from functools import lru_cache
from typing import Annotated, Any, Literal

import msgspec

from gateway.errors import ConfigError

MAX_CLASSES = 100_000
MAX_LABELS = 96 << 10
"""Bytes of all labels together: they travel to each instance in one datagram with the rest of model.yaml."""
_LABELS_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,127}\.(json|txt)")

Size = Annotated[int, msgspec.Meta(ge=1, le=4096)]
Pair = Annotated[list[Size], msgspec.Meta(min_length=2, max_length=2)]
Channels = Annotated[list[float], msgspec.Meta(min_length=1, max_length=3)]
Layout = Literal["NCHW", "NHWC"]
CHANNELS = {"RGB": 3, "BGR": 3, "L": 1}


class ImageConfig(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """How an encoded image becomes a tensor: resize, crop, value / scale, - mean, / std."""

    resize: Size | Pair | None = None
    """Pixels of the shorter side, or [height, width]."""
    crop: Size | Pair | None = None
    """Around the centre; what lies outside of the image is black."""
    mean: Channels | None = None
    std: Channels | None = None
    layout: Layout | None = None
    """None: what the model's input shows, else what its framework is used to."""
    color: Literal["RGB", "BGR", "L"] = "RGB"
    scale: Annotated[float, msgspec.Meta(gt=0)] | None = None
    """What values of 0 to 255 are divided by; None: 255, or nothing where the model takes UINT8."""
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of every image after it."""
        wanted = self.crop if self.crop is not None else self.resize
        assert wanted is not None
        return (wanted, wanted) if isinstance(wanted, int) else (wanted[0], wanted[1])

    @property
    def channels(self) -> int:
        """Of one pixel."""
        return CHANNELS[self.color]


class Preprocessing(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What a model's input is made from."""

    image: ImageConfig | None = None


class Classes(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The most probable classes, with their labels, in the place of scores."""

    top: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 5
    softmax: bool = True
    labels: str = ""
    """A file in the model's directory."""
    names: list[str] = []
    """Its labels, by class; or given in model.yaml itself."""


class Postprocessing(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What a model's output becomes."""

    classes: Classes | None = None


def check(preprocessing: Preprocessing, postprocessing: Postprocessing) -> None:
    """ConfigError for what cannot be meant."""
    image, classes = preprocessing.image, postprocessing.classes
    if image is not None:
        if image.crop is None and not isinstance(image.resize, list):
            raise ConfigError(
                "model.yaml: preprocessing.image needs crop, or resize as [HEIGHT, WIDTH]; else images differ in size"
            )
        count = image.channels
        for key, values in (("mean", image.mean), ("std", image.std)):
            if values is not None and len(values) != count:
                raise ConfigError(
                    f"model.yaml: preprocessing.image.{key} has {len(values)} values, {image.color} needs {count}"
                )
        if image.std is not None and not all(value > 0 for value in image.std):
            raise ConfigError("model.yaml: preprocessing.image.std has a value that is not greater than 0")
    if classes is None:
        return
    if classes.labels and classes.names:
        raise ConfigError("model.yaml: postprocessing.classes takes labels or names, not both")
    if classes.labels and not _LABELS_FILE.fullmatch(classes.labels):
        raise ConfigError(
            "model.yaml: postprocessing.classes.labels is the name of a .json or .txt file beside model.yaml"
        )
    _bounded(classes.names, "postprocessing.classes.names")


def _bounded(labels: list[str], where: str) -> None:
    try:
        size = sum(len(label.encode()) for label in labels)
    except UnicodeEncodeError:
        raise ConfigError(f"{where} has a label that is no text") from None
    if len(labels) > MAX_CLASSES or size > MAX_LABELS:
        raise ConfigError(
            f"{where} has {len(labels)} labels of {size} bytes in all; {MAX_CLASSES} and {MAX_LABELS} are the most"
        )


def lines_of(content: bytes) -> list[str]:
    """The lines of a file of labels, also empty ones, for a line's number is its class; UnicodeDecodeError."""
    lines = content.decode("utf-8-sig").split("\n")  # and at nothing else, which may stand in a label
    return [line.strip() for line in (lines if lines[-1] else lines[:-1])]


@lru_cache(maxsize=64)
def parse_labels(content: bytes, file: str) -> tuple[str, ...]:
    """Labels by class, from lines of text or from TorchServe's index_to_name.json; ConfigError if it is neither.

    There a class is "0": "cat" or "0": ["n02123045", "cat"], of which the last one counts; a whole list is read too.
    As `load_label_mapping` in ts/utils/util.py of TorchServe. A class that is left out keeps its number.
    """
    try:
        if file.endswith(".json"):
            labels = _from_json(msgspec.json.decode(content.decode("utf-8-sig")), file)
        else:
            labels = lines_of(content.rstrip())
    except (UnicodeDecodeError, msgspec.DecodeError, RecursionError):
        raise ConfigError(f"{file} is no {'JSON' if file.endswith('.json') else 'UTF-8 text'}") from None
    if not labels:
        raise ConfigError(f"{file} holds no labels")
    _bounded(labels, file)
    return tuple(labels)


def _from_json(found: Any, file: str) -> list[str]:
    if isinstance(found, dict) and isinstance(found.get("object_type_names"), list):
        found = found["object_type_names"]  # as older archives have it
    if isinstance(found, list):
        found = {str(index): label for index, label in enumerate(found)}
    if not isinstance(found, dict):
        raise ConfigError(f'{file} must map classes to labels, such as {{"0": "cat"}}')
    by_class: dict[int, str] = {}
    for key, value in found.items():
        label = value[-1] if isinstance(value, list) and value else value
        if not (key.isascii() and key.isdigit() and int(key[:9]) < MAX_CLASSES and len(key) < 9):
            raise ConfigError(f"{file}: {key[:40]!r} is no class; classes are numbers below {MAX_CLASSES}")
        if not isinstance(label, str):
            raise ConfigError(f"{file}: class {key} has no label that is a string")
        by_class[int(key)] = label
    return [by_class.get(index, str(index)) for index in range(max(by_class, default=-1) + 1)]
