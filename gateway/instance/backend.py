"""What a framework must offer to be served: load an artifact, execute a signature."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from gateway.instance.row_separation import RowSeparation
from gateway.store.manifest import ModelConfig
from gateway.tensors import Array, Signature

Tensors = Mapping[str, Array]


class Tracer(Protocol):
    """A framework's profiler at work on one model, in the thread that calls it."""

    most: int
    """So many events are recorded: what comes of them must be written while requests wait, and be sent."""

    def cost(self, call: Callable[[], object]) -> int:
        """How many events a call adds to a recording."""

    def start(self) -> None:
        """Begin to record what this thread has the model compute."""

    def stop(self, path: Path) -> None:
        """End that, and write the trace."""

    def graph(self) -> bytes:
        """The model's graph as TensorFlow's GraphDef, without its weights."""


class LoadedModel(Protocol):
    """A model in memory, ready to be called from one thread.

    Arrays are numpy; BYTES tensors are object arrays of `bytes`, BF16 is `ml_dtypes.bfloat16`.
    """

    platform: str
    """One of the platform names of the documentation, such as pytorch_torchscript."""
    signatures: dict[str, Signature]
    default_signature: str
    notes: list[str]
    """What the loader decided on its own, one sentence each, for the model's status."""
    trouble: str
    """Why none of the requests made up to test it was answered; empty where one was, or none was tried."""

    @property
    def optimised(self) -> bool:
        """Whether requests may be computed in another form than the artifact's, which may crash where that does not."""

    def execute(self, signature: str, inputs: Tensors) -> dict[str, Array]:
        """Run one signature and return its outputs in the signature's order.

        Inputs may be views of memory that is reused after the call: keep no reference to them.
        Outputs of a later call may overwrite nothing of an earlier one's.
        Raises RequestError (an input the model cannot take, by name), InferenceFailed (the model raised),
        OutOfMemory.
        """

    def example(self, signature: str) -> dict[str, Array] | None:
        """One plausible request of one row, that `execute` accepted; None where none is known."""

    def device_memory(self) -> int | None:
        """Bytes that the framework has taken on the GPU; None on the CPU, or where it does not tell. Never raises."""

    def tracer(self) -> Tracer:
        """What records its calls. Costs nothing before it is started."""

    def rest(self) -> float:
        """Called when there is nothing to do: let go of memory that was not needed for a while.

        Returns the seconds after which to call again, below 0 for never.
        """

    def batching_obstacle(self, signature: str) -> str | None:
        """Why requests must not be joined whatever a test shows (state, rows that the graph mixes); else None."""

    def row_separation(self, signature: str) -> RowSeparation:
        """What the graph tells about rows of a batch, for requests like the example. Never raises."""


def nothing() -> None:
    """What `Backend.before_test` does unless an instance sets it."""


class Backend(Protocol):
    """One framework, imported. Constructing it runs no operation of the framework and starts no thread."""

    framework: str
    cuda: bool
    """Whether this build of the framework can use GPUs; known without touching one."""
    before_test: Callable[[], None]
    """Called when the artifact is in memory, before the first request made up to test it."""

    def load(self, artifact: Path, config: ModelConfig, device: str, *, plain: str = "") -> LoadedModel:
        """Load an artifact onto `device` ("cpu", or "cuda:0" in a process that sees one GPU).

        `plain` says why the model must be computed as the artifact has it, in no optimised form; empty: it need not.
        Raises LoadFailed with a sentence that tells the user what to do.
        """
