"""One model version: what it is made from, where it stands, and everything that runs for it."""

from dataclasses import dataclass, field

from gateway.ipc.messages import Ready, VersionRoute
from gateway.lifecycle.placement import Device, scaled
from gateway.lifecycle.state import State, next_state
from gateway.nodes.node import Instance
from gateway.store.manifest import InstanceGroup
from gateway.store.source import Artifact, Key


@dataclass(eq=False)
class Version:
    """One model version; compared by identity, for a reload has a second one of the same key."""

    artifact: Artifact
    state: State = State.NEW
    reason: str = ""
    refusal: str = ""
    """Code of the error that requests get while it is FAILED."""
    rejected: Artifact | None = None
    """Newer files of the same version, which failed to load; this one serves on."""
    devices: list[Device] = field(default_factory=list)
    """Where its instances are or are about to be."""
    instances: list[Instance] = field(default_factory=list)
    starting: set[Instance] = field(default_factory=set)
    ready: Ready | None = None
    agreed: int = 0
    """Batches of real requests that an instance found to agree before it trusted batching; 0: not yet."""
    disagreement: str = ""
    """What real requests have shown against joining them, since its files are as they are."""
    quick_deaths: list[str] = field(default_factory=list)
    """Instances that ended in a row, each soon after it was ready and without a request that explains it."""
    load_seconds: float = 0.0
    ready_since: float = 0.0
    """Of the monotonic clock."""
    background: bool = False
    """Nobody waits for it to load, for another version serves."""
    held_up: bool = False
    """Whether it has been loading for long because a request made up to test it does not end."""
    dormant: bool = False
    """On its way to COLD or back: requests wait for it instead of being refused."""
    workers: tuple[int, int] | None = None
    """The least and the most instances, where somebody has said so by hand; None: what model.yaml says."""

    def become(self, state: State, reason: str = "", refusal: str = "") -> None:
        """Enter a state; the only place where one is assigned."""
        self.state = next_state(self.state, state)
        self.reason = reason
        self.refusal = refusal

    @property
    def key(self) -> Key:
        """Model and version."""
        return self.artifact.model, self.artifact.version

    @property
    def title(self) -> str:
        """name/version, for people."""
        return f"{self.artifact.model}/{self.artifact.version}"

    def is_ready(self) -> bool:
        """Whether it is wanted and answers."""
        return self.state is State.READY

    def serves(self) -> bool:
        """Whether a request for it is answered, at once or after a load."""
        return self.state in (State.READY, State.COLD)

    @property
    def groups(self) -> list[InstanceGroup]:
        """What its instances are on; there is at least one of them when it is in memory."""
        groups = self.artifact.config.groups
        return groups if self.workers is None else scaled(groups, max(1, self.workers[0]))

    @property
    def instances_wanted(self) -> int:
        """How many instances it has when it is in memory."""
        return sum(group.count * max(1, len(group.gpus)) for group in self.groups)

    def route(self, labels: list[str], *, default: bool = False) -> VersionRoute:
        """The version, with its labels, as the HTTP workers need to know it."""
        artifact = self.artifact
        cold = self.dormant and self.state in (State.DRAINING, State.LOADING)
        return VersionRoute(
            model=artifact.model,
            version=artifact.version,
            platform=artifact.platform,
            framework=artifact.framework,
            state=State.COLD.value if cold else self.state.value,
            reason=self.reason or (self.ready.warning if self.ready and self.is_ready() else ""),
            config=artifact.config.named([]),  # labels are many, and only the instance needs them
            ready=self.ready if self.is_ready() else None,
            instances=[instance.address for instance in self.instances] if self.is_ready() else [],
            labels=labels,
            refusal=self.refusal,
            file=artifact.path.name if artifact.path != artifact.directory else "",
            default=default,
            wanted=len(self.devices) if self.state in (State.LOADING, State.READY) and not cold else 0,
            artifact_bytes=artifact.contents.size,
            stamp=artifact.stamp,
        )
