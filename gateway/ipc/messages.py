"""What the supervisor, its HTTP workers, its runners and their instances say to each other."""

import asyncio
import socket
import struct
from typing import Any, Generic, TypeVar

import msgspec

from gateway.ipc.batching import Batching
from gateway.keys import Key
from gateway.store.manifest import ModelConfig
from gateway.tensors import Signature

MAX_MESSAGE = 64 << 20
EXAMPLE_BYTES = 2048
"""Raw bytes of the values of an example, which is part of every routing table."""
_LENGTH = struct.Struct("<I")


class Message(msgspec.Struct, tag=True, kw_only=True):
    """Base of all messages: a tagged msgpack map."""


# supervisor → runner (one message per datagram; Spawn carries two descriptors: the instance's control socket, and the
# pipe that becomes its stdout and stderr)
class Spawn(Message):
    """Fork an instance."""

    instance: str
    model: str
    version: int
    index: int
    platform: str
    artifact: str
    config: ModelConfig
    device: str
    visible_gpu: str
    """What CUDA_VISIBLE_DEVICES becomes; empty hides every GPU."""
    socket_path: str
    directory: str = ""
    """The version's directory, the only one of the store that the instance may read."""
    linked: list[str] = []
    """Resolved paths in the store, outside of that directory, that links in it lead to: it may read these as well."""
    scratch: str = ""
    """The instance's private temporary folder, the only one that it may write."""
    background: bool = False
    """Nobody waits for it: while it loads it gives way to everybody else."""
    sandbox: str = "off"
    """auto | require | off"""
    memory_limit: int = 0
    """Bytes of private memory that the instance may take; 0: as much as there is."""
    plain: str = ""
    """Why the model must be computed as its artifact has it, in no optimised form; empty: it need not."""
    disagreement: str = ""
    """What another instance found that forbids batching this version's requests."""


class Kill(Message):
    """End an instance now."""

    instance: str


class RunnerReady(Message):
    """Runner → supervisor: the framework is imported."""

    seconds: float
    cuda: bool = False
    """Whether this build of it can use GPUs."""


class RunnerFailed(Message):
    """Runner → supervisor: a package that it was told to import cannot be had; the runner ends."""

    reason: str


class Forked(Message):
    """Runner → supervisor: the process of an instance, whose own word for it would be a claim."""

    instance: str
    pid: int


class Exited(Message):
    """Runner → supervisor: an instance's process ended, with its wait status as `os.waitstatus_to_exitcode` tells."""

    instance: str
    exit_code: int


# instance → supervisor
class ExampleInput(msgspec.Struct, frozen=True):
    """One input of a request that the model has answered; `data` are its raw bytes, none if they are too many."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes = b""


class Ready(Message):
    """The model is loaded, verified and warm, and its socket listens."""

    pid: int
    platform: str
    signatures: dict[str, Signature]
    default_signature: str
    batching: Batching
    notes: list[str]
    load_seconds: float
    optimised: bool = False
    """Whether requests may be computed in an optimised form, which may crash where the artifact's own does not."""
    device_memory: int | None = None
    """Bytes that the framework has taken on the instance's GPU; None on the CPU or where it does not tell."""
    sandbox: str = ""
    """What protects the rest from the model, and what the kernel lacks for it: one sentence."""
    warning: str = ""
    """Why no request made up to test the model was answered; empty where one was, or none was tried."""
    example: list[ExampleInput] = []
    """A request to the default signature that was answered as it stands; empty if none is known.

    Where an input has no data, all its elements are zero.
    """
    example_in_binary: bool = False
    """Whether the answer to it holds strings that are no text, so that only binary data can carry it."""
    example_in_rows: bool = False
    """Whether its inputs and the outputs of the answer all have the same number of rows."""


class Testing(Message):
    """The artifact is in memory, and a request made up to test it is about to be computed."""


class Failed(Message):
    """The model cannot be served."""

    reason: str
    code: str = "load_failed"
    """Of a class in gateway.errors."""


class Stop(Message):
    """Supervisor → instance: finish what is queued, then exit."""


# supervisor → worker
class Start(Message):
    """The first message to a worker: what it needs to begin."""

    listeners: dict[str, int]
    """Listening descriptors by what is served there: http, management, metrics."""
    loopback: list[str]
    """Those of them that only this machine reaches."""
    max_body_bytes: int
    request_timeout: float
    keep_alive_seconds: int
    drain_timeout: float
    strict_readiness: bool = False
    server_name: str = "gateway"
    cors_origins: list[str] = []
    tls_cert: str = ""
    tls_key: str = ""
    compare_report: str = ""
    """The folder of the report that the console shows; empty: there is none."""
    access_log: bool = False
    otlp_endpoint: str = ""
    rates: int = -1
    """Descriptor of the memory where all workers count what keys may do; -1: there is no file of keys."""


class Keys(Message):
    """All API keys, and the place of each in the memory of `Start.rates`; what is not in it is gone."""

    keys: list[Key]
    places: list[int]


class InstanceAddress(msgspec.Struct, frozen=True):
    """Where a worker finds an instance."""

    instance: str
    device: str
    socket_path: str


