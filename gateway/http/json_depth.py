"""How deeply a JSON text is nested, found before a parser recurses into it."""

import re
from collections.abc import Iterator

import numpy as np

MAX_DEPTH = 100

_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_PIECE = 64 << 10
"""Bytes at a time: larger arrays would leave holes in the memory of a process that lives long."""
_OPENED, _CLOSED = np.int8(1), np.int8(-1)
_ESCAPED = (b"\\\\", b'\\"')
_STRINGS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?', re.DOTALL)  # an open one ends with the text


def count_up_to(text: bytes | bytearray, mark: bytes, limit: int) -> int:
    """How often a byte occurs, but no more than `limit` + 1; many times faster than count() where it is rare."""
    if len(text) < 4096:
        return text.count(mark)
    found, at = 0, text.find(mark)
    while at >= 0 and found <= limit:
        found += 1
        at = text.find(mark, at + 1)
    return found


def lists_in(text: bytes | bytearray) -> int:
    """How many arrays a text holds: brackets in strings are none."""
    return _STRINGS.sub(b"", text).count(b"[")


def too_deep(text: bytes | bytearray | memoryview, limit: int = MAX_DEPTH) -> bool:
    """Whether arrays and objects are nested more than `limit` deep."""
    text = bytes(text) if isinstance(text, memoryview) else text
    if count_up_to(text, b"[", limit) + count_up_to(text, b"{", limit) <= limit:
        return False
    depth = 0
    for piece in outside_strings(text):
        marks = np.frombuffer(piece.translate(None, _NOT_BRACKETS), np.uint8)
        if not len(marks):
            continue
        # Opening brackets are 0x5b and 0x7b, closing ones 0x5d and 0x7d: 4 is in these only.
        depths = depth + np.cumsum(np.where(marks & 4, _CLOSED, _OPENED), dtype=np.int32)
        if depths.max() > limit:
            return True
        depth = int(depths[-1])
    return False


def outside_strings(text: bytes | bytearray) -> Iterator[bytes | bytearray]:
    """What stands outside of strings, a piece of the text at a time, and a quote for each string.

    An open string ends with the text.
    """
    quotes, inside, at = text.find(b'"') >= 0, 0, 0
    while at < len(text):
        end = at + _PIECE
        while quotes and text[end - 1 : end] == b"\\":  # what a backslash stands before belongs to it
            end += 1
        piece = text[at:end]
        at = end
        if b'"' not in piece:
            piece = b"" if inside else piece
        else:
            for escaped in _ESCAPED if b"\\" in piece else ():
                piece = piece.replace(escaped, b"  ")
            marks = np.frombuffer(piece, np.uint8)
            within = (np.cumsum(marks == ord('"'), dtype=np.uint8) + np.uint8(inside)) & 1
            inside = int(within[-1])
            piece = marks[within == 0].tobytes()
        yield piece
