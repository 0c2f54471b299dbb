"""The command line: every command of `gateway`, and its one voice for mistakes."""

import errno
import os
import sys
from typing import Annotated

import typer

from gateway import __version__
from gateway.commands.bench import bench
from gateway.commands.compare import compare
from gateway.commands.importing import import_models
from gateway.commands.infer import infer
from gateway.commands.keys import keys
from gateway.commands.load import load, unload
from gateway.commands.ls import ls
from gateway.commands.profile import profile
from gateway.commands.serve import serve
from gateway.commands.show import show
from gateway.commands.validate import validate
from gateway.errors import ConfigError, GatewayError, RequestError

app = typer.Typer(
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Serve PyTorch and TensorFlow models behind one REST API.",
)
_SERVER, _CLIENT = "The server", "Ask a running gateway"
app.command(rich_help_panel=_SERVER)(serve)
app.command(rich_help_panel=_SERVER)(validate)
app.command("import", rich_help_panel=_SERVER)(import_models)
app.add_typer(keys, name="keys", rich_help_panel=_SERVER)
for command in (ls, show, infer, load, unload, bench, compare, profile):
    app.command(rich_help_panel=_CLIENT)(command)

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
_FIRST_STEPS = f"""\
gateway {__version__} serves PyTorch and TensorFlow models behind one REST API.

  gateway serve --model-store DIR    serves the models in DIR, each in NAME/1/
  gateway ls                         lists what is served
  gateway show MODEL                 says what a model takes, with a call to try
  gateway infer MODEL --random       calls it
  gateway bench MODEL                measures it
  gateway compare A B                measures two side by side

gateway --help lists all commands, gateway COMMAND --help says more of one;
gateway --install-completion has the shell complete them, and the names of models."""


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


def _fail(message: str, code: int) -> int:
    text = "".join(letter if letter.isprintable() else " " for letter in message)
    print(f"gateway: {' '.join(text.split())}", file=sys.stderr)  # noqa: T201 - the command line's own voice
    return code


def main() -> None:
    """Entry point of the `gateway` command.

    What goes wrong is one line on stderr. The exit code is 2 for a mistake in the command's use, 1 for whatever else
    could not be done.
    """
    try:
        code = _run()
        if sys.stdout is not None:  # it is if it was closed from the start
            sys.stdout.flush()
    except OSError as error:
        if error.errno not in (errno.EPIPE, *_NO_ROOM):
            raise
        # Python writes what is left when it ends, and would complain in its own words.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        quiet = error.errno == errno.EPIPE  # who reads has seen enough
        code = 1 if quiet else _fail(f"the output cannot be written: {error.strerror}", 1)
    sys.exit(code)


def _run() -> int:
    """What was asked for; the exit code."""
    completing = "_GATEWAY_COMPLETE" in os.environ
    if len(sys.argv) == 1 and not completing:
        typer.echo(_FIRST_STEPS)
        return 0
    try:
        code: int = app(standalone_mode=False)
    except typer.TyperException as error:
        message = error.format_message() if isinstance(error, typer.BadParameter) else str(error)
        return _fail(message, 2)
    except (RequestError, ConfigError) as error:
        return _fail(error.message, 2)
    except GatewayError as error:
        return _fail(error.message, 1)
    return code
