"""An instance from its fork to its end: sandbox, load, proof, warm-up, Ready, serve."""

import contextlib
import functools
import io
import os
import socket
import stat
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from setproctitle import setproctitle

from gateway.errors import GatewayError, LoadFailed, OutOfMemory
from gateway.instance import heap, libraries, priority, sandbox
from gateway.instance.backend import Backend, LoadedModel
from gateway.instance.batch_checks import BatchChecks
from gateway.instance.checked_batches import CheckedBatches
from gateway.instance.examples import shown_example
from gateway.instance.handlers import HandledModel, handled
from gateway.instance.proof import decide_batching, may_join
from gateway.instance.recording import Recorder
from gateway.instance.serve import Server
from gateway.ipc.batch_reports import TEXT, BatchesAgree, BatchesDisagree, RunAlone
from gateway.ipc.batching import Batching
from gateway.ipc.messages import Failed, Message, Ready, Spawn, Stop, Testing, send
from gateway.ipc.recording import receive
from gateway.store.manifest import ModelConfig

ENTRIES = 100_000
"""No SavedModel has so many files; the check of what they are ends there."""


class Output(io.TextIOBase):
    """Python's stdout or stderr on a pipe that may be full: then what is written is lost, and nobody waits or fails."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def write(self, text: str, /) -> int:
        """Write what fits."""
        with contextlib.suppress(OSError):
            os.write(self._fd, text.encode(errors="backslashreplace"))
        return len(text)

    def fileno(self) -> int:
        """The descriptor."""
        return self._fd

    def writable(self) -> bool:
        """Of course."""
        return True


def main(backend: Backend, spawn: Spawn, control: socket.socket, output_fd: int) -> int:
    """Run one instance until the supervisor stops it; the process's exit code."""
    started = time.perf_counter()
    setproctitle(f"gateway: instance {spawn.model}/{spawn.version} #{spawn.index} {spawn.device}")
    if spawn.background:
        priority.give_way()
    try:
        listener = prepare(spawn, output_fd)
        protection = sandbox.enter(spawn)
        libraries.check(backend.framework, spawn.config.libraries)
        check_files(Path(spawn.directory or spawn.artifact))
        device = "cpu" if spawn.device == "cpu" else "cuda:0"
        backend.before_test = functools.partial(send, control, Testing())
        loaded = backend.load(Path(spawn.artifact), spawn.config, device, plain=spawn.plain)
        model = handled(loaded, spawn.config)
        batching = decide_batching(
            loaded, spawn.config, spawn.disagreement, loaded.row_separation(loaded.default_signature)
        )
        warm_up(loaded, spawn.config, batching)
        if isinstance(model, HandledModel):
            batching = model.batching(batching)
        model.rest()
        heap.trim()  # of what the load took; it is what the memory is measured after
    except Exception as error:  # noqa: BLE001 - whatever an artifact does at load, the reason must reach its owner
        send(control, failure(error))
        return 1
    send(control, _ready(model, spawn, batching, protection, time.perf_counter() - started))
    serve(model, spawn, batching, listener, control)
    priority.give_way()  # nobody waits for the kernel to take the process apart, which is milliseconds of work
    return 0


def serve(
    model: LoadedModel, spawn: Spawn, batching: Batching, listener: socket.socket, control: socket.socket
) -> None:
    """Answer requests until the supervisor says stop, and do what else it says meanwhile."""
    tell = functools.partial(send, control)
    server = Server(model, spawn.config, batching.max_batch_size, listener, functools.partial(may_join, batching))
    if batching.checked:
        server.checked = check_batches(server, batching, spawn.config, tell)
    recorder = Recorder(server, model, Path(spawn.scratch), tell, spawn.memory_limit)

    def on_control() -> bool:
        message = receive(control)
        if message is None or isinstance(message, Stop):  # silence at the end of the stream means the same
            return False
        if isinstance(message, RunAlone):
            server.run_alone()
        else:
            recorder.hear(message)
        return True

    server.run(control, on_control)


