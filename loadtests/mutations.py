"""Requests with something wrong with them: a good one's structure, bytes or headers changed, from a seed."""

import copy
import json
import random
import re
import struct
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

TOKENS = (
    "NaN", "Infinity", "-Infinity", "nan", "1e400", "-1e400", "1e-400", "-0", "-0.0", "01", "+1", "0x10", ".5", "5.",
    "1" * 400, "9223372036854775807", "9223372036854775808", "18446744073709551616", "-9223372036854775809", "tru",
    "undefined", "'a'", '"\\ud800"', '"\\u0000"', '"\\x"', '"\x01"', "/**/1", "1 2", ",", ":", "{", "]", "",
)  # fmt: skip
"""What stands in for a value: JSON that is none, or only just."""
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**40, 2**63, 2**64, 1.5, -1e39, "", "x", "FP32", "INT64", "BYTES", "é" * 300,
    [], {}, [[]], [None], [1, [2]], {"a": 1}, [0.5] * 16, ["a"] * 3, [2**40], [-1], [0], [2**33, 2**33], [1] * 70,
)  # fmt: skip
_SHAPES: tuple[Any, ...] = (
    [], [0], [0, 16], [1, 0], [2, 16], [16, 1], [-1, 16], [1, -16], [2**62, 4], [2**40], [2**63], [1] * 64, [1.0, 16],
    ["1"], None, 16, [True, 16], [[1, 16]],
)  # fmt: skip
_DATATYPES = ("FP32", "FP64", "FP16", "BF16", "INT8", "INT64", "UINT64", "BOOL", "BYTES", "STRING", "fp32", "", 3, None)
_PLACEHOLDER = re.compile(r'"\\u0000(\d+)\\u0000"')
_JSON_SIZES = ("", " ", "-1", "0", "1", "007", "1.0", "abc", "9" * 18, "9" * 30, "+5", "0x10", "1,1", "²")
_ENCODINGS = ("gzip", "deflate", "br", "identity", "x", "gzip, gzip", "")
_TYPES = ("application/json", "application/octet-stream", "text/plain", "multipart/form-data", "", "a/b; charset=utf-7")
_PIECES = (
    b"\x00", b"\xff\xfe", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"]", b"}", b'"', b",", b"\\", b" " * 64, b"[" * 200,
)  # fmt: skip
_TIMEOUTS = ("", "abc", "-1", "0", "nan", "inf", "1e999", "60", "1_0", "9" * 40)


class Token:
    """Text that goes into the JSON as it is."""

    def __init__(self, text: str) -> None:
        self.text = text


class Mutant(NamedTuple):
    """A body and the headers that go with it."""

    body: bytes
    headers: tuple[str, ...]


class Good(NamedTuple):
    """A request that is right: its JSON, and the binary data behind it if it has some."""

    json: dict[str, Any]
    binary: bytes = b""


def good_requests(name: str, datatype: str, shape: Sequence[int], data: Sequence[Any]) -> list[Good]:
    """One input in JSON, nested and flat, and as binary data where it is FP32 or BYTES."""
    tensor = {"name": name, "datatype": datatype, "shape": list(shape)}
    found = [Good({"inputs": [tensor | {"data": list(data)}]})]
    if len(shape) == 2:
        rows = [list(data[at : at + shape[1]]) for at in range(0, len(data), shape[1])]
        found.append(Good({"id": "7", "inputs": [tensor | {"data": rows}], "parameters": {"priority": 3}}))
    if datatype == "FP32":
        binary = struct.pack(f"<{len(data)}f", *data)
    elif datatype == "BYTES":
        binary = b"".join(struct.pack("<I", len(text.encode())) + text.encode() for text in data)
    else:
        return found
    inputs = [tensor | {"parameters": {"binary_data_size": len(binary)}}]
    return [*found, Good({"inputs": inputs, "parameters": {"binary_data_output": True}}, binary)]


