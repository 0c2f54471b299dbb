"""How much memory each artifact was measured to need, kept across restarts under a digest of what it is."""

import contextlib
import hashlib
import logging
import os
import tempfile
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec

from gateway.store import contents
from gateway.store.regular import open_regular
from gateway.store.source import Artifact

log = logging.getLogger("gateway.store")

FILE = "footprints.json"
MAX_ENTRIES = 4096
MAX_BYTES = 16 << 20
_OVERHEAD = {"pytorch": 8_000_000, "tensorflow": 30_000_000}
"""What an instance of the smallest model has in private memory, rounded up."""

_Value = TypeVar("_Value")


class _Digest(msgspec.Struct, frozen=True):
    """The digest of a directory's files while it had this stamp."""

    stamp: int
    digest: str


class _Saved(msgspec.Struct):
    """The file; what was put last is last."""

    footprints: dict[str, Annotated[int, msgspec.Meta(ge=0)]] = {}
    digests: dict[str, _Digest] = {}


def estimate(artifact: Artifact) -> int:
    """Bytes to expect of an instance that was never measured."""
    return artifact.contents.size * 6 // 5 + _OVERHEAD.get(artifact.framework, max(_OVERHEAD.values()))


class Footprints:
    """Measured footprints in a file in `directory`, or in memory only where they cannot be kept.

    Methods may be called from any thread; all but `get` may wait for the disk.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / FILE
        self._lock = threading.Lock()
        self._said: set[str] = set()
        self._saved = self._read()

    def digest_of(self, artifact: Artifact) -> str:
        """What its footprint depends on: the files, and what of model.yaml changes memory.

        Reads all files, but only once while they do not change. Empty if they cannot be read.
        """
        files = self._digest_of_files(artifact)
        if not files:
            return ""
        config = artifact.config
        facts = (
            config.inputs,
            config.preprocessing,
            config.max_batch_size,
            config.threads,
            config.stateful,
            config.warmup,
        )
        return _digest([files.encode(), artifact.platform.encode(), msgspec.json.encode(facts)])

    def _digest_of_files(self, artifact: Artifact) -> str:
        key, stamp = os.path.realpath(artifact.directory), artifact.contents.stamp
        with self._lock:
            known = self._saved.digests.get(key)
        if known is not None and known.stamp == stamp:
            return known.digest
        parts = []
        try:
            for name in artifact.contents.files:
                with open_regular(artifact.directory / name) as file:
                    content = hashlib.file_digest(file, hashlib.blake2b).digest()
                parts += [name.encode("utf-8", "surrogateescape"), content]
            unchanged = contents.look(Path(key), "/").stamp == stamp
        except OSError:
            return ""
        digest = _digest(parts) if parts else ""
        if digest and unchanged:
            with self._lock:
                self._saved.digests = _joined(self._saved.digests, {key: _Digest(stamp, digest)})
                self._save()
        return digest

    def get(self, digest: str) -> int | None:
        """Bytes measured for a digest, if any were."""
        return self._saved.footprints.get(digest)

    def put(self, digest: str, size: int) -> None:
        """Remember a measurement; one that is smaller than the last by less than a tenth changes nothing."""
        with self._lock:
            known = self._saved.footprints.get(digest)
            if not digest or (known is not None and known * 9 // 10 <= size <= known):
                return
            self._saved.footprints = _joined(self._saved.footprints, {digest: size})
            self._save()

    def _read(self) -> _Saved:
        """What the file holds; nothing if there is none or it is not ours."""
        try:
            with open_regular(self._path) as file:
                return msgspec.json.decode(file.read(MAX_BYTES), type=_Saved)
        except FileNotFoundError:
            pass
        except (OSError, msgspec.DecodeError, RecursionError) as error:
            self._say(f"what was measured before cannot be read and is measured again: {_reason(error)}")
        return _Saved()

    def _save(self) -> None:
        """Write everything, also what another gateway has written since."""
        theirs = self._read()
        self._saved = _Saved(
            _joined(theirs.footprints, self._saved.footprints), _joined(theirs.digests, self._saved.digests)
        )
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor, temporary = tempfile.mkstemp(prefix=f".{FILE}.", dir=self._path.parent)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(msgspec.json.encode(self._saved))
                Path(temporary).replace(self._path)
            except OSError:
                with contextlib.suppress(OSError):
                    Path(temporary).unlink()
                raise
        except OSError as error:
            self._say(f"measured footprints cannot be kept for the next start: {_reason(error)}")

    def _say(self, sentence: str) -> None:
        """Log a sentence, once."""
        if sentence not in self._said:
            log.warning("%s: %s", self._path, sentence)
        self._said.add(sentence)


def _joined(older: dict[str, _Value], newer: dict[str, _Value]) -> dict[str, _Value]:
    """Both, the newer last and in place of the older where both know a key; no more than the bound."""
    both = [item for item in older.items() if item[0] not in newer] + list(newer.items())
    return dict(both[-MAX_ENTRIES:])


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8))
        digest.update(part)
    return digest.hexdigest()


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else "") or "it is not what this gateway writes"
