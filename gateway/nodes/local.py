"""This machine as a node: one warm runner per framework, started when first needed, and their instances."""

import asyncio
import contextlib
import itertools
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from gateway.errors import InstanceDied, LoadFailed
from gateway.ipc.messages import (
    Exited,
    FromInstance,
    FromRunner,
    Kill,
    MessageStream,
    Ready,
    RunnerReady,
    Spawn,
    Stop,
    pack,
    unpack,
)
from gateway.lifecycle.placement import CPU, Device
from gateway.nodes.gauge import Gauge
from gateway.nodes.gpus import Gpus
from gateway.nodes.node import DeviceMemory, Footprint, Instance
from gateway.store.source import Artifact

log = logging.getLogger("gateway.node")

RUNNER_SECONDS = 120.0
MAX_DATAGRAM = 1 << 17


# numpy and the frameworks start thread pools at import unless told otherwise, and a thread does not survive a fork.
ONE_THREAD = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TF_ENABLE_ONEDNN_OPTS": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
}


class _Runner:
    """The supervisor's side of one runner process."""

    def __init__(self, framework: str) -> None:
        self.framework = framework
        self.instances: dict[str, Instance] = {}
        loop = asyncio.get_running_loop()
        self.imported: asyncio.Future[RunnerReady] = loop.create_future()
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        arguments = [framework, str(theirs.fileno()), str(os.getpid())]
        self.process = subprocess.Popen(  # noqa: S603 - our own module
            [sys.executable, "-m", "gateway.instance.runner", *arguments],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env=os.environ | ONE_THREAD,
        )
        theirs.close()
        self.socket.setblocking(False)
        loop.add_reader(self.socket, self._receive)

    @property
    def alive(self) -> bool:
        """Whether it can still fork."""
        return self.socket.fileno() >= 0

    def _receive(self) -> None:
        try:
            data = self.socket.recv(MAX_DATAGRAM)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._lost()
            return
        message: FromRunner = unpack(data, FromRunner)
        if isinstance(message, RunnerReady):
            log.info("runner %s: imported in %.1f s", self.framework, message.seconds)
            self.imported.set_result(message)
        elif isinstance(message, Exited):
            _finish(self.instances.pop(message.instance), message.exit_code)

    def _lost(self) -> None:
        """The runner is gone, and with it its instances: the kernel ends them."""
        asyncio.get_running_loop().remove_reader(self.socket)
        self.socket.close()
        code = self.process.wait()
        if not self.imported.done():
            self.imported.set_exception(
                LoadFailed(
                    f"the {self.framework} runner ended with code {code} at start; is {self.framework} installed?"
                )
            )
        for instance in self.instances.values():
            _finish(instance, -signal.SIGKILL)
        self.instances.clear()


def _look_at(future: "asyncio.Future[Ready]") -> None:
    """Retrieve the exception, so that asyncio does not report it as forgotten."""
    if not future.cancelled():
        future.exception()


def _finish(instance: Instance, exit_code: int) -> None:
    if not instance.ready.done():
        how = f"signal {-exit_code}" if exit_code < 0 else f"code {exit_code}"
        instance.ready.set_exception(InstanceDied(f"its process ended with {how} while loading"))
    instance.exited.set_result(exit_code)


