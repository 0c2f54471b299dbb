"""Made-up rows that expose a model whose rows influence each other: other lengths, padding, scales and kinds."""

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from gateway.tensors import Array

Tensors = dict[str, Array]
Make = Callable[[Array, np.random.Generator], Array]

MOST_ROWS = 24
"""Rows of one proof: twice as many take four times as many pairs."""
_MASKED_INPUTS = 4
"""Inputs that are tried as a mask next to ordinary values in the others."""
_LONG_TEXT = b" ".join([b"the quick brown fox jumps over the lazy dog and"] * 3)
"""Thirty words."""
_TEXTS = (
    b"library",
    _LONG_TEXT,
    b"",
    b"where is library",
    b"number 1764543210 of 42",
    b"yes, no, perhaps, 3.5",
    "¿dónde está la biblioteca? 図書館 😀".encode(),
    b"7",
    b"42",
)


def rows_like(example: Mapping[str, Array]) -> list[Tensors]:
    """Different rows of the example's shapes and datatypes, the example first, then the most telling ones.

    The arrays of an example have one row. Values stay within what an example shows to be allowed where they may be
    indices; whether the model takes a row is for the caller to find out.
    """
    rng = np.random.default_rng(0)
    rows, seen = [], set()
    for row in _rows(dict(example), rng):
        content = tuple(_content(array) for array in row.values())
        if content not in seen:
            seen.add(content)
            rows.append(row)
        if len(rows) == MOST_ROWS:
            break
    return rows


def _content(array: Array) -> object:
    return tuple(array.ravel().tolist()) if array.dtype == object else array.tobytes()


def _rows(example: Tensors, rng: np.random.Generator) -> Iterator[Tensors]:
    """All rows that may be tried, without a limit; some may be equal."""
    yield example
    ways = {name: _ways(array) for name, array in example.items()}
    masked = _masked(example, ways, rng)
    plain = _alike(example, ways, rng)
    drawn = next(plain)
    yield drawn
    # In turns, so that few rows already have some of both.
    for first, second in zip(masked, plain, strict=False):
        yield first
        yield second
    yield from _one_element(drawn, example, ways, rng)
    yield from plain
    yield from masked


def _alike(example: Tensors, ways: dict[str, list[Make]], rng: np.random.Generator) -> Iterator[Tensors]:
    """Rows whose inputs are all made in the same way."""
    for way in range(max(map(len, ways.values()), default=0)):
        yield {name: ways[name][way % len(ways[name])](array, rng) for name, array in example.items()}


def _masked(example: Tensors, ways: dict[str, list[Make]], rng: np.random.Generator) -> Iterator[Tensors]:
    """Rows with ordinary values in all inputs but one, which holds ones and zeros or text of another length."""
    if len(example) < 2:
        return
    # Masks are whole numbers more often than floating point numbers.
    candidates = sorted(example, key=lambda name: example[name].dtype.kind not in "biuO")[:_MASKED_INPUTS]
    for index in range(4):
        for name in candidates:
            row = {other: ways[other][0](array, rng) for other, array in example.items()}
            array = example[name]
            row[name] = ways[name][index](array, rng) if array.dtype == object else _MASKS[index](array, rng)
            yield row


def _one_element(
    row: Tensors, example: Tensors, ways: dict[str, list[Make]], rng: np.random.Generator
) -> Iterator[Tensors]:
    """The row again, but for one element of one of its inputs."""
    for name, array in list(row.items())[:3]:
        if array.size > 1 and array.dtype != object:
            changed = array.copy()
            at = array.size // 2
            changed.reshape(-1)[at] = ways[name][0](example[name], rng).reshape(-1)[at]
            yield {**row, name: changed}


# --- Values, by kind ------------------------------------------------------------------------------


def _ways(example: Array) -> list[Make]:
    """How values for an input are made; the first way gives ordinary values, equal places are of like kind."""
    if example.dtype == object:
        return _text_ways()
    if example.dtype.kind == "b":
        return [_drawn_bool, _filled(0), *_MASKS]
    drawn: Make = _drawn_integers if example.dtype.kind in "iu" else _drawn_floats
    ways = [drawn, _filled(0), _padded(drawn, 0.25), _filled(1), _padded(drawn, 0.6), *_MASKS]
    if example.dtype.kind in "iu":
        ways += [_binary, lambda like, _: np.full_like(like, max(1, like.max(initial=0)))]
        return ways + ([_uniform(0, 256), _filled(255)] if example.dtype == np.uint8 else [])
    return [
        *ways[:2],
        _uniform(-3, 3),
        _uniform(0, 256),
        _filled(1),
        _uniform(0, 1),
        _filled(1e4),
        lambda like, rng: -np.abs(_drawn_floats(like, rng)),
        _uniform(0, 0.01),
        *ways[2:],
    ]


def _text_ways() -> list[Make]:
    def written(text: bytes) -> Make:
        return lambda like, _: _strings(like, [text] * like.size)

    def repeated(times: int) -> Make:
        return lambda like, _: _strings(like, [item * times for item in like.ravel().tolist()])

    # Also the example's own text several times: a model that reads numbers takes no words.
    return [*(written(text) for text in _TEXTS[:4]), repeated(2), *(written(text) for text in _TEXTS[4:]), repeated(3)]


def _strings(like: Array, texts: list[object]) -> Array:
    made = np.empty(like.size, dtype=object)
    made[:] = texts
    return made.reshape(like.shape)


def _drawn_integers(like: Array, rng: np.random.Generator) -> Array:
    # Indices into tables are the common case: stay within what the example shows to be allowed.
    low, high = min(0, int(like.min(initial=0))), int(like.max(initial=0))
    return rng.integers(low, high, like.shape, endpoint=True).astype(like.dtype)


def _drawn_floats(like: Array, rng: np.random.Generator) -> Array:
    return np.asarray(rng.standard_normal(like.shape)).astype(like.dtype)


def _drawn_bool(like: Array, rng: np.random.Generator) -> Array:
    return np.asarray(rng.random(like.shape) < 0.5)


def _binary(like: Array, rng: np.random.Generator) -> Array:
    return rng.integers(0, 2, like.shape).astype(like.dtype)


def _uniform(low: float, high: float) -> Make:
    return lambda like, rng: np.asarray(rng.uniform(low, high, like.shape)).astype(like.dtype)


def _filled(value: float) -> Make:
    return lambda like, _: np.full(like.shape, value).astype(like.dtype)


def _length(like: Array, share: float) -> int:
    """How far a sequence along the last axis goes, at least one element."""
    return max(1, int(like.shape[-1] * share)) if like.ndim else 1


def _padded(make: Make, share: float) -> Make:
    """Ordinary values at the start of the last axis, zeros after them."""

    def padded(like: Array, rng: np.random.Generator) -> Array:
        made = make(like, rng)
        made[..., _length(like, share) :] = 0
        return made

    return padded


def _ones(share: float, *, left: bool = False) -> Make:
    """Ones for a part of the last axis, zeros for the rest: the mask of a sequence that is padded."""

    def mask(like: Array, _: np.random.Generator) -> Array:
        made = np.zeros(like.shape, like.dtype)
        length = _length(like, share)
        made[..., slice(-length, None) if left else slice(length)] = 1
        return made

    return mask


_MASKS: tuple[Make, ...] = (_ones(0.5), _ones(1.0), _ones(0.0), _ones(0.3, left=True))
