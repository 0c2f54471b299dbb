"""Two forms of a TorchScript module: an optimised one for what was proved, the plain one for everything else."""

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from gateway.errors import GatewayError, ModelNotReady, OutOfMemory
from gateway.instance import batch_agreement, heap, torch_errors
from gateway.tensors import Array

KEEP_SECONDS, KEEP_READS = 2.0, 20
"""So long after its last use the plain form stays in memory: that, or so many times as long as it took to be read."""
MAX_CLASSES = 1024
"""Classes of requests of which it is remembered whether both forms agree; any others are left to the plain form."""
MAX_SHAPES = 8192
"""Shapes of requests that are remembered as proved; more of them only costs deriving that again."""
ROUNDING = 2e-6
"""Of the largest number of an answer: what another order of the same sums may change."""

Tensors = Mapping[str, Array]
Answer = dict[str, Array]
Call = Callable[..., Any]
Run = Callable[[Call, Tensors], Answer]
"""Computes an answer with one form; raises a GatewayError."""
Shapes = tuple[tuple[str, tuple[int, ...]], ...]
"""Of each input, in order, the character of its datatype and its shape."""


def shapes_of(inputs: Tensors) -> Shapes:
    """What a request looks like."""
    return tuple([(array.dtype.char, array.shape) for array in inputs.values()])


def call_of(module: Any) -> Call:
    """What calls a module's forward, at the least price."""
    core = module._c  # noqa: SLF001 - its method is called directly: 1 µs less than nn.Module.__call__
    hooked = core._get_forward_hooks() or core._get_forward_pre_hooks()  # noqa: SLF001
    call: Call = module if hooked else core._get_method("forward")  # noqa: SLF001
    return call


class PlainForm:
    """The module as its file has it: let go of while it is not used, and read again from the same file.

    `lasting` says that it cannot be read again and so stays in memory.
    """

    def __init__(self, artifact: Path) -> None:
        """Open the file, which is read after that; OSError if it cannot be opened."""
        self._file = os.open(artifact, os.O_RDONLY | os.O_CLOEXEC)
        self._stamp = self._look()
        self._call: Call | None = None
        self._used = 0.0
        """When a call needed it that it was read again for; 0: it is here from the load."""
        self._keep = KEEP_SECONDS
        self.lasting = False

    def hold(self, module: Any, artifact: Path) -> None:
        """Take the module that was read from `artifact`; it lasts if that is another file than the one opened."""
        self._call = call_of(module)
        found = artifact.stat()
        self.lasting = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns) != self._stamp

    def _look(self) -> tuple[int, int, int, int]:
        found = os.fstat(self._file)
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns

    @property
    def held(self) -> bool:
        """Whether it is in memory."""
        return self._call is not None

    def call(self) -> Call:
        """The module's forward. ModelNotReady if its file has changed, OutOfMemory."""
        if self._call is None:
            started = time.monotonic()
            self._call = self._read()
            self._used = time.monotonic()
            self._keep = max(KEEP_SECONDS, KEEP_READS * (self._used - started))
        elif self._used:
            self._used = time.monotonic()
        return self._call

    def _read(self) -> Call:
        changed = "the model's file has changed since it was loaded, and this request needs to read it again"
        if self._look() != self._stamp:
            raise ModelNotReady(changed)
        left, _ = signal.setitimer(signal.ITIMER_REAL, 0.0)  # reading is no part of an execution's time
        try:
            read: Callable[..., Any] = torch.jit.load
            # By the descriptor: the name may lead to another file now.
            return call_of(read(f"/proc/self/fd/{self._file}", map_location="cpu").eval())
        except Exception as error:  # noqa: BLE001 - a file that is being changed may raise anything
            if isinstance(torch_errors.failure(error), OutOfMemory):
                raise OutOfMemory("there is no memory for the form of the model that this request needs") from None
            raise ModelNotReady(changed) from None
        finally:
            signal.setitimer(signal.ITIMER_REAL, left)

    def rest(self) -> float:
        """Let go of it if it was not used for long; the seconds until that is to be asked again, below 0 for never."""
        if self.lasting or self._call is None:
            return -1.0
        left = self._used + self._keep - time.monotonic() if self._used else 0.0
        if left > 0.0:
            return left
        self._call = None
        self._used = 0.0
        heap.trim()
        return -1.0


