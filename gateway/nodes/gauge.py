"""Measures instances and devices: the kernel for what is in the machine's memory, the driver for what is on GPUs."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from gateway.nodes.gpus import Gpus, gpu_footprint
from gateway.nodes.memory import read_anonymous, read_memory
from gateway.nodes.node import DeviceMemory, Footprint, Instance

T = TypeVar("T")
DRIVER_SECONDS = 2.0
"""A driver that has not answered by then is not waited for."""


class Gauge:
    """Reads the figures in threads, for the kernel takes milliseconds and a driver in trouble may take for ever."""

    def __init__(self, gpus: Gpus) -> None:
        self._gpus = gpus
        self._asking = False  # a driver that did not answer is not asked again before it has
        self._processes: Mapping[tuple[int, str], int] = {}

    async def footprints(self, instances: Sequence[Instance]) -> dict[Instance, Footprint]:
        """Measure instances; those that have ended are left out. Milliseconds each."""
        if any(instance.device.name != "cpu" for instance in instances):
            self._processes = await self._ask_driver(self._gpus.process_memory) or self._processes
        return await asyncio.get_running_loop().run_in_executor(None, _measure, list(instances), self._processes)

    async def anonymous(self, instances: Sequence[Instance]) -> dict[Instance, int]:
        """Only the anonymous memory of instances, in microseconds each."""
        return await asyncio.get_running_loop().run_in_executor(None, _anonymous, list(instances))

    async def devices(self) -> dict[str, DeviceMemory]:
        """The memory of each GPU, as far as the driver tells."""
        return await self._ask_driver(self._gpus.memory) or {} if self._gpus.devices() else {}

    async def _ask_driver(self, question: Callable[[], T]) -> T | None:
        """The answer; None if it does not come in time. The thread is no one's business at exit."""
        if self._asking:
            return None
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()
        self._asking = True

        def tell(found: T) -> None:
            self._asking = False
            if not answer.done():
                answer.set_result(found)

        def ask() -> None:
            found = question()
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(tell, found)

        threading.Thread(target=ask, name="nvml", daemon=True).start()
        try:
            return await asyncio.wait_for(answer, DRIVER_SECONDS)
        except TimeoutError:
            return None


def _measure(instances: Sequence[Instance], on_gpus: Mapping[tuple[int, str], int]) -> dict[Instance, Footprint]:
    found = {}
    for instance in instances:
        with contextlib.suppress(OSError):
            private, pss = read_memory(instance.pid)
            device, own = instance.device.name, instance.ready.result().device_memory
            found_there = gpu_footprint(instance.pid, device, on_gpus, own) if device != "cpu" else None
            gpu, source = found_there or (0, "")
            found[instance] = Footprint(private, pss, read_anonymous(instance.pid), gpu, source)
    return found


def _anonymous(instances: Sequence[Instance]) -> dict[Instance, int]:
    found = {}
    for instance in instances:
        with contextlib.suppress(OSError):
            found[instance] = read_anonymous(instance.pid)
    return found
