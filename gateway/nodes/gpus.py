"""The NVIDIA GPUs of this machine and their memory, as the driver's management library (NVML) tells.

A driver in trouble is no reason to stop serving: what NVML does not tell is absent here and logged once, and nothing
raises. Every call may block for as long as the driver does, seconds when a GPU has fallen off the bus.
"""

import logging
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import pynvml

from gateway.lifecycle.placement import Device
from gateway.nodes.node import DeviceMemory

log = logging.getLogger("gateway.gpus")
T = TypeVar("T")

_NO_INSTANCE = 0xFFFFFFFF
"""What a process's GPU instance id is outside MIG."""
_LOST = {
    pynvml.NVML_ERROR_GPU_IS_LOST,
    pynvml.NVML_ERROR_GPU_NOT_FOUND,
    pynvml.NVML_ERROR_RESET_REQUIRED,
    pynvml.NVML_ERROR_NOT_FOUND,  # a MIG device that was destroyed
}
_FIRST_PID_NAMESPACE = 0xEFFFFFFC
"""The inode of the kernel's own pid namespace; a container's is another, unless it shares the host's."""


@dataclass(frozen=True)
class Found:
    """A GPU, or a slice of one that is in MIG mode: something that CUDA_VISIBLE_DEVICES can name."""

    uuid: str
    gpu: int
    """Number of its GPU, in PCI order."""
    gpu_uuid: str
    handle: Any = None
    total: int = 0
    gpu_instance: int = _NO_INSTANCE
    compute_instance: int = _NO_INSTANCE


def visible(found: Sequence[Found], environment: Mapping[str, str]) -> list[Found]:
    """Those that the gateway's own environment lets it use, in the order in which it names them.

    CUDA_VISIBLE_DEVICES holds numbers or UUIDs, which may be cut short; as in CUDA, what follows an entry that names
    nothing is hidden, and so "" and "-1" hide all. A GPU in MIG mode stands for all its slices. NVIDIA_VISIBLE_DEVICES
    counts only where it says "none" or UUIDs: its numbers are the host's, "void" says that another mechanism has
    attached the GPUs, and either way a container sees no others.
    """
    container = [entry.strip() for entry in environment.get("NVIDIA_VISIBLE_DEVICES", "").split(",")]
    if container == ["none"]:
        return []
    if all(entry.startswith(("GPU-", "MIG-")) for entry in container):
        attached = [each for entry in container for each in _named(found, entry)]
    else:
        attached = list(found)
    if "CUDA_VISIBLE_DEVICES" not in environment:
        return [each for each in found if each in attached]
    chosen: dict[str, Found] = {}
    for entry in environment["CUDA_VISIBLE_DEVICES"].split(","):
        named = _named(found, entry.strip())
        if not named:
            break
        chosen |= {each.uuid: each for each in named if each in attached}
    return list(chosen.values())


def _named(found: Sequence[Found], entry: str) -> list[Found]:
    """What one entry names; nothing where it could mean several."""
    if entry.isascii() and entry.isdigit():
        return [each for each in found if each.gpu == int(entry)]
    if not entry.startswith(("GPU-", "MIG-")):
        return []
    devices = [each for each in found if each.uuid.startswith(entry)]
    of_gpus = [each for each in found if each.gpu_uuid.startswith(entry)]
    if len({each.gpu for each in of_gpus}) == 1:
        return of_gpus
    return devices if len(devices) == 1 else []


def gpu_footprint(
    pid: int, device: str, nvml: Mapping[tuple[int, str], int], framework: int | None
) -> tuple[int, Literal["nvml", "framework"]] | None:
    """Bytes that a process has on a device and who says so; None where nobody knows.

    NVML counts everything, the framework only what it has allocated itself: without the CUDA context, which takes
    some hundred MB.
    """
    if (measured := nvml.get((pid, device))) is not None:
        return measured, "nvml"
    return None if framework is None else (framework, "framework")


