"""Records what an instance computes, between its requests: profiler on, profiler off, files, word to the supervisor."""

import ctypes
import gc
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from gateway.instance.backend import LoadedModel, Tracer
from gateway.instance.serve import Server
from gateway.ipc.recording import EndRecord, Record, Recorded, graph_name, trace_name
from gateway.tensors import Array

CALLS_OF_UNKNOWN_COST = 400
GROWTH = 32 << 20
"""A model whose calls cannot be tried beforehand is recorded until the process has grown by so many bytes."""
EVENT_BYTES, GROWN = 4096, 8
"""Memory that an event takes at most while traces are written, and how often what it took before that."""
SHARE_OF_LIMIT = 4
"""A recording may take that part of the model's memory limit."""
_DATA = 5


class Recorder:
    """Stands between a server and its model while a recording goes on, and nowhere else.

    `memory_limit` is the instance's in bytes, 0 for none.
    """

    def __init__(
        self, server: Server, model: LoadedModel, folder: Path, say: Callable[[Recorded], None], memory_limit: int = 0
    ) -> None:
        self._server = server
        self._model = model
        self._folder = folder
        self._say = say
        self._memory = (memory_limit or sys.maxsize) // SHARE_OF_LIMIT
        self._execute = server.execute
        self._tracer: Tracer | None = None
        self._number = -1
        self._began = 0.0
        self._executions = self._left = 0
        self._most_data = 0

    def hear(self, message: Record | EndRecord) -> None:
        """Begin or end as the supervisor says."""
        if isinstance(message, Record):
            self._begin(message.number)
        elif message.number == self._number and self._tracer is not None:
            self._end()

    def _begin(self, number: int) -> None:
        self._number, self._executions = number, 0
        try:
            tracer = self._model.tracer()
            self._left = self._room(tracer)
            tracer.start()
        except Exception as error:  # noqa: BLE001 - a profiler that cannot start is no reason to stop serving
            traceback.print_exception(error)
            self._say(Recorded(number=number, executions=0, seconds=0.0, error=f"{type(error).__name__} was raised"))
            return
        self._tracer = tracer
        self._began = time.perf_counter()
        self._server.execute = self._recorded

    def _room(self, tracer: Tracer) -> int:
        """How many calls are recorded at most; a call with the model's example tells what one costs, if it has one."""
        name = self._model.default_signature
        example = self._model.example(name)
        if example is None:
            self._most_data = _data() + min(GROWTH, self._memory // GROWN)
            return CALLS_OF_UNKNOWN_COST
        self._most_data = 0
        most = min(tracer.most, self._memory // EVENT_BYTES)
        return max(1, most // max(1, tracer.cost(lambda: self._execute(name, example))))

    def _recorded(self, signature: str, inputs: dict[str, Array]) -> dict[str, Array]:
        """Call the model; the last call that there is room for ends the recording."""
        try:
            return self._execute(signature, inputs)
        finally:
            self._executions += 1
            self._left -= 1
            if not self._left or (self._most_data and _data() > self._most_data):
                self._end(full=True)

    def _end(self, *, full: bool = False) -> None:
        """Write the files. Requests wait meanwhile; the supervisor does not wait for ever."""
        tracer, self._tracer = self._tracer, None
        assert tracer is not None
        self._server.execute = self._execute
        seconds, error = time.perf_counter() - self._began, ""
        try:
            tracer.stop(self._folder / trace_name(self._number))
            (self._folder / graph_name(self._number)).write_bytes(tracer.graph())
        except Exception as raised:  # noqa: BLE001 - as above
            traceback.print_exception(raised)
            error = f"{type(raised).__name__} was raised"
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # a profiler's events are many small pieces, which the C library would keep
        self._say(Recorded(number=self._number, executions=self._executions, seconds=seconds, full=full, error=error))


def _data() -> int:
    """Bytes of memory that this process has reserved for itself."""
    file = os.open("/proc/self/statm", os.O_RDONLY)
    try:
        return int(os.read(file, 200).split()[_DATA]) * os.sysconf("SC_PAGE_SIZE")
    finally:
        os.close(file)
