"""Loads the versions of a model store as the server would, one after the other, each alone, and says how they fared."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Sequence

from gateway.lifecycle.keeper import Keeper
from gateway.lifecycle.loader import Loader
from gateway.lifecycle.registry import Registry
from gateway.lifecycle.residency import Residency, UsageOf
from gateway.lifecycle.version import Version
from gateway.nodes.local import LocalNode
from gateway.nodes.memory import available_memory
from gateway.settings import Settings
from gateway.store.source import Artifact
from gateway.supervisor import SHARE_OF_FREE
from gateway.verdicts import Verdict

END_SECONDS = 5.0
"""What an instance that has nothing to do is given to end."""


class _NothingKept:
    """Footprints of a run that leaves nothing behind."""

    def digest_of(self, artifact: Artifact) -> str:  # noqa: ARG002 - of the protocol
        return ""

    def get(self, digest: str) -> int | None:  # noqa: ARG002 - as above
        return None

    def put(self, digest: str, size: int) -> None:
        """Forget it."""


async def _publish() -> None:
    """No worker is there to route by anything."""


async def _usage() -> UsageOf:
    return {}


class Validation:
    """A node, and versions that come and go on it. Use as an asynchronous context manager: at its end all has ended."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        budget = settings.memory_budget or int(available_memory() * SHARE_OF_FREE)
        self._budgets = {"cpu": budget}
        self.node = LocalNode(settings.sandbox, memory_limit=budget, libraries=settings.libraries)
        self._keeper = Keeper(self.node, _publish, lambda _: None, settings.load_timeout, END_SECONDS)
        self._residency = Residency(self.node, self._budgets, _NothingKept(), _usage)
        self._registry = Registry(_publish)
        self._loader = Loader(self._registry, self.node, self._keeper, self._residency)

    @contextlib.asynccontextmanager
    async def open(self) -> "AsyncIterator[Validation]":
        """Ready to try versions; ends everything afterwards, however it is left."""
        try:
            for device, memory in (await self.node.memory()).items():
                self._budgets[device] = self._settings.gpu_memory_budget or int(memory.free * SHARE_OF_FREE)
            yield self
        finally:
            await self._loader.close()
            await self._keeper.close()
            await self.node.close()

    async def attempt(self, artifact: Artifact) -> Verdict:
        """Load one version, look at it and unload it again."""
        if artifact.problem:
            return Verdict(artifact, problem=artifact.problem)
        version = Version(artifact)
        self._registry.versions[version.key] = version
        try:
            await self._loader.load(version, evict=False)
            if not version.is_ready():
                return Verdict(artifact, problem=version.reason)
            return Verdict(artifact, version.ready, dict(self._residency.account.held.get(version, {})))
        finally:
            await self._loader.drain(version)
            del self._registry.versions[version.key]


async def validate(
    settings: Settings, artifacts: Sequence[Artifact], on_next: Callable[[Artifact], None]
) -> list[Verdict]:
    """The verdict on each; CancelledError if SIGINT or SIGTERM comes, when everything has been ended."""
    validation = Validation(settings)
    with _cancelled_by_signals(validation.node):
        async with validation.open():
            for framework in sorted({each.framework for each in artifacts if each.framework and not each.problem}):
                validation.node.warm(framework)
            verdicts = []
            for artifact in artifacts:
                on_next(artifact)
                verdicts.append(await validation.attempt(artifact))
            return verdicts


@contextlib.contextmanager
def _cancelled_by_signals(node: LocalNode) -> Iterator[None]:
    """The first signal cancels this task, the second one ends everything at once."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None

    def stop() -> None:
        if task.cancelling():
            node.kill()
            os._exit(1)
        task.cancel()

    numbers = (signal.SIGINT, signal.SIGTERM)
    for number in numbers:
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
