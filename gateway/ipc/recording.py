"""What supervisor and instance say to each other while a model's computing is recorded, and the files that come of it.

The files lie in the instance's temporary folder, under names that nobody chooses.
"""

import socket
import struct

from gateway.ipc.batch_reports import BatchesAgree, BatchesDisagree, RunAlone
from gateway.ipc.messages import Failed, Message, Ready, Stop, Testing, unpack

_LENGTH = struct.Struct("<I")


class Record(Message):
    """Supervisor → instance: record from now on."""

    number: int


class EndRecord(Message):
    """Supervisor → instance: end the recording of that number, if it goes on."""

    number: int


class Recorded(Message):
    """Instance → supervisor: the recording is over, and its files are written unless there is an error."""

    number: int
    executions: int
    seconds: float
    full: bool = False
    """It was ended because there was no room for more."""
    error: str = ""


ToInstance = Stop | Record | EndRecord | RunAlone
FromInstance = Testing | Ready | Failed | Recorded | BatchesAgree | BatchesDisagree


def trace_name(number: int) -> str:
    """The file with the framework's own trace."""
    return f"recording-{number}.trace"


def graph_name(number: int) -> str:
    """The file with the model's graph, a GraphDef of TensorFlow's."""
    return f"recording-{number}.graph"


def file_names(number: int) -> dict[str, tuple[str, ...]]:
    """What each file may be called: PyTorch's profiler writes to another name, and the sandbox lets it rename none."""
    trace = trace_name(number)
    return {"trace": (trace, f"{trace}.tmp"), "graph": (graph_name(number),)}


def receive(sock: socket.socket) -> Stop | Record | EndRecord | RunAlone | None:
    """The supervisor's next word to an instance, from a blocking socket; None if it is gone."""
    data = _exactly(sock, _LENGTH.size)
    if data is None or (data := _exactly(sock, *_LENGTH.unpack(data))) is None:
        return None
    message: Stop | Record | EndRecord | RunAlone = unpack(data, ToInstance)
    return message


def _exactly(sock: socket.socket, size: int) -> bytes | None:
    data = b""
    while len(data) < size:
        more = sock.recv(size - len(data))
        if not more:
            return None
        data += more
    return data
