"""The configuration of a model that lies in the store as another server had it: Triton's config.pbtxt."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import msgspec

from gateway.errors import ConfigError
from gateway.importing import triton
from gateway.store import manifest
from gateway.store.manifest import ModelConfig


@dataclass(frozen=True)
class Foreign:
    """A model's configuration, what it comes from, and what is odd about it."""

    config: ModelConfig = field(default_factory=ModelConfig)
    files: tuple[str, ...] = (manifest.FILE,)
    """In the model's directory; a change of one is a change of the model."""
    sentences: tuple[str, ...] = ()
    problem: str = ""


def read(directory: Path, root: str) -> Foreign:
    """The configuration of the model in `directory`: model.yaml, else config.pbtxt, else the defaults.

    Never raises ConfigError: `problem` says what is wrong. Both paths are resolved; links must not lead out of `root`.
    """
    files: tuple[str, ...] = (triton.FILE, *manifest.files(directory, root))
    try:
        if os.path.lexists(directory / manifest.FILE) or not os.path.lexists(directory / triton.FILE):
            return Foreign(manifest.read(directory, root), files)
        model = _translated(manifest.read_file(directory, triton.FILE, root), directory.name)
        config = config_of(model.translation.keys, triton.FILE)
        files += manifest.named_files(config)
        return Foreign(manifest.resolve(config, directory, root), files, _odd(model))
    except ConfigError as error:
        return Foreign(files=files, problem=error.message)


_TOLD = ("changed", "dropped")


def _odd(model: triton.TritonModel) -> tuple[str, ...]:
    return tuple(
        f"{triton.FILE}: {each.key} is {each.fate}: {each.sentence}"
        for each in model.translation.findings
        if each.fate in _TOLD
    )


@lru_cache(maxsize=1024)
def _translated(text: bytes, name: str) -> triton.TritonModel:
    try:
        return triton.translate(text, name)
    except ConfigError as error:
        message = error.message
        raise ConfigError(message if message.startswith(triton.FILE) else f"{triton.FILE}: {message}") from None


def config_of(keys: Mapping[str, object], title: str) -> ModelConfig:
    """The keys of a translation as they would be read from model.yaml; ConfigError, which names the foreign file."""
    try:
        return manifest.parse(msgspec.yaml.encode(keys))
    except ConfigError as error:
        raise ConfigError(f"{title} comes to this: {error.message}") from None


def facts(directory: Path, files: Iterable[str]) -> tuple[list[object], float]:
    """What the file system says of these files, to be fingerprinted, and the newest change time."""
    found: list[object] = []
    changed = 0.0
    for path in (directory / file for file in files):
        for follow in (False, True):
            try:
                info = path.stat(follow_symlinks=follow)
            except OSError as error:
                found.append(error.errno)
            else:
                found.append((info.st_mode, info.st_size, info.st_mtime_ns, info.st_ctime_ns))
                changed = max(changed, info.st_ctime)
    return found, changed
