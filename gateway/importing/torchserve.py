"""TorchServe's model archives (.mar) in the words of model.yaml.

https://github.com/pytorch/serve/blob/master/model-archiver/README.md and docs/configuration.md say what each key means.
"""

import zipfile
from pathlib import Path
from typing import Any

import msgspec

from gateway import yaml_text
from gateway.errors import ConfigError
from gateway.importing import archive
from gateway.importing.fields import Fields, tree_of
from gateway.importing.plan import TORCHSCRIPT, Piece, Plan, refusing, version_number
from gateway.importing.report import Translation
from gateway.store.contents import inside

MANIFEST = "MAR-INF/MANIFEST.json"
LABELS = "index_to_name.json"
MAX_BYTES = 1 << 20
_IMAGE = {"resize": 256, "crop": 224, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
_DEVICES = {"cpu": "cpu", "gpu": "gpu"}


def plan(path: Path, root: Path) -> Plan:
    """What an archive below the resolved `root` comes to; whatever is wrong with it is in `refused`."""
    found = Plan(path.stem, path.name, path.parent)
    with refusing(found):
        if not inside(str(path.resolve()), str(root)):
            raise ConfigError("it is a link that leads out of the source")
        with archive.opened(path) as opened:
            _read(opened, path, found)
    return found


def _read(opened: zipfile.ZipFile, path: Path, found: Plan) -> None:
    manifest = Fields(tree_of(_decoded(archive.content(opened, MANIFEST, MAX_BYTES), MANIFEST)))
    translation = found.translation
    model = manifest.section("model")
    if model is None:
        raise ConfigError(f"{MANIFEST} has no model")
    found.model = model.text("modelName") or found.model
    translation.kept("modelName", f"the model is called {found.model!r:.80}")
    said = model.text("modelVersion") or "1.0"
    version = version_number(said)
    if said == str(version):
        translation.kept("modelVersion", f"version {version}")
    else:
        translation.changed("modelVersion", f"version {version}, the first number of {said!r:.40}")
    if model.text("modelFile"):
        raise ConfigError(
            "modelFile: a model in Python code is not run; save it with torch.jit.script or torch.jit.trace"
        )
    labels = LABELS if LABELS in opened.namelist() else ""
    _handler(model.text("handler") or "", labels, translation)
    member = model.text("serializedFile") or ""
    if member not in opened.namelist():
        raise ConfigError("serializedFile: the archive has no such file")
    _check_payload(opened, member)
    translation.kept("serializedFile", f"{TORCHSCRIPT} of version {version}")
    found.versions[version] = Piece(path, TORCHSCRIPT, member)
    if labels in translation.files:
        found.beside.append(Piece(path, LABELS, LABELS))
    read = {MANIFEST, member, labels}
    if (config := model.text("configFile")) is not None:
        read.add(config)
        translate(Fields(tree_of(_yaml(archive.content(opened, config, MAX_BYTES), config))), translation)
        translation.kept("configFile", "its keys follow")
    model.drop_names(translation, {"requirementsFile": "no Python packages are installed"})
    manifest.drop_rest(translation, lambda key: f"{key.rpartition('.')[2]} says nothing about how the model is served")
    for name in opened.namelist():
        if name not in read and not name.endswith("/"):
            translation.dropped(name[:200], "the file is not copied")


def _check_payload(opened: zipfile.ZipFile, member: str) -> None:
    if member.endswith((".onnx", ".pt2", ".so")):
        raise ConfigError(f"serializedFile {member!r:.80} is not served here: TorchScript is")
    info = opened.getinfo(member)
    with opened.open(info) as file:
        problem = archive.not_torchscript(file, info.file_size)
    if problem:
        raise ConfigError(f"serializedFile {member!r:.80}: {problem}")


def _handler(said: str, labels: str, translation: Translation) -> None:
    handler = said.removesuffix(".py")
    if handler == "base_handler":
        translation.kept("handler", "base_handler: tensors in and tensors out")
    elif handler == "image_classifier":
        classes: dict[str, Any] = {"top": 5, "softmax": True}
        if labels:
            classes["labels"] = labels
            translation.files.append(labels)
            translation.kept(labels, "the labels of the classes")
        translation.keys["preprocessing"] = {"image": dict(_IMAGE)}
        translation.keys["postprocessing"] = {"classes": classes}
        translation.kept("handler", "image_classifier: preprocessing and postprocessing are declared in model.yaml")
    else:
        raise ConfigError(
            f"handler {said!r:.80}: no handler code is run; base_handler and image_classifier are built in"
        )


def translate(config: Fields, translation: Translation) -> None:
    """The keys of a model-config.yaml; ConfigError for a value that makes no sense."""
    keys = translation.keys
    if (size := config.number("batchSize")) is not None:
        keys["max_batch_size"] = max(size, 1)
        translation.kept("batchSize", f"max_batch_size: {max(size, 1)}")
    if (delay := config.number("maxBatchDelay")) is not None:
        keys["max_queue_delay_microseconds"] = min(max(delay, 0), 10_000) * 1000
        translation.kept("maxBatchDelay", f"max_queue_delay_microseconds: {keys['max_queue_delay_microseconds']}")
    if (seconds := config.number("responseTimeout")) is not None and seconds > 0:
        seconds = min(seconds, 86400)
        keys["execution_timeout"] = float(seconds)
        translation.changed("responseTimeout", f"execution_timeout: {seconds}, of one batch")
    group: dict[str, Any] = {}
    if (count := config.number("minWorkers")) is not None:
        group["count"] = max(count, 1)
        translation.kept("minWorkers", f"instance_group.count: {max(count, 1)}")
    if (device := config.text("deviceType")) is not None:
        group["kind"] = _DEVICES.get(device, "auto")
        translation.kept("deviceType", f"instance_group.kind: {group['kind']}")
    if ids := config.numbers("deviceIds"):
        group["gpus"] = ids
        translation.changed("deviceIds", f"instance_group.gpus: {ids}, so many instances on each of them")
    if group not in ({}, {"count": 1}):
        keys["instance_group"] = group
    config.drop_names(translation, {"maxWorkers": "the number of instances is fixed; it is minWorkers"})
    config.drop_rest(translation, lambda key: f"there is nothing like {key} here")


def _decoded(text: bytes, title: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except (ValueError, RecursionError):
        raise ConfigError(f"{title} is no JSON object") from None


def _yaml(text: bytes, title: str) -> dict[str, Any]:
    try:
        return msgspec.convert(yaml_text.read(text), dict[str, Any] | None) or {}
    except (ValueError, RecursionError):
        raise ConfigError(f"{title!r:.80} is no YAML object") from None
