"""`gateway bench`: how fast a model of a running gateway answers."""

import time
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer

from gateway.commands.client import (
    DEFAULT_URL,
    AsJson,
    CaCert,
    Client,
    Insecure,
    Key,
    ModelName,
    SignatureName,
    Timeout,
    Url,
    VersionName,
    model_path,
)
from gateway.commands.infer import Batch, Inputs, Scale, Seed, ask, chosen
from gateway.commands.printing import console, plain, print_json, table, warn
from gateway.errors import CallFailed, RequestError

if TYPE_CHECKING:
    from gateway.commands.load_generator import ClosedLoop, Tally
    from gateway.commands.model import Model

MOST_CONNECTIONS = 512
_BINARY_FROM = 1024
_TICK_SECONDS = 0.25
_COLUMNS = ("CONNECTIONS", "REQUESTS/S", "P50 ms", "P95 ms", "P99 ms", "ERRORS", "BATCH", "QUEUE ms", "COMPUTE ms")


def bench(
    model: ModelName,
    connections: Annotated[str, typer.Option("--connections", "-c", help="One after another.")] = "1,8,32",
    seconds: Annotated[float, typer.Option("--seconds", "-s", min=0.1, max=3600, help="For each of them.")] = 5.0,
    warmup: Annotated[float, typer.Option("--warmup", min=0, max=3600, help="Seconds before, not counted.")] = 1.0,
    inputs: Inputs = None,
    batch: Batch = None,
    seed: Seed = 0,
    scale: Scale = 1.0,
    binary: Annotated[
        bool | None, typer.Option("--binary/--json-body", help="How tensors travel.  [default: binary from 1 kB]")
    ] = None,
    version: VersionName = None,
    signature: SignatureName = None,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
    ca_cert: CaCert = None,
    insecure: Insecure = False,
    timeout: Timeout = 60.0,
) -> None:
    """Measure a model under load.

    Each connection sends the same request over and over, the next one when the last is answered. The data are made up
    by the signature unless --input gives them (see gateway infer --help). ERRORS are answers other than 200 and broken
    connections; the percentiles are those of right answers. BATCH (rows computed together), QUEUE and COMPUTE are means
    that the server has measured, of all its clients.

    Example: `gateway bench digits_torch --connections 1,32 --seconds 10`
    """
    steps = numbers("--connections", connections, MOST_CONNECTIONS)
    from gateway.commands.model import describe  # noqa: PLC0415 - with numpy, which --help does without

    with Client(url, key, ca_cert, insecure=insecure, timeout=timeout) as client:
        found = describe(client, model, version)
        arrays = chosen(found, inputs or [], signature, random=not inputs, batch=batch, seed=seed, scale=scale)
        ask(client, found, version, arrays, [], signature)  # an error is one line here, and not a thousand
        if binary is None:
            binary = sum(array.nbytes for _, array in arrays.values()) >= _BINARY_FROM
        shot = prebuilt(client, model_path(model, version), arrays, signature, binary=binary)
        bar = Bar(len(steps) * (seconds + warmup))
        with bar:
            results = [_measured(client, found, shot, step, seconds, warmup, bar) for step in steps]
    rows = next((array.shape[0] for _, array in arrays.values() if array.ndim), 1)
    if as_json:
        body = "binary" if binary else "json"
        print_json({"model": model, "version": found.version, "rows": rows, "body": body, "results": results})
    else:
        title = f"{model}/{found.version or '?'}, requests of {rows} row{'s' * (rows != 1)}"
        _show(f"{title}, {'binary' if binary else 'JSON'}, {seconds:g} s each", results)
    _judge(results)


def numbers(option: str, text: str, most: int) -> list[int]:
    """What an option that takes several numbers was given; RequestError if it is something else."""
    steps = [int(step) if step.strip().isdecimal() else 0 for step in text.split(",")]
    if not all(1 <= step <= most for step in steps):
        raise RequestError(f"{option} takes numbers from 1 to {most}, such as 1,8,32")
    return steps


def prebuilt(client: Client, path: str, arrays: Any, signature: str | None, *, binary: bool) -> bytes:
    """An inference request as it goes over the wire."""
    from gateway.commands import load_generator, wire  # noqa: PLC0415 - as above

    parts = urlsplit(client.url)
    body, headers = wire.encode(arrays, binary=binary, signature=signature)
    lines = [f"{name}: {value}" for name, value in (client.headers | headers).items()]
    return load_generator.request("POST", f"{parts.path}{path}/infer", body, *lines, host=parts.netloc)


class Bar:
    """Progress on a terminal: seconds done of all."""

    def __init__(self, total: float) -> None:
        from rich.progress import Progress  # noqa: PLC0415 - as above

        screen = console(stderr=True)
        self._progress = Progress(console=screen, transient=True, refresh_per_second=2, disable=not screen.is_terminal)
        self._task = self._progress.add_task("", total=total)

    def __enter__(self) -> None:
        self._progress.start()

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        """What is done now."""
        self._progress.update(self._task, description=text)

    def expect(self, total: float) -> None:
        """It is not as many seconds as was said at first."""
        self._progress.update(self._task, total=total)

    async def wait(self, seconds: float) -> None:
        """Let so many seconds pass, which are done then."""
        import asyncio  # noqa: PLC0415 - as above

        end = time.perf_counter() + seconds
        while (left := end - time.perf_counter()) > 0:
            step = min(left, _TICK_SECONDS)
            await asyncio.sleep(step)
            self._progress.advance(self._task, step)