def _in_container() -> bool:
    """Whether process ids here are not the host's."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino != _FIRST_PID_NAMESPACE  # noqa: PTH116 - no path, a kernel object
    except OSError:
        return True


def _is_here(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


class Gpus:
    """The GPUs that the gateway may use. Opening and every call but `devices` block: run them in a thread.

    `environment` restricts them (see `visible`); `container` says whether process ids here differ from the host's,
    None that it is to be found out.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ, *, container: bool | None = None) -> None:
        self._container = _in_container() if container is None else container
        self._complaints: dict[tuple[str, str], int] = {}
        """(device, figure) → error: logged already."""
        self._lost: set[str] = set()
        self._found: dict[str, Found] = {}
        self._open = self._initialise()
        if self._open:
            self._found = {f"cuda:{n}": each for n, each in enumerate(visible(list(self._look()), environment))}
        for name, each in self._found.items():
            log.info("%s is %s, %d MiB", name, each.uuid, each.total >> 20)

    def devices(self) -> list[Device]:
        """Those that are still there, under the numbers they had at first. Asks nobody."""
        return [Device(name, found.uuid, found.total) for name, found in self._found.items() if name not in self._lost]

    def memory(self) -> dict[str, DeviceMemory]:
        """The memory of each device that tells, by name. Blocks."""
        figures = {}
        for name, found in self._present():
            if (memory := self._ask(name, "memory", pynvml.nvmlDeviceGetMemoryInfo, found.handle)) is not None:
                figures[name] = DeviceMemory(memory.total, memory.free, memory.used)
        return figures

    def process_memory(self) -> dict[tuple[int, str], int]:
        """Bytes of each process on each device, as far as the driver tells them apart. Blocks.

        It does not in MIG mode without privileges, nor in WSL. In a container some drivers tell the host's process ids,
        which may be those of other processes here: a list that names one which is not here is not believed.
        """
        figures: dict[tuple[int, str], int] = defaultdict(int)
        for name, found in self._present():
            processes = self._ask(name, "processes", pynvml.nvmlDeviceGetComputeRunningProcesses, found.handle) or []
            if self._container and not all(_is_here(process.pid) for process in processes):
                continue
            own = (found.gpu_instance, found.compute_instance)
            for process in processes:
                of = (process.gpuInstanceId, process.computeInstanceId)
                if process.usedGpuMemory and of in (own, (_NO_INSTANCE, _NO_INSTANCE)):
                    figures[process.pid, name] += process.usedGpuMemory
        return dict(figures)

    def close(self) -> None:
        """Let go of the driver."""
        self._found = {}
        if self._open:
            self._open = False
            self._ask("NVML", "shutdown", pynvml.nvmlShutdown)

    # --- Discovery

    @staticmethod
    def _initialise() -> bool:
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            if error.value != pynvml.NVML_ERROR_LIBRARY_NOT_FOUND:  # which is how most machines say that they have none
                log.warning("GPUs are not used: the NVIDIA driver says '%s'", error)
            return False
        return True

    def _look(self) -> Iterator[Found]:
        count = self._ask("NVML", "number of GPUs", pynvml.nvmlDeviceGetCount) or 0
        for index in range(count):
            try:
                yield from self._look_at(index)
            except pynvml.NVMLError as error:
                log.warning("GPU %d is not used: the NVIDIA driver says '%s'", index, error)

    @staticmethod
    def _look_at(index: int) -> Iterator[Found]:
        """A GPU, or its slices if it is in MIG mode: it cannot be used as a whole then."""
        gpu = pynvml.nvmlDeviceGetHandleByIndex(index)
        uuid = pynvml.nvmlDeviceGetUUID(gpu)
        if not _has_mig(gpu):
            yield Found(uuid, index, uuid, gpu, _total(gpu))
            return
        slices = 0
        for number in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(gpu)):
            try:
                part = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, number)
                name = pynvml.nvmlDeviceGetUUID(part)
                instances = pynvml.nvmlDeviceGetGpuInstanceId(part), pynvml.nvmlDeviceGetComputeInstanceId(part)
                total = _total(part)
            except pynvml.NVMLError:
                continue  # a place without a slice, or with one that is not for us
            slices += 1
            yield Found(name, index, uuid, part, total, *instances)
        if not slices:
            log.warning("GPU %d (%s) is in MIG mode and has no slice to use", index, uuid)

    # --- Asking

    def _present(self) -> list[tuple[str, Found]]:
        return [(name, found) for name, found in self._found.items() if name not in self._lost]

    def _ask(self, device: str, what: str, ask: Callable[..., T], *arguments: Any) -> T | None:
        """The answer; None, logged the first time, where there is none."""
        try:
            answer = ask(*arguments)
        except pynvml.NVMLError as error:
            if error.value in _LOST and device not in self._lost:
                self._lost.add(device)
                log.error("%s is lost and takes no more instances: the NVIDIA driver says '%s'", device, error)  # noqa: TRY400 - no bug of ours, a traceback says nothing
            elif self._complaints.get((device, what)) != error.value:
                log.warning("%s: %s unknown: the NVIDIA driver says '%s'", device, what, error)
            self._complaints[device, what] = error.value
            return None
        self._complaints.pop((device, what), None)
        return answer


def _has_mig(gpu: Any) -> bool:
    try:
        current, _ = pynvml.nvmlDeviceGetMigMode(gpu)
    except (pynvml.NVMLError_NotSupported, pynvml.NVMLError_FunctionNotFound):  # an old GPU, an old driver
        return False
    return bool(current == pynvml.NVML_DEVICE_MIG_ENABLE)


def _total(handle: Any) -> int:
    """Its memory in bytes; 0 where it does not tell, as GPUs that share the host's memory do."""
    try:
        return int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)
    except pynvml.NVMLError as error:
        if error.value in _LOST:
            raise
        return 0
