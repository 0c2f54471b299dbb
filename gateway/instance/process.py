"""An instance from its fork to its end: device, load, proof, warm-up, Ready, serve."""

import functools
import os
import socket
import time
import traceback
from pathlib import Path

from setproctitle import setproctitle

from gateway.errors import GatewayError
from gateway.instance.backend import Backend, LoadedModel
from gateway.instance.proof import decide_batching, may_join
from gateway.instance.serve import Server
from gateway.ipc.messages import Batching, Failed, Ready, Spawn, send
from gateway.store.manifest import ModelConfig


def main(backend: Backend, spawn: Spawn, control: socket.socket) -> int:
    """Run one instance until the supervisor stops it; the process's exit code."""
    started = time.perf_counter()
    setproctitle(f"gateway: instance {spawn.model}/{spawn.version} #{spawn.index} {spawn.device}")
    os.environ["CUDA_VISIBLE_DEVICES"] = spawn.visible_gpu  # before the first CUDA call of this process
    try:
        model = backend.load(Path(spawn.artifact), spawn.config, "cpu" if spawn.device == "cpu" else "cuda:0")
        batching = decide_batching(model, spawn.config)
        warm_up(model, spawn.config, batching)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(spawn.socket_path)
        listener.listen(128)
    except GatewayError as error:
        send(control, Failed(reason=error.message))
        return 1
    except Exception as error:  # noqa: BLE001 - whatever an artifact does at load, the reason must reach its owner
        traceback.print_exc()
        send(control, Failed(reason=f"loading raised {type(error).__name__}; the log tells more"))
        return 1
    send(
        control,
        Ready(
            pid=os.getpid(),
            platform=model.platform,
            signatures=model.signatures,
            default_signature=model.default_signature,
            batching=batching,
            notes=model.notes,
            load_seconds=time.perf_counter() - started,
            device_memory=model.device_memory(),
        ),
    )
    # The supervisor says nothing but Stop, and its silence at the end of the stream means the same.
    server = Server(model, spawn.config, batching.max_batch_size, listener, functools.partial(may_join, batching))
    server.run(control, on_control=lambda: False)
    return 0


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
