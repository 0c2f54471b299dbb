"""How commands print: tables for people, JSON for programs, and nothing that a terminal would obey."""

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_UNLIMITED = 1000
"""Columns of what is no terminal: nothing is cut there."""


def console(*, stderr: bool = False) -> "Console":
    """Where people read; coloured only if that is a terminal."""
    from rich.console import Console  # noqa: PLC0415 - not for --json

    made = Console(stderr=stderr, highlight=False, markup=False, emoji=False, soft_wrap=True)
    if not made.is_terminal:
        made.width = _UNLIMITED
    return made


def plain(text: object) -> str:
    """Text of a model or a server without what a terminal would take for a command; line breaks become spaces."""
    return "".join(letter if letter.isprintable() else " " if letter.isspace() else "�" for letter in str(text))


def table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], styles: Sequence[str] = (), *, right: bool = False
) -> "Table":
    """Rows below headings; each row may have a style; `right` if it is numbers."""
    from rich.table import Table  # noqa: PLC0415 - as above
    from rich.text import Text  # noqa: PLC0415 - as above

    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(column, overflow="fold", justify="right" if right else "left")
    for number, row in enumerate(rows):
        made.add_row(*(Text(plain(cell)) for cell in row), style=styles[number] if styles else None)
    return made


def print_json(value: Any) -> None:
    """One JSON document, in UTF-8 whatever the terminal's encoding; indented if people read it."""
    import orjson  # noqa: PLC0415 - as above

    indent = orjson.OPT_INDENT_2 if sys.stdout.isatty() else 0
    sys.stdout.buffer.write(orjson.dumps(value, option=indent) + b"\n")
    sys.stdout.buffer.flush()


def warn(text: str) -> None:
    """A line on stderr."""
    print(f"gateway: {plain(text)}", file=sys.stderr)  # noqa: T201 - the command line's own voice