def _measured(
    client: Client, model: "Model", shot: bytes, connections: int, seconds: float, warmup: float, bar: Bar
) -> dict[str, Any]:
    """The figures of one number of connections."""
    import uvloop  # noqa: PLC0415 - as above

    from gateway.commands.load_generator import ClosedLoop, Shot, any_200  # noqa: PLC0415 - as above

    def load() -> ClosedLoop:
        return ClosedLoop(client.address, [Shot(shot, any_200)], connections, client.timeout, tls=client.tls())

    bar.say(f"{connections} connection{'s' * (connections != 1)}")
    try:
        if warmup:
            uvloop.run(_run(load(), warmup, bar))
        before, cpu, began = _statistics(client, model), time.process_time(), time.perf_counter()
        tally = uvloop.run(_run(load(), seconds, bar))
        busy = (time.process_time() - cpu) / (time.perf_counter() - began)
    except TimeoutError:
        raise CallFailed(f"{client.url} did not take {connections} connections within {client.timeout:g} s") from None
    return {
        "connections": connections,
        "seconds": round(tally.seconds, 3),
        "requests_per_second": round(tally.rate, 1),
        **{f"p{percent}_ms": round(tally.percentile(percent), 3) if tally.right else None for percent in (50, 95, 99)},
        "right": tally.right,
        "errors": tally.failed,
        "kinds_of_errors": dict(tally.failures),
        "examples_of_errors": tally.examples,
        "generator_cpu": round(busy, 3),
    } | _between(before, _statistics(client, model))


async def _run(load: "ClosedLoop", seconds: float, bar: Bar) -> "Tally":
    """What was answered within so many seconds, and what failed then or after."""
    async with load:
        await bar.wait(seconds)
        tally = load.take()
    tally.failures.update(load.tally.failures)
    tally.examples = load.tally.examples | tally.examples
    return tally


# What the server measured meanwhile


def _statistics(client: Client, model: "Model") -> dict[str, Any]:
    """The server's counters of this version; empty where it has none for us."""
    try:
        found: dict[str, Any] = client.json("GET", f"{model_path(model.name, model.version)}/stats")["model_stats"][0]
    except (CallFailed, LookupError, TypeError):
        return {}
    return found


def _between(before: dict[str, Any], after: dict[str, Any]) -> dict[str, float | None]:
    """Mean rows of an execution, and mean milliseconds of a request in the queue and in the model; None if unknown."""

    def grown(*path: str) -> float:
        old, new = before, after
        for key in path:
            old, new = old[key], new[key]
        return float(new) - float(old)  # type: ignore[arg-type]  # the innermost are numbers

    found: dict[str, float | None] = {"mean_batch": None, "queue_ms": None, "compute_ms": None}
    try:
        if executions := grown("execution_count"):
            found["mean_batch"] = round(grown("inference_count") / executions, 2)
        for name, stage in (("queue_ms", "queue"), ("compute_ms", "compute_infer")):
            if count := grown("inference_stats", stage, "count"):
                found[name] = round(grown("inference_stats", stage, "ns") / count / 1e6, 3)
    except (LookupError, TypeError, ValueError):
        pass
    return found


# Showing it


def _show(title: str, results: list[dict[str, Any]]) -> None:
    def number(value: float | None, digits: int) -> str:
        return "" if value is None else f"{value:.{digits}f}"

    rows = [
        (
            str(each["connections"]),
            number(each["requests_per_second"], 0),
            *(number(each[f"p{percent}_ms"], 2) for percent in (50, 95, 99)),
            str(each["errors"]),
            number(each["mean_batch"], 1),
            number(each["queue_ms"], 2),
            number(each["compute_ms"], 2),
        )
        for each in results
    ]
    screen = console()
    screen.print(plain(title), style="bold")
    screen.print(table(_COLUMNS, rows, right=True), soft_wrap=False)


def _judge(results: list[dict[str, Any]]) -> None:
    """Warnings; CallFailed if nothing was answered rightly."""
    from gateway.comparing.conclusions import BUSY  # noqa: PLC0415 - as above

    for each in results:
        for kind, times in each["kinds_of_errors"].items():
            example = each["examples_of_errors"].get(kind)
            warn(f"{each['connections']} connections: {times} x {kind}{': ' + example if example else ''}")
        if each["generator_cpu"] >= BUSY:
            warn(
                f"{each['connections']} connections: this program had {each['generator_cpu']:.0%} of its core and was "
                "itself the limit; the server can do more"
            )
    if not any(each["right"] for each in results):
        raise CallFailed("no request was answered with 200")