def mutant(choose: random.Random, good: Good) -> Mutant:
    """One to three things changed."""
    tree: Any = json.loads(json.dumps(good.json))
    binary = good.binary
    stages = [choose.random() for _ in range(choose.choice((1, 1, 1, 2, 3)))]
    for stage in stages:
        if stage < 0.55:
            tree = choose.choice(_STRUCTURAL)(choose, tree)
    text = dumped(choose, tree).encode("utf-8", "surrogatepass")
    size = len(text)
    headers = []
    for stage in stages:
        if 0.55 <= stage < 0.75:
            text = choose.choice(_BYTEWISE)(choose, text)
            size = choose.choice((size, len(text)))
        elif 0.75 <= stage < 0.85 and binary:
            binary = choose.choice(_BYTEWISE)(choose, binary)
        elif stage >= 0.85:
            headers.append(_header(choose))
    if binary or choose.random() < 0.03:
        headers.append(f"Inference-Header-Content-Length: {_json_size(choose, size)}")
    return Mutant(text + binary, tuple(headers))


def _header(choose: random.Random) -> str:
    kind, values = choose.choice(
        (
            ("Content-Encoding", _ENCODINGS),
            ("Content-Type", _TYPES),
            ("Accept-Encoding", ("gzip;q=x", "*", "deflate;q=1", ",,,")),
            ("X-Request-Timeout", _TIMEOUTS),
            ("Inference-Header-Content-Length", _JSON_SIZES),
        )
    )
    return f"{kind}: {choose.choice(values)}".encode().decode("latin-1")


def _json_size(choose: random.Random, size: int) -> str:
    if choose.random() < 0.7:
        return str(size)
    return (
        choose.choice((str(size + choose.randint(-4, 4)), str(choose.randint(0, 2 * size)), *_JSON_SIZES))
        .encode()
        .decode("latin-1")
    )


# The structure


def dumped(choose: random.Random, value: Any) -> str:
    """JSON in which tokens stand as they are."""
    tokens: list[str] = []

    def placeholder(token: Token) -> str:
        tokens.append(token.text)
        return f"\0{len(tokens) - 1}\0"

    text = json.dumps(value, default=placeholder, ensure_ascii=choose.random() < 0.5, separators=(",", ":"))
    return _PLACEHOLDER.sub(lambda found: tokens[int(found[1])], text) if tokens else text


