"""What people ask of the supervisor by hand: to register, scale and unregister versions, and what runs for a model."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from gateway.errors import ConfigError, ModelNotFound, ModelNotReady, RequestError
from gateway.ipc import facts
from gateway.ipc.facts import InstanceFacts, VersionFacts
from gateway.ipc.messages import Ask
from gateway.lifecycle.manager import Manager
from gateway.lifecycle.residency import UsageOf
from gateway.lifecycle.state import State
from gateway.lifecycle.version import Version
from gateway.nodes.node import Footprint, Instance, Node
from gateway.store.source import NAME, Inventory, scan


class ByHand:
    """Answers the questions of one supervisor. `usage` says how many requests each version has."""

    WHAT = frozenset({"describe", "register", "unregister", "scale", "default"})

    def __init__(self, store: Path, node: Node, manager: Manager, usage: Callable[[], Awaitable[UsageOf]]) -> None:
        self._store = store
        self._node = node
        self._manager = manager
        self._usage = usage

    async def answer(self, ask: Ask) -> bytes:
        """Do what is asked; GatewayError says why not."""
        manager = self._manager
        if ask.what == "describe":
            return await self._describe(ask.model)
        if ask.what == "register":
            return await self._register(ask)
        if ask.what == "unregister":
            await manager.unregister(ask.model, ask.version)
        elif ask.what == "scale":
            await manager.scale(ask.model, ask.version, *ask.workers)
        else:
            await manager.set_default(ask.model, ask.version)
        return b""

    async def _register(self, ask: Ask) -> bytes:
        """Serve what is in the store; the number of the version."""
        inventory, is_file = await asyncio.get_running_loop().run_in_executor(None, self._look, ask.model)
        artifacts = inventory.model(ask.model)
        if not artifacts and is_file:
            raise RequestError(
                f"{ask.model} is a file; `gateway import` reads model archives and writes what is served from here"
            )
        if not artifacts:
            raise ModelNotFound(f"Model not found in model store: {ask.model}")
        version = await self._manager.register(ask.model, artifacts, ask.version, ask.workers[0])
        return b"%d" % version.artifact.version

    def _look(self, name: str) -> tuple[Inventory, bool]:
        """The store as it is now, and whether a name in it is a file's. Reads directories."""
        if not NAME.fullmatch(name):
            return Inventory(), False
        try:
            return scan(self._store), (self._store / name).is_file()
        except ConfigError:
            raise ModelNotReady("the model store cannot be read now") from None

    async def _describe(self, model: str) -> bytes:
        manager = self._manager
        versions = [each for each in manager.registry.of(model) if each.state is not State.UNLOADED]
        memory = await self._node.footprints([each for version in versions for each in version.instances])
        usage = await self._usage()
        return facts.pack(
            [
                _facts(version, memory, usage.get(version.key, (0.0, 0))[1], model in manager.startup_models)
                for version in versions
            ]
        )


def _facts(version: Version, memory: dict[Instance, Footprint], under_way: int, at_startup: bool) -> VersionFacts:
    configured = sum(group.count * max(1, len(group.gpus)) for group in version.artifact.config.groups)
    least, most = version.workers or (configured, configured)
    instances = [
        InstanceFacts(
            each.name,
            each.pid,
            each.device.name,
            each.started,
            ready=each in version.instances,
            memory=memory[each].private if each in memory else 0,
            gpu_memory=memory[each].gpu if each in memory else 0,
        )
        for each in (*version.instances, *version.starting)
    ]
    return VersionFacts(version.artifact.version, least, most, at_startup, under_way, instances)
