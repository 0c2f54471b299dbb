"""Which of the changes in a model store are complete: files that are still being copied are nothing to load."""

from dataclasses import dataclass, replace

from gateway.store.manifest import ModelConfig
from gateway.store.source import Artifact, Inventory


@dataclass
class _Seen:
    """What our own looks say of one version."""

    stamp: int
    since: float
    """When we first saw this stamp, by the monotonic clock."""
    changed: bool = False
    """Whether we have seen it change."""


class Settling:
    """Remembers earlier looks at the store, and so tells versions that are complete from those that change.

    A version is settled when our own looks have found the same for `seconds`. One that was never seen before is
    settled at once if its files say that nothing has changed for so long: a complete directory that was renamed into
    place, or one that was there when we came. Only the first rule is proof against a file system whose clock differs
    from ours, and only it is used for what we have seen changing.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._seen: dict[tuple[str, int], _Seen] = {}
        self._settled: dict[tuple[str, int], Artifact] = {}
        self._configs: dict[str, ModelConfig] = {}

    def filter(self, inventory: Inventory, now_wall: float, now_monotonic: float) -> tuple[Inventory, float | None]:
        """The inventory without unsettled versions, and after how many seconds another look may settle more.

        A version that was settled and is being changed is in it as it was, marked `settling`; so is one that cannot be
        read now. A model whose model.yaml has become unusable keeps its last configuration, and says what is wrong.
        """
        there = {(artifact.model, artifact.version): artifact for artifact in inventory.artifacts}
        for key in self._seen.keys() - there.keys():
            if key[0] not in inventory.unreadable:
                del self._seen[key]
                self._settled.pop(key, None)
        for name in self._configs.keys() - {name for name, _ in self._seen.keys() | there.keys()}:
            del self._configs[name]
        waits = []
        for key, artifact in there.items():
            wait = self._wait(key, artifact, now_wall, now_monotonic)
            if wait > 0:
                waits.append(wait)
            elif not artifact.contents.unreadable or key not in self._settled:
                self._settle(key, artifact, artifact.model in inventory.misconfigured)
        artifacts = [
            artifact if key in there and artifact.stamp == there[key].stamp else replace(artifact, settling=True)
            for key, artifact in sorted(self._settled.items())
        ]
        return replace(inventory, artifacts=artifacts), min(waits, default=None)

    def _wait(self, key: tuple[str, int], artifact: Artifact, now_wall: float, now_monotonic: float) -> float:
        """Seconds until this look would count as settled; 0 if it does."""
        seen = self._seen.get(key)
        if seen is None:
            seen = self._seen[key] = _Seen(artifact.stamp, now_monotonic)
        elif seen.stamp != artifact.stamp:
            seen = self._seen[key] = _Seen(artifact.stamp, now_monotonic, changed=True)
        wait = seen.since + self._seconds - now_monotonic
        if not seen.changed:
            wait = min(wait, artifact.changed + self._seconds - now_wall)
        return max(wait, 0.0)

    def _settle(self, key: tuple[str, int], artifact: Artifact, misconfigured: bool) -> None:
        if not artifact.contents.entries:
            self._settled.pop(key, None)  # an empty directory is not there yet
            return
        if misconfigured:
            artifact = replace(artifact, config=self._configs.get(artifact.model, artifact.config))
        else:
            self._configs[artifact.model] = artifact.config
        self._settled[key] = artifact
