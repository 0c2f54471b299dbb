"""Triton's config.pbtxt in the words of model.yaml.

https://github.com/triton-inference-server/common/blob/main/protobuf/model_config.proto says what each key means.
"""

import re
from dataclasses import dataclass, field
from typing import Any

from gateway.errors import ConfigError
from gateway.importing import text_proto
from gateway.importing.fields import Fields
from gateway.importing.report import Translation
from gateway.importing.triton_scheduling import scheduling
from gateway.tensors import DTYPES

FILE = "config.pbtxt"
_PLATFORMS = {
    "pytorch_libtorch": "pytorch_torchscript",
    "pytorch": "pytorch_torchscript",
    "tensorflow_savedmodel": "tensorflow_savedmodel",
    "tensorflow": "tensorflow_savedmodel",
}
_ARTIFACTS = {"pytorch_torchscript": "model.pt", "tensorflow_savedmodel": "model.savedmodel"}
_NUMBERED = re.compile(r".+__(\d{1,6})")
_COUNT = re.compile(r"[0-9]{1,9}")
_WHY = {
    "optimization": "the gateway decides on its own how a model is run",
    "version": "versions are the names of directories",
    "metric_tags": "metrics have the labels that the gateway gives them",
    "response_cache": "answers are not cached",
    "model_repository_agents": "nothing of others runs while a model is loaded",
    "runtime": "the gateway has one runtime for each framework",
    "backend_libraries": "the gateway has one runtime for each framework",
    "cc_model_filenames": "the artifact is the same on each device",
}
# What changes the answers, and so cannot be left out.
_REFUSED = {
    "ensemble_scheduling": "ensembles are not run",
    "model_operations": "operations from libraries of others are not loaded",
    "batch_input": "inputs that Triton makes itself are not made here",
    "batch_output": "outputs that Triton splits by its own rules are not split here",
}


@dataclass
class TritonModel:
    """A model as its config.pbtxt has it."""

    translation: Translation = field(default_factory=Translation)
    filename: str = ""
    """Name of the artifact in each version's directory; empty for the usual one."""
    labels: dict[str, str] = field(default_factory=dict)
    """Output → name of its file of labels in the model's directory."""


def translate(text: bytes, name: str = "") -> TritonModel:
    """What a config.pbtxt of the model `name` comes to; ConfigError says why it cannot be served here."""
    fields = Fields(text_proto.parse(text, FILE))
    found = TritonModel()
    translation = found.translation
    for key, why in _REFUSED.items():
        if key in fields:
            raise ConfigError(f"{key}: {why}")
    if (policy := fields.section("model_transaction_policy")) is not None:
        if policy.flag("decoupled"):
            raise ConfigError("model_transaction_policy.decoupled: one request has one answer here")
        translation.kept("model_transaction_policy.decoupled", "one request has one answer")
    said = fields.text("name")
    if said and said != name:
        translation.changed("name", f"the model is called like its directory, not {said!r:.80}")
    elif said:
        translation.kept("name", "the model's name")
    platform = _platform(fields, translation)
    found.filename = _filename(fields, translation, platform)
    batched = _batch_size(fields, translation)
    found.labels = _tensors(fields, translation, platform, batched=batched)
    scheduling(fields, translation)
    _parameters(fields, translation)
    fields.drop_rest(translation, lambda key: _WHY.get(re.split(r"[.\[]", key)[0], f"nothing like {key} exists here"))
    return found


def _platform(fields: Fields, translation: Translation) -> str:
    found = ""
    for key in ("platform", "backend"):
        said = fields.text(key)
        if not said:
            continue
        if said not in _PLATFORMS:
            raise ConfigError(f"{key} {said!r:.80} is not served here: TorchScript and SavedModels are")
        if found not in ("", _PLATFORMS[said]):
            raise ConfigError(f"platform and backend contradict each other: {said!r}")
        found = _PLATFORMS[said]
        translation.keys["platform"] = found
        translation.kept(key, f"platform: {found}")
    return found


def _filename(fields: Fields, translation: Translation, platform: str) -> str:
    said = fields.text("default_model_filename")
    if not said:
        return ""
    if "/" in said or "\0" in said or said.startswith("."):
        raise ConfigError("default_model_filename is no name of a file in a version's directory")
    usual = _ARTIFACTS.get(platform)
    if said == usual:
        translation.kept("default_model_filename", f"the artifact is called {usual}")
        return ""
    translation.changed("default_model_filename", "an import calls it by the usual name; without one it is not found")
    return said


