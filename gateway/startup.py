"""What `gateway serve` shows at its start: the models and a first request to paste."""

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from urllib.parse import quote

from rich.console import Console
from rich.table import Table

from gateway import __version__
from gateway.http import examples
from gateway.lifecycle.residency import Account
from gateway.lifecycle.state import State
from gateway.lifecycle.version import Version
from gateway.sizes import format_size

_MAX_ELEMENTS = 100
_NOTHING = (
    "There is no model. Put one into the model store as NAME/1/model.pt (TorchScript) or NAME/1/saved_model.pb "
    "(SavedModel): it is found and served while the gateway runs.\n"
)


def announce(
    console: Console, urls: Mapping[str, str], versions: Sequence[Version], account: Account, *, as_json: bool
) -> None:
    """That it serves, for people, or for programs as a line of JSON on stdout; `urls` by listener."""
    if as_json:
        sys.stdout.buffer.write(report(urls, versions, account))
        sys.stdout.buffer.flush()
        return
    show_models(console, versions, account, urls["http"])
    for name, what in (("management", "TorchServe's management calls"), ("metrics", "metrics alone")):
        if name in urls:
            console.print(f"{urls[name]}: {what}", highlight=False)


def show_models(console: Console, versions: Sequence[Version], account: Account, url: str) -> None:
    """A table of all versions in memory or failed, then a curl line that works when pasted."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("MODEL", "VERSION", "PLATFORM", "DEVICE", "STATE", "LOAD", "PRIVATE", "BATCH"):
        table.add_column(column)
    cold = [version for version in versions if version.state is State.COLD]
    for version in sorted(versions, key=lambda version: version.key):
        artifact, ready = version.artifact, version.ready
        if version in cold:
            continue
        private = account.held.get(version, {}).get("cpu", 0)
        table.add_row(
            artifact.model,
            str(artifact.version),
            artifact.platform or "?",
            " ".join(sorted({instance.device.name for instance in version.instances})),
            version.state.value,
            f"{ready.load_seconds * 1000:.0f} ms" if ready else "",
            format_size(private) if ready else "",
            str(ready.batching.max_batch_size) if ready else "",
        )
    console.print(table)
    if cold:
        budget = format_size(account.budgets["cpu"])
        console.print(
            f"and {len(cold)} COLD, loaded by their first request: all together do not fit into the budget of {budget}",
            highlight=False,
        )
    for version in versions:
        if version.state is State.FAILED:
            console.print(f"{version.title} FAILED: {version.reason}", style="red", markup=False, highlight=False)
    console.print(
        f"\nServing on {url}\n  {url}/console  to look at\n  {url}/docs     the API\n  {url}/metrics  for Prometheus\n",
        highlight=False,
    )
    line = first_request(versions, url)
    nothing = "No model is ready.\n" if versions else _NOTHING
    console.print(f"Try it:\n\n{line}\n" if line else nothing, highlight=False, soft_wrap=True, markup=False)


def report(urls: Mapping[str, str], versions: Sequence[Version], account: Account) -> bytes:
    """A line of JSON with the same, for programs: the addresses by listener, and the models."""
    models = [
        {
            "name": version.artifact.model,
            "version": str(version.artifact.version),
            "platform": version.artifact.platform or "",
            "state": version.state.value,
            "reason": version.reason,
            "devices": sorted({instance.device.name for instance in version.instances}),
            "load_seconds": version.ready.load_seconds if version.ready else None,
            "private_bytes": account.held.get(version, {}).get("cpu", 0),
            "max_batch_size": version.ready.batching.max_batch_size if version.ready else None,
        }
        for version in sorted(versions, key=lambda version: version.key)
    ]
    return json.dumps({"version": __version__, "listeners": dict(urls), "models": models}).encode() + b"\n"


def first_request(versions: Sequence[Version], url: str) -> str | None:
    """A curl line with a request that a ready model has answered, the shortest; None if there is none."""
    lines, with_file = [], []
    for version in versions:
        if version.ready is None or version.state is not State.READY:
            continue
        call = f"curl {url}/v2/models/{quote(version.artifact.model, safe='')}/infer"
        if version.artifact.config.preprocessing.image is not None:
            headers = "-H 'Inference-Header-Content-Length: 0' --data-binary @image.jpg"
            with_file.append(f"{call} {headers}")
            continue
        example = examples.example_of(version.ready)
        if example is None or sum(len(each.values) for each in example) > _MAX_ELEMENTS:
            continue
        binary = version.ready.example_in_binary
        body = examples.infer(example, binary=binary)
        lines.append(f"{call}{' -o answer.bin' if binary else ''} -d {shlex.quote(json.dumps(body))}")
    return min(lines or with_file, key=len, default=None)
