"""Amounts of memory as people write them: 512MB, 8GiB, or a number of bytes."""

import re

_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kKMGT]i?)?B?\s*")
_FACTORS = {
    "": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12,
    "ki": 2**10, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40,
}  # fmt: skip

MOST = 1 << 60


def parse_size(text: str | int) -> int:
    """Bytes; ValueError if the text is no amount of memory."""
    if isinstance(text, int):
        if not 0 <= text <= MOST:
            raise ValueError(f"{str(text)[:40]} is no amount of memory")
        return text
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no amount of memory; write 512MB, 8GiB or a number of bytes")
    size = float(match[1]) * _FACTORS[match[2] or ""]
    if size > MOST:
        raise ValueError(f"{text[:40]!r} is no amount of memory that there is")
    return int(size)


def format_size(size: float) -> str:
    """The amount with the unit that leaves it one to three digits before the point."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
