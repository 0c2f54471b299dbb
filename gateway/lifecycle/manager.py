"""What is wanted of the models, by the store and through the API: served, swapped, unloaded, woken."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from gateway.errors import (
    Conflict,
    GatewayError,
    LoadFailed,
    ModelNotFound,
    ModelNotReady,
    OutOfMemory,
    VersionNotFound,
)
from gateway.ipc.messages import ANY, VersionRoute
from gateway.lifecycle.keeper import Keeper
from gateway.lifecycle.loader import COLD_REASON, Loader
from gateway.lifecycle.policy import aspired, to_drain
from gateway.lifecycle.registry import Registry
from gateway.lifecycle.residency import AGAIN_SECONDS, Residency
from gateway.lifecycle.state import State
from gateway.lifecycle.version import Version
from gateway.lifecycle.wanted import Wanted, default_now, workers_now
from gateway.nodes.node import Node
from gateway.store.manifest import ModelConfig
from gateway.store.source import Artifact, Inventory, Key

log = logging.getLogger("gateway.manager")

CONTROL_FIELDS = ("version_policy", "version_labels", "traffic", "shadow", "pinned", "idle_ttl")
"""Of model.yaml: what changes nothing in a running instance, as labels do not either."""


def same_instance(one: Artifact, other: Artifact) -> bool:
    """Whether instances of both would be the same: the same files, and model.yaml but for what only steers us."""
    default = ModelConfig()
    plain = {name: getattr(default, name) for name in CONTROL_FIELDS}
    configs = [msgspec.structs.replace(each.config.of_instance, **plain) for each in (one, other)]
    return configs[0] == configs[1] and (one.contents.stamp, one.problem) == (other.contents.stamp, other.problem)


def _failure(version: Version) -> GatewayError:
    """Why a version does not serve that should."""
    error = LoadFailed if version.state is State.FAILED and not version.refusal else OutOfMemory
    model, number = version.key
    return error(f"model '{model}' version {number} failed to load: {version.reason}")


def _unknown(model: str, more: str = "") -> ModelNotFound:
    return ModelNotFound(f"Request for unknown model: '{model}' is not found{more}")


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
        """Whether everything that was there at the start is READY, COLD or FAILED, or held up by a test request."""
        self.residency = residency
        self.keeper = keeper
        self.registry = Registry(publish)
        self.loader = Loader(self.registry, node, keeper, residency)
        self.loader.on_held_up = self._settle_but_for_tests
        self.on_settled = on_settled
        self._wanted = Wanted()
        self.startup_models: frozenset[str] = frozenset()
        """What was in the store at the start."""

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
        wanted = self._wanted
        wanted.see(inventory.artifacts)
        models = dict.fromkeys([*wanted.models(), *(name for name, _ in self.versions)])
        # Pinned models first, for there may not be room for all.
        first = sorted(models, key=lambda model: not any(each.config.pinned for each in wanted.of(model)))
        await asyncio.gather(*map(self._settle, first))
        if not self.settled:
            self.startup_models = frozenset(models)
            self.settled = True
            await self.registry.publish()

    async def _settle_but_for_tests(self) -> None:
        """Be settled when all versions that are still loading are held up by requests made up to test them."""
        loading = [each for each in self.versions.values() if each.state in (State.NEW, State.LOADING)]
        if not self.settled and loading and all(each.held_up for each in loading):
            self.startup_models = frozenset(model for model, _ in self.versions)
            self.settled = True
            await self.registry.publish()

    async def _settle(self, model: str) -> None:
        """Bring one model to what is wanted of it now."""
        async with self.registry.lock(model):
            self._read_names(model)
            await asyncio.gather(*(self._bring(artifact) for artifact in self._wanted.now(model)))
            await self._drain_unwanted(model)

    def _read_names(self, model: str) -> None:
        """What the versions of a model are called, and which is meant where none is."""
        if wanted := self._wanted.of(model):
            self.registry.wanted_labels[model] = wanted[0].config.version_labels
        else:
            self.registry.wanted_labels.pop(model, None)
        said = self._wanted.by_hand.get(model)
        self.registry.defaults[model] = said.default if said else None

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
        await self._settle_but_for_tests()
        return successor

    @staticmethod
    def _is_news(artifact: Artifact, current: Version) -> bool:
        """Whether these files are to be loaded in the place of a version; takes over what needs no load."""
        if artifact.settling:
            return False  # it is being changed; what it was before is what runs, or has been replaced by hand
        if current.state is State.UNLOADED:
            return True
        if same_instance(artifact, current.artifact) or current.state is State.COLD:
            if artifact.config.groups != current.artifact.config.groups:
                current.workers = None
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
        numbers = {artifact.version for artifact in self._wanted.now(model)}
        versions = self.registry.of(model)
        unwanted = {each.artifact.version: each for each in versions if each.artifact.version not in numbers}
        states = [version.state for version in versions if version.artifact.version in numbers]
        # What was unloaded by hand stays in the index for as long as it is in the store.
        gone = [
            number
            for number, version in unwanted.items()
            if version.state is State.UNLOADED and not self._wanted.remembers(version.key)
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
        there = self._wanted.there(model)
        async with self.registry.lock(model):
            if not (artifacts := self._wanted.still_there(artifacts, there)):
                raise _unknown(model, " and failed to load")  # Triton's clients look for both halves of it
            serves = any(version.serves() for version in self.registry.of(model))
            if serves and all(artifact.problem for artifact in artifacts):
                # Such as a model.yaml that says nothing: its policy and labels are not known, and nothing may go.
                raise LoadFailed(f"model '{model}' failed to load: {artifacts[0].problem}")
            self._wanted.see_model(model, artifacts)
            self._wanted.load(model)
            self._read_names(model)
            brought = await asyncio.gather(*(self._bring(each, force=True) for each in self._wanted.now(model)))
            await self._drain_unwanted(model)
        for version in brought:
            if not version.is_ready():
                raise _failure(version)

    async def unload(self, model: str) -> None:
        """End a model's processes when they have answered what they have; ModelNotFound if it was never there.

        It stays so, whatever happens in the store, until `load`.
        """
        async with self.registry.lock(model):
            await self._unload(model)

    async def _unload(self, model: str) -> None:
        versions = self.registry.of(model)
        if not versions:
            raise _unknown(model)
        self._wanted.unload(model)
        self._read_names(model)
        await asyncio.gather(*map(self.loader.drain, versions))

    # By hand: what lasts until the model is loaded or unloaded as above, or its model.yaml changes

    async def register(self, model: str, artifacts: Sequence[Artifact], number: int, workers: int) -> Version:
        """Serve a version of a model in the store, or with ANY those of its version_policy, by so many instances each.

        Returns the highest of them, which is COLD where `workers` is 0. VersionNotFound, Conflict if it is served
        already, LoadFailed or OutOfMemory with the reason.
        """
        in_store = self._wanted.there(model)
        async with self.registry.lock(model):
            artifacts = self._wanted.still_there(artifacts, in_store)
            chosen = aspired(artifacts) if number == ANY else [each for each in artifacts if each.version == number]
            if not chosen:
                raise VersionNotFound(f"model '{model}' has no version {number} in the model store")
            there = {each.artifact.version for each in self._registered(model) if each.state is not State.FAILED}
            new = [artifact for artifact in chosen if artifact.version not in there]
            if not new:
                raise Conflict(f"Model version {chosen[0].version} is already registered for model {model}")
            self._wanted.see_model(model, artifacts)
            self._wanted.add(model, {artifact.version for artifact in chosen})
            self._read_names(model)
            enlisted = await asyncio.gather(*(self._enlist(artifact, workers) for artifact in new))
            await self._drain_unwanted(model)
        for version in enlisted:
            if not version.serves():
                raise _failure(version)
        return enlisted[0]

    async def _enlist(self, artifact: Artifact, workers: int) -> Version:
        version = Version(artifact, workers=(workers, workers))
        self.versions[version.key] = version
        if workers or artifact.problem:
            await self.loader.load(version, evict=True)
        else:
            version.become(State.COLD, COLD_REASON)
            await self.registry.publish()
        self.on_settled(version)
        return version

    def _registered(self, model: str) -> list[Version]:
        return [version for version in self.registry.of(model) if version.state is not State.UNLOADED]

    def _named(self, model: str, number: int) -> Version:
        """A version that is registered, or with ANY the default; ModelNotFound or VersionNotFound."""
        registered = {version.artifact.version: version for version in self._registered(model)}
        if not registered:
            raise _unknown(model)
        if number == ANY:
            serving = [each for each, version in registered.items() if version.serves()]
            number = default_now(self.registry.defaults.get(model), serving or list(registered)) or 0
        if number not in registered:
            raise VersionNotFound(f"Request for unknown model: '{model}' version '{number}' is not found")
        return registered[number]

    async def unregister(self, model: str, number: int) -> None:
        """End the processes of a version, or with ANY of the default, when they have answered what they have.

        Conflict if it is the default and there are others.
        """
        async with self.registry.lock(model):
            version = self._named(model, number)
            if len(self._registered(model)) == 1:
                await self._unload(model)
            elif version is self._named(model, ANY):
                raise Conflict(f"Cannot remove default version for model {model}")
            else:
                self._wanted.remove(model, version.artifact.version)
                await self.loader.drain(version)

    async def scale(self, model: str, number: int, least: int, most: int) -> None:
        """Have a version, or with ANY the default, run by at least and at most so many instances; 0 makes it COLD.

        LoadFailed or OutOfMemory with the reason; then it is left as it was.
        """
        async with self.registry.lock(model):
            version = self._named(model, number)
            before, version.workers = version.workers, (least, most)
            count = workers_now(len(version.devices), least, most)
            try:
                if version.is_ready() and count:
                    await self.loader.scale(version, count)
                elif version.is_ready():
                    await self.loader.cool(version)
                elif count:
                    await self.loader.load(version, evict=True)
                    if not version.is_ready():
                        raise _failure(version)
            except GatewayError:
                version.workers = before
                raise

    async def set_default(self, model: str, number: int) -> None:
        """Have requests that name no version answered by this one for as long as it serves."""
        async with self.registry.lock(model):
            self._named(model, number)
            self._wanted.said_of(model).default = number
            self._read_names(model)
            await self.registry.publish()

    # By a request

    async def wake(self, model: str, number: int) -> None:
        """Load a COLD version for a request; returns when it is READY. Raises why it is not.

        It waits for memory without the model's lock, so that the model's other versions go on.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.residency.patience
        while True:
            await self.loader.wait_for_room(self._found(model, number), deadline)
            async with self.registry.lock(model):
                version = self._found(model, number)
                if version.state is State.COLD:
                    version.dormant = True
                    await self.loader.load(version, evict=True, patience=0.0)
                if version.is_ready():
                    return
                if version.state is not State.COLD or loop.time() >= deadline:
                    error = OutOfMemory if version.refusal or version.state is State.COLD else ModelNotReady
                    raise error(f"model '{model}' version {number} is {version.state}: {version.reason}")
            await asyncio.sleep(AGAIN_SECONDS)  # another version was faster

    def _found(self, model: str, number: int) -> Version:
        if (model, number) not in self.versions:
            raise VersionNotFound(f"Request for unknown model: '{model}' version '{number}' is not found")
        return self.versions[model, number]

    async def close(self) -> None:
        """Replace nothing any more."""
        await self.loader.close()
        await self.keeper.close()
