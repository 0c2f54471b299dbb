"""`gateway infer`: ask a model of a running gateway."""

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.commands.client import (
    DEFAULT_URL,
    AsJson,
    CaCert,
    Client,
    Insecure,
    Key,
    ModelName,
    SignatureName,
    Timeout,
    Url,
    VersionName,
    model_path,
)
from gateway.commands.printing import console, plain, print_json
from gateway.errors import CallFailed, RequestError

if TYPE_CHECKING:
    from gateway.commands.model import Model
    from gateway.commands.wire import Answer
    from gateway.tensors import Array, TensorSpec

Inputs = Annotated[
    list[str] | None, typer.Option("--input", "-i", metavar="[NAME=]VALUE", help="An input, see above; repeatable.")
]
Random = Annotated[bool, typer.Option("--random", help="Make up data by the signature.", show_default=False)]
Batch = Annotated[
    int | None, typer.Option("--batch", min=1, help="Rows of random data, where the model leaves them open.")
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Of random data.")]
Scale = Annotated[float, typer.Option("--scale", help="What white is in images for inputs of floats; black is 0.")]
Resize = Annotated[
    str | None,
    typer.Option("--resize", metavar="HxW", help="Pixels of images.  [default: the input's; their own for a guess]"),
]
_SIZE = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,4})", re.ASCII)
_SHOWN_NUMBERS, _SHOWN_STRINGS, _SHOWN_LETTERS = 60, 20, 200
_BEST, _CLASSES, _ROWS = 3, range(3, 100_001), 8


def infer(
    model: ModelName,
    inputs: Inputs = None,
    random: Random = False,
    batch: Batch = None,
    seed: Seed = 0,
    scale: Scale = 1.0,
    resize: Resize = None,
    outputs: Annotated[
        list[str] | None, typer.Option("--output", help="Only this output; repeatable.  [default: all]")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Write to FILE.npy (the only output), FILE.json, or NAME.npy each in a folder."
        ),
    ] = None,
    version: VersionName = None,
    signature: SignatureName = None,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
    ca_cert: CaCert = None,
    insecure: Insecure = False,
    timeout: Timeout = 60.0,
) -> None:
    """Ask a model.

    An input is a number or JSON (`x=3.5`, `x='[[1, 2]]'`), text where the model takes text, or `@FILE`: a .npy file, a
    .json file, or an image, which is resized and laid out as the signature has it, and keeps its own size where that is
    only a guess (`gateway show` says so; `--resize 224x224` sets one); floats are 0 for black and 1 for
    white (255 with `--scale 255`). Where the model takes text or bytes, `@FILE` is the file itself; text that begins
    with @ is written @@, and several texts as JSON. A model's only input needs no name. Missing leading dimensions are
    added.

    * `gateway infer digits_torch --input @eight.png`

    * `gateway infer collatz_torch --input n='[7, 27, 97]' --json`

    * `gateway infer text_tensorflow --input "Où est la bibliothèque ?" --output language`

    * `gateway infer digits_torch --random --batch 32 -o probabilities.npy`
    """
    from gateway.commands.model import describe  # noqa: PLC0415 - with numpy, which --help does without

    with Client(url, key, ca_cert, insecure=insecure, timeout=timeout) as client:
        found = describe(client, model, version)
        arrays = chosen(
            found, inputs or [], signature, random=random, batch=batch, seed=seed, scale=scale, resize=resize
        )
        began = time.perf_counter()
        answer = ask(client, found, version, arrays, outputs or [], signature)
        seconds = time.perf_counter() - began
    if out is not None:
        _write(answer, out)
    if as_json:
        print_json(answer.as_json())
    else:
        _show(answer, found, seconds)


def chosen(
    model: "Model",
    inputs: list[str],
    signature: str | None,
    *,
    random: bool,
    batch: int | None,
    seed: int,
    scale: float,
    resize: str | None = None,
) -> dict[str, tuple[str, "Array"]]:
    """(datatype, array) of each input that was given or made up; RequestError says what is wrong."""
    from gateway.commands.inputs import random_inputs, read_inputs  # noqa: PLC0415 - as above

    specs = model.signature(signature).inputs
    if random and inputs:
        raise RequestError("--random makes up every input; leave it out or --input")
    if not random and batch is not None:
        raise RequestError("--batch is for --random; given inputs have the rows that they have")
    if random:
        if batch is not None and batch > 1 and not any(spec.shape and spec.shape[0] < 0 for spec in specs):
            raise RequestError(f"--batch {batch}: no input of model '{model.name}' has an open leading dimension")
        arrays = random_inputs(specs, batch or 1, seed)
    else:
        arrays = read_inputs(inputs, specs, scale=scale, platform=model.platform, size=_size(resize))
    return {spec.name: (_datatype(spec, arrays[spec.name]), arrays[spec.name]) for spec in specs if spec.name in arrays}


