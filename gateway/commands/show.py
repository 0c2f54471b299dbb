"""`gateway show`: everything that a running gateway says of a model, and a call to try."""

import json
import shlex
from typing import TYPE_CHECKING, Any

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
    did_you_mean,
    model_path,
)
from gateway.commands.ls import counted, listing, memory_text
from gateway.commands.printing import console, plain, print_json
from gateway.errors import CallFailed

if TYPE_CHECKING:
    from rich.console import Console

    from gateway.commands.model import Model
    from gateway.tensors import Signature

_STAGES = (("queue", "queue"), ("decode", "compute_input"), ("compute", "compute_infer"), ("encode", "compute_output"))
"""Our words and Triton's."""
_MOST_ZEROS = 64 << 20
_MOST_ELEMENTS = 64
"""Of all inputs of an example that are written as options."""
_MOST_SHOWN = 512
"""Elements of all inputs of an example: more are not printed."""


def show(
    model: ModelName,
    version: VersionName = None,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
    ca_cert: CaCert = None,
    insecure: Insecure = False,
    timeout: Timeout = 60.0,
) -> None:
    """Show a model: inputs and outputs, batching, memory, latency, and calls that work as they are printed.

    A COLD model is not loaded for this.

    Example: `gateway show digits_torch`
    """
    from gateway.commands.model import describe  # noqa: PLC0415 - with numpy, which --help does without

    with Client(url, key, ca_cert, insecure=insecure, timeout=timeout) as client:
        summary = _which(listing(client), model, version)
        found = describe(client, model, summary["version"]) if summary["state"] == "READY" else None
        statistics = _statistics(client, model, summary["version"])
        examples = _examples(client, found, version) if found else {}
    if as_json:
        metadata = found.metadata if found else None
        print_json(summary | {"metadata": metadata, "statistics": statistics, "examples": examples})
    else:
        _show(console(), summary, found, statistics, examples)


def _which(versions: list[dict[str, Any]], model: str, version: str | None) -> dict[str, Any]:
    """The version or label asked for, else the one that answers, as the server picks it: the highest READY or COLD."""
    mine = [each for each in versions if each["name"] == model]
    if not mine:
        names = sorted({each["name"] for each in versions})
        raise CallFailed(f"no model '{model}'; {did_you_mean(model, names) or '`gateway ls` lists what there is'}")
    if version is None:
        return ([each for each in mine if each["state"] in ("READY", "COLD")] or mine)[-1]
    found = [each for each in mine if each["version"] == version or version in each["labels"]]
    if not found:
        known = ", ".join(" = ".join([each["version"], *each["labels"]]) for each in mine)
        raise CallFailed(f"model '{model}' has no version or label '{version}'; it has {known}")
    return found[0]


def _statistics(client: Client, model: str, version: str) -> dict[str, Any]:
    """Requests, and mean milliseconds of each stage on the way of one; empty if the server does not tell."""
    try:
        found = client.json("GET", f"{model_path(model, version)}/stats")["model_stats"][0]
        stats = found["inference_stats"]
        done = stats["success"]["count"]
        made: dict[str, Any] = {"answered": done, "failed": stats["fail"]["count"]}
        if done:
            made["mean_ms"] = {
                name: round(stats[key]["ns"] / done / 1e6, 3) for name, key in (("total", "success"), *_STAGES)
            }
        if found["execution_count"]:
            made["mean_batch"] = round(found["inference_count"] / found["execution_count"], 2)
    except (CallFailed, LookupError, TypeError):
        return {}
    return made


# A call to try


def _examples(client: Client, model: "Model", version: str | None) -> dict[str, str]:
    """The same request for curl and for `gateway infer`, where the signature is enough to make one."""
    body, zeros = _answered(client, model.name, version)
    curl = _curl(client, f"{model_path(model.name, version)}/infer")
    ours = f"gateway infer {shlex.quote(model.name)}"
    ours += f" --version {shlex.quote(version)}" if version else ""
    ours += f" --url {shlex.quote(client.url)}" if client.url != DEFAULT_URL else ""
    ours += f" --ca-cert {shlex.quote(str(client.ca_cert))}" if client.ca_cert else ""
    ours += " --insecure" if client.insecure else ""
    if body is not None:
        curl += " -o answer.bin" if body.get("parameters") else ""
        found = {"curl": f"{curl} -d {shlex.quote(json.dumps(body))}"}
        arguments = _arguments(body["inputs"])
        return found | {"gateway": ours + arguments} if arguments else found
    if not zeros:
        return {}
    raw = f"{curl} -H 'Inference-Header-Content-Length: 0' --data-binary @- -o answer.bin"
    return {"curl": f"head -c {zeros} /dev/zero | {raw}"}


