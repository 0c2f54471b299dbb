"""Calls of the kernel that neither Python nor the C library offers."""

import ctypes
import os
import struct

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.prctl.restype = ctypes.c_int
_CAPABILITIES = struct.pack("=Ii", 0x20080522, 0)  # the third version of the structure, of this process


def syscall(number: int, *arguments: "int | bytes | ctypes._CArgObject | None") -> int:
    """Make a system call; OSError if it fails."""
    # A bare int would be passed in the lower half of a register.
    return _checked(_libc.syscall(ctypes.c_long(number), *map(_whole, arguments)))


def prctl(option: int, *arguments: int) -> int:
    """Change something of this process; OSError if the kernel refuses."""
    return _checked(_libc.prctl(option, *(ctypes.c_ulong(argument) for argument in (*arguments, 0, 0, 0, 0)[:4])))


def capabilities() -> tuple[int, int]:
    """The lower 32 effective and permitted capabilities of this process."""
    have = ctypes.create_string_buffer(24)
    _checked(_libc.capget(_CAPABILITIES, have))
    effective, permitted = struct.unpack_from("=2I", have)
    return effective, permitted


def set_capabilities(effective: int, permitted: int) -> None:
    """Give up all capabilities but those; OSError if some of them are not there to keep."""
    _checked(_libc.capset(_CAPABILITIES, struct.pack("=6I", effective, permitted, 0, 0, 0, 0)))


def _whole(argument: object) -> object:
    return ctypes.c_long(argument) if isinstance(argument, int) else argument


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
