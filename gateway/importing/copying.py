"""Writes the models of an import into a store, each complete before it is there under its name."""

import contextlib
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

import yaml

from gateway.errors import ConfigError
from gateway.importing import archive
from gateway.importing.plan import Piece, Plan
from gateway.store import contents
from gateway.store.contents import LEADS_OUT, MAX_DEPTH, MAX_ENTRIES, inside, shown
from gateway.store.regular import open_regular

CHUNK = 1 << 20
Tell = Callable[[int], object]
"""Called with the number of bytes that were just copied."""


def check(plan: Plan, store: Path, *, force: bool) -> int:
    """Bytes that the import of a model copies; ConfigError if it must not be, or must not overwrite what is there."""
    if os.path.lexists(store / plan.model) and not force:
        raise ConfigError("there is a model of this name already; --force replaces it")
    return sum(_size(piece, plan.root) for piece in (*plan.versions.values(), *plan.beside))


def _size(piece: Piece, root: Path) -> int:
    if piece.member:
        with archive.opened(piece.source) as opened:
            return opened.getinfo(piece.member).file_size
    try:
        path = piece.source.resolve(strict=True)
        if not inside(str(path), str(root)):
            raise ConfigError(f"{shown(piece.source.name)} is a link that leads out of the source")
        if path.is_file():
            return path.stat().st_size
        found = contents.look(path, str(root))
    except OSError as error:
        raise ConfigError(f"{shown(piece.source.name)} cannot be read: {error.strerror}") from None
    if found.problem:
        raise ConfigError(found.problem.replace(LEADS_OUT, "is a link that leads out of the source"))
    return found.size


def write(plan: Plan, store: Path, origin: str, tell: Tell, *, force: bool) -> None:
    """Copy a model that was checked; ConfigError, and nothing is left of it, if that fails."""
    hidden = store / f".import-{plan.model}-{os.getpid()}"
    try:
        hidden.mkdir(parents=True)
        for number, piece in plan.versions.items():
            (hidden / str(number)).mkdir()
            _copy(piece, hidden / str(number) / piece.target, plan.root, tell)
        for piece in plan.beside:
            _copy(piece, hidden / piece.target, plan.root, tell)
        if plan.translation.keys:
            text = yaml.safe_dump(plan.translation.keys, sort_keys=False, default_flow_style=None, allow_unicode=True)
            (hidden / "model.yaml").write_text(f"# Imported from {origin}.\n{text}", encoding="utf-8")
        _put(hidden, store / plan.model, force=force)
    except OSError as error:
        raise ConfigError(f"it cannot be copied: {error.strerror}") from None
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def _put(hidden: Path, target: Path, *, force: bool) -> None:
    """Give it its name; what was there before is away for a moment, and comes back if that fails."""
    before = hidden.with_name(f"{hidden.name}-before")
    if not os.path.lexists(target):
        hidden.rename(target)
        return
    if not force:
        raise ConfigError("there is a model of this name already; --force replaces it")
    target.rename(before)
    try:
        hidden.rename(target)
    except OSError:
        before.rename(target)
        raise
    # From here on the model is there: what cannot be cleared away is a pity, not a failure.
    if before.is_dir() and not before.is_symlink():
        shutil.rmtree(before, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            before.unlink()


def _copy(piece: Piece, target: Path, root: Path, tell: Tell) -> None:
    if piece.member:
        with archive.opened(piece.source) as opened:
            info: zipfile.ZipInfo = opened.getinfo(piece.member)
            with opened.open(info) as file:
                _stream(file, target, tell)
        return
    _Tree(root, tell).copy(piece.source, target, 0)


class _Tree:
    """Copies a directory, following links within the root only."""

    def __init__(self, root: Path, tell: Tell) -> None:
        self._root = str(root)
        self._tell = tell
        self._entries = 0

    def copy(self, source: Path, target: Path, depth: int) -> None:
        path = source.resolve(strict=True)
        self._entries += 1
        if not inside(str(path), self._root):
            raise ConfigError(f"{shown(source.name)} is a link that leads out of the source")
        if self._entries > MAX_ENTRIES or depth > MAX_DEPTH:
            raise ConfigError(f"it holds more than {MAX_ENTRIES} files, or is nested more than {MAX_DEPTH} deep")
        if not path.is_dir():
            with open_regular(path, os.O_NOFOLLOW) as file:
                _stream(file, target, self._tell)
            return
        target.mkdir()
        for entry in sorted(path.iterdir()):
            self.copy(entry, target / entry.name, depth + 1)


def _stream(source: IO[bytes], target: Path, tell: Tell) -> None:
    with target.open("xb") as file:
        while chunk := source.read(CHUNK):
            file.write(chunk)
            tell(len(chunk))