class Forms:
    """The optimised form of a module and the plain one, and which of them a request is for.

    A class of requests has the same datatypes, and the same sizes of all axes but the number of rows. The first request
    of a class is computed by both forms and answered by the plain one. A request without elements, or of a datatype or
    rank that the proof did not have, is always left to the plain form: the optimised one may not raise but crash.
    """

    def __init__(self, optimised: Call, plain: PlainForm, *, rows: bool) -> None:
        """`rows`: the proof had one and more rows of the same sizes."""
        self.optimised = optimised
        self.plain = plain
        self.proved: set[Shapes] = set()
        """Shapes of requests in the order of the model's inputs, for a quick look."""
        self._rows = rows
        self._classes: dict[object, bool] = {}
        self._kinds: set[object] = set()

    def trust(self, inputs: Tensors) -> None:
        """Both forms gave the same answers to these."""
        shapes = shapes_of(inputs)
        self._kinds.add(_kinds(inputs, shapes))
        self._classes[self._class(inputs, shapes)] = True
        self._remember(shapes)

    def execute(self, inputs: Tensors, run: Run) -> Answer:
        """Answer a request as the plain form does; raises what `run` raises, and what reading the plain form does."""
        shapes = shapes_of(inputs)
        agreed = self._judge(inputs, shapes)
        if agreed is None:
            return self._compare(inputs, shapes, run)
        if agreed:
            self._remember(shapes)
            try:
                return run(self.optimised, inputs)
            except OutOfMemory:
                raise
            except GatewayError:
                return self.as_plain(inputs, run)
        return run(self.plain.call(), inputs)

    def as_plain(self, inputs: Tensors, run: Run) -> Answer:
        """Answer a request that the optimised form has refused; if the plain one does not, both agree on that."""
        answer = run(self.plain.call(), inputs)
        self._distrust(inputs, shapes_of(inputs))
        return answer

    def _judge(self, inputs: Tensors, shapes: Shapes) -> bool | None:
        """Whether both forms agree on requests like this; None if that can be found out."""
        if any(0 in shape for _, shape in shapes):
            return False
        known = self._classes.get(self._class(inputs, shapes))
        if known is not None:
            return known
        if len(self._classes) >= MAX_CLASSES or _kinds(inputs, shapes) not in self._kinds:
            return False
        return None

    def _compare(self, inputs: Tensors, shapes: Shapes, run: Run) -> Answer:
        answer = run(self.plain.call(), inputs)
        try:
            same = agree(answer, run(self.optimised, inputs))
        except OutOfMemory:
            return answer
        except GatewayError:
            same = False
        if same:
            self._classes[self._class(inputs, shapes)] = True
        else:
            self._distrust(inputs, shapes)
        return answer

    def _distrust(self, inputs: Tensors, shapes: Shapes) -> None:
        self._classes[self._class(inputs, shapes)] = False
        self.proved.clear()
        sizes = ", ".join(str(list(shape)) for _, shape in shapes)
        print(f"optimize_for_inference changes the answer to {sizes}: the plain module is used", file=sys.stderr)  # noqa: T201

    def _remember(self, shapes: Shapes) -> None:
        if len(self.proved) >= MAX_SHAPES:
            self.proved.clear()
        self.proved.add(shapes)

    def _class(self, inputs: Tensors, shapes: Shapes) -> object:
        """What a request has in common with those of its class."""
        rows = {shape[0] if shape else 0 for _, shape in shapes}
        if not self._rows or len(rows) != 1 or 0 in rows:
            return tuple(inputs), shapes
        return tuple(inputs), "rows", tuple([(kind, shape[1:]) for kind, shape in shapes])


def _kinds(inputs: Tensors, shapes: Shapes) -> object:
    return tuple(inputs), tuple([(kind, len(shape)) for kind, shape in shapes])


# --- Making them ----------------------------------------------------------------------------------


def freeze(module: Any) -> tuple[Any, Any]:
    """A frozen copy of the module (None where it cannot be frozen) and the graph that tells most about forward."""
    try:
        frozen = torch.jit.freeze(module, optimize_numerics=False)
        graph = frozen.graph.copy()
    except Exception:  # noqa: BLE001 - what cannot be folded can still be read
        frozen, graph = None, module.inlined_graph.copy()
    torch._C._jit_pass_inline_fork_wait(graph)  # noqa: SLF001 - no public name
    torch._C._jit_pass_inline(graph)  # noqa: SLF001 - what the forks called
    return frozen, graph


def optimise(
    frozen: Any, plain: PlainForm, examples: list[Answer], run: Run, *, rows: bool
) -> tuple[Forms | None, str]:
    """The forms of a module if both give the same answers to these examples, else None; and what became of it."""
    try:
        optimised = call_of(torch.jit.optimize_for_inference(frozen))
    except Exception:  # noqa: BLE001 - a pass over the graph may fail in any way; the plain module stays
        return None, "failed, plain module used"
    forms = Forms(optimised, plain, rows=rows)
    for example in examples:
        try:
            answer = run(plain.call(), example)
        except GatewayError:
            continue  # made up, and refused
        try:
            same = agree(answer, run(optimised, example))
        except GatewayError:
            same = False
        if not same:
            return None, "answers differ, plain module used"
        forms.trust(example)
    return forms, "same answers, used"


def agree(plain: Answer, optimised: Answer) -> bool:
    """Whether two answers agree to rounding; needs little memory however large they are."""
    return plain.keys() == optimised.keys() and all(
        batch_agreement.agree(want, optimised[name], floor=ROUNDING) for name, want in plain.items()
    )
