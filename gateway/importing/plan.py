"""What an import is going to write: for each model its versions' artifacts, the files beside them and model.yaml."""

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from gateway.errors import ConfigError
from gateway.importing.report import Translation
from gateway.tensors import DTYPES

TORCHSCRIPT = "model.pt"
SAVED_MODEL = "model.savedmodel"


@dataclass(frozen=True)
class Piece:
    """A file or a directory of the source, or a member of a zip archive, and what it will be called."""

    source: Path
    target: str
    member: str = ""
    """In the archive `source`."""


@dataclass
class Plan:
    """One model; with a reason in `refused`, what would have been one."""

    model: str
    origin: str
    """Where it is described, as it may stand in a report."""
    root: Path = Path()
    """Links must not lead out of it."""
    translation: Translation = field(default_factory=Translation)
    versions: dict[int, Piece] = field(default_factory=dict)
    beside: list[Piece] = field(default_factory=list)
    refused: str = ""


class Refusable(Protocol):
    """What stands for one model of a repository."""

    refused: str


@contextlib.contextmanager
def refusing(found: Refusable) -> Iterator[None]:
    """Whatever goes wrong in here with one model is why it is refused, and does not keep others from being imported."""
    try:
        yield
    except ConfigError as error:
        found.refused = error.message
    except OSError as error:
        found.refused = f"it cannot be read: {error.strerror}"
    except Exception as error:  # noqa: BLE001 - files of others may hold what nobody has thought of
        found.refused = f"it cannot be imported: {error!r:.200}"


def version_number(text: str) -> int:
    """The first number of a version such as "2", "1.0" or "v0.3.1"; ConfigError if it begins with none."""
    match = re.match(r"v?(\d{1,18})(?![0-9])", text, re.ASCII | re.IGNORECASE)
    if match is None:
        raise ConfigError(f"version {text!r:.80} begins with no number")
    return int(match[1])


def declared(name: str | None, datatype: str | None, shape: list[int], where: str) -> Mapping[str, object]:
    """A tensor for model.yaml; ConfigError for a datatype that is not known."""
    if not name or datatype not in DTYPES:
        raise ConfigError(f"{where}: a tensor needs a name and a datatype, one of {', '.join(DTYPES)}")
    return {"name": name, "datatype": datatype, "shape": shape}
