"""`gateway profile`: record what a model of a running gateway computes, and its graph."""

import threading
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.commands.client import (
    DEFAULT_URL,
    AsJson,
    CaCert,
    Client,
    Insecure,
    Key,
    ModelName,
    Timeout,
    Url,
    VersionName,
    segment,
)
from gateway.commands.printing import console, plain, print_json, table, warn
from gateway.errors import GatewayError

if TYPE_CHECKING:
    from gateway.commands.model import Model
    from gateway.commands.recording import Kept

Seconds = Annotated[float, typer.Option("--seconds", min=0.1, max=60.0, help="How long to record.")]
Out = Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Where to make a folder for it.")]
Drive = Annotated[bool, typer.Option("--drive/--no-drive", help="Send requests with made-up data meanwhile.")]
Number = Annotated[int, typer.Option("--instance", min=0, help="Which instance, where there are several.")]
_SHOWN, _MOST_AT_ONCE = 15, 16


def profile(
    model: ModelName,
    seconds: Seconds = 5.0,
    out: Out = Path("profiles"),
    drive: Drive = True,
    instance: Number = 0,
    version: VersionName = None,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
    ca_cert: CaCert = None,
    insecure: Insecure = False,
    timeout: Timeout = 120.0,
) -> None:
    """Record what a model computes, operation by operation, and its graph.

    The instance goes on serving, somewhat slower, and its requests wait for a moment while the trace is written. The
    recording ends early when the trace is full. Where there are API keys it takes one with the scope admin.

    * `gateway profile digits_torch --seconds 5 --out profiles`

    * `gateway profile resnet --version canary --no-drive`: only what others ask of it
    """
    from gateway.commands.model import describe  # noqa: PLC0415 - with numpy, which --help does without
    from gateway.commands.recording import keep  # noqa: PLC0415 - with protobuf, as above

    options: dict[str, Any] = {"key": key, "ca_cert": ca_cert, "insecure": insecure}
    with (
        Client(url, **options, timeout=timeout) as client,
        Client(url, **options, timeout=seconds + timeout) as patient,
    ):
        described = describe(client, model, version)
        driver = _Driver(client, described, version, instance) if drive else None
        screen = console(stderr=True)
        waiting = screen.status(f"recording {plain(model)} …") if screen.is_terminal else nullcontext()
        with waiting, driver or nullcontext():
            archive = _record(patient, described, {"seconds": seconds, "instance": instance})
    kept = keep(archive, out)
    if as_json:
        print_json(_as_json(kept, driver))
    else:
        _show(kept, out, driver)


def _record(client: Client, model: "Model", wanted: dict[str, Any]) -> bytes:
    """The archive of a recording of the version that was described."""
    import orjson  # noqa: PLC0415 - as above

    path = f"/v2/repository/models/{segment(model.name, 'a model')}"
    if model.version is not None:
        path += f"/versions/{segment(model.version, 'a version')}"
    with client.knowing(model.name):
        return client.send("POST", f"{path}/profile", orjson.dumps(wanted)).content


class _Driver:
    """Sends requests in threads of its own for as long as it is entered, one after the other.

    The first instance gets a request if all are idle, so others are reached only with several requests at once.
    """

    def __init__(self, client: Client, model: "Model", version: str | None, instance: int) -> None:
        from gateway.commands.infer import chosen  # noqa: PLC0415 - as above

        self.answered = 0
        self.refused = ""
        """Why it has stopped."""
        self._client = client
        self._version = model.version or version
        self._model = model
        self._arrays = chosen(self._model, [], None, random=True, batch=None, seed=0, scale=1.0)
        self._done = threading.Event()
        count = min(2 * instance + 1, _MOST_AT_ONCE)
        self._threads = [threading.Thread(target=self._run) for _ in range(count)]

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        from gateway.commands.infer import ask  # noqa: PLC0415 - as above

        while not self._done.is_set():
            try:
                ask(self._client, self._model, self._version, self._arrays, [], None)
            except GatewayError as error:
                self.refused = error.message
                return
            self.answered += 1


def _as_json(kept: "Kept", driver: _Driver | None) -> dict[str, Any]:
    import msgspec  # noqa: PLC0415 - as above

    operations = [
        {
            "name": each.name,
            "calls": each.calls,
            "self_ms": round(each.own / 1000, 4),
            "total_ms": round(each.total / 1000, 4),
        }
        for each in kept.operations
    ]
    driven = None if driver is None else {"answered": driver.answered, "refused": driver.refused}
    where = {"folder": str(kept.folder), "trace": str(kept.trace), "graph": kept.graph}
    return {**msgspec.structs.asdict(kept.facts), **where, "driven": driven, "operations": operations}


def _show(kept: "Kept", out: Path, driver: _Driver | None) -> None:
    facts, screen = kept.facts, console()
    which = f" instance {facts.instance} of {len(facts.instances)}" if len(facts.instances) > 1 else ""
    full = "; then the trace was full" if facts.full else ""
    title = f"{facts.model}/{facts.version}{which}"
    screen.print(plain(f"{title}, recorded for {facts.seconds:.1f} s: {facts.executions:,} executions{full}"))
    if driver is not None and driver.refused:
        warn(f"made-up data were refused ({driver.refused}); send requests of your own while it records")
    if not facts.executions:
        warn(
            "nothing was executed meanwhile; send requests while it records"
            + ", or leave out --no-drive" * (not driver)
        )
    whole = sum(each.own for each in kept.operations) or 1.0
    rows = [
        (
            each.name,
            f"{each.calls:,}",
            f"{each.own / 1000:.2f}",
            f"{each.own / whole:.0%}",
            f"{each.total / 1000:.2f}",
        )
        for each in kept.operations[:_SHOWN]
    ]
    if rows:
        shown = table(("OPERATION", "CALLS", "SELF ms", "SHARE", "TOTAL ms"), rows, right=True)
        shown.columns[0].justify = "left"
        screen.print(shown)
    if len(kept.operations) > _SHOWN:
        screen.print(plain(f"… and {len(kept.operations) - _SHOWN} more operations"))
    if not kept.graph:
        warn(facts.missing or "there is no graph")
    screen.print()
    screen.print(plain(f"Graph:    tensorboard --logdir {out}"))
    screen.print(plain(f"Timeline: open {kept.trace} at https://ui.perfetto.dev"))
