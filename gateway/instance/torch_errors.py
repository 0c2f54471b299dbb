"""What PyTorch's errors and files mean to a user: messages without tracebacks, refusals that say what to do."""

import re
import zipfile
from pathlib import Path

import torch

from gateway.errors import GatewayError, InferenceFailed, InputRefused, LoadFailed, OutOfMemory
from gateway.instance import libraries
from gateway.store.pickles import is_pickle

_SAVE_IT = "save it with torch.jit.script(model).save(...) or torch.jit.trace(model, example).save(...)"
_LIMIT = 500
_FLATBUFFER = b"PTMF"
_TORCH_SAVE = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
"""How torch.save began its files before they were zip files: a magic number, pickled."""
_LOOK_BYTES = 1 << 20
"""So much of a file is looked at to say what it is."""
_PATH = re.compile(r"(?<![\w.])(?:[A-Za-z]:)?/(?:[^\s/'\"():,<>]+/)+[^\s'\"():,<>]*")
_NO_MEMORY = ("can't allocate memory", "out of memory", "not enough memory", "std::bad_alloc")
_FOREIGN_CODE = re.compile(r"Unknown builtin op: ([\w:.]+\w)|__torch__\.torch\.classes\.(\w+\.\w+)")
_UNINDENTED = re.compile(r"^\S", re.MULTILINE)
_FRAME = re.compile(r".+\(\d+\): [\w<>.]+")
"""A line of the stack that a traced module stores: FILE(LINE): FUNCTION."""
_MARKS = ("<--- HERE", "Traceback of TorchScript")
# Everything from here on is for the authors of PyTorch: C++ frames, dispatch tables and the declaration of forward.
_TAIL = re.compile(
    r"\n(?:Exception raised from|Declaration:|Position:|frame #|C\+\+ CapturedTraceback|\w+: registered at )[\s\S]*"
    r"|(?<=\.) This could be because [\s\S]*"
)
_NO_DEVICE = re.compile(
    r"arguments from the '(CUDA|HIP|XPU|MPS|XLA|Meta)\w*' backend|not compiled with (CUDA) enabled|No (CUDA) GPUs"
    r"|Found no NVIDIA driver|invalid device ordinal|(CUDA) driver version is insufficient"
)
# What operators say of the tensors that they were given. A message about devices or backends is none of these.
_OF_THE_INPUT = re.compile(
    r"(?<![a-z])(?:shapes?|sizes?|dims?|dimensions?|dimensional|ranks?|strides?|lengths?|dtypes?|data ?types?"
    r"|scalar types?|index|indexing|indices|out of (?:range|bounds)|elements?|channels?|[1-5]D"
    r"|type mismatch|result type|input type|not implemented for '\w+'|more than one (?:value|element)"
    r"|same number of)(?![a-z])",
    re.IGNORECASE,
)
_OF_THE_MACHINE = re.compile(r"(?<![a-z])(?:devices?|backend|cuda|cudnn|cublas|driver)(?![a-z])", re.IGNORECASE)


def clean(error: BaseException) -> str:
    """The last message of an error raised in or by a TorchScript model, on one line, without stacks and paths."""
    text = _TAIL.sub("", str(error))
    start = max(text.rfind(mark) for mark in _MARKS)
    if start >= 0:
        # The rest of that line and the source lines below a marked one are skipped; these are indented.
        text = text[start:].partition("\n")[2]
        text = text[found.start() :] if (found := _UNINDENTED.search(text)) else text
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    while len(lines) > 1 and _FRAME.fullmatch(lines[0]):
        del lines[0]
    message = _PATH.sub("…", " ".join(lines)).removeprefix("builtins.").removeprefix("RuntimeError: ")
    if not message:
        message = f"{type(error).__name__} without a message"
    elif not isinstance(error, RuntimeError | torch.jit.Error) and not message.startswith(type(error).__name__):
        message = f"{type(error).__name__}: {message}"
    return message if len(message) <= _LIMIT else f"{message[:_LIMIT]}…"


def failure(error: Exception) -> GatewayError:
    """The error to tell the user when the model raised `error`.

    InputRefused where an operator complains of the shape, size, datatype or index of what it was given.
    """
    if isinstance(error, GatewayError):
        return error
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(words in str(error) for words in _NO_MEMORY):
        return OutOfMemory("the model needed more memory than its device has; send a smaller request")
    message = clean(error)
    if (device := _NO_DEVICE.search(message)) is not None:
        kind = next(filter(None, device.groups()), "CUDA")
        return InferenceFailed(
            f"the model computes on a {kind} device, which its process does not have; export it so that it makes its "
            f"tensors on the device of its inputs, or serve it where there is one ({message})"
        )
    if _OF_THE_INPUT.search(message) and not _OF_THE_MACHINE.search(message):
        return InputRefused(message)
    return InferenceFailed(message)


