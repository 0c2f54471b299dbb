"""Tells how a model store changes: by notifications of the kernel where there are any, else by looking at it."""

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Literal

from watchfiles._rust_notify import RustNotify, WatchfilesRustInternalError

from gateway.errors import ConfigError
from gateway.store.settling import Settling
from gateway.store.source import Inventory, scan

log = logging.getLogger("gateway.store")

Mode = Literal["auto", "poll", "off"]

POLL_SECONDS = 2.0
LOOK_SECONDS = 30.0
"""Notifications may be lost: there is a look at least so often."""
DEBOUNCE_MS = 50
STEP_MS = 50
RENEWALS = 5
"""So often in one look directories may turn up that are not watched yet; the rest is left to the next look."""


async def changes(
    store: Path, mode: Mode, settle_seconds: float, *, poll_seconds: float = POLL_SECONDS
) -> AsyncGenerator[Inventory, None]:
    """The settled inventory of a store, first as it is and then whenever it has changed.

    The first waits for files that were changed a moment ago, but not longer than `settle_seconds`; ConfigError if the
    store cannot be read then. Later on a store that cannot be read, or has vanished, has not changed. With mode "off"
    there is only the first. Close the generator, or cancel who iterates, to end it and its threads.
    """
    loop = asyncio.get_running_loop()
    wake = asyncio.Event()
    watched = _Watched(store, lambda: loop.call_soon_threadsafe(wake.set), watching=mode == "auto")
    settling = Settling(settle_seconds)
    patience_ends = time.monotonic() + settle_seconds
    last: Inventory | None = None
    try:
        while True:
            wake.clear()
            started, started_wall = time.monotonic(), time.time()
            waits = [LOOK_SECONDS]
            if (inventory := await asyncio.to_thread(watched.look)) is not None:
                settled, again = settling.filter(inventory, started_wall, started)
                if again is not None:
                    waits.append(again)
                # While something is being copied there is always news; so looking is made to take a fifth of the time.
                pause = min(4 * (time.monotonic() - started), 0.5)
                if last is None and again is not None and time.monotonic() < patience_ends:
                    waits.append(patience_ends - time.monotonic())
                elif settled != last:
                    last = settled
                    yield settled
                    if mode == "off":
                        return
                await asyncio.sleep(pause)
            if inventory is None or not watched.watching:
                waits.append(poll_seconds)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(wake.wait(), min(waits))
    finally:
        watched.close()


class _Watched:
    """A store, and the notifications about its directories; `notify` is called from another thread."""

    def __init__(self, store: Path, notify: Callable[[], object], *, watching: bool) -> None:
        self.watching = watching
        self._store = store
        self._notify = notify
        self._notifier: _Notifier | None = None
        self._device: int | None = None
        self._lost = False
        self._lock = threading.Lock()
        self._closed = False

    def look(self) -> Inventory | None:
        """One look, for a thread; None while the store cannot be read, ConfigError if it never could be."""
        try:
            inventory = self._look()
        except ConfigError as error:
            if self._device is None:
                raise
            if not self._lost:
                log.warning("%s; what is loaded stays", error.message)
            self._lost = True
            return None
        if self._lost:
            log.warning("model store %s can be read again", self._store)
        self._lost = False
        return inventory

    def _look(self) -> Inventory:
        """Watch first and look afterwards, so that nothing gets lost in between."""
        inventory = self._scan()
        for _ in range(RENEWALS):
            if not self.watching or (self._notifier and self._notifier.watches(inventory)):
                break
            self._watch(inventory)
            inventory = self._scan()
        return inventory

    def _scan(self) -> Inventory:
        inventory = scan(self._store)
        # What is left in its place when a file system is unmounted is an empty directory on another one.
        device = inventory.device
        if self._device not in (None, device) and not inventory.artifacts:
            raise ConfigError(f"model store {self._store} is on another file system now, and empty")
        self._device = device
        return inventory

    def _watch(self, inventory: Inventory) -> None:
        self._end(None)
        try:
            notifier = _Notifier(inventory, self._notify)
        except (OSError, ValueError, WatchfilesRustInternalError) as error:
            log.warning("changes of the model store are not notified (%s): looking every few seconds instead", error)
            self.watching = False
        else:
            self._end(notifier)

    def _end(self, successor: "_Notifier | None") -> None:
        """Put another notifier in the place of the one there is; none after the close."""
        with self._lock:
            ended = successor if self._closed else self._notifier
            self._notifier = None if self._closed else successor
        if ended:
            ended.close()

    def close(self) -> None:
        """End the thread; a look that is under way starts no other."""
        self._end(None)
        with self._lock:
            self._closed = True
        self._end(None)


class _Notifier:
    """Waits, in a thread of its own, for changes in directories, but not in those below them.

    watchfiles would watch whole trees, but follows links while doing so: one to / in a model would have it watch the
    machine. Our own look knows which directories matter. Of a directory that holds a link on the way to the store only
    the link matters.
    """

    def __init__(self, inventory: Inventory, notify: Callable[[], object]) -> None:
        self._directories = inventory.directories.copy()
        self._links = inventory.links
        self._paths = {path for path, _, _ in self._directories}
        self._holders = {os.path.dirname(link) for link in self._links} - self._paths  # noqa: PTH120 - many short texts
        self._notify = notify
        self._stale = False
        self._stop = threading.Event()
        self._rust = RustNotify(
            sorted(filter(_is_text, self._paths | self._holders)),
            debug=False,
            force_polling=False,
            poll_delay_ms=0,
            recursive=False,
            ignore_permission_denied=True,
        )
        self._thread = threading.Thread(target=self._run, name="store-watch", daemon=True)
        self._thread.start()

    def watches(self, inventory: Inventory) -> bool:
        """Whether it is this one's directories that are watched, and none of them has been replaced."""
        return not self._stale and (inventory.directories, inventory.links) == (self._directories, self._links)

    def _matters(self, path: str) -> bool:
        """Whether a change is in the store, or one of the way to it."""
        return path in self._links or os.path.dirname(path) not in self._holders  # noqa: PTH120 - as above

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                found = self._rust.watch(DEBOUNCE_MS, STEP_MS, 0, self._stop)
            except WatchfilesRustInternalError:
                found = set()  # such as a name that is no UTF-8; it has ended its list of changes, so begin anew
                self._stale = True
            if not isinstance(found, str):
                self._stale = self._stale or any(path in self._paths or path in self._links for _, path in found)
                if found and not self._stale and not any(self._matters(path) for _, path in found):
                    continue
                with contextlib.suppress(RuntimeError):  # the event loop has been closed
                    self._notify()
            if self._stale:
                return

    def close(self) -> None:
        """End the thread, which takes a moment."""
        self._stop.set()
        self._thread.join()
        self._rust.close()


def _is_text(path: str) -> bool:
    """Whether watchfiles can be given it: a path whose bytes are no UTF-8 has surrogates in it."""
    return not any("\ud800" <= character <= "\udfff" for character in path)
