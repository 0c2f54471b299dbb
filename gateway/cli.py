"""The command line: every command of `gateway`, and its one voice for mistakes."""

import sys
from typing import Annotated

import typer

from gateway import __version__
from gateway.commands.importing import import_models
from gateway.commands.keys import keys
from gateway.commands.serve import serve

app = typer.Typer(
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Serve PyTorch and TensorFlow models behind one REST API.",
)
app.command()(serve)
app.add_typer(keys, name="keys")
app.command("import")(import_models)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"gateway {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Serve PyTorch and TensorFlow models behind one REST API."""


def main() -> None:
    """Entry point of the `gateway` command; a mistake in its use is one line on stderr and exit code 2."""
    try:
        code = app(args=sys.argv[1:] or ["--help"], standalone_mode=False)
    except typer.TyperException as error:
        message = error.format_message() if isinstance(error, typer.BadParameter) else str(error)
        print(f"gateway: {' '.join(message.split())}", file=sys.stderr)  # noqa: T201 - the command line's own voice
        code = 2
    sys.exit(code)
