"""The supervisor's side of a runner process: starts it, sends it Spawn and Kill, hears of forks and exits."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence

from gateway import orphans
from gateway.children import Pulse, ended
from gateway.errors import LoadFailed
from gateway.ipc.messages import (
    Exited,
    Forked,
    FromRunner,
    Kill,
    Ping,
    RunnerFailed,
    RunnerReady,
    Spawn,
    pack,
    unpack,
)
from gateway.nodes.environment import runner_environment
from gateway.nodes.node import Instance

log = logging.getLogger("gateway.node")

MAX_DATAGRAM = 1 << 17
PING_SECONDS = 1.0
KILL_RETRY_SECONDS = 0.1
END_SECONDS = 5.0
"""So long may a runner run on after its line is cut."""


class Runner:
    """One runner, which is started with this object."""

    def __init__(self, framework: str, libraries: Sequence[str] = ()) -> None:
        self.framework = framework
        self._instances: dict[str, tuple[Instance, asyncio.Future[int]]] = {}
        loop = asyncio.get_running_loop()
        self.imported: asyncio.Future[RunnerReady] = loop.create_future()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        arguments = [framework, str(theirs.fileno()), str(os.getpid()), *libraries]
        with theirs:
            try:
                self.process = subprocess.Popen(  # noqa: S603 - our own module
                    [sys.executable, "-m", "gateway.instance.runner", *arguments],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    env=runner_environment(os.environ),
                )
            except BaseException:
                self._socket.close()
                raise
        orphans.started(self.process)
        self._pulse = Pulse(self.process.pid)
        self._socket.setblocking(False)
        loop.add_reader(self._socket, self._receive)
        self._pinging = loop.create_task(self._ping())
        self._ending: asyncio.Task[None] | None = None

    @property
    def alive(self) -> bool:
        """Whether it can still fork."""
        return self._socket.fileno() >= 0

    def spawn(self, spawn: Spawn, instance: Instance, descriptors: list[int]) -> "asyncio.Future[int]":
        """Have it fork an instance; the future is its process id. LoadFailed if it cannot be asked."""
        packed = pack(spawn)
        if len(packed) > MAX_DATAGRAM:
            raise LoadFailed(f"model.yaml is too large: {len(packed)} bytes where {MAX_DATAGRAM} are the most")
        try:
            socket.send_fds(self._socket, [packed], descriptors)
        except OSError as error:
            raise LoadFailed(f"the {self.framework} runner is not there: {error.strerror}") from None
        forked: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._instances[instance.name] = instance, forked
        return forked

    def kill(self, instance: Instance) -> None:
        """Have it end an instance, for it knows whether the process is still its child."""
        if self.alive:
            try:
                self._socket.send(pack(Kill(instance=instance.name)))
            except BlockingIOError:  # the runner has not read what came before
                asyncio.get_running_loop().call_later(KILL_RETRY_SECONDS, self.kill, instance)

    async def _ping(self) -> None:
        """Ping it as soon as it can answer, and end it when it hangs; its instances end with it, and are replaced."""
        await asyncio.wait([self.imported])
        while self.alive:
            await asyncio.sleep(PING_SECONDS)
            with contextlib.suppress(OSError):  # full: it does not read
                self._socket.send(pack(Ping()))
            if self._pulse.pinged():
                log.error("runner %s does not answer and is ended", self.framework)
                self.process.kill()
                return

    def _receive(self) -> None:
        try:
            data = self._socket.recv(MAX_DATAGRAM)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._lost()
            return
        message: FromRunner = unpack(data, FromRunner)
        self._pulse.heard()
        if isinstance(message, RunnerReady):
            log.info("runner %s: imported in %.1f s", self.framework, message.seconds)
            self.imported.set_result(message)
        elif isinstance(message, RunnerFailed):
            log.error("runner %s: %s", self.framework, message.reason)
            self.imported.set_exception(LoadFailed(message.reason))
            self.imported.exception()  # which is no surprise where no model waits for it
        elif isinstance(message, Forked):
            instance, forked = self._instances[message.instance]
            instance.pid = message.pid
            forked.set_result(message.pid)
        elif isinstance(message, Exited):
            self._finish(message)

    def _finish(self, message: Exited) -> None:
        instance, forked = self._instances.pop(message.instance)
        forked.cancel()
        instance.exited.set_result(message.exit_code)

    def _lost(self) -> None:
        """The runner is gone, or will be: its line is cut."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._socket)
        self._socket.close()
        self._pinging.cancel()
        self._ending = loop.create_task(self._end())

    async def _end(self) -> None:
        """Tell everybody when it has ended, and with it its instances: the kernel ends them."""
        try:
            code = await asyncio.wait_for(ended(self.process), END_SECONDS)
        except TimeoutError:
            self.process.kill()
            code = await ended(self.process)
        if not self.imported.done():
            self.imported.set_exception(
                LoadFailed(
                    f"the {self.framework} runner ended with code {code} at start; is {self.framework} installed?"
                )
            )
        for name in list(self._instances):
            self._finish(Exited(instance=name, exit_code=-signal.SIGKILL))
