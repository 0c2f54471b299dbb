"""How deeply a JSON text is nested, found before a parser recurses into it."""

import re

MAX_DEPTH = 100

_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STRINGS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)


def too_deep(text: bytes | bytearray | memoryview, limit: int = MAX_DEPTH) -> bool:
    """Whether arrays and objects are nested more than `limit` deep."""
    text = bytes(text) if isinstance(text, memoryview) else text
    if text.count(b"[") + text.count(b"{") <= limit:
        return False
    brackets = _STRINGS.sub(b"", text).translate(None, _NOT_BRACKETS)
    depth = 0
    for bracket in brackets:
        if bracket in b"[{":
            depth += 1
            if depth > limit:
                return True
        else:
            depth -= 1
    return False
