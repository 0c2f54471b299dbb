"""The seam behind which instances run: this machine now, others later."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from gateway.ipc.messages import InstanceAddress, Ready
from gateway.lifecycle.placement import Device
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
    pid: int = 0
    """Of its process; 0 until it is forked."""
    verdict: tuple[str, str] | None = None
    """(error code, sentence): why the gateway itself ended it, if that is what its requests should hear."""

    @property
    def framework(self) -> str:
        """The runner it comes from."""
        return self.artifact.framework

    @property
    def address(self) -> InstanceAddress:
        """Where workers reach it."""
        return InstanceAddress(self.name, self.device.name, self.socket_path)


class Node(Protocol):
    """A machine that runs instances."""

    def devices(self) -> Sequence[Device]:
        """What instances can be placed on."""

    async def spawn(self, artifact: Artifact, index: int, device: Device) -> Instance:
        """Start an instance; its futures tell how it fares. LoadFailed if its framework cannot be started."""

    def stop(self, instance: Instance, *, kill: bool = False) -> None:
        """Have an instance finish what it has and exit, or end it now."""

    async def close(self) -> None:
        """End everything."""
