"""The seam behind which instances run: this machine now, others later."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from gateway.ipc.messages import InstanceAddress, Ready
from gateway.lifecycle.placement import Device
from gateway.nodes.control import Report
from gateway.nodes.recording import Recording
from gateway.store.source import Artifact


@dataclass(eq=False)
class Instance:
    """One process that serves one model version, from its spawn to its exit."""

    artifact: Artifact
    name: str
    index: int
    device: Device
    socket_path: str
    ready: "asyncio.Future[Ready]"
    """Its Ready, or LoadFailed."""
    exited: "asyncio.Future[int]"
    """Its exit code, negative for a signal."""
    testing: bool = False
    """Whether its model is in memory, and is being tested with requests that were made up."""
    pid: int = 0
    """Of its process; 0 until it is forked."""
    started: float = field(default_factory=time.time)
    """By the clock on the wall."""
    on_report: Callable[[Report], None] = lambda _: None
    """Called with what it reports of its batches once it serves."""
    verdict: tuple[str, str] | None = None
    """(error code, sentence): why the gateway itself ended it, if that is what its requests should hear."""
    cause: str = ""
    """The same as a label of metrics: low_memory | memory_limit | temporary_files; empty: how its process ended."""
    abandoned: bool = False
    """Whether the gateway ended it because all requests that it was computing had been cancelled."""

    @property
    def framework(self) -> str:
        """The runner it comes from."""
        return self.artifact.framework

    @property
    def address(self) -> InstanceAddress:
        """Where workers reach it."""
        return InstanceAddress(self.name, self.device.name, self.socket_path)


@dataclass(frozen=True)
class Footprint:
    """Measured memory of one instance, in bytes."""

    private: int
    """What comes back when it ends."""
    pss: int
    """Private, and its share of what it shares with others."""
    anonymous: int
    """Anonymous memory it has touched, shared or not: its growth is what it has taken since."""
    gpu: int = 0
    """On its device, if that is a GPU."""
    gpu_source: str = ""
    """Who says so: nvml | framework; empty without a GPU."""


@dataclass(frozen=True)
class DeviceMemory:
    """Memory of one device in bytes; `used` is by everybody, not only by the gateway."""

    total: int
    free: int
    used: int


class Node(Protocol):
    """A machine that runs instances."""

    def devices(self) -> Sequence[Device]:
        """What instances can be placed on."""

    async def cuda(self, framework: str) -> bool:
        """Whether this build of a framework can use GPUs. LoadFailed if it cannot be imported."""

    async def spawn(
        self,
        artifact: Artifact,
        index: int,
        device: Device,
        *,
        background: bool = False,
        plain: str = "",
        disagreement: str = "",
    ) -> Instance:
        """Start an instance; its futures tell how it fares. LoadFailed if its framework cannot be started.

        One that nobody waits for is loaded in the background: everybody else goes first. `plain` says why the model
        must not be optimised; empty: it may be. With a `disagreement`, which another instance has found, it does not
        join requests.
        """

    async def footprints(self, instances: Sequence[Instance]) -> dict[Instance, Footprint]:
        """Measure instances; those that have ended are left out. Milliseconds each."""

    async def anonymous(self, instances: Sequence[Instance]) -> dict[Instance, int]:
        """Only the anonymous memory of instances, in microseconds each."""

    def available(self) -> int:
        """Bytes of the machine's own memory that could be taken now without swapping."""

    async def memory(self) -> Mapping[str, DeviceMemory]:
        """The memory of each GPU, as far as it is known."""

    async def record(self, instance: Instance, seconds: float) -> Recording:
        """Record what a ready instance computes for so many seconds, or until there is no room for more.

        It answers requests meanwhile. Conflict if it is being recorded already, InstanceDied, InferenceFailed.
        """

    def run_alone(self, instance: Instance) -> None:
        """Have an instance join no requests any more."""

    def stop(self, instance: Instance, *, kill: bool = False) -> None:
        """Have an instance finish what it has and exit, or end it now."""

    async def close(self) -> None:
        """End everything."""
