"""MLServer's model-settings.json in the words of model.yaml.

https://mlserver.readthedocs.io/en/stable/reference/model-settings.html says what each key means.
"""

from pathlib import Path
from typing import Any

import msgspec

from gateway.errors import ConfigError
from gateway.importing import archive
from gateway.importing.fields import Fields, tree_of
from gateway.importing.plan import SAVED_MODEL, TORCHSCRIPT, Piece, Plan, declared, refusing, version_number
from gateway.importing.report import Translation
from gateway.store.contents import inside
from gateway.store.manifest import read_file
from gateway.store.regular import open_regular

FILE = "model-settings.json"
_RUNTIMES = ("sklearn", "xgboost", "lightgbm", "catboost", "huggingface", "alibi_detect", "alibi_explain", "onnx")
_WELL_KNOWN = (TORCHSCRIPT, SAVED_MODEL, ".")


def translate(text: bytes, found: Plan) -> tuple[str, int]:
    """(uri, version) of a model-settings.json, and the rest into the plan; ConfigError says why it cannot be served."""
    try:
        tree = msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise ConfigError(f"{FILE} is no JSON object") from None
    fields = Fields(tree_of(tree))
    translation = found.translation
    if name := fields.text("name"):
        found.model = name
        translation.kept("name", f"the model is called {name!r:.80}")
    runtime = fields.text("implementation") or ""
    for refused in _RUNTIMES:
        if refused in runtime.lower():
            raise ConfigError(f"implementation {runtime!r:.80} is not served here: TorchScript and SavedModels are")
    if runtime:
        translation.changed("implementation", f"code of {runtime!r:.80} is not run; its artifact is served as it is")
    parameters = fields.section("parameters") or Fields({})
    uri = parameters.text("uri") or ""
    if uri:
        translation.kept("parameters.uri", "the artifact is copied")
    said = parameters.text("version") or "1"
    version = version_number(said)
    if "version" in parameters:
        note = translation.kept if said == str(version) else translation.changed
        note("parameters.version", f"version {version}, the first number of {said!r:.40}")
    _running(fields, translation)
    for side in ("inputs", "outputs"):
        tensors = [
            declared(each.text("name"), each.text("datatype"), each.numbers("shape"), side)
            for each in fields.sections(side)
        ]
        if tensors:
            translation.keys[side] = tensors
            translation.kept(side, f"{len(tensors)} declared")
    fields.drop_rest(translation, lambda key: f"there is nothing like {key} here")
    return uri, version


def _running(fields: Fields, translation: Translation) -> None:
    size = fields.number("max_batch_size")
    if size is not None:
        translation.keys["max_batch_size"] = max(size, 1)
        translation.kept("max_batch_size", f"max_batch_size: {max(size, 1)}")
    if (seconds := fields.amount("max_batch_time")) is not None:
        delay = round(min(max(seconds, 0.0), 10.0) * 1e6)
        if delay:
            translation.keys["max_queue_delay_microseconds"] = delay
        translation.kept("max_batch_time", f"max_queue_delay_microseconds: {delay}")
    if (count := fields.number("parallel_workers")) is not None:
        if count > 1:
            translation.keys["instance_group"] = {"count": count}
        translation.changed("parallel_workers", f"instance_group.count: {max(count, 1)}, of this model alone")


def plan(settings: Path, root: Path) -> Plan:
    """What the model of a model-settings.json comes to; whatever is wrong with it is in `refused`."""
    directory = settings.parent
    found = Plan(directory.name, str(settings.relative_to(root)), root)
    with refusing(found):
        text = read_file(directory.resolve(), FILE, str(root))
        uri, version = translate(text, found)
        found.versions[version] = _artifact(directory, uri, root)
    return found


def _artifact(directory: Path, uri: str, root: Path) -> Piece:
    if "://" in uri or "\0" in uri:
        raise ConfigError(f"parameters.uri {uri!r:.120} is no path on this machine")
    for name in (uri,) if uri else _WELL_KNOWN:
        path = (directory / name).resolve()
        if not inside(str(path), str(root)):
            raise ConfigError("parameters.uri leads out of the source")
        if any((path / f"saved_model.{kind}").is_file() for kind in ("pb", "pbtxt")):
            return Piece(path, SAVED_MODEL)
        if path.is_file():
            with open_regular(path) as file:
                problem = archive.not_torchscript(file, path.stat().st_size)
            if problem:
                raise ConfigError(f"{path.name!r:.80}: {problem}")
            return Piece(path, TORCHSCRIPT)
    raise ConfigError("no artifact: expected TorchScript or a SavedModel at parameters.uri")
