"""Recognises Python pickles by their opcodes, without unpickling anything."""

import pickletools
from pathlib import Path

SUFFIXES = (".pkl", ".pickle", ".joblib", ".bin", ".ckpt", ".safetensors")
"""What files are called that hold weights or Python objects instead of a model that can be run."""
_OPCODES = 64
"""So many legal opcodes in a row are no accident."""
_HEAD_BYTES = 1 << 16
"""So much of a file is looked at."""


def is_pickled(path: Path) -> bool:
    """Whether a file is a pickle, or a zip file with one as torch.save writes it."""
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    return is_pickle(head) or (head.startswith(b"PK") and b"/data.pkl" in head)


def is_pickle(content: bytes) -> bool:
    """Whether bytes are a pickle of any protocol, or the beginning of one."""
    if content[:1] == b"\x80" and content[1:2] and content[1] <= 5:
        return True
    count = 0
    try:
        for opcode, _, _ in pickletools.genops(content):
            count += 1
            if opcode.name == "STOP":
                return count > 1
            if count == _OPCODES:
                return True
    except (ValueError, IndexError, UnicodeDecodeError, OverflowError):
        pass
    return False