def _ready(model: LoadedModel, spawn: Spawn, batching: Batching, protection: str, seconds: float) -> Ready:
    """What to tell of a model that was loaded in so many seconds."""
    example = shown_example(model, spawn.config)
    return Ready(
        pid=os.getpid(),
        platform=model.platform,
        signatures=model.signatures,
        default_signature=model.default_signature,
        batching=batching,
        notes=model.notes,
        warning=model.trouble,
        optimised=model.optimised,
        load_seconds=seconds,
        device_memory=model.device_memory(),
        sandbox=protection,
        example=example.inputs,
        example_in_binary=example.in_binary,
        example_in_rows=example.in_rows,
    )


def check_batches(
    server: Server, batching: Batching, config: ModelConfig, tell: Callable[[Message], None]
) -> CheckedBatches:
    """The checks of a server's batches of real requests; what they find is told, and acted upon at once."""

    def violated(difference: str) -> None:
        server.run_alone()
        tell(BatchesDisagree(difference=difference[:TEXT]))

    return CheckedBatches(
        BatchChecks(batching.checked),
        server.execute,  # as it is now: checks are no part of a recording
        config.execution_timeout,
        on_trusted=lambda batches: tell(BatchesAgree(batches=batches)),
        on_violated=violated,
        repeatable=batching.repeatable,
    )


def prepare(spawn: Spawn, output_fd: int) -> socket.socket:
    """Everything that the sandbox would refuse, or that the framework reads once: output, environment, socket."""
    for fd in (1, 2):
        os.dup2(output_fd, fd)
    os.close(output_fd)
    sys.stdout, sys.stderr = Output(1), Output(2)
    os.environ["CUDA_VISIBLE_DEVICES"] = spawn.visible_gpu  # before the first CUDA call of this process
    if spawn.scratch:
        # One by one: os.environ.update asks abc what a dict is, which costs the process half a megabyte of its own.
        os.environ["HOME"] = os.environ["TMPDIR"] = spawn.scratch
        os.environ["CUDA_CACHE_DISABLE"] = "1"  # it would make directories
        tempfile.tempdir = spawn.scratch  # else it tries whether it can remove files there, which it cannot
        os.chdir(spawn.scratch)
    os.umask(0o077)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(spawn.socket_path)
    listener.listen(128)
    return listener


def check_files(artifact: Path) -> None:
    """LoadFailed if something there is no file: whoever opens a FIFO may wait for ever."""
    left = ENTRIES
    folders = [artifact]
    while folders:
        folder = folders.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                left -= 1
                try:
                    mode = entry.stat().st_mode
                except OSError:
                    continue  # a link to nowhere harms nobody
                if stat.S_ISDIR(mode) and not entry.is_symlink():
                    folders.append(Path(entry.path))
                if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)) or not left:
                    what = "is neither file nor directory" if left else "is one file too many"
                    raise LoadFailed(f"'{entry.name}' in the version's directory {what}; take it away")


def failure(error: Exception) -> Failed:
    """What to tell of an error that ended the load; its traceback goes to the log where it says more."""
    if isinstance(error, GatewayError):
        return Failed(reason=error.message, code=(error if isinstance(error, OutOfMemory) else LoadFailed).code)
    traceback.print_exception(error)
    if isinstance(error, MemoryError):
        return Failed(reason="the model needs more memory to load than it may have", code=OutOfMemory.code)
    if isinstance(error, PermissionError):
        return Failed(
            reason="a file cannot be read: its permissions forbid it, or it is a link to a place outside the version's "
            "directory, where a model may not look; copy it there"
        )
    return Failed(reason=f"loading raised {type(error).__name__}; the log tells more")


def warm_up(model: LoadedModel, config: ModelConfig, batching: Batching) -> None:
    """Make the first calls before anyone waits for them; a model without a known example is not called."""
    if config.stateful or config.warmup.iterations == 0:
        return
    example = model.example(model.default_signature)
    if not example:
        return
    sizes = config.warmup.batch_sizes or [1, batching.max_batch_size]
    for size in sorted(set(sizes)):
        inputs = {name: array.repeat(size, axis=0) if array.ndim else array for name, array in example.items()}
        for _ in range(config.warmup.iterations):
            model.execute(model.default_signature, inputs)
