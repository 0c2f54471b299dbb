"""Which device each instance of a version gets: a pure function of the devices and what is on them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gateway.errors import LoadFailed
from gateway.store.manifest import InstanceGroup


@dataclass(frozen=True)
class Device:
    """Something instances run on; `visible` is what CUDA_VISIBLE_DEVICES must be for it alone to be seen."""

    name: str
    visible: str = ""


CPU = Device("cpu")


def place(groups: Sequence[InstanceGroup], devices: Sequence[Device], load: Mapping[str, int]) -> list[Device]:
    """One device for each instance of these groups.

    `devices` are those of the machine; `load` is the number of instances on each by name. `auto` takes the GPU
    with the fewest instances, or the CPU where there is no GPU; a group that lists GPUs gets `count` on each.
    Raises LoadFailed for a GPU that is not there.
    """
    gpus = [device for device in devices if device is not CPU and device.name != "cpu"]
    counts = {device.name: load.get(device.name, 0) for device in gpus}
    chosen: list[Device] = []
    for group in groups:
        if group.kind == "cpu" or (group.kind == "auto" and not gpus):
            chosen += [CPU] * group.count
            continue
        if not gpus:
            raise LoadFailed("instance_group asks for a GPU and this machine has none; kind: auto would use the CPU")
        for index in group.gpus:
            if index >= len(gpus):
                raise LoadFailed(f"instance_group asks for GPU {index}, this machine has {len(gpus)}")
        if group.gpus:
            listed = [gpus[index] for index in group.gpus for _ in range(group.count)]
            for device in listed:
                counts[device.name] += 1
            chosen += listed
            continue
        for _ in range(group.count):
            best = min(gpus, key=lambda gpu: counts[gpu.name])
            counts[best.name] += 1
            chosen.append(best)
    return chosen
