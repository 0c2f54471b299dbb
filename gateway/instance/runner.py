"""The warm parent of all instances of one framework: imports it, does nothing else, and forks."""

import contextlib
import gc
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from setproctitle import setproctitle

from gateway.errors import LoadFailed
from gateway.instance import libraries, priority, process, sandbox
from gateway.instance.backend import Backend
from gateway.ipc.lifeline import die_with_parent
from gateway.ipc.messages import (
    Exited,
    Forked,
    Kill,
    Ping,
    Pong,
    RunnerFailed,
    RunnerReady,
    Spawn,
    ToRunner,
    pack,
    unpack,
)

FORK_NICE = 10
"""Lower, and those who wait for another model would wait for this fork too long."""
MAX_DATAGRAM = 1 << 17


@contextlib.contextmanager
def quiet_unless_it_fails() -> Iterator[None]:
    """Keep what a framework writes to stderr as it is imported, and show it only if the import fails."""
    shown = os.dup(2)
    kept = os.memfd_create("gateway-import-log")
    os.dup2(kept, 2)
    try:
        yield
    except BaseException:
        os.write(shown, os.pread(kept, 1 << 20, 0))
        raise
    finally:
        os.dup2(shown, 2)
        os.close(shown)
        os.close(kept)


def import_backend(framework: str) -> Backend:
    """The backend of a framework, with the framework imported."""
    if framework == "pytorch":
        from gateway.instance.torch_backend import TorchBackend  # noqa: PLC0415 - each runner imports one framework

        return TorchBackend()
    from gateway.instance.tensorflow_backend import TensorFlowBackend  # noqa: PLC0415 - as above

    return TensorFlowBackend()


class Runner:
    """Receives Spawn over a datagram socket, forks, and reports exits until the socket closes."""

    def __init__(self, backend: Backend, control: socket.socket) -> None:
        self._backend = backend
        self._control = control
        self._poll = select.poll()
        self._children: dict[int, tuple[int, str]] = {}  # pidfd → pid, instance

    def run(self) -> None:
        """Serve the supervisor until it is gone."""
        self._poll.register(self._control, select.POLLIN)
        while True:
            for fd, _ in self._poll.poll():
                if fd != self._control.fileno():
                    self._report_exit(fd)
                elif not self._receive():
                    return

    def _receive(self) -> bool:
        data, fds, _, _ = socket.recv_fds(self._control, MAX_DATAGRAM, 2)
        if not data:
            return False
        message: ToRunner = unpack(data, ToRunner)
        if isinstance(message, Ping):
            self._control.send(pack(Pong()))
        elif isinstance(message, Kill):
            for fd, (_, instance) in self._children.items():
                if instance == message.instance:
                    signal.pidfd_send_signal(fd, signal.SIGKILL)
        else:
            try:
                self._fork(message, *fds)
            except (OSError, TypeError) as error:
                # No process, or no descriptors, to be had now: one instance the less, and no reason to end all others.
                print(f"cannot fork: {error}", file=sys.stderr)  # noqa: T201 - the supervisor's stderr
                self._control.send(pack(Exited(instance=message.instance, exit_code=os.EX_OSERR)))
                for fd in fds:
                    with contextlib.suppress(OSError):
                        os.close(fd)
        return True

    def _fork(self, spawn: Spawn, control_fd: int, output_fd: int) -> None:
        threads = len(list(Path("/proc/self/task").iterdir()))
        assert threads == 1, f"{threads} threads in the runner would not survive a fork"
        parent = os.getpid()
        if spawn.background:
            priority.give_way(FORK_NICE)  # copying the page tables of a framework takes milliseconds, too
        try:
            pid = os.fork()
        finally:
            if spawn.background and os.getpid() == parent:
                priority.raise_again(parent)
        if pid == 0:
            self._become_instance(spawn, control_fd, output_fd, parent)
        try:
            fd = os.pidfd_open(pid)
        except OSError:
            os.kill(pid, signal.SIGKILL)  # not watched, it would be left behind
            os.waitpid(pid, 0)
            raise
        self._control.send(pack(Forked(instance=spawn.instance, pid=pid)))
        os.close(control_fd)
        os.close(output_fd)
        self._children[fd] = pid, spawn.instance
        self._poll.register(fd, select.POLLIN)

    def _report_exit(self, fd: int) -> None:
        pid, instance = self._children.pop(fd)
        self._poll.unregister(fd)
        os.close(fd)
        _, status = os.waitpid(pid, 0)
        self._control.send(pack(Exited(instance=instance, exit_code=os.waitstatus_to_exitcode(status))))

    def _become_instance(self, spawn: Spawn, control_fd: int, output_fd: int, parent: int) -> NoReturn:
        code = 1
        try:
            die_with_parent(parent)
            self._control.close()
            for fd in self._children:
                os.close(fd)
            code = process.main(self._backend, spawn, socket.socket(fileno=control_fd), output_fd)
        except BaseException:  # noqa: BLE001 - the last that is heard of this process
            with contextlib.suppress(Exception):
                traceback.print_exc()
        finally:
            os._exit(code)  # never back into the runner's loop, nor through its exit handlers


def main() -> None:
    """Entry point: `python -m gateway.instance.runner FRAMEWORK CONTROL_FD SUPERVISOR_PID [LIBRARY …]`."""
    framework, control_fd, parent = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # these reach the whole group; the supervisor decides
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    setproctitle(f"gateway: runner {framework}")
    started = time.perf_counter()
    control = socket.socket(fileno=control_fd)
    try:
        with quiet_unless_it_fails():
            backend = import_backend(framework)
            libraries.load(framework, sys.argv[4:])
    except LoadFailed as error:
        control.send(pack(RunnerFailed(reason=error.message)))
        return
    control.send(pack(RunnerReady(seconds=time.perf_counter() - started, cuda=backend.cuda)))
    sandbox.prepare()
    # What is alive now is shared by all children: keep the collector from touching, and so copying, its pages.
    gc.collect()
    gc.freeze()
    Runner(backend, control).run()


if __name__ == "__main__":
    main()
