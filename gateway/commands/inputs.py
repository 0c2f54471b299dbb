"""What a person gives as a model's inputs, as arrays: numbers, JSON, text, .npy files, images, random values."""

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gateway.commands import images
from gateway.commands.client import did_you_mean
from gateway.commands.printing import plain
from gateway.errors import RequestError
from gateway.tensors import DTYPES, Array, TensorSpec, element_count

MAX_RANDOM_ELEMENTS = 1 << 26
_WORDS = ("hello", "bonjour", "guten Tag", "buenos días", "good morning", "où est-elle ?")
_FLOATS = frozenset({"FP16", "BF16", "FP32", "FP64"})


class Pictures(NamedTuple):
    """What is known of how images are sent."""

    scale: float
    platform: str
    size: images.Size | None


def read_inputs(
    given: Sequence[str],
    specs: Sequence[TensorSpec],
    *,
    scale: float,
    platform: str,
    size: images.Size | None = None,
) -> dict[str, Array]:
    """Arrays of the inputs' own datatypes, by name, from what --input says; RequestError says what is wrong with it.

    Whole numbers that a guessed datatype does not hold stay INT64. Images get `size`, if one is given.
    """
    found: dict[str, Array] = {}
    for text in given:
        spec, value = _named(text, specs)
        if spec.name in found:
            raise RequestError(f"input '{spec.name}' is given twice")
        found[spec.name] = _shaped(_fitted(_read(spec, value, Pictures(scale, platform, size)), spec), spec)
    missing = [spec.name for spec in specs if not spec.optional and spec.name not in found]
    if missing:
        takes = ", ".join(f"{spec.name} ({described(spec)})" for spec in specs)
        raise RequestError(f"input '{missing[0]}' is missing; the model takes {takes}; or let --random make one up")
    return found


def random_inputs(specs: Sequence[TensorSpec], rows: int, seed: int) -> dict[str, Array]:
    """Data for every required input by its signature: open leading dimensions are `rows`, other open ones 1."""
    rng = np.random.default_rng(seed)
    return {spec.name: _random(spec, rows, rng) for spec in specs if not spec.optional}


def described(spec: TensorSpec) -> str:
    """FP32 [-1, 64], say; a guess is called one."""
    shape = "of any shape" if spec.shape is None else str(list(spec.shape))
    return f"{spec.datatype} {shape}{' (a guess)' if spec.guessed else ''}"


def _named(text: str, specs: Sequence[TensorSpec]) -> tuple[TensorSpec, str]:
    """Which input a NAME=VALUE is for; a model's only input needs no name, and its text may have an = in it."""
    name, equals, value = text.partition("=")
    for spec in specs:
        if equals and spec.name == name:
            return spec, value
    if len(specs) == 1 and not (equals and name.isidentifier() and specs[0].datatype != "BYTES"):
        return specs[0], text
    known = [spec.name for spec in specs]
    if not equals:
        raise RequestError(f"write --input NAME={plain(text)[:40]}: the model has the inputs {', '.join(known)}")
    raise RequestError(
        f"the model has no input '{name[:100]}'; {did_you_mean(name, known) or 'it has ' + ', '.join(known)}"
    )


def _read(spec: TensorSpec, value: str, pictures: Pictures) -> Array:
    if value.startswith("@@"):
        value = value[1:]  # text that begins with an @
    elif value.startswith("@"):
        return _read_file(spec, Path(value[1:]), pictures)
    if spec.datatype == "BYTES":
        with contextlib.suppress(json.JSONDecodeError, RequestError):  # text that begins with a bracket
            if value.startswith("["):
                return _as_bytes(_from_json(spec, value), spec.name)
        return np.array([value.encode("utf-8", "surrogateescape")], object).reshape(())
    try:
        return _from_json(spec, value)
    except json.JSONDecodeError:
        hint = f"; @{value} reads the file" if Path(value).is_file() else "; a file is given as @FILE"
        raise RequestError(
            f"input '{spec.name}' takes {described(spec)}, and '{value[:40]}' is no number and no JSON{hint}"
        ) from None


def _from_json(spec: TensorSpec, text: str | bytes) -> Array:
    try:
        return np.array(json.loads(text), object if spec.datatype == "BYTES" else None)
    except RecursionError:
        raise RequestError(f"the JSON for input '{spec.name}' is nested too deep") from None
    except UnicodeDecodeError:
        raise RequestError(f"the JSON for input '{spec.name}' is not UTF-8 text") from None
    except json.JSONDecodeError:
        raise
    except ValueError:
        raise RequestError(f"the lists for input '{spec.name}' have different lengths") from None