def _answered(client: Client, model: str, version: str | None) -> tuple[dict[str, Any] | None, int]:
    """The body of a request that the server says the model has answered, or of so many zeros; (None, 0): none is."""
    path = f"{model_path(model, version)}/infer"
    try:
        operation = client.json("GET", f"{model_path(model, version)}/openapi.json")["paths"][path]["post"]
        example = operation["requestBody"]["content"]["application/json"].get("example")
        zeros = int(operation.get("x-zero-bytes", 0))
        short = example is not None and sum(len(each["data"]) for each in example["inputs"]) <= _MOST_SHOWN
    except (CallFailed, LookupError, TypeError, ValueError, AttributeError):
        return None, 0
    return (example if short else None), zeros if zeros <= _MOST_ZEROS else 0


def _arguments(inputs: Any) -> str:
    """The same inputs for `gateway infer`; empty if they are not few."""
    from gateway.samples import nested  # noqa: PLC0415 - as above

    if sum(len(each["data"]) for each in inputs) > _MOST_ELEMENTS:
        return ""
    return "".join(
        f" --input {shlex.quote(each['name'] + '=' + json.dumps(nested(each['data'], each['shape'])))}"
        for each in inputs
    )


def _curl(client: Client, path: str) -> str:
    options = "".join(
        [
            " -k" if client.insecure else "",
            f" --cacert {shlex.quote(str(client.ca_cert))}" if client.ca_cert else "",
            ' -H "Authorization: Bearer $GATEWAY_API_KEY"' if client.key else "",
        ]
    )
    return f"curl{options} {shlex.quote(client.url + path)}"


# On a screen


def _show(
    screen: "Console",
    summary: dict[str, Any],
    model: "Model | None",
    statistics: dict[str, Any],
    examples: dict[str, str],
) -> None:
    def line(what: str, text: str) -> None:
        if text:
            screen.print(f"{what:<11}{plain(text)}")

    screen.print(plain(f"{summary['name']}/{summary['version']} {summary['state']}"), style="bold")
    if summary["reason"] and summary["state"] != "UNLOADED":
        screen.print(plain(summary["reason"]), style="yellow" if summary["state"] == "READY" else "red")
    if summary["state"] in ("COLD", "UNLOADED"):
        who = "its first request, or " if summary["state"] == "COLD" else ""
        line("", f"{who}`gateway load {shlex.quote(summary['name'])}` loads it")
    line("platform", summary["platform"] or summary["framework"])
    line("labels", " ".join(summary["labels"]))
    line("devices", counted(summary["devices"]))
    line("memory", memory_text(summary["memory_bytes"]))
    ours = (model.metadata.get("parameters") or {}) if model else {}
    line("batching", str(ours.get("batching", "")) + _most(ours.get("max_batch_size")))
    line("requests", _requests(statistics))
    for note in ours.get("notes") or []:
        line("note", str(note))
    line("sandbox", str(ours.get("sandbox", "")))
    for name, signature in (model.signatures if model else {}).items():
        _show_signature(screen, name, signature, default=model is not None and name == model.default_signature)
    if examples:
        screen.print("\nTry it:", style="bold")
        for each in examples.values():
            screen.print(f"\n{plain(each)}")


def _most(rows: object) -> str:
    return f"; at most {rows} rows" if isinstance(rows, int) and rows > 1 else ""


def _requests(statistics: dict[str, Any]) -> str:
    if not statistics.get("answered"):
        return "none yet" if statistics else ""
    means = statistics["mean_ms"]
    stages = ", ".join(f"{name} {means[name]:.2f}" for name, _ in _STAGES)
    failed = f", {statistics['failed']} failed" if statistics["failed"] else ""
    batch = f"; {statistics['mean_batch']:.1f} rows an execution" if "mean_batch" in statistics else ""
    return f"{statistics['answered']} answered{failed}; {means['total']:.2f} ms each on average ({stages}){batch}"


def _show_signature(screen: "Console", name: str, signature: "Signature", *, default: bool) -> None:
    from gateway.commands.inputs import described  # noqa: PLC0415 - as above

    screen.print()
    screen.print(plain(f"signature {name}{' (default)' if default else ''}"), style="bold")
    for what, specs in (("input", signature.inputs), ("output", signature.outputs)):
        for spec in specs:
            optional = ", may be left out" if spec.optional else ""
            screen.print(plain(f"  {what:<7} {spec.name}  {described(spec)}{optional}"))
