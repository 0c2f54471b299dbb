"""Which server's a repository is, and what all its models come to."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

from gateway.errors import ConfigError
from gateway.importing import archive, mlserver, tensorflow_serving, torchserve, triton
from gateway.importing.plan import SAVED_MODEL, TORCHSCRIPT, Piece, Plan, refusing
from gateway.store.contents import inside
from gateway.store.foreign import config_of
from gateway.store.manifest import read_file
from gateway.store.regular import open_regular
from gateway.store.source import NAME

Layout = Literal["tensorflow-serving", "triton", "torchserve", "mlserver"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
CONFIG = "models.config"
MAX_MODELS = 10_000
MAX_DEPTH = 4


def plans(source: Path, layout: Layout | None = None) -> tuple[Layout, list[Plan]]:
    """The layout of a repository and a plan for each of its models; ConfigError if it is none that is known."""
    try:
        source = source.resolve()
        found = layout or detect(source)
        readers = {
            "tensorflow-serving": _tensorflow_serving,
            "triton": _triton,
            "torchserve": _torchserve,
            "mlserver": _mlserver,
        }
        models = list(itertools.islice(readers[found](source), MAX_MODELS))
    except OSError as error:
        raise ConfigError(f"{source} cannot be read: {error.strerror}") from None
    except RuntimeError:  # Path.resolve's, up to Python 3.12
        raise ConfigError(f"{source} is a link to itself") from None
    if not models:
        raise ConfigError(f"{source} holds no model in the layout of {found}")
    merged = _merged(models)
    for plan in merged:
        _check(plan, found)
    return found, merged


def detect(source: Path) -> Layout:
    """The layout, by what files there are; ConfigError if that does not tell."""
    if source.is_file():
        if source.name == mlserver.FILE:
            return "mlserver"
        return "torchserve" if source.suffix == ".mar" else "tensorflow-serving"
    if any(source.glob("*.mar")):
        return "torchserve"
    if (source / CONFIG).is_file():
        return "tensorflow-serving"
    if next(_settings(source), None) is not None:
        return "mlserver"
    if (source / triton.FILE).is_file() or any(source.glob(f"*/{triton.FILE}")):
        return "triton"
    if any(source.glob("[0-9]*/saved_model.pb")) or any(source.glob("*/[0-9]*/saved_model.pb")):
        return "tensorflow-serving"
    if any(any(source.glob(f"*/[0-9]*/{name}")) for name in (TORCHSCRIPT, SAVED_MODEL)):
        return "triton"
    raise ConfigError(f"{source} is no model repository that is known; --from takes one of {', '.join(LAYOUTS)}")


def _directories(source: Path) -> list[Path]:
    return sorted(entry for entry in source.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _tensorflow_serving(source: Path) -> Iterator[Plan]:
    config = source if source.is_file() else source / CONFIG
    if config.is_file():
        directory = config.parent
        text = read_file(directory, config.name, str(directory))
        yield from tensorflow_serving.plans(text, config.name, directory)
        return
    if any(source.glob("[0-9]*/saved_model.pb")):
        yield tensorflow_serving.base_path(Plan(source.name, source.name), source)
        return
    for path in _directories(source):
        found = Plan(path.name, path.name)
        with refusing(found):
            tensorflow_serving.base_path(found, _inside(path, source))
        yield found


def _torchserve(source: Path) -> Iterator[Plan]:
    for path in [source] if source.is_file() else sorted(source.glob("*.mar")):
        yield torchserve.plan(path, source.parent if source.is_file() else source)


def _settings(source: Path) -> Iterator[Path]:
    for depth in range(MAX_DEPTH + 1):
        yield from sorted(source.glob("*/" * depth + mlserver.FILE))


def _mlserver(source: Path) -> Iterator[Plan]:
    root = source.parent if source.is_file() else source
    for path in [source] if source.is_file() else _settings(source):
        yield mlserver.plan(path, root)


def _triton(source: Path) -> Iterator[Plan]:
    for path in [source] if (source / triton.FILE).is_file() else _directories(source):
        yield _triton_model(path, source)


def _triton_model(path: Path, root: Path) -> Plan:
    found = Plan(path.name, path.name, root)
    with refusing(found):
        real = _inside(path, root)
        has_config = (path / triton.FILE).exists()
        model = (
            triton.translate(read_file(real, triton.FILE, str(root)), path.name) if has_config else triton.TritonModel()
        )
        found.translation = model.translation
        found.beside = [Piece(path / file, file) for file in model.translation.files]
        for version in sorted(_directories(path), key=lambda each: (len(each.name), each.name)):
            _triton_version(version, model.filename, found)
    return found


def _inside(path: Path, root: Path) -> Path:
    real = path.resolve()
    if not inside(str(real), str(root)):
        raise ConfigError("its directory is a link that leads out of the source")
    return real


def _triton_version(version: Path, filename: str, found: Plan) -> None:
    number = version.name
    if not (number.isascii() and number.isdigit() and len(number) <= 18):
        found.translation.dropped(f"{number[:100]}/", "it is no version, whose name is an integer")
        return
    if int(number) in found.versions:
        found.translation.dropped(f"{number}/", "the same number as another version")
        return
    names = {filename: TORCHSCRIPT} if filename else {}
    for name in (*names, SAVED_MODEL, TORCHSCRIPT):
        path = version / name
        if path.is_file():
            _inside(path, found.root)
            with open_regular(path) as file:
                problem = archive.not_torchscript(file, path.stat().st_size)
            if problem:
                raise ConfigError(f"{number}/{name!r:.80}: {problem}")
            found.versions[int(number)] = Piece(path, TORCHSCRIPT)
        elif any((path / f"saved_model.{kind}").is_file() for kind in ("pb", "pbtxt")):
            found.versions[int(number)] = Piece(path, SAVED_MODEL)
        else:
            continue
        return
    found.translation.dropped(f"{number}/", "it holds neither model.pt nor model.savedmodel/")


def _merged(models: list[Plan]) -> list[Plan]:
    """Versions of one model that lie apart become one plan, with the configuration of the highest."""
    by_name: dict[str, Plan] = {}
    refused = []
    for plan in sorted(models, key=lambda each: max(each.versions, default=0), reverse=True):
        first = by_name.get(plan.model)
        if plan.refused:
            refused.append(plan)
        elif first is None:
            by_name[plan.model] = plan
        elif plan.versions.keys() & first.versions.keys():
            plan.refused = f"another model is called {plan.model!r:.80} and has the same version number"
            refused.append(plan)
        else:
            first.versions |= plan.versions
            if plan.translation.keys != first.translation.keys:
                first.translation.changed(plan.origin, "its configuration is that of the highest version")
    return sorted([*by_name.values(), *refused], key=lambda each: each.model)


def _check(plan: Plan, layout: str) -> None:
    """Refuse what could not be served: a name, no version, or a configuration with a value out of bounds."""
    if plan.refused:
        return
    if not NAME.fullmatch(plan.model):
        what = "it is hidden, or has control characters or bytes that are not UTF-8"
        plan.refused = f"{plan.model!r:.80} is no model name: {what}"
    elif not plan.versions:
        plan.refused = "it has no version with an artifact that is served here"
    else:
        with refusing(plan):
            config_of(plan.translation.keys, layout)
