"""What both models of a comparison are asked: arrays from an .npz file or made up, in each model's own words."""

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gateway.commands.inputs import cast, random_inputs
from gateway.comparing.pairing import Pair, described, layouts
from gateway.errors import RequestError
from gateway.tensors import Array, TensorSpec

LABELS = ("labels", "y")
_LABELS = "biufSU"
"""The kinds of numpy's datatypes that a class can be of."""
_BROKEN = (
    TypeError,
    ValueError,
    OverflowError,
    SyntaxError,
    EOFError,
    KeyError,
    MemoryError,
    zipfile.BadZipFile,
    zlib.error,
)

Named = dict[str, tuple[str, Array]]
"""Input → datatype and values."""


class Data(NamedTuple):
    """Rows for both models."""

    a: Named
    b: Named
    labels: Array | None
    source: str
    rows: int

    def part(self, model: int, places: Sequence[int]) -> Named:
        """Some rows, for one of the models."""
        return {name: (datatype, array[places]) for name, (datatype, array) in (self.a, self.b)[model].items()}

    def first(self, rows: int) -> "Data":
        """Only so many."""
        a, b = (
            {name: (datatype, array[:rows]) for name, (datatype, array) in each.items()} for each in (self.a, self.b)
        )
        return Data(a, b, None if self.labels is None else self.labels[:rows], self.source, rows)


def read(path: Path, pairs: Sequence[Pair], a: Sequence[TensorSpec], b: Sequence[TensorSpec]) -> Data:
    """The arrays of a file, named like the inputs, laid out as the first model has them, and labels.

    RequestError says what is wrong with the file.
    """
    arrays = _arrays(path)
    inputs = {pair.a for pair in pairs}
    label = next((name for name in LABELS if name in arrays and name not in inputs), None)
    labels = arrays.pop(label) if label is not None else None
    given = _named(path, arrays, pairs)
    if any(array.ndim == 0 for array in (*given.values(), *([] if labels is None else [labels]))):
        raise RequestError(f"{path} has a single value where rows are needed")
    sizes = {len(array) for array in given.values()}
    if len(sizes) > 1 or 0 in sizes:
        raise RequestError(f"{path} needs arrays of the same number of rows, at least one; it has {_shapes(given)}")
    (rows,) = sizes
    if labels is not None and labels.dtype.kind not in _LABELS:
        raise RequestError(f"{path} needs labels that are numbers or text; '{label}' is {labels.dtype}")
    if labels is not None and labels.shape not in ((rows,), (rows, 1)):
        raise RequestError(f"{path} needs one label for each of its {rows} rows; '{label}' has {list(labels.shape)}")
    for spec in a:
        if spec.name in given and not _goes_into(spec, given[spec.name]):
            raise RequestError(
                f"{path}: the model takes {described(spec)}, and the array has {list(given[spec.name].shape)}"
            )
    return _data(pairs, a, b, given, None if labels is None else labels.reshape(-1), path.name, rows)


def made_up(pairs: Sequence[Pair], a: Sequence[TensorSpec], b: Sequence[TensorSpec], rows: int, seed: int) -> Data:
    """Random rows by the signatures; RequestError where these are not enough to make any."""
    theirs = {spec.name: spec for spec in b}
    specs = [_closest(spec, theirs[pair.b], pair.axes) for spec, pair in zip(a, pairs, strict=True)]
    given = random_inputs(specs, rows, seed)
    return _data(pairs, a, b, given, None, f"made up, seed {seed}", rows)


def _data(
    pairs: Sequence[Pair],
    a: Sequence[TensorSpec],
    b: Sequence[TensorSpec],
    given: dict[str, Array],
    labels: Array | None,
    source: str,
    rows: int,
) -> Data:
    ours, theirs = ({spec.name: spec.datatype for spec in specs} for specs in (a, b))
    first = {pair.a: (ours[pair.a], cast(given[pair.a], pair.a, ours[pair.a])) for pair in pairs}
    second: Named = {}
    for pair in pairs:
        array = given[pair.a]
        turned = np.ascontiguousarray(array.transpose(pair.axes)) if pair.axes else array
        second[pair.b] = theirs[pair.b], cast(turned, pair.b, theirs[pair.b])
    return Data(first, second, labels, source, rows)


def _arrays(path: Path) -> dict[str, Array]:
    """What is in the file. What would have to be unpickled is refused, as numpy does by itself."""
    try:
        with path.open("rb") as file, np.load(file) as archive:  # TypeError if it is a .npy
            arrays = {name: archive[name] for name in archive.files}
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror or error}") from None
    except _BROKEN:
        arrays = {}
    if not arrays or not all(isinstance(each, np.ndarray) for each in arrays.values()):
        raise RequestError(
            f"{path} is no .npz file of numbers or text; numpy.savez makes one (arrays of objects are refused)"
        )
    return arrays


def _named(path: Path, arrays: dict[str, Array], pairs: Sequence[Pair]) -> dict[str, Array]:
    """Arrays by the first model's inputs; the only array may have any name where there is only one input."""
    if len(arrays) == len(pairs) == 1:
        return {pairs[0].a: next(iter(arrays.values()))}
    found = {pair.a: arrays[name] for pair in pairs for name in (pair.a, pair.b) if name in arrays}
    known = ", ".join(pair.a for pair in pairs)
    unknown = [name for name in arrays if all(name not in (pair.a, pair.b) for pair in pairs)]
    if unknown:
        raise RequestError(f"{path} has an array '{unknown[0]:.100}', and the inputs are {known}; labels are 'labels'")
    missing = [pair.a for pair in pairs if pair.a not in found]
    if missing:
        raise RequestError(f"{path} has no array '{missing[0]}'; the inputs are {known}")
    return found


def _goes_into(spec: TensorSpec, array: Array) -> bool:
    """Whether rows of an array are what an input takes; how many at once it takes does not matter here."""
    return spec.shape is None or [] in layouts([-1, *spec.shape[1:]], array.shape)


def _closest(a: TensorSpec, b: TensorSpec, axes: Sequence[int]) -> TensorSpec:
    """The first model's input with what only the second one says of its shape."""
    if b.shape is None:
        return a
    theirs = list(b.shape)
    for place, axis in enumerate(axes):
        theirs[axis] = b.shape[place]
    shape = theirs if a.shape is None else [y if x < 0 else x for x, y in zip(a.shape, theirs, strict=True)]
    return TensorSpec(a.name, a.datatype, tuple(shape))


def _shapes(arrays: dict[str, Array]) -> str:
    return ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())