class LocalNode:
    """Runs instances on this machine. Sockets lie in a private directory that goes when the node is closed."""

    def __init__(self) -> None:
        self.gpus = Gpus()
        self.gauge = Gauge(self.gpus)
        self._runners: dict[str, _Runner] = {}
        self._controls: dict[Instance, MessageStream[FromInstance]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._numbers = itertools.count()
        self._directory = Path(tempfile.mkdtemp(prefix="gateway-"))

    def devices(self) -> Sequence[Device]:
        """What instances can be placed on."""
        return [CPU, *self.gpus.devices()]

    async def cuda(self, framework: str) -> bool:
        """Whether this build of a framework can use GPUs. LoadFailed if it cannot be imported."""
        runner = await self._imported(framework)
        return runner.imported.result().cuda

    def warm(self, framework: str) -> None:
        """Begin to import a framework that is going to be wanted."""
        runner = self._runners.get(framework)
        if runner is None or not runner.alive:
            self._runners[framework] = _Runner(framework)

    async def _imported(self, framework: str) -> _Runner:
        """The runner of a framework, when it can fork."""
        self.warm(framework)
        runner = self._runners[framework]
        try:
            await asyncio.wait_for(asyncio.shield(runner.imported), RUNNER_SECONDS)
        except TimeoutError:
            raise LoadFailed(f"{framework} was not imported within {RUNNER_SECONDS:g} s") from None
        return runner

    async def spawn(self, artifact: Artifact, index: int, device: Device) -> Instance:
        """Start an instance; its futures tell how it fares. LoadFailed if its framework cannot be started."""
        runner = await self._imported(artifact.framework)
        loop = asyncio.get_running_loop()
        number = next(self._numbers)
        name = f"{artifact.model}/{artifact.version}#{index}.{number}"
        path = str(self._directory / f"{number}.sock")
        instance = Instance(artifact, name, index, device, path, loop.create_future(), loop.create_future())
        instance.ready.add_done_callback(_look_at)
        spawn = Spawn(
            instance=name,
            model=artifact.model,
            version=artifact.version,
            index=index,
            platform=artifact.platform,
            artifact=str(artifact.path),
            config=artifact.config,
            device=device.name,
            visible_gpu=device.visible,
            socket_path=path,
        )
        packed = pack(spawn)
        if len(packed) > MAX_DATAGRAM:
            raise LoadFailed(f"model.yaml is too large: {len(packed)} bytes where {MAX_DATAGRAM} are the most")
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                socket.send_fds(runner.socket, [packed], [theirs.fileno()])
            except OSError as error:
                ours.close()
                raise LoadFailed(f"the {artifact.framework} runner is not there: {error.strerror}") from None
        runner.instances[name] = instance
        self._controls[instance] = await MessageStream.over(ours, FromInstance)
        task = asyncio.create_task(self._follow(instance))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return instance

    async def _follow(self, instance: Instance) -> None:
        """Hear what an instance says of itself until it exits."""
        control = self._controls[instance]
        try:
            message = await control.receive()
            if isinstance(message, Ready):
                instance.pid = message.pid
                instance.ready.set_result(message)
            elif message is not None and not instance.ready.done():
                instance.ready.set_exception(LoadFailed(message.reason))
            await asyncio.shield(instance.exited)
        finally:
            del self._controls[instance]
            control.close()
            Path(instance.socket_path).unlink(missing_ok=True)  # noqa: ASYNC240 - takes away a name, waits for nothing

    async def footprints(self, instances: Sequence[Instance]) -> dict[Instance, Footprint]:
        """Measure instances; those that have ended are left out."""
        return await self.gauge.footprints(instances)

    async def anonymous(self, instances: Sequence[Instance]) -> dict[Instance, int]:
        """Only the anonymous memory of instances."""
        return await self.gauge.anonymous(instances)

    async def memory(self) -> Mapping[str, DeviceMemory]:
        """The memory of each GPU, as far as it is known."""
        return await self.gauge.devices()

    def stop(self, instance: Instance, *, kill: bool = False) -> None:
        """Have an instance finish what it has and exit, or end it now."""
        control = self._controls.get(instance)
        if control is None:
            return
        if kill:
            # The runner does it, which knows whether the process is still its child.
            with contextlib.suppress(OSError):
                self._runners[instance.framework].socket.send(pack(Kill(instance=instance.name)))
        else:
            control.send(Stop())

    def kill(self) -> None:
        """End everything now, without waiting."""
        for runner in self._runners.values():
            if runner.alive:
                runner.process.kill()
        shutil.rmtree(self._directory, ignore_errors=True)

    async def close(self) -> None:
        """End everything: the runners, and with them their instances."""
        for runner in self._runners.values():
            if runner.alive:
                runner.process.kill()
        for task in list(self._tasks):
            await task
        shutil.rmtree(self._directory, ignore_errors=True)
        self.gpus.close()
