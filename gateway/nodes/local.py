"""This machine as a node: one warm runner per framework, started when first needed, and their instances."""

import asyncio
import contextlib
import itertools
import logging
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from gateway import cpus
from gateway.children import is_stopped
from gateway.errors import Conflict, InferenceFailed, InstanceDied, LoadFailed
from gateway.instance import priority
from gateway.instance import sandbox as instance_sandbox
from gateway.ipc.batch_reports import RunAlone
from gateway.ipc.messages import Failed, MessageStream, Ready, Spawn, Stop, Testing
from gateway.ipc.recording import FromInstance
from gateway.lifecycle.placement import CPU, Device
from gateway.nodes import claims, output, recording, scratch
from gateway.nodes.control import Control
from gateway.nodes.gauge import Gauge
from gateway.nodes.gpus import Gpus
from gateway.nodes.memory import available_memory
from gateway.nodes.node import DeviceMemory, Footprint, Instance
from gateway.nodes.output import Output
from gateway.nodes.recording import Nonsense, Recording
from gateway.nodes.runners import Runner
from gateway.store.source import Artifact

log = logging.getLogger("gateway.node")

RUNNER_SECONDS = 120.0
LOOK_SECONDS = 1.0
"""How often the temporary folder of an instance is looked at."""
STOPPED_LOOKS = 5
"""An instance that a signal has stopped (SIGSTOP) is ended when it is found so at so many looks in a row."""
GIVE_WAY_SECONDS = 5.0
"""For so long a load in the background lets everybody else go first."""
MAX_FROM_INSTANCE = 256 << 10
"""Of a Ready: no model has signatures that take more, and every worker gets a copy with each change of the routes."""


@dataclass(eq=False)
class _Line:
    """What the supervisor has of one instance beside the instance."""

    runner: Runner
    control: Control
    forked: "asyncio.Future[int]"
    output: Output
    scratch: Path
    recording: bool = False


def _look_at(future: "asyncio.Future[Ready]") -> None:
    """Retrieve the exception, so that asyncio does not report it as forgotten."""
    if not future.cancelled():
        future.exception()


