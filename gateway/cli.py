"""The command line."""

import asyncio
import contextlib
import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from gateway import __version__

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Serve PyTorch and TensorFlow models behind one REST API.",
)


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


@app.command()
def serve(
    model_store: Annotated[Path | None, typer.Option(help="Directory of models.  [default: model_store]")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.  [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.  [default: 8000]")] = None,
    workers: Annotated[int | None, typer.Option(help="HTTP worker processes.  [default: 1]")] = None,
    max_body_bytes: Annotated[int | None, typer.Option(help="Largest request body.  [default: 67108864]")] = None,
    request_timeout: Annotated[float | None, typer.Option(help="Seconds a request may take.  [default: 60]")] = None,
    load_timeout: Annotated[
        float | None, typer.Option(help="Seconds a model may take to load.  [default: 120]")
    ] = None,
    keep_alive_seconds: Annotated[int | None, typer.Option(help="Idle connections are closed.  [default: 5]")] = None,
    drain_timeout: Annotated[
        float | None, typer.Option(help="Seconds for requests under way at the end.  [default: 30]")
    ] = None,
    memory_budget: Annotated[
        str | None, typer.Option(help="Memory of all models, such as 8GB.  [default: 80 % of what is free]")
    ] = None,
    gpu_memory_budget: Annotated[str | None, typer.Option(help="The same for each GPU.")] = None,
    sandbox: Annotated[str | None, typer.Option(help="auto, require or off.  [default: auto]")] = None,
    watch: Annotated[str | None, typer.Option(help="The model store: auto, poll or off.  [default: auto]")] = None,
    settle_seconds: Annotated[
        float | None, typer.Option(help="New files must be left alone so long.  [default: 1]")
    ] = None,
    state_directory: Annotated[Path | None, typer.Option(help="Where measured footprints are kept.")] = None,
) -> None:
    """Serve every model in the model store.

    Each option can also be set as GATEWAY_<OPTION> in the environment, or in gateway.yaml.
    """
    given = locals().copy()
    # Imported here so that --help and a wrong option answer at once.
    from rich.console import Console  # noqa: PLC0415

    from gateway.errors import ConfigError  # noqa: PLC0415
    from gateway.lifecycle.manager import Manager  # noqa: PLC0415
    from gateway.settings import read_settings  # noqa: PLC0415
    from gateway.startup import show_models  # noqa: PLC0415
    from gateway.supervisor import supervise  # noqa: PLC0415
    from gateway.workers import listening_socket  # noqa: PLC0415

    console = Console()
    console.width = max(console.width, 120)  # a table cut off at 80 columns hides what it is for
    try:
        settings = read_settings(**given)
        sock = listening_socket(settings.host, settings.port)
    except ConfigError as error:
        print(f"gateway: {error.message}", file=sys.stderr)  # noqa: T201 - the command line's own voice
        raise typer.Exit(2) from None
    logging.basicConfig(format="%(asctime)s %(name)s %(levelname)s %(message)s", level=logging.INFO)
    shown = f"[{settings.host}]" if ":" in settings.host else settings.host
    url = f"http://{shown}:{sock.getsockname()[1]}"

    def say(text: str) -> None:
        # Who reads this may go away, as `head` does; the server goes on.
        with contextlib.suppress(OSError, SystemExit):
            console.print(text, highlight=False)

    def show(manager: Manager) -> None:
        with contextlib.suppress(OSError, SystemExit):
            show_models(console, list(manager.versions.values()), manager.residency.account, url)

    say(f"gateway {__version__}: loading {settings.model_store}")
    code = asyncio.run(
        supervise(
            settings,
            sock,
            on_settled=lambda version: say(f"  {version.title}: {version.state.value}"),
            on_started=show,
        )
    )
    raise typer.Exit(code)


def main() -> None:
    """Entry point of the `gateway` command; a mistake in its use is one line on stderr and exit code 2."""
    try:
        code = app(args=sys.argv[1:] or ["--help"], standalone_mode=False)
    except typer.TyperException as error:
        message = error.format_message() if isinstance(error, typer.BadParameter) else str(error)
        print(f"gateway: {' '.join(message.split())}", file=sys.stderr)  # noqa: T201 - as above
        code = 2
    sys.exit(code)
