"""What is wanted of the models, by the store and through the API: served, swapped, unloaded, woken."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from gateway.errors import LoadFailed, ModelNotFound, ModelNotReady, OutOfMemory, VersionNotFound
from gateway.ipc.messages import VersionRoute
from gateway.lifecycle.keeper import Keeper
from gateway.lifecycle.loader import Loader
from gateway.lifecycle.policy import aspired, to_drain
from gateway.lifecycle.registry import Registry
from gateway.lifecycle.residency import Residency
from gateway.lifecycle.state import State
from gateway.lifecycle.version import Version
from gateway.nodes.node import Node
from gateway.store.manifest import ModelConfig
from gateway.store.source import Artifact, Inventory, Key

log = logging.getLogger("gateway.manager")

CONTROL_FIELDS = ("version_policy", "version_labels", "pinned", "idle_ttl")
"""Of model.yaml: what changes nothing in a running instance, as labels do not either."""


def same_instance(one: Artifact, other: Artifact) -> bool:
    """Whether instances of both would be the same: the same files, and model.yaml but for what only steers us."""
    default = ModelConfig()
    plain = {name: getattr(default, name) for name in CONTROL_FIELDS}
    configs = [msgspec.structs.replace(each.config.of_instance, **plain) for each in (one, other)]
    return configs[0] == configs[1] and (one.contents.stamp, one.problem) == (other.contents.stamp, other.problem)


class Manager:
    """Brings what there is to what is wanted. `publish` sends the routes and returns when the workers use them."""

    def __init__(
        self,
        node: Node,
        keeper: Keeper,
        residency: Residency,
        publish: Callable[[], Awaitable[None]],
        on_settled: Callable[[Version], None] = lambda _: None,
    ) -> None:
        self.settled = False
        """Whether everything that was there at the start is READY, COLD or FAILED."""
        self.residency = residency
        self.keeper = keeper
        self.registry = Registry(publish)
        self.loader = Loader(self.registry, node, keeper, residency)
        self.on_settled = on_settled
        self._wanted: dict[str, list[Artifact]] = {}
        self._there: set[Key] = set()
        self._unloaded: set[str] = set()
        """Models that were unloaded through the API, and stay so until they are loaded through it."""

    @property
    def versions(self) -> dict[Key, Version]:
        """All versions there are."""
        return self.registry.versions

    def routes(self) -> list[VersionRoute]:
        """Every version as a route."""
        return self.registry.routes()

    # By the store

    async def reconcile(self, inventory: Inventory) -> None:
        """Serve what is in the store now; returns when all of it is READY, COLD or FAILED."""
        found: dict[str, list[Artifact]] = {}
        for artifact in inventory.artifacts:
            found.setdefault(artifact.model, []).append(artifact)
        self._there = {(artifact.model, artifact.version) for artifact in inventory.artifacts}
        self._wanted = {model: aspired(artifacts) for model, artifacts in found.items()}
        models = dict.fromkeys([*self._wanted, *(name for name, _ in self.versions)])
        # Pinned models first, for there may not be room for all.
        first = sorted(models, key=lambda model: not any(each.config.pinned for each in self._wanted.get(model, ())))
        await asyncio.gather(*map(self._settle, first))
        if not self.settled:
            self.settled = True
            await self.registry.publish()

    async def _settle(self, model: str) -> None:
        """Bring one model to what is wanted of it now."""
        async with self.registry.lock(model):
            self._read_labels(model)
            wanted = [] if model in self._unloaded else self._wanted.get(model, [])
            await asyncio.gather(*(self._bring(artifact) for artifact in wanted))
            await self._drain_unwanted(model)

    def _read_labels(self, model: str) -> None:
        if wanted := self._wanted.get(model):
            self.registry.wanted_labels[model] = wanted[0].config.version_labels
        else:
            self.registry.wanted_labels.pop(model, None)

    async def _bring(self, artifact: Artifact, *, force: bool = False) -> Version:
        """Serve this version as these files have it; returns what has become of it.

        A version of other files that serves goes on until its successor is ready, and for good if that fails.
        """
        key = (artifact.model, artifact.version)
        current = self.versions.get(key)
        if current is not None and not force and not self._is_news(artifact, current):
            return current
        swaps = any(version.is_ready() for version in self.registry.of(artifact.model))
        successor = Version(artifact, background=swaps and not force)
        replaces = current is not None and current.is_ready()
        if not replaces:
            self.versions[key] = successor
        await self.loader.load(successor, evict=force or swaps)
        if replaces and current is not None:
            await self._replace(current, successor)
        self.on_settled(successor)
        return successor

    @staticmethod
    def _is_news(artifact: Artifact, current: Version) -> bool:
        """Whether these files are to be loaded in the place of a version; takes over what needs no load."""
        if artifact.settling:
            return False  # it is being changed; what it was before is what runs, or has been replaced by hand
        if current.state is State.UNLOADED:
            return True
        if same_instance(artifact, current.artifact) or current.state is State.COLD:
            current.artifact = artifact
            return False
        return current.rejected is None or not same_instance(artifact, current.rejected)

    async def _replace(self, current: Version, successor: Version) -> None:
        """Let a READY successor take over from the version of the same number, or remember why it is not."""
        if not successor.is_ready():
            current.rejected = successor.artifact
            current.reason = f"newer files of this version failed to load: {successor.reason}"
            await self.registry.publish()
            return
        self.versions[current.key] = successor
        await self.registry.publish()
        await self.loader.drain(current, announce=False)

    async def _drain_unwanted(self, model: str) -> None:
        """Let go of versions that are not wanted any more, as far as what is wanted serves in their place."""
        unloaded = model in self._unloaded
        numbers = set() if unloaded else {artifact.version for artifact in self._wanted.get(model, [])}
        versions = self.registry.of(model)
        unwanted = {each.artifact.version: each for each in versions if each.artifact.version not in numbers}
        states = [version.state for version in versions if version.artifact.version in numbers]
        # What was unloaded by hand stays in the index for as long as it is in the store.
        gone = [
            number
            for number, version in unwanted.items()
            if version.state is State.UNLOADED and not (unloaded and version.key in self._there)
        ]
        for number in (*gone, *to_drain({number: each.state for number, each in unwanted.items()}, states)):
            await self.loader.drain(unwanted[number])
            self.versions.pop(unwanted[number].key, None)
        await self.registry.publish_changes()

    # Through the API

    async def load(self, model: str, artifacts: Sequence[Artifact]) -> None:
        """Serve a model as it is in the store now, from its files anew; returns when its versions are READY.

        ModelNotFound, or LoadFailed with the reason; a version that serves is not lost by that.
        """
        if not artifacts:
            # Triton's clients look for both halves of it.
            raise ModelNotFound(f"Request for unknown model: '{model}' is not found and failed to load")
        async with self.registry.lock(model):
            serves = any(version.serves() for version in self.registry.of(model))
            if serves and all(artifact.problem for artifact in artifacts):
                # Such as a model.yaml that says nothing: its policy and labels are not known, and nothing may go.
                raise LoadFailed(f"model '{model}' failed to load: {artifacts[0].problem}")
            self._unloaded.discard(model)
            self._wanted[model] = aspired(artifacts)
            self._there |= {(artifact.model, artifact.version) for artifact in artifacts}
            self._read_labels(model)
            brought = await asyncio.gather(*(self._bring(artifact, force=True) for artifact in self._wanted[model]))
            await self._drain_unwanted(model)
        for version in brought:
            if not version.is_ready():
                error = LoadFailed if version.state is State.FAILED and not version.refusal else OutOfMemory
                raise error(f"model '{model}' version {version.artifact.version} failed to load: {version.reason}")

    async def unload(self, model: str) -> None:
        """End a model's processes when they have answered what they have; ModelNotFound if it was never there.

        It stays so, whatever happens in the store, until `load`.
        """
        async with self.registry.lock(model):
            versions = self.registry.of(model)
            if not versions:
                raise ModelNotFound(f"Request for unknown model: '{model}' is not found")
            self._unloaded.add(model)
            await asyncio.gather(*map(self.loader.drain, versions))

    # By a request

    async def wake(self, model: str, number: int) -> None:
        """Load a COLD version for a request; returns when it is READY. Raises why it is not."""
        async with self.registry.lock(model):
            version = self.versions.get((model, number))
            if version is None:
                raise VersionNotFound(f"Request for unknown model: '{model}' version '{number}' is not found")
            if version.state is State.COLD:
                version.dormant = True
                await self.loader.load(version, evict=True)
            if not version.is_ready():
                out_of_memory = version.refusal or version.state is State.COLD
                error = OutOfMemory if out_of_memory else ModelNotReady
                raise error(f"model '{model}' version {number} is {version.state}: {version.reason}")

    async def close(self) -> None:
        """Replace nothing any more."""
        await self.loader.close()
        await self.keeper.close()
