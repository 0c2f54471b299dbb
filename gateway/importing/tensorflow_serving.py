"""TensorFlow Serving's models.config in the words of model.yaml.

https://github.com/tensorflow/serving/blob/master/tensorflow_serving/config/model_server_config.proto has the keys.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gateway.errors import ConfigError
from gateway.importing import text_proto
from gateway.importing.fields import Fields
from gateway.importing.plan import SAVED_MODEL, Piece, Plan, refusing
from gateway.importing.report import Translation
from gateway.store.contents import inside


@dataclass
class Served:
    """One model of a models.config."""

    name: str
    base_path: str
    translation: Translation = field(default_factory=Translation)
    refused: str = ""


def translate(text: bytes, title: str) -> list[Served]:
    """The models of a models.config; ConfigError if it is none. What is wrong with one model is in its `refused`."""
    fields = Fields(text_proto.parse(text, title))
    lists = fields.section("model_config_list")
    if lists is None:
        raise ConfigError(f"{title} has no model_config_list")
    others = [key for key in (*fields.tree, *lists.tree) if key not in ("model_config_list", "config")]
    if others:
        raise ConfigError(f"{title}: {others[0]} is not read; a model_config_list of configs is")
    found = []
    for section in lists.sections("config"):
        served = Served("", "")
        with refusing(served):
            _model(section, served)
        found.append(served)
    return found


def _model(section: Fields, served: Served) -> None:
    translation = served.translation
    served.name = section.text("name") or ""
    served.base_path = section.text("base_path") or ""
    translation.kept("name", f"the model is called {served.name!r:.80}")
    translation.kept("base_path", "its versions are copied")
    for key in ("model_platform", "model_type"):
        said = section.text(key)
        if said is None:
            continue
        if said.lower() != "tensorflow":
            raise ConfigError(f"{key} {said!r:.80} is not served here")
        translation.kept(key, "platform: tensorflow_savedmodel")
        translation.keys["platform"] = "tensorflow_savedmodel"
    policies = section.section("model_version_policy")
    if policies is not None:
        said_policy = version_policy(policies)
        if said_policy != "latest":
            translation.keys["version_policy"] = said_policy
        translation.kept("model_version_policy", f"version_policy: {said_policy}")
    labels = {}
    for entry in section.sections("version_labels"):
        labels[entry.text("key") or ""] = entry.number("value") or 0
    if labels:
        translation.keys["version_labels"] = labels
        translation.kept("version_labels", f"version_labels of {len(labels)}")
    section.drop_names(translation, {"logging_config": "requests are not logged"})
    section.drop_rest(translation, lambda key: f"there is nothing like {key} here")


def version_policy(fields: Fields) -> Any:
    """The policy in model.yaml's words; ConfigError if it says not exactly one thing."""
    given = [key for key in ("latest", "all", "specific") if key in fields]
    if len(given) > 1:
        raise ConfigError("model_version_policy says more than one of latest, all and specific")
    section = fields.section(given[0]) if given else None
    if section is None:
        return "latest"
    if given == ["all"]:
        return "all"
    if given == ["specific"]:
        return {"specific": section.numbers("versions")}
    number = section.number("num_versions")
    return "latest" if number in (None, 0, 1) else {"latest": number}


def plans(text: bytes, title: str, directory: Path) -> list[Plan]:
    """What the models of a models.config in `directory` come to."""
    return [_plan(served, directory) for served in translate(text, title)]


def _plan(served: Served, directory: Path) -> Plan:
    found = Plan(served.name, served.base_path, translation=served.translation, refused=served.refused)
    if found.refused:
        return found
    if "://" in served.base_path or "\0" in served.base_path or not served.base_path:
        found.refused = f"base_path {served.base_path!r:.120} is no path on this machine"
        return found
    path = Path(served.base_path)
    with refusing(found):
        if not path.is_absolute():
            path = directory / path
            if not inside(str(path.resolve()), str(directory.resolve())):
                raise ConfigError(f"base_path {served.base_path!r:.120} leads out of the source")
        base_path(found, path)
    return found


def base_path(found: Plan, path: Path) -> Plan:
    """The plan with the versions that lie in a base path."""
    try:
        found.root = path.resolve()
        entries = sorted(found.root.iterdir(), key=lambda entry: (len(entry.name), entry.name))
    except OSError as error:
        found.refused = f"the base path cannot be read: {error.strerror}"
        return found
    for entry in entries:
        number = entry.name
        if entry.name.startswith("."):
            continue
        if not (number.isascii() and number.isdigit() and len(number) <= 18):
            found.translation.dropped(entry.name[:100], "it is no version, whose name is an integer")
        elif not any((entry / f"saved_model.{kind}").is_file() for kind in ("pb", "pbtxt")):
            found.translation.dropped(entry.name, "there is no SavedModel in this version")
        elif int(number) in found.versions:
            found.translation.dropped(entry.name, "the same number as another version")
        else:
            found.versions[int(number)] = Piece(entry, SAVED_MODEL)
    return found
