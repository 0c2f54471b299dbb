"""What is in a model store: for each model its versions, artifacts and configuration, or what is wrong with them."""

import errno
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from gateway.errors import ConfigError
from gateway.store import contents, foreign, pickles
from gateway.store.contents import LEADS_OUT, Contents, Directory, fingerprint, identity, inside, resolved, shown
from gateway.store.manifest import FRAMEWORKS, MODEL_NAME, ModelConfig

NAME = re.compile(MODEL_NAME)
MAX_SENTENCES = 1000
_LEFT_BEHIND = frozenset({"__pycache__", "__MACOSX"})
"""Directories that programs leave in others."""
_TORCHSCRIPT_SUFFIXES = (".pt", ".pth", ".ptl")


Key = tuple[str, int]
"""Model and version."""


@dataclass(frozen=True)
class Artifact:
    """One version of a model as it lies in the store; `problem` says why it cannot even be tried."""

    model: str
    version: int
    platform: str
    path: Path
    config: ModelConfig
    problem: str = ""
    directory: Path = Path()
    """The version's directory."""
    stamp: int = 0
    """A fingerprint of names, sizes and times of everything in the directory, and of what configures the model."""
    changed: float = 0.0
    """The newest change time of these, by the clock of the file system."""
    contents: Contents = field(default=Contents(), compare=False, repr=False)
    """The directory without model.yaml."""
    settling: bool = field(default=False, compare=False)
    """Files of it are being changed; this is what it was before, and nothing should be made of the difference yet."""

    @property
    def framework(self) -> str:
        """Pytorch or tensorflow; empty if unknown."""
        return FRAMEWORKS.get(self.platform, "")


@dataclass(frozen=True)
class Inventory:
    """Everything found in one look at the store; what is not in it is not there."""

    artifacts: list[Artifact] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    """Entries that look like models or versions and are not, one sentence each, the same at every look."""
    notes: list[str] = field(default_factory=list)
    """What another server's configuration says and means something else here, or nothing; one sentence each."""
    misconfigured: set[str] = field(default_factory=set)
    """Models whose model.yaml cannot be used; their versions say why."""
    unreadable: set[str] = field(default_factory=set)
    """Models that are there and cannot be read now."""
    device: int = field(default=0, compare=False, repr=False)
    """The file system that the store is on."""
    directories: set[Directory] = field(default_factory=set, compare=False, repr=False)
    """Where a change would make another inventory."""
    links: frozenset[str] = field(default=frozenset(), compare=False, repr=False)
    """The links on the way to the store, outside of it: changing one of them, as git-sync does, makes another one."""

    def model(self, name: str) -> list[Artifact]:
        """All versions of one model."""
        return [artifact for artifact in self.artifacts if artifact.model == name]

    def ignore(self, sentence: str) -> None:
        """Add a sentence to `ignored`, up to a bound."""
        if len(self.ignored) < MAX_SENTENCES:
            self.ignored.append(sentence)


def scan(store: Path) -> Inventory:
    """Look at the store once; ConfigError if it is no readable directory."""
    try:
        root = os.path.realpath(store)
        before = identity(root)
        names = sorted(entry.name for entry in _directories(root))
        alone = _is_base_path(root, names)
    except OSError as error:
        raise ConfigError(f"model store {store} cannot be read: {error.strerror}") from None
    inventory = Inventory(device=before[1], directories={before}, links=frozenset(contents.links_to(str(store))))
    for name in [Path(root).name] if alone else names:
        try:
            _scan_model(name, Path(root) if alone else store / name, root, inventory)
        except (FileNotFoundError, NotADirectoryError):
            continue  # deleted since
        except OSError as error:
            inventory.unreadable.add(name)
            inventory.ignore(f"{shown(name)} cannot be read: {error.strerror}")
    # A store that was taken away meanwhile, or whose file system was, looks as if all its models had been deleted.
    try:
        after = identity(os.path.realpath(store))
    except OSError:
        after = None
    if after != before:
        raise ConfigError(f"model store {store} was replaced while it was read")
    return inventory


def _directories(path: str | Path) -> Iterator[os.DirEntry[str]]:
    """Directories, and links to some, that are not hidden."""
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.name in _LEFT_BEHIND:
                continue
            try:
                if entry.is_dir():
                    yield entry
            except OSError as error:
                if error.errno not in (errno.ELOOP, errno.EACCES):
                    raise


def _is_base_path(root: str, names: list[str]) -> bool:
    """Whether versions of one SavedModel lie in the store itself, as in a base path of TensorFlow Serving.

    Not if a model lies there too: a SavedModel in the wrong place must not hide the others.
    """
    versions = [name for name in names if _is_version(name)]
    if not any(_holds(Path(root, name), "saved_model.pb") for name in versions):
        return False
    return not any(_has_versions(Path(root, name)) for name in names)


