"""`gateway import`: models of TensorFlow Serving, Triton, TorchServe and MLServer, in the layout of our store."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from gateway.importing.plan import Plan


def import_models(
    source: Annotated[Path, typer.Argument(help="A repository, a models.config or a .mar.", show_default=False)],
    dest: Annotated[Path, typer.Argument(help="The model store to write to.", show_default=False)],
    layout: Annotated[
        str | None,
        typer.Option(
            "--from", help="tensorflow-serving, triton, torchserve or mlserver.  [default: what it looks like]"
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace models that are there already.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Report only; write nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Import models of another server, and report what was kept, changed and dropped.

    The exit code is 1 if a model was refused.

    Example: gateway import /srv/triton model_store --dry-run
    """
    import orjson  # noqa: PLC0415 - so that --help answers at once
    from rich.console import Console  # noqa: PLC0415 - as above

    from gateway.errors import ConfigError  # noqa: PLC0415 - as above
    from gateway.importing.layouts import LAYOUTS, plans  # noqa: PLC0415 - as above

    wanted = next((each for each in LAYOUTS if each == layout), None)
    if layout is not None and wanted is None:
        raise typer.BadParameter(f"--from takes one of {', '.join(LAYOUTS)}")
    try:
        found, models = plans(source, wanted)
    except ConfigError as error:
        print(f"gateway: {error.message}", file=sys.stderr)  # noqa: T201 - the command line's own voice
        raise typer.Exit(2) from None
    _write(models, dest, found, force=force, dry_run=dry_run)
    if as_json:
        report = {"from": found, "dry_run": dry_run, "models": [_as_json(plan) for plan in models]}
        typer.echo(orjson.dumps(report, option=orjson.OPT_INDENT_2))
    else:
        console = Console(highlight=False, markup=False)
        if not console.is_terminal:
            console.width = 1000  # what is read by a program is not folded
        console.print(_table(models))
    raise typer.Exit(1 if any(plan.refused for plan in models) else 0)


def _write(models: "list[Plan]", dest: Path, layout: str, *, force: bool, dry_run: bool) -> None:
    """Check all models, then copy them; what fails becomes `refused`."""
    from rich.console import Console  # noqa: PLC0415 - as above
    from rich.progress import Progress  # noqa: PLC0415 - as above

    from gateway.errors import ConfigError  # noqa: PLC0415 - as above
    from gateway.importing import copying  # noqa: PLC0415 - as above

    total = 0
    for plan in models:
        try:
            total += 0 if plan.refused else copying.check(plan, dest, force=force)
        except ConfigError as error:
            plan.refused = error.message
    if dry_run:
        return
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("copying", total=total)
        for plan in models:
            if plan.refused:
                continue
            try:
                copying.write(plan, dest, layout, lambda size: progress.advance(task, size), force=force)
            except ConfigError as error:
                plan.refused = error.message


def _as_json(plan: "Plan") -> dict[str, Any]:
    return {
        "model": plan.model,
        "origin": plan.origin,
        "versions": sorted(plan.versions),
        "refused": plan.refused or None,
        "model_yaml": plan.translation.keys,
        "findings": [{"fate": f.fate, "key": f.key, "sentence": f.sentence} for f in plan.translation.findings],
    }


def _plain(text: str) -> str:
    return "".join(letter if letter.isprintable() else "�" for letter in text)


def _table(models: "list[Plan]") -> "Table":
    from rich.table import Table  # noqa: PLC0415 - as above

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("MODEL", "VERSIONS", "KEPT", "CHANGED", "DROPPED"):
        table.add_column(column, overflow="fold")
    for plan in models:
        if plan.refused:
            table.add_row(_plain(plan.model), "refused", _plain(plan.refused), style="red")
            continue
        of = {fate: [f for f in plan.translation.findings if f.fate == fate] for fate in ("kept", "changed", "dropped")}
        told = [[f"{f.key}: {f.sentence}" for f in of[fate]] for fate in ("changed", "dropped")]
        cells = [", ".join(f.key for f in of["kept"]), *("; ".join(each) for each in told)]
        versions = ", ".join(map(str, sorted(plan.versions)))
        table.add_row(_plain(plan.model), versions, *map(_plain, cells))
    return table
