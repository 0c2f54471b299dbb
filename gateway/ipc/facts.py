"""What only the supervisor knows of a version that runs: its processes, their memory, and what is wanted of it."""

import msgspec


class InstanceFacts(msgspec.Struct, frozen=True):
    """One process; `memory` in private bytes, `gpu_memory` in bytes on its device, both measured now."""

    name: str
    pid: int
    device: str
    started: float
    """By the clock on the wall."""
    ready: bool
    memory: int = 0
    gpu_memory: int = 0


class VersionFacts(msgspec.Struct, frozen=True):
    """One version."""

    version: int
    least: int
    most: int
    """Instances that it may have: by hand or by model.yaml."""
    at_startup: bool
    """Whether the model was in the store at the start."""
    under_way: int
    """Requests that wait or are computed."""
    instances: list[InstanceFacts]


pack = msgspec.msgpack.Encoder().encode
unpack = msgspec.msgpack.Decoder(list[VersionFacts]).decode
