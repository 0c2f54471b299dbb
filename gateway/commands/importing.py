"""`gateway import`: models of TensorFlow Serving, Triton, TorchServe and MLServer, in the layout of our store."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.commands.printing import console, print_json, table

if TYPE_CHECKING:
    from rich.table import Table

    from gateway.importing.plan import Plan

_SURROGATES = re.compile("[\ud800-\udfff]")
"""What stands for bytes that are no UTF-8 in names of files; in JSON there is no such thing."""


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
    from gateway.importing.layouts import LAYOUTS, plans  # noqa: PLC0415 - so that --help answers at once

    wanted = next((each for each in LAYOUTS if each == layout), None)
    if layout is not None and wanted is None:
        raise typer.BadParameter(f"--from takes one of {', '.join(LAYOUTS)}")
    found, models = plans(source, wanted)
    _write(models, dest, found, force=force, dry_run=dry_run)
    if as_json:
        print_json(_sound({"from": found, "dry_run": dry_run, "models": [_as_json(plan) for plan in models]}))
    else:
        console().print(_table(models), soft_wrap=False)
    raise typer.Exit(1 if any(plan.refused for plan in models) else 0)


def _write(models: "list[Plan]", dest: Path, layout: str, *, force: bool, dry_run: bool) -> None:
    """Check all models, then copy them; what fails becomes `refused`."""
    from rich.progress import Progress  # noqa: PLC0415 - as above

    from gateway.importing import copying  # noqa: PLC0415 - as above
    from gateway.importing.plan import refusing  # noqa: PLC0415 - as above

    total = 0
    for plan in models:
        with refusing(plan):
            total += 0 if plan.refused else copying.check(plan, dest, force=force)
    if dry_run:
        return
    screen = console(stderr=True)
    with Progress(console=screen, transient=True, disable=not screen.is_terminal) as progress:
        task = progress.add_task("copying", total=total)
        for plan in models:
            if plan.refused:
                continue
            with refusing(plan):
                copying.write(plan, dest, layout, lambda size: progress.advance(task, size), force=force)


def _as_json(plan: "Plan") -> dict[str, Any]:
    return {
        "model": plan.model,
        "origin": plan.origin,
        "versions": sorted(plan.versions),
        "refused": plan.refused or None,
        "model_yaml": plan.translation.keys,
        "findings": [{"fate": f.fate, "key": f.key, "sentence": f.sentence} for f in plan.translation.findings],
    }


def _sound(value: Any) -> Any:
    """The same without anything that orjson refuses."""
    if isinstance(value, dict):
        return {_sound(key): _sound(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_sound(each) for each in value]
    return _SURROGATES.sub("�", value) if isinstance(value, str) else value


def _table(models: "list[Plan]") -> "Table":
    rows: list[tuple[str, ...]] = []
    for plan in models:
        if plan.refused:
            rows.append((plan.model, "refused", plan.refused, "", ""))
            continue
        of = {fate: [f for f in plan.translation.findings if f.fate == fate] for fate in ("kept", "changed", "dropped")}
        told = ["; ".join(f"{f.key}: {f.sentence}" for f in of[fate]) for fate in ("changed", "dropped")]
        versions = ", ".join(map(str, sorted(plan.versions)))
        rows.append((plan.model, versions, ", ".join(f.key for f in of["kept"]), *told))
    styles = ["red" if plan.refused else "" for plan in models]
    return table(("MODEL", "VERSIONS", "KEPT", "CHANGED", "DROPPED"), rows, styles)
