"""API keys: what one is, how it is made, and the file of them, which holds hashes and nothing that opens anything."""

import contextlib
import fcntl
import hashlib
import os
import re
import secrets
import string
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import msgspec
import yaml

from gateway import yaml_text
from gateway.errors import ConfigError
from gateway.store.regular import open_regular

Scope = Literal["infer", "metrics", "admin"]
SCOPES: tuple[str, ...] = get_args(Scope)
MAX_KEYS = 10_000
MAX_FILE_BYTES = 8 << 20
_ALPHABET = string.ascii_letters + string.digits
_SECRET_LETTERS = 43
"""Of 62 each: 256 bits."""
_HEADER = "# API keys of the model serving gateway. Only hashes: `gateway keys add` shows each key once.\n"
_AGE = re.compile(r"(\d{1,5})([smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}

Moment = Annotated[datetime, msgspec.Meta(tz=True)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]


class Key(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """One key; who shows the text that `sha256` is the hash of may do what it says."""

    id: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9]{1,32}$")]
    """Stands in the key itself, in the access log and in `gateway keys ls`; no secret."""
    name: Name
    sha256: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")]
    scopes: Annotated[list[Scope], msgspec.Meta(min_length=1, max_length=3)]
    models: Annotated[list[Name], msgspec.Meta(max_length=1000)] | None = None
    """Names or globs; None: all models."""
    rate: Annotated[float, msgspec.Meta(gt=0, le=1e6)] | None = None
    """Requests a second; None: as many as there are."""
    burst: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] | None = None
    """So many at once before `rate` holds; None: those of one second."""
    created: Moment | None = None
    expires: Moment | None = None
    revoked: Moment | None = None
    """A revoked key stays in the file: the last one would open the gateway to everybody if it left."""

    def state(self, now: datetime) -> str:
        """valid, expired or revoked."""
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and self.expires <= now else "valid"


class _File(msgspec.Struct, forbid_unknown_fields=True):
    keys: list[Key] = []


def new_key(name: str, scopes: Sequence[str], **limits: Any) -> tuple[str, Key]:
    """A key's text, which nobody can find out later, and what is kept of it; ConfigError if a value is bad.

    The hash is plain SHA-256. Slow, salted hashes protect secrets that can be guessed; these are 256 random bits, and
    a slow hash would only give everybody who sends a wrong key a way to keep the gateway busy.
    """
    identity = secrets.choice(string.ascii_lowercase) + "".join(secrets.choice(_ALPHABET) for _ in range(7))
    text = f"gw_{identity}_{''.join(secrets.choice(_ALPHABET) for _ in range(_SECRET_LETTERS))}"
    described = {limit: value for limit, value in limits.items() if value is not None} | {
        "id": identity,
        "name": name,
        "sha256": hash_of(text.encode()).hex(),
        "scopes": list(scopes),
        "created": datetime.now(UTC).replace(microsecond=0),
    }
    try:
        key = msgspec.convert(described, Key)
    except msgspec.ValidationError as error:
        raise ConfigError(f"no such key can be: {error}") from None
    return text, key


def hash_of(key: bytes) -> bytes:
    """What is kept of a key."""
    return hashlib.sha256(key).digest()


def moment(text: str, now: datetime) -> datetime:
    """A point in time written as 90d, 12h, a date or RFC 3339; ConfigError if it is none, or past."""
    if age := _AGE.fullmatch(text):
        found = (now + timedelta(seconds=int(age[1]) * _SECONDS[age[2]])).replace(microsecond=0)
    else:
        try:
            found = datetime.fromisoformat(text)
        except ValueError:
            raise ConfigError(f"'{text}' is no time; write 90d, 12h, 2030-01-31 or 2030-01-31T12:00:00Z") from None
    found = found if found.tzinfo is not None else found.replace(tzinfo=UTC)
    if found <= now:
        raise ConfigError(f"{text} is past")
    return found


def parse(data: bytes) -> list[Key]:
    """The keys in a file's bytes, YAML or JSON; ConfigError says what is wrong with them."""
    try:
        found = msgspec.json.decode(data) if data.lstrip()[:1] == b"{" else yaml_text.read(data)
        keys = msgspec.convert(found if found is not None else {}, _File).keys
    except (ValueError, RecursionError) as error:
        raise ConfigError((str(error).splitlines() or ["it makes no sense"])[0]) from None
    if len(keys) > MAX_KEYS:
        raise ConfigError(f"it has {len(keys)} keys, more than {MAX_KEYS}")
    known = set()
    for key in keys:
        if key.id in known:
            raise ConfigError(f"two keys have the id '{key.id}'")
        known.add(key.id)
    return keys


def read_bytes(path: Path) -> bytes:
    """The file's contents; ConfigError if it cannot be read."""
    try:
        with open_regular(path) as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"it cannot be read: {error.strerror or error}") from None
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"it is larger than {MAX_FILE_BYTES} bytes")
    return data


def read(path: Path, data: bytes | None = None) -> list[Key]:
    """The keys in a file, whose contents may be read already; ConfigError if it cannot be read or is wrong."""
    try:
        return parse(read_bytes(path) if data is None else data)
    except ConfigError as error:
        raise ConfigError(f"the keys file {path}: {error.message}") from None


def write(path: Path, keys: Sequence[Key]) -> None:
    """Replace the file as a whole, readable by its owner only; ConfigError if that cannot be done."""
    content = _HEADER + yaml.safe_dump({"keys": [msgspec.to_builtins(key) for key in keys]}, sort_keys=False)
    path = Path(os.path.realpath(path))  # through a link, which stays
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "w") as file:
                with contextlib.suppress(OSError):  # who runs the gateway must still be able to read it
                    before = path.stat()
                    os.fchown(descriptor, before.st_uid, before.st_gid)
                file.write(content)
                file.flush()
                os.fsync(descriptor)
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ConfigError(f"the keys file {path} cannot be written: {error.strerror}") from None


@contextlib.contextmanager
def changing(path: Path) -> Iterator[list[Key]]:
    """The keys, none if there is no file yet, to be changed in place: they are written at the end.

    Nobody else changes the file meanwhile. ConfigError if it cannot be read or written.
    """
    directory = Path(os.path.realpath(path)).parent
    try:
        lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(f"the keys file {path} cannot be written: {directory}: {error.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        keys = read(path) if path.exists() else []
        yield keys
        write(path, keys)
    finally:
        os.close(lock)