def _places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of everything in a tree, the first two elements of each long list only."""
    found: list[tuple[Any, Any]] = []
    keys = list(value) if isinstance(value, dict) else range(min(len(value), 2)) if isinstance(value, list) else ()
    for key in keys:
        found.append((value, key))
        found += _places(value[key])
    return found


def _replaced(choose: random.Random, tree: Any) -> Any:
    container, key = choose.choice(_places(tree) or [([tree], 0)])
    container[key] = Token(choose.choice(TOKENS)) if choose.random() < 0.3 else copy.deepcopy(choose.choice(VALUES))
    return tree


def _removed(choose: random.Random, tree: Any) -> Any:
    container, key = choose.choice(_places(tree) or [([tree], 0)])
    del container[key]
    return tree


def _renamed(choose: random.Random, tree: Any) -> Any:
    objects = [each for each in _places(tree) if isinstance(each[0], dict)]
    if objects:
        container, key = choose.choice(objects)
        container[choose.choice((key.upper(), key + " ", "", "data", "shape", "parameters", "\ud800"))] = container.pop(
            key
        )
    return tree


def _twice(choose: random.Random, tree: Any) -> Any:
    """A key stands twice with the same value, or an element of a list does."""
    places = _places(tree)
    if not places:
        return [tree, tree]
    container, key = choose.choice(places)
    if isinstance(container, list):
        container.insert(key, container[key])
    else:
        again = dumped(choose, choose.choice((container[key], choose.choice(VALUES))))
        container[key] = Token(f"{dumped(choose, container[key])},{json.dumps(key)}:{again}")
    return tree


def _tensor(tree: Any) -> dict[str, Any] | None:
    try:
        tensor = tree["inputs"][0]
    except (KeyError, IndexError, TypeError):
        return None
    return tensor if isinstance(tensor, dict) else None


def _reshaped(choose: random.Random, tree: Any) -> Any:
    if (tensor := _tensor(tree)) is not None:
        tensor["shape"] = copy.deepcopy(choose.choice(_SHAPES))
    return tree


def _retyped(choose: random.Random, tree: Any) -> Any:
    if (tensor := _tensor(tree)) is not None:
        tensor["datatype"] = choose.choice(_DATATYPES)
    return tree


def _resized(choose: random.Random, tree: Any) -> Any:
    if (tensor := _tensor(tree)) is not None:
        size = choose.choice((0, 1, -1, 3, 63, 65, 2**31, 2**63, 2**70, "64", 64.0, True, None, [], {}))
        tensor["parameters"] = {"binary_data_size": size}
    return tree


def _deep(choose: random.Random, tree: Any) -> Any:
    depth = choose.choice((20, 90, 99, 100, 101, 500, 5000))
    start, end = choose.choice((("[", "]"), ('{"a":', "}")))
    text = Token(start * depth + "1" + end * choose.choice((depth, depth, depth - 1)))
    container, key = choose.choice(_places(tree) or [([tree], 0)])
    container[key] = text
    return tree


def _many(choose: random.Random, tree: Any) -> Any:
    """More inputs, outputs or parameters than anybody needs."""
    if isinstance(tree, dict):
        number = choose.choice((2, 30, 300))
        kind = choose.randrange(3)
        if kind == 0:
            inputs = tree.get("inputs")
            tree["inputs"] = (inputs[:1] if isinstance(inputs, list) else [{}]) * number
        elif kind == 1:
            tree["outputs"] = [{"name": choose.choice(("y", "z", "")), "parameters": {}}] * number
        else:
            tree["parameters"] = {f"p{each}": each for each in range(number)}
    return tree


def _asks(choose: random.Random, tree: Any) -> Any:
    """Parameters that mean something, with values that make no sense."""
    if isinstance(tree, dict):
        key = choose.choice(("signature_name", "binary_data_output", "priority", "version_label", "timeout"))
        # A timeout that makes sense and is short would rightly be answered 504.
        known: tuple[Any, ...] = (-1, "60", 1.5, [], {}, True, 2**70) if key == "timeout" else VALUES
        tree["parameters"] = {key: copy.deepcopy(choose.choice(known))}
    return tree


Structural = Callable[[random.Random, Any], Any]
_STRUCTURAL: tuple[Structural, ...] = (
    _replaced, _replaced, _replaced, _removed, _renamed, _twice, _reshaped, _reshaped, _retyped, _resized, _deep, _many,
    _asks,
)  # fmt: skip


# The bytes


def _cut(choose: random.Random, data: bytes) -> bytes:
    return data[: choose.randrange(len(data) + 1)]


def _flipped(choose: random.Random, data: bytes) -> bytes:
    if not data:
        return data
    changed = bytearray(data)
    for _ in range(choose.choice((1, 1, 2, 8))):
        changed[choose.randrange(len(changed))] ^= 1 << choose.randrange(8)
    return bytes(changed)


def _inserted(choose: random.Random, data: bytes) -> bytes:
    at = choose.randrange(len(data) + 1)
    piece = choose.choice(
        (b"\x00", b"\xff\xfe", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"]", b"}", b'"', b",", b"\\", b" " * 64)
    )
    return data[:at] + piece + data[at:]


def _dropped(choose: random.Random, data: bytes) -> bytes:
    start = choose.randrange(len(data) + 1)
    return data[:start] + data[start + choose.choice((1, 2, 16)) :]


def _repeated(choose: random.Random, data: bytes) -> bytes:
    start = choose.randrange(len(data) + 1)
    piece = data[start : start + choose.choice((1, 8, 64))]
    return data[:start] + piece * choose.choice((2, 100)) + data[start:]


def _marked(_: random.Random, data: bytes) -> bytes:
    return b"\xef\xbb\xbf" + data


def _noise(choose: random.Random, data: bytes) -> bytes:
    return choose.randbytes(choose.choice((0, 1, len(data), 300)))


Bytewise = Callable[[random.Random, bytes], bytes]
_BYTEWISE: tuple[Bytewise, ...] = (_cut, _flipped, _flipped, _inserted, _dropped, _repeated, _marked, _noise)
