"""Bodies made to cost a server more than they cost their sender: compressed bombs, deep and wide JSON."""

import gzip
import zlib
from typing import NamedTuple

MB = 1 << 20


class Hostile(NamedTuple):
    """A body, and the headers that go with it."""

    body: bytes
    headers: tuple[str, ...] = ()


def hostile_bodies(size: int = 8 * MB) -> dict[str, Hostile]:
    """Each kind by its name; the JSON of each has about `size` bytes, a bomb becomes ten times as many."""
    bomb = gzip.compress(b" " * (10 * size), 9)
    packed = ("Content-Encoding: gzip",)
    start, end = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,4],"data":[', b"]}]}"

    def json(piece: bytes, times: int = 0) -> Hostile:
        return Hostile(start + b",".join([piece] * (times or size // (len(piece) + 1))) + end)

    return {
        "bomb": Hostile(bomb, packed),
        "bomb of several members": Hostile(bomb * 3, packed),
        "truncated": Hostile(bomb[: len(bomb) // 2], packed),
        "deflated bomb": Hostile(zlib.compress(b"[" * (10 * size), 9), ("Content-Encoding: deflate",)),
        "noise": Hostile(bytes(range(256)) * (size // 4096), packed),
        "lists of one number": json(b"[0]"),
        "lists of one truth": json(b"[true]"),
        "numbers": json(b"0.1234567"),
        "texts": json(b'""'),
        "objects": json(b"{}"),
        "nulls": json(b"null"),
        "deep": Hostile(start + b"[" * size + end),
        "deep objects": Hostile(b'{"a":' * (size // 5)),
        "long key": Hostile(b'{"' + b"k" * size + b'":1}'),
        "many keys": Hostile(b"{" + b",".join(b'"%d":0' % number for number in range(size // 12)) + b"}"),
        "long number": json(b"1" * (size // 2), 1),
    }
