"""Which versions of each model are to be served: by the store, and by what somebody has said by hand over that."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from gateway.lifecycle.policy import aspired
from gateway.store.manifest import ModelConfig
from gateway.store.source import Artifact, Key


@dataclass
class ByHand:
    """What was said of one model: it counts until the model is loaded or unloaded as a whole."""

    config: ModelConfig
    """The model.yaml that it was said over: with another one it counts no more."""
    added: set[int] = field(default_factory=set)
    """Versions that are served, whatever version_policy says."""
    removed: set[int] = field(default_factory=set)
    """Versions that are not."""
    default: int | None = None
    """The version that requests without one get, for as long as it serves."""

    def counts(self, artifacts: Sequence[Artifact]) -> bool:
        """Whether it holds for the model as it is now: a model.yaml that cannot be used changes nothing."""
        return all(artifact.config == self.config or artifact.problem for artifact in artifacts)


def default_now(chosen: int | None, serving: Collection[int]) -> int | None:
    """The version that a request without one gets: the chosen one if it serves, else the highest that does."""
    return chosen if chosen in serving else max(serving, default=None)


def workers_now(have: int, least: int, most: int) -> int:
    """How many instances are to run where so many do."""
    return min(max(have, least), most)


class Wanted:
    """The wanted versions of all models, the highest first; a function of what was seen and said."""

    def __init__(self) -> None:
        self.by_hand: dict[str, ByHand] = {}
        self._artifacts: dict[str, list[Artifact]] = {}
        self._there: set[Key] = set()
        self._unloaded: set[str] = set()
        """Models that were unloaded through the API, and stay so until they are loaded through it."""

    def see(self, artifacts: Iterable[Artifact]) -> None:
        """This is the whole store."""
        self._artifacts, self._there = {}, set()
        for artifact in artifacts:
            self._artifacts.setdefault(artifact.model, []).append(artifact)
            self._there.add((artifact.model, artifact.version))
        for model, found in self._artifacts.items():
            if (said := self.by_hand.get(model)) and not said.counts(found):
                del self.by_hand[model]

    def see_model(self, model: str, artifacts: Sequence[Artifact]) -> None:
        """This is one model in the store."""
        self._artifacts[model] = list(artifacts)
        self._there |= {(artifact.model, artifact.version) for artifact in artifacts}

    def there(self, model: str) -> set[int]:
        """The versions of a model that are in the store, as far as it was seen."""
        return {number for name, number in self._there if name == model}

    def still_there(self, artifacts: Sequence[Artifact], before: Collection[int]) -> list[Artifact]:
        """Those that have not left the store since `there` gave `before`: a newer look counts for more."""
        return [each for each in artifacts if each.version not in before or (each.model, each.version) in self._there]

    def models(self) -> list[str]:
        """All models in the store."""
        return list(self._artifacts)

    def aspired(self, model: str) -> list[Artifact]:
        """The versions that the model's version_policy asks for."""
        return aspired(self._artifacts.get(model, []))

    def of(self, model: str) -> list[Artifact]:
        """The versions that are to be served, if the model is to be."""
        artifacts, said = self._artifacts.get(model, []), self.by_hand.get(model)
        found = aspired(artifacts)
        if said is not None:
            numbers = ({artifact.version for artifact in found} | said.added) - said.removed
            found = sorted((each for each in artifacts if each.version in numbers), key=lambda each: -each.version)
        return found

    def now(self, model: str) -> list[Artifact]:
        """The versions that are to be served."""
        return [] if model in self._unloaded else self.of(model)

    def remembers(self, key: Key) -> bool:
        """Whether a version that is in the store, and not served, was unloaded by hand."""
        model, version = key
        said = self.by_hand.get(model)
        return key in self._there and (model in self._unloaded or (said is not None and version in said.removed))

    # By hand

    def load(self, model: str) -> None:
        """Serve it as the store and model.yaml say."""
        self._unloaded.discard(model)
        self.by_hand.pop(model, None)

    def unload(self, model: str) -> None:
        """Serve nothing of it."""
        self._unloaded.add(model)
        self.by_hand.pop(model, None)

    def said_of(self, model: str) -> ByHand:
        """What was said of a model by hand, to say more."""
        config = self._artifacts[model][0].config if self._artifacts.get(model) else ModelConfig()
        return self.by_hand.setdefault(model, ByHand(config))

    def add(self, model: str, versions: Collection[int]) -> None:
        """Serve these versions, too; of a model that was unloaded no others."""
        policy = {artifact.version for artifact in self.aspired(model)}
        said = self.said_of(model)
        if model in self._unloaded:
            said.removed |= policy
        self._unloaded.discard(model)
        said.removed.difference_update(versions)
        said.added |= set(versions) - policy  # the others come and go with what version_policy says

    def remove(self, model: str, version: int) -> None:
        """Do not serve this version, whatever version_policy says."""
        said = self.said_of(model)
        said.removed.add(version)
        said.added.discard(version)
