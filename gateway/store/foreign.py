"""The configuration of a model that lies in the store as another server had it: Triton's config.pbtxt."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import msgspec

from gateway.errors import ConfigError
from gateway.importing import triton
from gateway.store import manifest
from gateway.store.contents import LEADS_OUT, inside, resolved, shown
from gateway.store.manifest import ModelConfig
from gateway.store.regular import open_regular


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
    files: tuple[str, ...] = (manifest.FILE, triton.FILE)
    try:
        if os.path.lexists(directory / manifest.FILE) or not os.path.lexists(directory / triton.FILE):
            return Foreign(manifest.read(directory, root), files)
        model = _translated(read_file(directory, triton.FILE, root), directory.name)
        labels = tuple(sorted(set(model.labels.values())))
        files += labels
        keys = dict(model.translation.keys)
        if labels:
            texts = {file: _labels(read_file(directory, file, root), file) for file in labels}
            keys["outputs"] = [
                each | {"labels": texts[each["labels"]]} if "labels" in each else each for each in keys["outputs"]
            ]
        return Foreign(config_of(keys, triton.FILE), files, _odd(model))
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


def config_of(keys: dict[str, object], title: str) -> ModelConfig:
    """The keys of a translation as they would be read from model.yaml; ConfigError, which names the foreign file."""
    try:
        return manifest.parse(msgspec.yaml.encode(keys))
    except ConfigError as error:
        raise ConfigError(f"{title} comes to this: {error.message}") from None


def _labels(text: bytes, file: str) -> list[str]:
    try:
        return [line.strip() for line in text.decode("utf-8-sig").rstrip("\n").split("\n")]
    except UnicodeDecodeError:
        raise ConfigError(f"{shown(file)} is not UTF-8 text") from None


def read_file(directory: Path, name: str, root: str) -> bytes:
    """A file of a model; ConfigError if it leads out of the root, is too large or cannot be read."""
    path = resolved(str(directory), name)
    if not inside(path, root):
        raise ConfigError(f"{shown(name)} {LEADS_OUT}")
    try:
        with open_regular(path, os.O_NOFOLLOW) as file:
            text = file.read(manifest.MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{shown(name)} cannot be read: {error.strerror}") from None
    if len(text) > manifest.MAX_BYTES:
        raise ConfigError(f"{shown(name)} is larger than {manifest.MAX_BYTES} bytes")
    return text


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