def _holds(directory: Path, name: str) -> bool:
    try:
        return (directory / name).is_file()
    except OSError:
        return False  # what cannot be read is told of where it is looked at


def _has_versions(directory: Path) -> bool:
    try:
        return any(_is_version(entry.name) for entry in _directories(directory))
    except OSError:
        return False


def _is_version(name: str) -> bool:
    return name.isascii() and name.isdigit() and len(name) <= 18


def _scan_model(name: str, directory: Path, root: str, inventory: Inventory) -> None:
    if not NAME.fullmatch(name):
        inventory.ignore(f"{shown(name)} is no model name: it has control characters, or bytes that are not UTF-8")
        return
    real = directory if str(directory) == root else Path(resolved(root, name))
    problem = "" if inside(str(real), root) else f"its model's directory {LEADS_OUT}"
    if not problem:
        inventory.directories.add(identity(str(real)))
    versions = _versions(directory, inventory)
    if not versions:
        inventory.ignore(f"'{name}' has no version directory, such as {name}/1/")
        return
    config, configured, changed = ModelConfig(), 0, 0.0
    if not problem:
        found_config = foreign.read(real, root)
        facts, changed = foreign.facts(real, found_config.files)
        config, configured, problem = found_config.config, fingerprint(facts), found_config.problem
        if problem:
            inventory.misconfigured.add(name)
        room = MAX_SENTENCES - len(inventory.notes)
        inventory.notes.extend(f"{name}: {sentence}" for sentence in found_config.sentences[:room])
    for version, path in versions.items():
        try:
            found = contents.look(real / path.name, root)
        except (FileNotFoundError, NotADirectoryError):
            continue  # deleted since
        inventory.directories.update(found.directories)
        platform, artifact, missing = _artifact(path, config, found.problem)
        inventory.artifacts.append(
            Artifact(
                name,
                version,
                platform,
                artifact,
                config,
                found.problem or problem or missing,
                directory=path,
                stamp=fingerprint([found.stamp, configured]),
                changed=max(found.changed, changed),
                contents=found,
            )
        )


def _artifact(version: Path, config: ModelConfig, problem: str) -> tuple[str, Path, str]:
    """As find_artifact, but for a directory that may have a problem, or get one now."""
    if not problem:
        try:
            return find_artifact(version, config)
        except OSError as error:
            problem = f"it cannot be read: {error.strerror}"
    return config.platform or "", version, problem


def _versions(directory: Path, inventory: Inventory) -> dict[int, Path]:
    """The version directories of a model by their number; of two with the same number the one without zeros."""
    versions: dict[int, Path] = {}
    for entry in sorted(_directories(directory), key=lambda each: (len(each.name), each.name)):
        name = entry.name
        title = f"'{directory.name}/{shown(name)[1:-1]}'"
        if not _is_version(name):
            inventory.ignore(f"{title} is no version: the name of a version's directory is an integer")
        elif (first := versions.setdefault(int(name), directory / name)).name != name:
            inventory.ignore(f"{title} is the same version as '{directory.name}/{first.name}'")
    return dict(sorted(versions.items()))


def find_artifact(version: Path, config: ModelConfig) -> tuple[str, Path, str]:
    """(platform, artifact, problem) of a version directory; the artifact is a file or a SavedModel directory."""
    for directory in (version, version / "model.savedmodel"):
        if (directory / "saved_model.pb").is_file() or (directory / "saved_model.pbtxt").is_file():
            return _checked("tensorflow_savedmodel", directory, config)
    for suffix in _TORCHSCRIPT_SUFFIXES:
        if (version / f"model{suffix}").is_file():
            return _checked("pytorch_torchscript", version / f"model{suffix}", config)
    if (version / "model.savedmodel").is_dir():
        return config.platform or "", version, "model.savedmodel/ holds no saved_model.pb; copy the whole SavedModel"
    return config.platform or "", version, f"no artifact: {_what_is_there_instead(version)}"


def _what_is_there_instead(version: Path) -> str:
    children = sorted(version.iterdir())
    names = ", ".join(shown(child.name)[1:-1] for child in children[:5]) or "nothing"
    said = f"expected model.pt, saved_model.pb or model.savedmodel/, found {names}"
    # A link is not opened: it may lead out of the store.
    weights = [
        each for each in children if each.suffix in pickles.SUFFIXES and each.is_file() and not each.is_symlink()
    ]
    if not weights:
        return said
    what = "a Python pickle, which would run code when opened" if pickles.is_pickled(weights[0]) else "no model"
    return (
        f"{said}; {shown(weights[0].name)[1:-1]} is {what}: it holds weights or objects and no code to run them; save "
        "the model as TorchScript (model.pt) or as a SavedModel"
    )


def _checked(platform: str, artifact: Path, config: ModelConfig) -> tuple[str, Path, str]:
    if config.platform and config.platform != platform:
        return config.platform, artifact, f"model.yaml says {config.platform}, the artifact is {platform}"
    return platform, artifact, ""