def unreadable(error: Exception) -> GatewayError:
    """The refusal for an archive that torch.jit.load raised `error` for."""
    if isinstance(failure(error), OutOfMemory):
        return OutOfMemory("the model needs more memory to load than it may have")
    if (operator := _FOREIGN_CODE.search(str(error))) is not None:
        name = operator[1] or operator[2]
        return LoadFailed(libraries.lacking("pytorch", name, f"PyTorch {torch.__version__}"))
    return LoadFailed(f"PyTorch {torch.__version__} cannot open the TorchScript archive: {clean(error)}")


def no_gpu() -> str:
    """Why there is no GPU for PyTorch in a process that was given one."""
    if torch.version.cuda is None:
        return f"PyTorch {torch.__version__} is a build for the CPU only; install one with CUDA, or set kind: cpu"
    return f"PyTorch {torch.__version__} finds no GPU that it can use; it is built for CUDA {torch.version.cuda}"


def refusal(path: Path) -> str | None:
    """Why a file that PyTorch could not open is no TorchScript archive; None if it looks like one.

    Asked only after the failure: torch.jit.load unpickles nothing by itself, and the zip machinery costs an instance
    0.7 MB. Nothing in the file is unpickled here either.
    """
    with path.open("rb") as file:
        head = file.read(_LOOK_BYTES)
    if head[4:8] == _FLATBUFFER:  # a mobile model, which torch.jit.load reads
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            return _zip_refusal(archive)
    except (zipfile.BadZipFile, OSError, NotImplementedError, RuntimeError):
        return _no_zip_refusal(head)


def is_flatbuffer(path: Path) -> bool:
    """Whether the file is a mobile model in a flatbuffer instead of a zip file."""
    with path.open("rb") as file:
        return file.read(8)[4:] == _FLATBUFFER


def has_traced_inputs(path: Path) -> bool:
    """Whether torch.jit.save stored the example inputs of a traced model."""
    try:
        names = torch._C.PyTorchFileReader(str(path)).get_all_records()  # noqa: SLF001 - no public name
    except RuntimeError:
        return False
    return "traced_inputs.pkl" in names


def _no_zip_refusal(content: bytes) -> str:
    if content[:2] == b"PK":
        return "the file is truncated or damaged (its zip directory is missing); copy it again"
    if content.startswith(_TORCH_SAVE):
        return f"the file was written by torch.save, which is Python pickle and never opened here; {_SAVE_IT}"
    if is_pickle(content):
        return f"the file is a Python pickle, which would run code when opened; {_SAVE_IT}"
    return f"the file is not a TorchScript archive (no zip file); {_SAVE_IT}"


def _zip_refusal(archive: zipfile.ZipFile) -> str | None:
    full = archive.namelist()
    names = {name.split("/", 1)[-1] for name in full}
    if any(name.startswith("code/") for name in names) and names & {"constants.pkl", "model.json", "data.pkl"}:
        return None
    if "bytecode.pkl" in names:
        return f"the file holds mobile bytecode without TorchScript code; {_SAVE_IT}"
    if any("aotinductor/" in name for name in full):
        return f"the file is an AOTInductor package (.pt2), which this gateway does not run; {_SAVE_IT}"
    if any(name.endswith(("archive_format", "models/model.json", "exported_program.json")) for name in full):
        return f"the file is an exported program (.pt2), which PyTorch opens with pickle; {_SAVE_IT}"
    if any(name.startswith("MAR-INF/") for name in full):
        return "the file is a TorchServe archive (.mar); unpack it and store the TorchScript file that is in it"
    if "data.pkl" in names:
        return _pickle_refusal(archive, next(name for name in full if name.endswith("data.pkl")))
    return f"the file is a zip file, but not a TorchScript archive; {_SAVE_IT}"


def _pickle_refusal(archive: zipfile.ZipFile, member: str) -> str:
    with archive.open(member) as file:
        content = file.read(_LOOK_BYTES)
    # Every pickled nn.Module names its dictionaries; the bytes are searched, never interpreted.
    if b"_parameters" in content and b"_modules" in content:
        return f"the file is a pickled nn.Module, which would run code when opened; {_SAVE_IT}"
    if b"_rebuild_tensor" in content or b"_rebuild_parameter" in content:
        what = "the file is a pickle of tensors (a state_dict of torch.save) and holds no code to run them"
        return f"{what}; load them into the model and {_SAVE_IT}"
    return f"the file is a Python pickle written by torch.save, which would run code when opened; {_SAVE_IT}"
