"""Gives memory that the C library keeps for later back to the kernel."""

import ctypes

_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's alone


def trim() -> None:
    """Return what is free in the heap; takes milliseconds."""
    if _trim is not None:
        _trim(0)