def _batch_size(fields: Fields, translation: Translation) -> bool:
    """Whether the dimensions in the file are without the batch."""
    size = fields.number("max_batch_size")
    if size is None:
        if "input" in fields:
            translation.keys["max_batch_size"] = 1
        return False
    if size < 0:
        raise ConfigError("max_batch_size is negative")
    if size == 0:
        translation.keys["max_batch_size"] = 1
        translation.kept("max_batch_size", "max_batch_size: 1, requests are not joined")
    elif "dynamic_batching" in fields:
        translation.keys["max_batch_size"] = size
        translation.kept("max_batch_size", f"max_batch_size: {size}")
    else:
        translation.keys["max_batch_size"] = 1
        translation.changed(
            "max_batch_size",
            f"max_batch_size: 1, since without dynamic_batching requests are not joined; {size} would join them, and a "
            "request of any number of rows is taken",
        )
    return size > 0


def _tensors(fields: Fields, translation: Translation, platform: str, *, batched: bool) -> dict[str, str]:
    """Declare inputs and outputs; the files of labels by output."""
    labels: dict[str, str] = {}
    for side in ("input", "output"):
        declared: list[dict[str, Any]] = []
        for section in fields.sections(side):
            tensor = _tensor(section, translation, batched=batched)
            declared.append(tensor)
            file = section.text("label_filename") if side == "output" else None
            if file:
                labels[tensor["name"]] = _label_file(section, file, tensor, translation)
        if declared:
            if platform != "tensorflow_savedmodel" and _in_order(declared):
                translation.kept(f"{side}.name", "the number behind __ says which argument or output it is")
            translation.keys[f"{side}s"] = declared
    return labels


def _in_order(declared: list[dict[str, Any]]) -> bool:
    """Sort tensors whose names say their place, as INPUT__0 does, by it."""
    numbers = [_NUMBERED.fullmatch(tensor["name"]) for tensor in declared]
    places = [int(number[1]) for number in numbers if number]
    if len(places) < len(declared):
        return False
    if sorted(places) != list(range(len(declared))):
        raise ConfigError("the numbers behind __ in the names of tensors do not count from 0 without a gap")
    declared.sort(key=lambda tensor: int(tensor["name"].rpartition("__")[2]))
    return True


def _tensor(section: Fields, translation: Translation, *, batched: bool) -> dict[str, Any]:
    name = section.text("name")
    if not name:
        raise ConfigError(f"{section.path('name')} is missing")
    kind = section.text("data_type") or ""
    datatype = "BYTES" if kind == "TYPE_STRING" else kind.removeprefix("TYPE_")
    if datatype not in DTYPES or not kind.startswith("TYPE_") or kind == "TYPE_BYTES":
        raise ConfigError(f"{section.path('data_type')} {kind!r:.80} is not known here")
    dims = section.numbers("dims")
    reshape = section.section("reshape")
    if reshape is not None:
        dims = reshape.numbers("shape")
        translation.changed(section.path("reshape"), "requests and answers have the model's own shape")
    if any(size < -1 for size in dims):
        raise ConfigError(f"{section.path('dims')} has a size below -1")
    translation.kept(section.path(name), f"{datatype} {[-1] * batched + dims}")
    for key in ("allow_ragged_batch", "is_shape_tensor", "is_non_linear_format_io"):
        if section.flag(key):
            raise ConfigError(f"{section.path(key)}: there is nothing like it here")
    if section.flag("optional"):
        translation.changed(section.path("optional"), "whether an input may be left out the model itself says")
    if (layout := section.text("format")) is not None:
        translation.dropped(section.path("format"), f"{layout!r:.40} is said by the shape as well")
    return {"name": name, "datatype": datatype, "shape": [-1] * batched + dims}


def _label_file(section: Fields, file: str, tensor: dict[str, Any], translation: Translation) -> str:
    if "/" in file or "\0" in file or file.startswith("."):
        raise ConfigError(f"{section.path('label_filename')} is no name of a file in the model's directory")
    tensor["labels"] = file
    if file not in translation.files:
        translation.files.append(file)
    translation.kept(section.path("label_filename"), f"labels: {file!r:.80}")
    return file


def _parameters(fields: Fields, translation: Translation) -> None:
    for section in fields.sections("parameters"):
        key = section.text("key") or ""
        value = section.section("value")
        text = (value.text("string_value") if value is not None else None) or ""
        title = f"parameters.{key:.80}"
        if key in ("INTRA_OP_THREAD_COUNT", "TF_NUM_INTRA_THREADS") and _COUNT.fullmatch(text) and int(text):
            translation.keys["threads"] = int(text)
            translation.kept(title, f"threads: {int(text)}")
        elif key == "TF_SIGNATURE_DEF":
            translation.changed(title, "a request names the signature that it wants, or gets the default one")
        else:
            translation.dropped(title, "parameters for a backend of Triton are not read")
