"""`gateway ls`: the models of a running gateway."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.commands.client import DEFAULT_URL, AsJson, CaCert, Client, Insecure, Key, Timeout, Url
from gateway.commands.printing import console, plain, print_json, table, warn
from gateway.errors import CallFailed, RequestError
from gateway.sizes import format_size

if TYPE_CHECKING:
    from rich.console import RenderableType

WATCH_SECONDS = 2.0
_STYLES = {"FAILED": "red", "READY": "", "COLD": "dim", "UNLOADED": "dim"}
_COLUMNS = ("MODEL", "VERSION", "STATE", "PLATFORM", "DEVICE", "MEMORY", "REQUESTS", "LABELS")


def ls(
    watch: Annotated[bool, typer.Option("--watch", help="Show it again every 2 seconds.", show_default=False)] = False,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
    ca_cert: CaCert = None,
    insecure: Insecure = False,
    timeout: Timeout = 10.0,
) -> None:
    """List models: version, state, devices, measured memory, requests so far.

    MEMORY is what the processes of a version have to themselves, as the kernel measures it, and what they have on GPUs.

    Example: `gateway ls --url http://127.0.0.1:8000`
    """
    if watch and as_json:
        raise RequestError("--watch draws a table for people; without it, --json prints once")
    with Client(url, key, ca_cert, insecure=insecure, timeout=timeout) as client:
        if as_json:
            print_json(listing(client))
        elif watch:
            _watch(client)
        else:
            console().print(_shown(listing(client)), soft_wrap=False)


def _watch(client: Client) -> None:
    import time  # noqa: PLC0415 - only --watch needs it

    from rich.live import Live  # noqa: PLC0415 - as above

    with Live(_shown(listing(client)), console=console(), auto_refresh=False) as live:
        while True:
            time.sleep(WATCH_SECONDS)
            live.update(_shown(listing(client)), refresh=True)


def listing(client: Client) -> list[dict[str, Any]]:
    """Every version as an object, sorted by name and version; without figures if the key may not see metrics."""
    try:
        measured = figures(client)
    except CallFailed as error:
        if error.status is None:
            raise
        warn(f"without memory and requests: {error.message}")
        measured = {}
    found = []
    for each in client.index():
        details = each.get("parameters") or {}
        memory, requests = measured.get((each["name"], each["version"]), ({}, 0)) if measured else (None, None)
        found.append(
            {
                "name": each["name"],
                "version": each["version"],
                "state": each.get("state", ""),
                "reason": each.get("reason", ""),
                "platform": details.get("platform", ""),
                "framework": details.get("framework", ""),
                "labels": details.get("labels", []),
                "devices": details.get("devices", []),
                "max_batch_size": details.get("max_batch_size"),
                "memory_bytes": memory,
                "requests": requests,
            }
        )
    return sorted(found, key=lambda each: (each["name"], len(each["version"]), each["version"]))


def figures(client: Client) -> dict[tuple[str, str], tuple[dict[str, int], int]]:
    """By model and version: bytes of memory by kind (private, gpu), summed over its instances; requests answered."""
    from prometheus_client.parser import text_string_to_metric_families  # noqa: PLC0415 - slow to import

    found: dict[tuple[str, str], tuple[dict[str, int], int]] = {}
    text = client.send("GET", "/metrics").text
    try:
        for family in text_string_to_metric_families(text):
            if family.name not in ("gateway_instance_memory_bytes", "gateway_requests"):
                continue
            for sample in family.samples:
                labels: Mapping[str, str] = sample.labels
                version = labels["model"], labels["version"]
                memory, requests = found.setdefault(version, ({}, 0))
                if family.name == "gateway_requests":
                    found[version] = memory, requests + int(sample.value)
                elif (kind := labels["kind"]) in ("private", "gpu"):
                    memory[kind] = memory.get(kind, 0) + int(sample.value)
    except (ValueError, KeyError):
        raise CallFailed(f"the metrics of {client.url} are not those of a gateway", 200) from None
    return found


def memory_text(memory: Mapping[str, int] | None) -> str:
    """8.2 MB, or 8.2 MB + 300.0 MB GPU."""
    if not memory:
        return ""
    text = format_size(memory.get("private", 0))
    return f"{text} + {format_size(memory['gpu'])} GPU" if memory.get("gpu") else text


def counted(names: list[str]) -> str:
    """cpu, or cpu x2."""
    return " ".join(
        name if (number := names.count(name)) == 1 else f"{name} x{number}" for name in dict.fromkeys(names)
    )


def _shown(versions: list[dict[str, Any]]) -> "RenderableType":
    from rich.console import Group  # noqa: PLC0415 - not for --json
    from rich.text import Text  # noqa: PLC0415 - as above

    if not versions:
        return Text("No model is in the store. Put one into NAME/1/ in the model store; it is noticed.")
    rows = [
        (
            each["name"],
            each["version"],
            each["state"],
            each["platform"] or each["framework"],
            counted(each["devices"]),
            memory_text(each["memory_bytes"]),
            "" if each["requests"] is None else str(each["requests"]),
            " ".join(each["labels"]),
        )
        for each in versions
    ]
    shown = table(_COLUMNS, rows, [_STYLES.get(each["state"], "yellow") for each in versions])
    reasons = [
        Text(
            f"{plain(each['name'])}/{plain(each['version'])} {plain(each['state'])}: {plain(each['reason'])}",
            "yellow" if each["state"] == "READY" else "red",
        )
        for each in versions
        if each["reason"] and each["state"] != "UNLOADED"
    ]
    return Group(shown, *([Text(), *reasons] if reasons else []))
