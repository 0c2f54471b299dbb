"""What is in a model store: for each model its versions, artifacts and configuration, or what is wrong with them."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from gateway.errors import ConfigError
from gateway.store import manifest
from gateway.store.manifest import FRAMEWORKS, ModelConfig

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,127}")
_TORCHSCRIPT_SUFFIXES = (".pt", ".pth", ".ptl")


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
    """A fingerprint of names, sizes and times of everything in the directory and of model.yaml."""

    @property
    def framework(self) -> str:
        """Pytorch or tensorflow; empty if unknown."""
        return FRAMEWORKS.get(self.platform, "")


@dataclass(frozen=True)
class Inventory:
    """Everything found in one look at the store; what is not in it is not there."""

    artifacts: list[Artifact] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    """Entries that look like models and are not, one sentence each."""

    def model(self, name: str) -> list[Artifact]:
        """All versions of one model."""
        return [artifact for artifact in self.artifacts if artifact.model == name]

    def aspired(self) -> list[Artifact]:
        """The versions to serve: the highest of each model."""
        latest: dict[str, Artifact] = {}
        for artifact in self.artifacts:
            if artifact.model not in latest or latest[artifact.model].version < artifact.version:
                latest[artifact.model] = artifact
        return list(latest.values())


def scan(store: Path) -> Inventory:
    """Look at the store once; ConfigError if it is no readable directory."""
    try:
        entries = sorted(store.iterdir())
    except OSError as error:
        raise ConfigError(f"model store {store} cannot be read: {error.strerror}") from None
    inventory = Inventory()
    for entry in entries:
        if entry.name.startswith((".", "__")):
            continue
        try:
            if entry.is_dir():
                _scan_model(entry, inventory)
        except OSError as error:
            inventory.ignored.append(f"'{entry.name}' cannot be read: {error.strerror}")
    return inventory


def _scan_model(directory: Path, inventory: Inventory) -> None:
    name = directory.name
    if not NAME.fullmatch(name):
        inventory.ignored.append(f"'{name}' is no model name: letters, digits, '_', '-' and '.' make one")
        return
    versions = sorted((int(child.name), child) for child in directory.iterdir() if _is_version(child))
    if not versions:
        inventory.ignored.append(f"'{name}' has no version directory, such as {name}/1/")
        return
    problem, config = "", ModelConfig()
    try:
        config = manifest.read(directory)
    except ConfigError as error:
        problem = error.message
    for version, path in versions:
        try:
            platform, artifact, missing = find_artifact(path, config)
        except OSError as error:
            platform, artifact, missing = config.platform or "", path, f"it cannot be read: {error.strerror}"
        inventory.artifacts.append(Artifact(name, version, platform, artifact, config, problem or missing))


def _is_version(path: Path) -> bool:
    return path.name.isascii() and path.name.isdigit() and len(path.name) <= 18 and path.is_dir()


def find_artifact(version: Path, config: ModelConfig) -> tuple[str, Path, str]:
    """(platform, artifact, problem) of a version directory; the artifact is a file or a SavedModel directory."""
    for directory in (version, version / "model.savedmodel"):
        if (directory / "saved_model.pb").is_file() or (directory / "saved_model.pbtxt").is_file():
            return _checked("tensorflow_savedmodel", directory, config)
    for suffix in _TORCHSCRIPT_SUFFIXES:
        if (version / f"model{suffix}").is_file():
            return _checked("pytorch_torchscript", version / f"model{suffix}", config)
    found = ", ".join(sorted(child.name for child in version.iterdir())[:5]) or "nothing"
    problem = f"no artifact: expected model.pt, saved_model.pb or model.savedmodel/, found {found}"
    return config.platform or "", version, problem


def _checked(platform: str, artifact: Path, config: ModelConfig) -> tuple[str, Path, str]:
    if config.platform and config.platform != platform:
        return config.platform, artifact, f"model.yaml says {config.platform}, the artifact is {platform}"
    return platform, artifact, ""
