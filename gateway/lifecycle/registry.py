"""All versions there are, what they are called, and the routes that the HTTP workers have of them."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from weakref import WeakValueDictionary

from gateway.ipc.messages import VersionRoute
from gateway.lifecycle.policy import labels_now
from gateway.lifecycle.version import Version
from gateway.store.source import Key


class Registry:
    """The versions by model and number. `publish` sends their routes and returns when the workers route by them."""

    def __init__(self, publish: Callable[[], Awaitable[None]]) -> None:
        self.versions: dict[Key, Version] = {}
        self.wanted_labels: dict[str, Mapping[str, int]] = {}
        """Model → label → version, as model.yaml has it."""
        self.defaults: dict[str, int | None] = {}
        """Model → the version that requests without one get, where somebody has said so by hand."""
        self._labels: dict[str, dict[str, int]] = {}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        """Each as long as somebody holds it or waits for it: any name can be asked for."""
        self._publish = publish
        self._published: list[VersionRoute] = []

    def of(self, model: str) -> list[Version]:
        """All versions of a model."""
        return [version for (name, _), version in self.versions.items() if name == model]

    def lock(self, model: str) -> asyncio.Lock:
        """Held while something becomes of a model, so that what becomes of it comes one after another."""
        return self._locks.setdefault(model, asyncio.Lock())

    def routes(self) -> list[VersionRoute]:
        """Every version as a route. A label moves when the version that it is to name serves."""
        labels: dict[Key, list[str]] = {}
        for model, wanted in self.wanted_labels.items():
            serving = {version.artifact.version for version in self.of(model) if version.serves()}
            self._labels[model] = labels_now(wanted, serving, self._labels.get(model, {}))
            for label, number in sorted(self._labels[model].items()):
                labels.setdefault((model, number), []).append(label)
        return [
            version.route(labels.get(key, []), default=self.defaults.get(key[0]) == key[1])
            for key, version in self.versions.items()
        ]

    async def publish(self) -> None:
        """Have the workers route by what is true now."""
        self._published = self.routes()
        await self._publish()

    async def publish_changes(self) -> None:
        """The same, unless nothing has changed; not for those who rely on what the workers have confirmed."""
        if self.routes() != self._published:
            await self.publish()
