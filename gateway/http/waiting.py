"""Requests that cannot be sent now and soon may: their model is being loaded for them, or its process replaced."""

import asyncio
import copy
from collections.abc import Awaitable, Callable
from typing import Protocol

from gateway.errors import DeadlineExceeded, GatewayError, QueueFull
from gateway.ipc.messages import VersionRoute
from gateway.routing import NotYet, Target, pick

MOST = 4096
"""Requests that may wait in one worker, for whatever models."""
AGAIN_SECONDS = 0.1
"""A version that is still cold after the supervisor said that it is loaded is asked for again after that."""

Wish = tuple[str, str | None]
"""A model, and the version or label that a request asks for, if it does."""


class Waiter(Protocol):
    """Somebody who waits; one of the two is called, once, unless it leaves before."""

    def resume(self) -> None:
        """It can be tried again."""

    def give_up(self, error: GatewayError) -> None:
        """It never can."""


class _Group:
    """Those who wait for the same, in order of arrival, with the bytes that each keeps."""

    def __init__(self, route: VersionRoute) -> None:
        self.route = route
        self.waiters: dict[Waiter, int] = {}
        self.size = 0


class _Once(Waiter):
    """A waiter that is a coroutine."""

    def __init__(self) -> None:
        self.woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def resume(self) -> None:
        if not self.woken.done():
            self.woken.set_result(None)

    def give_up(self, error: GatewayError) -> None:
        if not self.woken.done():
            self.woken.set_exception(copy.copy(error))  # each coroutine that raises it adds its own frames


class WaitingRoom:
    """All who wait in one worker.

    `resolve` says what a wish means now; `wake` has the supervisor load a version and raises its refusal.
    """

    def __init__(self, resolve: Callable[[Wish], Target], wake: Callable[[str, int], Awaitable[object]]) -> None:
        self._resolve = resolve
        self._wake = wake
        self._groups: dict[Wish, _Group] = {}
        self._waking: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def waiting_for(self, model: str, version: int) -> int:
        """How many wait for this version."""
        groups = self._groups.values()
        return sum(len(g.waiters) for g in groups if (g.route.model, g.route.version) == (model, version))

    def enter(self, wish: Wish, route: VersionRoute, waiter: Waiter, size: int) -> None:
        """Wait until `wish` can be met; QueueFull if too many do. The model's own bounds for its queue hold here."""
        group = self._groups.get(wish) or _Group(route)
        config = route.config
        full = len(group.waiters) >= config.max_queue_size or group.size + size > config.queue_bytes
        if self._count >= MOST or (full and group.waiters):
            raise QueueFull(f"too many requests wait until model '{route.model}' can answer")
        self._groups[wish] = group
        group.route = route
        group.waiters[waiter] = size
        group.size += size
        self._count += 1
        if route.state == "COLD":
            self._have_loaded(route)

    def leave(self, wish: Wish, waiter: Waiter) -> None:
        """Wait no more."""
        group = self._groups.get(wish)
        if group is None or waiter not in group.waiters:
            return
        group.size -= group.waiters.pop(waiter)
        self._count -= 1
        if not group.waiters:
            del self._groups[wish]

    def look_again(self) -> None:
        """The routes have changed: let go on who can, and tell those who never will."""
        for wish, group in list(self._groups.items()):
            if self._groups.get(wish) is not group:
                continue  # its last one has left, on account of what another was told
            try:
                pick(self._resolve(wish))
            except NotYet as not_yet:
                group.route = not_yet.route
                if group.route.state == "COLD":
                    self._have_loaded(group.route)
            except GatewayError as error:
                self._dissolve(wish, error.without_frames())
            else:
                self._dissolve(wish, None)

    async def target(self, wish: Wish, seconds: float) -> Target:
        """What a wish means, as soon as that can answer; DeadlineExceeded, or the error that says why it never will."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while True:
            try:
                return self._resolve(wish)
            except NotYet as not_yet:
                waiter = _Once()
                self.enter(wish, not_yet.route, waiter, 0)
                try:
                    await asyncio.wait_for(waiter.woken, end - loop.time())
                except TimeoutError:
                    raise DeadlineExceeded(f"{not_yet.message}, and was not ready within {seconds:g} s") from None
                finally:
                    self.leave(wish, waiter)
                    del waiter  # its future has the error that is raised here

    def _dissolve(self, wish: Wish, error: GatewayError | None) -> None:
        group = self._groups.pop(wish)
        self._count -= len(group.waiters)
        for waiter in group.waiters:
            if error is None:
                waiter.resume()
            else:
                waiter.give_up(error)

    def _have_loaded(self, route: VersionRoute) -> None:
        key = (route.model, route.version)
        if key not in self._waking:
            self._waking[key] = asyncio.get_running_loop().create_task(self._load(*key))

    async def _load(self, model: str, version: int) -> None:
        refused: GatewayError | None = None
        try:
            await self._wake(model, version)
            await asyncio.sleep(AGAIN_SECONDS)  # the routes that make it ready have come by now
        except GatewayError as error:
            refused = error.without_frames()
        del self._waking[model, version]
        if refused is None:
            self.look_again()
            return
        for wish, group in list(self._groups.items()):
            if (group.route.model, group.route.version) == (model, version):
                self._dissolve(wish, refused)