def _read_file(spec: TensorSpec, path: Path, pictures: Pictures) -> Array:
    try:
        if spec.datatype == "BYTES":
            return np.array([path.read_bytes()], object).reshape(())
        if path.suffix == ".npy":
            return _from_npy(path)
        if path.suffix == ".json":
            return _from_json(spec, path.read_bytes())
        if path.suffix.lower() in images.SUFFIXES:
            return images.array_of(path, spec, *pictures)
    except json.JSONDecodeError as error:
        raise RequestError(f"{path} is no JSON: {error}") from None
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror or error}") from None
    raise RequestError(
        f"{path}: a file for input '{spec.name}' is .npy, .json or an image ({' '.join(images.SUFFIXES)})"
    )


def _from_npy(path: Path) -> Array:
    try:
        # Mapped, so that a header that promises more than the file has is found out before memory is taken for it.
        # An array of Python objects, which would be pickles, cannot be.
        with np.errstate(over="ignore"):
            return np.lib.format.open_memmap(path, mode="r")
    except (ValueError, OverflowError, SyntaxError, EOFError):
        raise RequestError(
            f"{path} is no .npy file of numbers; numpy.save makes one (arrays of objects are refused)"
        ) from None


def _fitted(array: Array, spec: TensorSpec) -> Array:
    """The same values in the input's datatype; whole numbers for one that was only guessed as they are, if need be."""
    try:
        return cast(array, spec.name, spec.datatype)
    except RequestError:
        if spec.guessed and array.dtype == np.int64:
            return array
        raise


def cast(array: Array, name: str, datatype: str) -> Array:
    """The same values in an input's datatype; RequestError if it cannot hold them. Floats may be rounded to floats."""
    dtype = DTYPES[datatype]
    if datatype == "BYTES":
        return _as_bytes(array, name)
    if array.dtype == dtype:
        return np.asarray(array)
    if array.dtype.kind not in "biuf":
        raise RequestError(f"input '{name}' is {datatype}, which takes numbers")
    with np.errstate(all="ignore"):
        made = array.astype(dtype)
        if datatype in _FLOATS and array.dtype.kind == "f":
            kept = np.isfinite(made.astype(np.float64)) == np.isfinite(array)
        else:
            kept = (made == array) & (made.astype(array.dtype) == array)
    if not kept.all():
        worst = array[~kept].flat[0]
        raise RequestError(f"input '{name}' is {datatype} and cannot hold {worst} as it is")
    return made


def _as_bytes(array: Array, name: str) -> Array:
    elements = array.ravel().tolist()
    if not all(isinstance(each, str | bytes) for each in elements):
        raise RequestError(f"input '{name}' is BYTES, which takes text or lists of it")
    made = np.empty(len(elements), object)
    made[:] = [each.encode("utf-8", "surrogatepass") if isinstance(each, str) else each for each in elements]
    return made.reshape(array.shape)


def _shaped(array: Array, spec: TensorSpec) -> Array:
    """With leading dimensions of 1 as far as they are missing; what does not fit after that the server explains."""
    if spec.shape is None:
        return array
    while array.ndim < len(spec.shape):
        array = array[np.newaxis]
    return array


def _random(spec: TensorSpec, rows: int, rng: np.random.Generator) -> Array:
    """Floats in 0..1, whole numbers 0 and 1, for they may be places in a table, UINT8 as in images, or words."""
    if spec.shape is None:
        raise RequestError(
            f"nobody knows which shape input '{spec.name}' takes: give it with --input, or declare it in model.yaml"
        )
    shape = [(rows if axis == 0 else 1) if size < 0 else size for axis, size in enumerate(spec.shape)]
    if element_count(shape) > MAX_RANDOM_ELEMENTS:
        raise RequestError(f"input '{spec.name}' of shape {shape} is too large to make up")
    if spec.datatype == "BYTES":
        return np.array([word.encode() for word in _WORDS], object)[rng.integers(0, len(_WORDS), shape)]
    dtype = DTYPES[spec.datatype]
    if spec.datatype in _FLOATS:
        return rng.random(shape).astype(dtype)
    return rng.integers(0, 256 if spec.datatype == "UINT8" else 2, shape).astype(dtype)
