"""The supervisor's side of the API keys: the file is looked at every second, and what is in it told to the workers."""

import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path

from gateway import keys
from gateway.errors import ConfigError
from gateway.ipc.messages import Keys
from gateway.keys import MAX_KEYS, Key

log = logging.getLogger("gateway.keys")

LOOK_SECONDS = 1.0


class Keyring:
    """The keys in force. Each has a place in shared memory, where all workers count together what its rate allows."""

    def __init__(self, path: Path) -> None:
        """ConfigError if the file cannot be read or is wrong."""
        self.path = path
        self._keys = keys.read(path)
        self._data: bytes | None = None
        self._complaint = ""
        self._free = list(range(MAX_KEYS - 1, -1, -1))
        self._places: dict[str, int] = {}
        self.memory = os.memfd_create("gateway-rates", os.MFD_CLOEXEC)
        """A double for each place: when the key's requests so far are used up, by the monotonic clock."""
        os.ftruncate(self.memory, MAX_KEYS * 8)

    def message(self) -> Keys:
        """What the workers must know."""
        names = {key.id for key in self._keys}
        for gone in self._places.keys() - names:
            self._free.append(self._places.pop(gone))
        for key in self._keys:
            if key.id not in self._places:
                place = self._places[key.id] = self._free.pop()
                os.pwrite(self.memory, bytes(8), place * 8)
        return Keys(keys=self._keys, places=[self._places[key.id] for key in self._keys])

    def look(self) -> Keys | None:
        """Read the file again; None if nothing has changed, or for the worse, which is logged: the old keys hold on."""
        try:
            data = keys.read_bytes(self.path)
            if data == self._data:
                self._complaint = ""
                return None
            found = _parsed(data, had_keys=bool(self._keys))
        except ConfigError as error:
            if error.message != self._complaint:
                log.error("%s: %s; the keys until now stay in force", self.path, error.message)  # noqa: TRY400 - no bug
            self._complaint = error.message
            return None
        self._data, self._complaint = data, ""
        if found == self._keys:
            return None
        self._keys = found
        log.info("%s: %s", self.path, _summary(found))
        return self.message()

    async def follow(self, tell: Callable[[Keys], None]) -> None:
        """Tell what is in the file whenever that changes, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                news = await asyncio.to_thread(self.look)
            except Exception:  # a defect of ours must not have revoked keys hold on for ever
                log.exception("%s cannot be looked at; the keys until now stay in force", self.path)
                continue
            if news is not None:
                tell(news)


def _parsed(data: bytes, *, had_keys: bool) -> list[Key]:
    if had_keys and not data.strip():  # cut off, more likely than meant
        raise ConfigError("it is empty; write 'keys: []' if nobody is to need a key")
    return keys.parse(data)


def _summary(found: list[Key]) -> str:
    valid = sum(key.revoked is None for key in found)
    if not found:
        return "no keys: calls need none"
    return f"{valid} of {len(found)} keys in force" if valid < len(found) else f"{valid} keys in force"