class VersionRoute(msgspec.Struct, frozen=True):
    """One model version as the HTTP side needs to know it."""

    model: str
    version: int
    platform: str
    framework: str
    state: str
    reason: str
    config: ModelConfig
    ready: Ready | None = None
    instances: list[InstanceAddress] = []
    labels: list[str] = []
    refusal: str = ""
    """Code of the error (gateway.errors) that a request for it gets while it is FAILED; empty: not_ready."""
    file: str = ""
    """Name of the artifact in the version's directory; empty if it is the directory itself."""
    default: bool = False
    """Requests that name no version are meant for this one, by somebody's word."""
    wanted: int = 0
    """How many instances it has when all of them run."""
    artifact_bytes: int = 0
    """Of all files in the version's directory."""
    stamp: int = 0
    """A fingerprint of its files and its configuration: another one after they were replaced."""


class Routes(Message):
    """The complete routing table; what is not in it is gone."""

    epoch: int
    versions: list[VersionRoute]
    settled: bool
    """Whether every wanted version has become READY, COLD or FAILED once."""
    stopping: bool = False
    """Whether the server is about to end: it is not ready any more."""


class Died(Message):
    """An instance ended by itself; sent before the routes without it.

    `error_code` is `instance_died` if the requests it had may be tried elsewhere; else those that it was computing get
    this error (deadline: it took longer than execution_timeout; out_of_memory: it took more than memory_limit).
    """

    instance: str
    error_code: str
    reason: str
    blameless: bool = False
    """No request is the cause: those that it was computing are sent again like those that waited."""


class Condemned(Message):
    """Requests of this digest have killed two instances and are refused for a while (both directions)."""

    digest: bytes


class AskUsage(Message):
    """Tell when each version was last used."""

    ticket: int


class Collect(Message):
    """Send what has been counted, and forget what was counted of these versions, [model, version], which are gone."""

    ticket: int
    forget: list[tuple[str, str]] = []


class Ping(Message):
    """Answer at once with Pong (supervisor → worker, supervisor → runner)."""


class Pong(Message):
    """Answer to Ping."""


class Answer(Message):
    """Supervisor → worker: the answer to its Ask of that ticket."""

    ticket: int
    text: bytes = b""
    error_code: str = ""


ANY = -1
"""Instead of a version's number."""


# worker → supervisor
class Hello(Message):
    """The worker accepts connections."""

    pid: int


class Applied(Message):
    """The worker routes by this epoch now."""

    epoch: int


class Counts(Message):
    """Answer to Collect: all that the worker has counted since its start, as gateway.metrics packs it."""

    ticket: int
    packed: bytes


class Usage(Message):
    """Answer to AskUsage: [model, version, monotonic time of its last request, requests under way or waiting]."""

    ticket: int
    versions: list[tuple[str, int, float, int]]


class Ask(Message):
    """Worker → supervisor: a question that only the supervisor can answer."""

    ticket: int
    what: str
    """metrics | counters | overview | load | unload | wake (a COLD version, for a request);
    gateway/profiling.py: profile; gateway/byhand.py: describe | register | unregister | scale | default"""
    model: str = ""
    version: int = 0
    """For wake, profile and what is done by hand; by hand, ANY is the one that requests without a version get."""
    workers: tuple[int, int] = (0, 0)
    """For scale and register: the least and the most instances."""
    seconds: float = 0.0
    instance: int = 0


class Explained(Message):
    """Worker → supervisor: each of these instances was ended by a request, which is not sent again."""

    instances: list[str]


class Abandoned(Message):
    """Worker → supervisor: its clients wait for none of its requests that an instance is computing.

    `execution` is the instance's number for that; the worker has `requests` of the `total` in it.
    """

    instance: str
    execution: int
    requests: int
    total: int


ToRunner = Spawn | Kill | Ping
FromRunner = RunnerReady | RunnerFailed | Forked | Exited | Pong
ToWorker = Start | Keys | Routes | Collect | Answer | Died | Condemned | AskUsage | Ping
FromWorker = Hello | Applied | Counts | Ask | Condemned | Explained | Abandoned | Usage | Pong

_encode = msgspec.msgpack.Encoder().encode
T = TypeVar("T")


def pack(message: Message) -> bytes:
    """One message as bytes, without its length."""
    return _encode(message)


def unpack(data: bytes, kinds: Any) -> Any:
    """The message in `data`, one of `kinds`; msgspec.DecodeError if it is none."""
    return msgspec.msgpack.decode(data, type=kinds)


def send(sock: socket.socket, message: Message) -> None:
    """Write a message to a blocking stream socket."""
    data = pack(message)
    sock.sendall(_LENGTH.pack(len(data)) + data)


class MessageStream(Generic[T]):
    """Messages over an asyncio stream; T is the union of what can be received."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kinds: Any, limit: int = MAX_MESSAGE
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._limit = limit
        self._decoder = msgspec.msgpack.Decoder(kinds)

    @classmethod
    async def over(cls, sock: socket.socket, kinds: Any, limit: int = MAX_MESSAGE) -> "MessageStream[T]":
        """Wrap a connected socket, which is closed with the stream; a message over the limit is nonsense."""
        sock.setblocking(False)
        reader, writer = await asyncio.open_unix_connection(sock=sock)
        return cls(reader, writer, kinds, limit)

    async def receive(self) -> T | None:
        """The next message, or None when the other side is gone; msgspec.DecodeError if it speaks nonsense."""
        try:
            (size,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
            if size > self._limit:
                raise msgspec.DecodeError(f"a message of {size} bytes")
            received: T = self._decoder.decode(await self._reader.readexactly(size))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        return received

    def send(self, message: Message) -> None:
        """Queue a message; if the other side is gone, `receive` tells."""
        data = pack(message)
        self._writer.write(_LENGTH.pack(len(data)) + data)

    def close(self) -> None:
        """Close the connection."""
        self._writer.close()
