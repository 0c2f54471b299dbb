"""`gateway validate`: load every model of a store in isolation and say what is wrong with it."""

import asyncio
import json
import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

INTERRUPTED = 130


def validate(
    model_store: Annotated[Path, typer.Argument(metavar="DIR", help="Directory of models.")],
    model: Annotated[str | None, typer.Option(help="Only this one.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    sandbox: Annotated[str | None, typer.Option(help="auto, require or off.  [default: auto]")] = None,
    load_timeout: Annotated[
        float | None, typer.Option(help="Seconds a model may take to load.  [default: 120]")
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the log and what the models print.")] = False,
) -> None:
    """Load every version in a model store as `gateway serve` would, one after the other, and say how they fared.

    Exit code 1 if there is any problem.
    """
    # Imported here so that --help and a wrong option answer at once.
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415

    from gateway import verdicts  # noqa: PLC0415
    from gateway.errors import ConfigError  # noqa: PLC0415
    from gateway.settings import read_settings  # noqa: PLC0415
    from gateway.store.source import Artifact, scan  # noqa: PLC0415
    from gateway.validation import validate as load_all  # noqa: PLC0415

    try:
        settings = read_settings(model_store=model_store, sandbox=sandbox, load_timeout=load_timeout)
        artifacts, oddities = verdicts.chosen(scan(model_store), model)
    except ConfigError as error:
        print(f"gateway: {error.message}", file=sys.stderr)  # noqa: T201 - the command line's own voice
        raise typer.Exit(2) from None
    level = logging.INFO if verbose else logging.ERROR
    logging.basicConfig(format="%(asctime)s %(name)s %(levelname)s %(message)s", level=level)
    screen = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as progress:
        bar = progress.add_task("", total=len(artifacts))
        tried = iter(range(len(artifacts)))

        def show(artifact: Artifact) -> None:
            progress.update(bar, description=f"{artifact.model}/{artifact.version}", completed=next(tried))

        try:
            report = verdicts.Report(asyncio.run(load_all(settings, artifacts, show)), oddities)
        except (asyncio.CancelledError, KeyboardInterrupt):
            raise typer.Exit(INTERRUPTED) from None
    if as_json:
        print(json.dumps(verdicts.as_json(report), indent=2))  # noqa: T201 - what was asked for
    else:
        console = Console()
        console.width = max(console.width, 160 if console.is_terminal else 200)  # else it is all broken lines
        verdicts.show(console, report)
    raise typer.Exit(1 if report.problems else 0)