def _datatype(spec: "TensorSpec", array: "Array") -> str:
    """An input's own, unless it was a guess and the array has another."""
    from gateway.tensors import DATATYPES  # noqa: PLC0415 - as above

    return DATATYPES.get(array.dtype, spec.datatype) if spec.guessed else spec.datatype


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    found = _SIZE.fullmatch(text)
    if found is None:
        raise RequestError(f"--resize {text[:40]} is no size; write HEIGHTxWIDTH, as in 224x224")
    return int(found[1]), int(found[2])


def ask(
    client: Client,
    model: "Model",
    version: str | None,
    arrays: dict[str, tuple[str, "Array"]],
    outputs: list[str],
    signature: str | None,
) -> "Answer":
    """One inference, binary both ways."""
    from gateway.commands import wire  # noqa: PLC0415 - as above

    body, headers = wire.encode(arrays, binary=True, outputs=outputs, signature=signature)
    with client.knowing(model.name):
        response = client.send("POST", f"{model_path(model.name, version)}/infer", body, headers)
    return wire.decode(response.content, response.headers.get(wire.JSON_SIZE))


# The answer on a screen


def _show(answer: "Answer", model: "Model", seconds: float) -> None:
    screen = console()
    for name, array in answer.outputs.items():
        screen.print(plain(f"{name}  {answer.datatypes[name]} {list(array.shape)}"), style="bold")
        screen.print(_values(array))
        for line in _highest(array):
            screen.print(line)
    name = answer.head.get("model_name", model.name)
    screen.print(
        plain(f"{name}/{answer.head.get('model_version', '?')} answered in {seconds * 1000:.1f} ms"), style="dim"
    )


def _values(array: "Array") -> str:
    import numpy as np  # noqa: PLC0415 - as above

    if array.dtype != object:
        if array.dtype.kind == "V":  # bfloat16, which numpy cannot write
            array = array.astype(np.float32)
        return np.array2string(array, threshold=_SHOWN_NUMBERS, precision=6, suppress_small=True, max_line_width=100)
    flat = array.ravel()
    lines = []
    for element in flat[:_SHOWN_STRINGS].tolist():
        text = plain(element[: 4 * _SHOWN_LETTERS].decode("utf-8", "backslashreplace"))
        lines.append(text if len(text) <= _SHOWN_LETTERS else f"{text[:_SHOWN_LETTERS]}… ({len(element)} bytes)")
    if flat.size > _SHOWN_STRINGS:
        lines.append(f"… and {flat.size - _SHOWN_STRINGS} more")
    return "\n".join(lines)


def _highest(array: "Array") -> list[str]:
    """For rows of floats that may be scores of classes: where the highest of a row are."""
    if array.dtype.kind != "f" or array.ndim != 2 or array.shape[1] not in _CLASSES or len(array) > _ROWS:
        return []
    return [
        "highest: " + ", ".join(f"{place} ({row[place]:.4g})" for place in row.argsort()[::-1][:_BEST].tolist())
        for row in array
    ]


# The answer in files


def _write(answer: "Answer", out: Path) -> None:
    import numpy as np  # noqa: PLC0415 - as above
    import orjson  # noqa: PLC0415 - as above

    try:
        if out.suffix == ".json":
            out.write_bytes(orjson.dumps(answer.as_json()))
        elif out.suffix == ".npy":
            if len(answer.outputs) != 1:
                raise RequestError(f"{out} holds one output; --output chooses one of {', '.join(answer.outputs)}")
            ((name, array),) = answer.outputs.items()
            if array.dtype == object:
                raise RequestError(f"output '{name}' is BYTES, which .npy does not hold; -o {out.stem}.json does")
            np.save(out, _storable(array))
        else:
            out.mkdir(parents=True, exist_ok=True)
            for number, (name, array) in enumerate(answer.outputs.items()):
                _write_into(out, number, name, array)
    except OSError as error:
        raise CallFailed(f"{out} cannot be written: {error.strerror or error}") from None


def _write_into(folder: Path, number: int, name: str, array: "Array") -> None:
    """NAME.npy, or NAME.bin if it is the one element of BYTES, or NAME-0.bin and so on."""
    import numpy as np  # noqa: PLC0415 - as above

    stem = re.sub(r"[^\w.-]", "_", name).lstrip(".")[:100] or f"output_{number}"
    if array.dtype != object:
        np.save(folder / f"{stem}.npy", _storable(array))
        return
    elements = array.ravel().tolist()
    for place, element in enumerate(elements):
        (folder / (f"{stem}-{place}.bin" if len(elements) > 1 else f"{stem}.bin")).write_bytes(element)


def _storable(array: "Array") -> "Array":
    import numpy as np  # noqa: PLC0415 - as above

    return array.astype(np.float32) if array.dtype.kind == "V" else array
