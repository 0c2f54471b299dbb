"""What PyTorch's errors and files mean to a user: messages without tracebacks, refusals that say what to do."""

import re
import zipfile
from pathlib import Path

import torch

from gateway.errors import GatewayError, InferenceFailed, LoadFailed, OutOfMemory

_SAVE_IT = "save it with torch.jit.script(model).save(...) or torch.jit.trace(model, example).save(...)"
_LIMIT = 500
_FLATBUFFER = b"PTMF"
_PATH = re.compile(r"(?<![\w.])(?:[A-Za-z]:)?/(?:[^\s/'\"():,<>]+/)+[^\s'\"():,<>]*")
_NO_MEMORY = ("can't allocate memory", "out of memory", "not enough memory", "std::bad_alloc")
_UNINDENTED = re.compile(r"^\S", re.MULTILINE)
# Everything from here on is for the authors of PyTorch: C++ frames and the declaration of forward.
_TAIL = re.compile(r"\n(?:Exception raised from|Declaration:|Position:|frame #|C\+\+ CapturedTraceback)[\s\S]*")


def clean(error: BaseException) -> str:
    """The last meaningful message of an error raised in or by a TorchScript model, on one line, without paths."""
    text = _TAIL.sub("", str(error))
    for mark in ("<--- HERE", "Traceback of TorchScript"):
        if mark in text:
            # The rest of that line and the source lines below a marked one are skipped; these are indented.
            text = text.rsplit(mark, 1)[1].partition("\n")[2]
            text = text[found.start() :] if (found := _UNINDENTED.search(text)) else text
            break
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    message = _PATH.sub("…", " ".join(lines)).removeprefix("builtins.")
    if not message:
        message = f"{type(error).__name__} without a message"
    elif not isinstance(error, RuntimeError | torch.jit.Error) and not message.startswith(type(error).__name__):
        message = f"{type(error).__name__}: {message}"
    return message if len(message) <= _LIMIT else f"{message[:_LIMIT]}…"


def failure(error: Exception) -> GatewayError:
    """The error to tell the user when the model raised `error`."""
    if isinstance(error, GatewayError):
        return error
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(words in str(error) for words in _NO_MEMORY):
        return OutOfMemory("the model needed more memory than its device has; send a smaller request")
    return InferenceFailed(clean(error))


def unreadable(error: Exception) -> GatewayError:
    """The refusal for an archive that torch.jit.load raised `error` for."""
    if isinstance(failure(error), OutOfMemory):
        return OutOfMemory("the model needs more memory to load than it may have")
    if (operator := re.search(r"Unknown builtin op: ([\w:.]+\w)", str(error))) is not None:
        return LoadFailed(
            f"the model calls the operator {operator[1]}, which is not part of PyTorch {torch.__version__}; "
            "export it without that operator"
        )
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
        head = file.read(8)
    if head[4:] == _FLATBUFFER:  # a mobile model, which torch.jit.load reads
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


def _no_zip_refusal(head: bytes) -> str:
    if head[:2] == b"PK":
        return "the file is truncated or damaged (its zip directory is missing); copy it again"
    if head[:1] == b"\x80":
        return f"the file was written by torch.save, which is Python pickle and never opened here; {_SAVE_IT}"
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
        content = file.read(1 << 20)
    # Every pickled nn.Module names its dictionaries; the bytes are searched, never interpreted.
    if b"_parameters" in content and b"_modules" in content:
        return f"the file is a pickled nn.Module, which would run code when opened; {_SAVE_IT}"
    what = "the file holds tensors (a state_dict of torch.save) and no code to run them"
    return f"{what}; load them into the model and {_SAVE_IT}"
