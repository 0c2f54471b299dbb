"""`gateway keys`: add, list and revoke the API keys in a file; a gateway that serves with it follows at once."""

import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.errors import ConfigError

if TYPE_CHECKING:
    from gateway.keys import Key

keys = typer.Typer(
    help="API keys: as soon as a file has one, every call needs one. `gateway serve --keys-file FILE` uses them.",
)
File = Annotated[Path | None, typer.Option("--keys-file", help="Also GATEWAY_KEYS_FILE, or keys_file in gateway.yaml.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@contextlib.contextmanager
def _mistakes_told() -> Iterator[None]:
    try:
        yield
    except ConfigError as error:
        raise typer.TyperException(error.message) from None


def _file(given: Path | None) -> Path:
    from gateway.settings import any_settings  # noqa: PLC0415

    path = given or any_settings().keys_file
    if path is None:
        raise ConfigError("which file? Say it with --keys-file, GATEWAY_KEYS_FILE or keys_file in gateway.yaml")
    return path


def _described(key: "Key", now: datetime) -> dict[str, Any]:
    """What may be shown of a key."""
    import msgspec  # noqa: PLC0415

    shown: dict[str, Any] = msgspec.to_builtins(key)
    del shown["sha256"]
    return shown | {"state": key.state(now)}


@keys.command()
def add(
    name: Annotated[str, typer.Argument(help="Who the key is for; for people only.")],
    scope: Annotated[
        list[str] | None,
        typer.Option(help="infer, metrics, or admin for all; repeatable.  [default: infer]"),
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="Only for this model, or those that a glob matches; repeatable.")
    ] = None,
    rate: Annotated[float | None, typer.Option(help="Requests a second.  [default: no limit]")] = None,
    burst: Annotated[int | None, typer.Option(help="So many at once before that.  [default: a second's]")] = None,
    expires: Annotated[str | None, typer.Option(help="90d, 12h, a date, or a date and time.  [default: never]")] = None,
    keys_file: File = None,
    json: Json = False,
) -> None:
    """Make a key and show it, this once: the file keeps only a hash of it."""
    from gateway.keys import SCOPES, changing, moment, new_key  # noqa: PLC0415

    scopes = list(dict.fromkeys(scope or ["infer"]))
    with _mistakes_told():
        path = _file(keys_file)
        if unknown := [each for each in scopes if each not in SCOPES]:
            raise ConfigError(f"'{unknown[0]}' is no scope; there are {', '.join(SCOPES)}")
        if burst is not None and rate is None:
            raise ConfigError("--burst needs a --rate")
        if model and scopes == ["metrics"]:
            raise ConfigError("metrics are of all models: such a key cannot be for some of them")
        now = datetime.now(UTC)
        until = moment(expires, now) if expires is not None else None
        text, key = new_key(name, scopes, models=model or None, rate=rate, burst=burst, expires=until)
        with changing(path) as known:
            first = not known
            known.append(key)
    if json:
        _print_json(_described(key, now) | {"key": text})
        return
    typer.echo(text)
    typer.echo(f"This is shown once. Send it as 'Authorization: Bearer KEY'; {path} has it as {key.id}.", err=True)
    if first:
        typer.echo("It is the first key in the file: from now on every call needs one.", err=True)


@keys.command()
def ls(keys_file: File = None, json: Json = False) -> None:
    """List the keys."""
    from gateway.keys import read  # noqa: PLC0415

    with _mistakes_told():
        found = read(_file(keys_file))
    now = datetime.now(UTC)
    if json:
        _print_json([_described(key, now) for key in found])
        return
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("ID", "NAME", "SCOPES", "MODELS", "RATE", "EXPIRES", "STATE"):
        table.add_column(column)
    for key in found:
        rate = f"{key.rate:g}/s" if key.rate else ""
        expires = f"{key.expires.astimezone(UTC):%Y-%m-%d %H:%M}" if key.expires else ""
        cells = (key.id, key.name, " ".join(key.scopes), " ".join(key.models or ["*"]), rate, expires, key.state(now))
        table.add_row(*map(Text, cells))
    Console().print(table)


@keys.command()
def revoke(
    key: Annotated[str, typer.Argument(help="Its id, or its name if no other key has that.")],
    keys_file: File = None,
    json: Json = False,
) -> None:
    """Have a key refused from now on. It stays in the file, so that the last one's end opens nothing."""
    import msgspec  # noqa: PLC0415

    from gateway.keys import changing  # noqa: PLC0415

    now = datetime.now(UTC).replace(microsecond=0)
    with _mistakes_told(), changing(_file(keys_file)) as known:
        found = [at for at, each in enumerate(known) if each.id == key]
        found = found or [at for at, each in enumerate(known) if each.name == key and each.revoked is None]
        if len(found) != 1:
            ids = ", ".join(known[at].id for at in found)
            raise ConfigError(f"several keys are named '{key}': {ids}" if found else f"there is no key '{key}'")
        (at,) = found
        revoked = known[at] = msgspec.structs.replace(known[at], revoked=known[at].revoked or now)
    if json:
        _print_json(_described(revoked, now))
    else:
        typer.echo(f"{revoked.id} ({revoked.name}) is revoked")


def _print_json(value: Any) -> None:
    import msgspec  # noqa: PLC0415

    typer.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())