class LocalNode:
    """Runs instances on this machine. Sockets lie in a private directory that goes when the node is closed.

    `sandbox` is auto, require or off; `memory_limit` holds for models whose model.yaml gives none, 0 being no limit;
    `libraries` are packages with operators that the runner of a framework imports.
    """

    def __init__(
        self, sandbox: str = "auto", memory_limit: int = 0, libraries: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        self.gpus = Gpus()
        self.gauge = Gauge(self.gpus)
        self._sandbox = sandbox
        self._can_raise = priority.can_be_raised()
        self._memory_limit = memory_limit
        self._libraries = libraries or {}
        self._runners: dict[str, Runner] = {}
        self._lines: dict[Instance, _Line] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._numbers = itertools.count()
        self._closing = False
        self._directory = scratch.private_directory()
        with contextlib.suppress(LoadFailed):  # each load will say so
            if lacking := instance_sandbox.decide(sandbox, instance_sandbox.probe()).missing:
                log.warning("models are not fully sandboxed: this machine lacks %s", " and ".join(lacking))

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
            self._runners[framework] = Runner(framework, self._libraries.get(framework, ()))

    async def _imported(self, framework: str) -> Runner:
        """The runner of a framework, when it can fork."""
        if self._closing:
            raise LoadFailed("the gateway is stopping")
        self.warm(framework)
        runner = self._runners[framework]
        try:
            await asyncio.wait_for(asyncio.shield(runner.imported), RUNNER_SECONDS)
        except TimeoutError:
            runner.process.kill()  # the next load starts another
            raise LoadFailed(f"{framework} was not imported within {RUNNER_SECONDS:g} s") from None
        return runner

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
        """Start an instance; see `Node.spawn`."""
        runner = await self._imported(artifact.framework)
        loop = asyncio.get_running_loop()
        number = next(self._numbers)
        name = f"{artifact.model}/{artifact.version}#{index}.{number}"
        path = str(self._directory / f"{number}.sock")
        instance = Instance(artifact, name, index, device, path, loop.create_future(), loop.create_future())
        instance.ready.add_done_callback(_look_at)
        folder = self._directory / f"{number}.tmp"
        message = self._message(instance, folder, background and self._can_raise, plain)
        message.disagreement = disagreement
        await self._start(runner, instance, message)
        task = asyncio.create_task(self._follow(instance))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return instance

    async def _start(self, runner: Runner, instance: Instance, message: Spawn) -> None:
        """Have the runner fork, with one end of a control socket and of an output pipe."""
        folder = Path(message.scratch)
        scratch.make(folder)
        ours, theirs = socket.socketpair()
        try:
            readable, writable = output.pipe()
        except OSError:
            ours.close()
            theirs.close()
            scratch.remove(folder)
            raise
        try:
            forked = runner.spawn(message, instance, [theirs.fileno(), writable])
        except BaseException:
            ours.close()
            os.close(readable)
            scratch.remove(folder)
            raise
        finally:
            theirs.close()
            os.close(writable)
        try:
            stream: MessageStream[FromInstance] = await MessageStream.over(ours, FromInstance, MAX_FROM_INSTANCE)
        except BaseException:
            runner.kill(instance)
            ours.close()
            os.close(readable)
            scratch.remove(folder)
            raise
        printed = Output(readable, instance.artifact.model, instance.name)
        control = Control(stream, lambda report: instance.on_report(report))  # noqa: PLW0108 - set later
        self._lines[instance] = _Line(runner, control, forked, printed, folder)

    def _message(self, instance: Instance, folder: Path, background: bool, plain: str) -> Spawn:
        artifact = instance.artifact
        path = artifact.path.absolute()
        # A SavedModel may lie one directory below its version's.
        directory = artifact.directory if artifact.directory != Path() else path if path.is_dir() else path.parent
        config = artifact.config.of_instance
        return Spawn(
            instance=instance.name,
            model=artifact.model,
            version=artifact.version,
            index=instance.index,
            platform=artifact.platform,
            artifact=str(path),
            config=msgspec.structs.replace(config, threads=cpus.threads(config.threads)),
            device=instance.device.name,
            visible_gpu=instance.device.visible,
            socket_path=instance.socket_path,
            directory=str(directory.resolve()),
            linked=list(artifact.contents.linked),
            scratch=str(folder.resolve()),
            background=background,
            sandbox=self._sandbox,
            memory_limit=artifact.config.memory_limit_bytes or self._memory_limit,
            plain=plain,
        )

    async def _follow(self, instance: Instance) -> None:
        """Hear what an instance says of itself, and see to it that it keeps its bounds, until it exits."""
        line = self._lines[instance]
        try:
            await self._hear(instance, line)
            stopped = 0
            while not instance.exited.done():
                await asyncio.wait([instance.exited], timeout=LOOK_SECONDS)
                stopped = stopped + 1 if is_stopped(instance.pid) else 0
                if stopped == STOPPED_LOOKS:
                    log.warning("%s is ended: a signal has stopped it", instance.name)
                    self.stop(instance, kill=True)
                if instance.verdict is None and (excess := scratch.excess(line.scratch)):
                    log.warning("%s is ended: it made %s", instance.name, excess)
                    instance.verdict = InferenceFailed.code, f"the model made {excess}"
                    instance.cause = "temporary_files"
                    self.stop(instance, kill=True)
        finally:
            del self._lines[instance]
            line.control.close()
            line.output.close()
            Path(instance.socket_path).unlink(missing_ok=True)  # noqa: ASYNC240 - takes away a name, waits for nothing
            await asyncio.to_thread(scratch.remove, line.scratch)

    async def _hear(self, instance: Instance, line: _Line) -> None:
        """Settle `ready` by the first message that an instance sends; one that is not ready then is ended."""
        message, wrong = None, None
        # A load that has given way to others for long is still to come to its end.
        patience = asyncio.get_running_loop().call_later(GIVE_WAY_SECONDS, lambda: priority.raise_again(instance.pid))
        try:
            message = await line.control.receive()
            while isinstance(message, Testing):
                instance.testing = True
                message = await line.control.receive()
            await asyncio.wait([line.forked])  # which it was before it could say anything
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            wrong = "nonsense"
        finally:
            patience.cancel()
        if isinstance(message, Ready):
            wrong = claims.objection(message, instance.artifact.platform)
            if wrong is None:
                priority.raise_again(instance.pid)
                instance.ready.set_result(message)
                return
        self.stop(instance, kill=True)
        if wrong is not None:
            log.warning("%s is ended: it reported %s", instance.name, wrong)
            instance.ready.set_exception(LoadFailed(f"its process reported {wrong}"))
        elif isinstance(message, Failed):
            instance.ready.set_exception(claims.reason(message))
        else:
            code = await asyncio.shield(instance.exited)
            how = f"signal {-code}" if code < 0 else f"code {code}"
            instance.ready.set_exception(InstanceDied(f"its process ended with {how} while loading"))

    async def footprints(self, instances: Sequence[Instance]) -> dict[Instance, Footprint]:
        """Measure instances; those that have ended are left out."""
        return await self.gauge.footprints(instances)

    async def anonymous(self, instances: Sequence[Instance]) -> dict[Instance, int]:
        """Only the anonymous memory of instances."""
        return await self.gauge.anonymous(instances)

    def available(self) -> int:
        """Bytes of the machine's own memory that could be taken now."""
        return available_memory()

    async def memory(self) -> Mapping[str, DeviceMemory]:
        """The memory of each GPU, as far as it is known."""
        return await self.gauge.devices()

    async def record(self, instance: Instance, seconds: float) -> Recording:
        """Record what an instance computes; see `Node.record`. One that does not keep to what is asked is ended."""
        line = self._lines.get(instance)
        if line is None or not instance.ready.done():
            raise InstanceDied("the instance does not run; try again")
        if line.recording:
            raise Conflict(f"instance {instance.index} is being recorded already; try again when that is over")
        line.recording = True
        grace = instance.artifact.config.execution_timeout
        try:
            return await recording.record(line.control, line.scratch, next(self._numbers), seconds, grace)
        except Nonsense as error:
            log.warning("%s is ended: asked for a recording, it %s", instance.name, error)
            self.stop(instance, kill=True)
            raise InferenceFailed(f"the instance is replaced: asked for a recording, it {error}") from None
        finally:
            line.recording = False

    def stop(self, instance: Instance, *, kill: bool = False) -> None:
        """Have an instance finish what it has and exit, or end it now."""
        line = self._lines.get(instance)
        if line is None:
            return
        if kill:
            with contextlib.suppress(OSError):
                line.runner.kill(instance)
        else:
            line.control.send(Stop())

    def run_alone(self, instance: Instance) -> None:
        """Have an instance join no requests any more."""
        if (line := self._lines.get(instance)) is not None:
            line.control.send(RunAlone())

    def kill(self) -> None:
        """End everything now, without waiting."""
        for runner in self._runners.values():
            if runner.alive:
                runner.process.kill()
        scratch.remove(self._directory)

    async def close(self) -> None:
        """End everything: the runners, and with them their instances."""
        self._closing = True
        for runner in self._runners.values():
            if runner.alive:
                runner.process.kill()
        for task in list(self._tasks):
            await task
        scratch.remove(self._directory)
        self.gpus.close()
