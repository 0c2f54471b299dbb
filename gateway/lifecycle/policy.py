"""Which versions of one model are to be served, which may go, and what they are called: functions of what is there."""

from collections.abc import Collection, Iterable, Mapping, Sequence

from gateway.lifecycle.state import State
from gateway.store.manifest import ModelConfig, VersionPolicy
from gateway.store.source import Artifact

_STARTING = (State.NEW, State.LOADING)
_SERVING = (State.READY, State.COLD)


def aspired(artifacts: Sequence[Artifact]) -> list[Artifact]:
    """Those of one model's versions that version_policy, traffic and shadow ask for, the highest first."""
    ordered = sorted(artifacts, key=lambda artifact: artifact.version, reverse=True)
    if not ordered:
        return []
    config = ordered[0].config
    policy = config.version_policy
    if policy == "all":
        return ordered
    if isinstance(policy, VersionPolicy) and policy.specific is not None:
        chosen = set(policy.specific)
    else:
        latest = policy.latest if isinstance(policy, VersionPolicy) else 1
        chosen = {artifact.version for artifact in ordered[:latest]}
    chosen.update(version for version, percent in config.traffic.items() if percent)
    chosen.update(_shadows(ordered[0]))
    return [artifact for artifact in ordered if artifact.version in chosen]


def absent_shadows(artifacts: Iterable[Artifact]) -> list[str]:
    """A sentence for each model whose shadow is to be another model that is not there."""
    wanted = {artifact.model: artifact.config.shadow for artifact in artifacts}
    return [
        f"shadow of '{model}' names model '{shadow.model}', which is not there"
        for model, shadow in sorted(wanted.items())
        if shadow is not None and shadow.model is not None and shadow.model not in wanted
    ]


def _shadows(artifact: Artifact) -> list[int]:
    """The version of the same model that gets copies of its requests, if there is to be one."""
    shadow = artifact.config.shadow
    if shadow is None or shadow.version is None or shadow.model not in (None, artifact.model):
        return []
    return [shadow.version]


def missing(artifacts: Sequence[Artifact]) -> list[str]:
    """A sentence for each version that a model's version_policy, traffic or shadow names and that is not there."""
    if not artifacts:
        return []
    newest = max(artifacts, key=lambda artifact: artifact.version)
    policy, traffic = newest.config.version_policy, newest.config.traffic
    there = {artifact.version for artifact in artifacts}
    named = policy.specific or [] if isinstance(policy, VersionPolicy) else []
    return [
        f"{key} names version {version}, which '{newest.model}' does not have"
        for key, versions in (("version_policy", named), ("traffic", traffic), ("shadow", _shadows(newest)))
        for version in sorted(set(versions) - there)
    ]


def to_drain(unwanted: Mapping[int, State], wanted: Collection[State]) -> list[int]:
    """Which versions of one model, no longer wanted, may go now, given the states of those that are wanted.

    Availability is preserved: none that serves goes while a wanted version is still loading, and for each wanted one
    that FAILED the highest that serves is kept. When nothing is wanted any more all go.
    """
    serving = sorted((version for version, state in unwanted.items() if state in _SERVING), reverse=True)
    useless = [version for version, state in unwanted.items() if state is State.FAILED]
    if any(state in _STARTING for state in wanted):
        return sorted(useless)
    failed = sum(state is State.FAILED for state in wanted)
    return sorted([*useless, *serving[failed:]])


def labels_now(wanted: Mapping[str, int], serving: Collection[int], before: Mapping[str, int]) -> dict[str, int]:
    """Which version each label names now, given which it should, which versions serve and what it named before.

    A label moves when the version that it is to name serves; till then it stays where it is, if that serves still.
    """
    return {
        label: version if version in serving or (old := before.get(label, version)) not in serving else old
        for label, version in wanted.items()
    }


def dangling_labels(config: ModelConfig, versions: Iterable[int]) -> list[str]:
    """A sentence for each label that points to none of these versions."""
    there = set(versions)
    return [
        f"label '{label}' points to version {version}, which is not served"
        for label, version in sorted(config.version_labels.items())
        if version not in there
    ]
