"""`gateway compare`: two models side by side, of whatever framework, and what the difference is worth."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.commands.bench import MOST_CONNECTIONS, Bar, numbers
from gateway.commands.client import (
    DEFAULT_URL,
    AsJson,
    CaCert,
    Client,
    Insecure,
    Key,
    Timeout,
    Url,
    complete_models,
)
from gateway.commands.printing import console, plain, print_json, table, warn
from gateway.errors import CallFailed

if TYPE_CHECKING:
    from gateway.comparing.document import Comparison

MOST_ROWS = 65536
PAGE, DOCUMENT = "report.html", "report.json"


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="NAME or NAME/VERSION.", autocompletion=complete_models)],
    b: Annotated[str, typer.Argument(metavar="B", help="Another.", autocompletion=complete_models)],
    data: Annotated[
        Path | None, typer.Option("--data", help="An .npz of inputs by name, and labels.  [default: made up]")
    ] = None,
    batch: Annotated[str, typer.Option("--batch", help="Rows of a request, one after another.")] = "1,8,32",
    connections: Annotated[str, typer.Option("--connections", "-c", help="One after another.")] = "1,8",
    rounds: Annotated[int, typer.Option("--rounds", min=1, max=1000, help="6 are the fewest that can tell.")] = 6,
    seconds: Annotated[
        float, typer.Option("--seconds", "-s", min=0.05, max=3600, help="For each model, batch and connections.")
    ] = 0.5,
    warmup: Annotated[float, typer.Option("--warmup", min=0, max=3600, help="Seconds before, not counted.")] = 0.15,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of made up data.")] = 0,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for report.html and report.json.")] = Path(
        "compare-report"
    ),
    model_store: Annotated[
        Path | None, typer.Option(help="Start a gateway of its own on this model store instead of asking --url.")
    ] = None,
    reload: Annotated[
        bool | None,
        typer.Option("--reload/--no-reload", help="Load both anew in every round.  [default: on a gateway of its own]"),
    ] = None,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
    ca_cert: CaCert = None,
    insecure: Insecure = False,
    timeout: Timeout = 60.0,
) -> None:
    """Compare two models: speed, memory, load time, answers, and accuracy if there are labels.

    Both are measured in alternating rounds, and a difference within the noise is called that. It is clear if one model
    is ahead in so many rounds that chance is no explanation (sign test, 5 %), and the middle halves of both models'
    rounds do not overlap.

    Inputs and outputs go together by name, else in their order. The .npz has arrays named like the inputs of A, laid
    out as A takes them, and `labels` (or `y`) if accuracy is to be told.

    * `gateway compare digits_torch digits_tensorflow`

    Two versions of one model have to be served both: `version_policy: all` in its model.yaml.

    * `gateway compare mine/1 mine/2 --data test.npz --batch 1,32 --rounds 12`

    * `gateway compare resnet_torch resnet_keras --model-store models`
    """
    batches = sorted(set(numbers("--batch", batch, MOST_ROWS)))
    steps = sorted(set(numbers("--connections", connections, MOST_CONNECTIONS)))
    from gateway.commands.compare_rounds import Plan  # noqa: PLC0415 - with numpy, which --help does without
    from gateway.commands.compare_run import run  # noqa: PLC0415 - as above
    from gateway.commands.own_server import own_server  # noqa: PLC0415 - as above

    plan = Plan(batches, steps, rounds, seconds, warmup, model_store is not None if reload is None else reload)
    with ExitStack() as stack:
        stack.enter_context(_folder(out))
        load = os.getloadavg()[0]
        if model_store is not None:
            if (screen := console(stderr=True)).is_terminal:
                screen.print("starting a gateway …", style="dim")
            url, key, ca_cert, insecure = stack.enter_context(own_server(model_store)), None, None, False
        client = stack.enter_context(Client(url, key, ca_cert, insecure=insecure, timeout=timeout))
        bar = Bar(plan.total_seconds)
        with bar:
            ours = _is_this_machine(client.address[0])
            found = run(client, (a, b), data, seed, plan, bar, load if ours else None)
        _show(found, as_json=as_json)  # first, for what took minutes is not to be lost if the disk is full now
        _write(found, out)
    if not as_json:
        console().print(f"\n{plain(out / PAGE)} shows it, {plain(out / DOCUMENT)} has all figures")


def _is_this_machine(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


@contextmanager
def _folder(out: Path) -> Iterator[None]:
    """One that can be written, before a minute is spent on what could not be; if nothing comes of it, it goes again."""
    made: list[Path] = []
    try:
        try:
            made += [each for each in (out, *out.parents) if not each.exists()]
            out.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=out):
                pass
        except OSError as error:
            raise CallFailed(f"{out} cannot be written: {error.strerror or error}") from None
        yield
    except BaseException:
        for each in made:
            with suppress(OSError):  # it is not empty
                each.rmdir()
        raise


def _write(found: "Comparison", out: Path) -> None:
    import msgspec  # noqa: PLC0415 - as above

    from gateway.comparing.page import page  # noqa: PLC0415 - as above

    document = msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n"
    for name, content in ((DOCUMENT, document), (PAGE, page(found).encode())):
        part = out / f".{name}.part"
        try:
            part.write_bytes(content)
            part.replace(out / name)  # at once: the console may read it now
        except OSError as error:
            with suppress(OSError):
                part.unlink()
            raise CallFailed(f"{out / name} cannot be written: {error.strerror or error}") from None


def _show(found: "Comparison", *, as_json: bool) -> None:
    if as_json:
        import msgspec  # noqa: PLC0415 - as above

        print_json(msgspec.to_builtins(found))
        return
    from gateway.comparing.conclusions import groups_of  # noqa: PLC0415 - as above

    screen = console()
    rows, styles = [], []
    for title, group in groups_of(found):
        rows += [(title, "", "", "", ""), *((f"  {row.title}", *row[1:]) for row in group)]
        styles += ["bold", *("dim" if row.ahead == "within noise" else "" for row in group)]
    columns = ("", *(model.title for model in found.models), "B / A", "AHEAD")
    screen.print(table(columns, rows, styles), soft_wrap=False)
    for what, text in (
        ("Speed", found.verdict.speed),
        ("Size", found.verdict.size),
        ("Answers", found.verdict.answers),
    ):
        if text:
            screen.print(f"\n{what}", style="bold")
            screen.print(plain(text))
    for sentence in found.warnings:
        warn(sentence)
