"""What TorchServe's management calls mean and answer: pure functions of their parameters and of what runs.

Source: pytorch/serve docs management_api.md; frontend ManagementRequestHandler.java, ApiUtils.java, ModelArchive.java.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from gateway.errors import ModelNotFound, RequestError
from gateway.http.torchserve_errors import SHOWN
from gateway.ipc.facts import VersionFacts
from gateway.ipc.messages import ANY, VersionRoute
from gateway.lifecycle.state import State
from gateway.store.source import NAME

PAGE = 100
MOST_WORKERS = 128
"""Of a version, by hand."""
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*:")
_ARCHIVE = re.compile(r".*\.(?:mar|war|zip|tar|tgz|tar\.gz)", re.IGNORECASE | re.DOTALL)
_VERSION = re.compile(r"(\d{1,18})(?:\.0)?")
_NUMBER = re.compile(r"[+-]?\d{1,10}", re.ASCII)
_INT32 = range(-(1 << 31), 1 << 31)
RUNTIMES = ("python", "python3", "LSP")
"""What TorchServe runs handlers with; here they say nothing, but a wrong one is refused there, too."""


class NotInStore(ModelNotFound):
    """What a `url` names is not in the model store, or may not be."""


def number_of(version: str) -> int | None:
    """The number of a version, which TorchServe's clients write as 1.0; None if it is none."""
    found = _VERSION.fullmatch(version)
    return int(found[1]) if found and version.isascii() else None


def in_store(url: object, model_name: object) -> tuple[str, int]:
    """The model, and its version or ANY, that a `url` names; a name in the model store is all that it may be."""
    if url is None or url == "":
        raise RequestError("Parameter url is required.")
    if not isinstance(url, str):
        raise RequestError("Parameter url must be a string.")
    shown = url[:SHOWN]
    if ".." in url:
        raise NotInStore(f"Relative path is not allowed in url: {shown}")
    if _SCHEME.match(url):
        raise NotInStore(f"Given URL {shown} does not match any allowed URL(s)")
    if _ARCHIVE.fullmatch(url):
        hint = "" if "/" in url else "; `gateway import` reads model archives and writes models into the model store"
        raise NotInStore(f"Model not found in model store: {shown}{hint}")
    name, slash, version = url.partition("/")
    number = number_of(version) if slash else ANY
    if not NAME.fullmatch(name) or number is None:
        raise NotInStore(f"Model not found in model store: {shown}")
    if model_name not in (None, "", name):
        raise RequestError(f"a model is served by its name in the model store, {name}; model_name can be no other")
    return name, number


def whole_number(parameters: Mapping[str, Any], key: str, default: int) -> int:
    """A parameter that is a whole number; text that is none means the default, as TorchServe reads it.

    RequestError for a value of JSON that is of another type.
    """
    value = parameters.get(key)
    if isinstance(value, str):
        return int(value) if _NUMBER.fullmatch(value) and int(value) in _INT32 else default
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or value not in _INT32:
        raise RequestError(f"Parameter {key} must be a whole number.")
    return value


def check_runtime(parameters: Mapping[str, Any]) -> None:
    """RequestError unless `runtime` is one that TorchServe has, or is not given."""
    runtime = parameters.get("runtime")
    if runtime is not None and runtime not in RUNTIMES:
        raise RequestError(f"Invalid RuntimeType value: {str(runtime)[:SHOWN]}")


def flag(parameters: Mapping[str, Any], key: str, *, default: bool = False) -> bool:
    """A parameter that is true, or anything else, as TorchServe has it."""
    return str(parameters.get(key, default)).lower() == "true"


def workers_of(parameters: Mapping[str, Any]) -> tuple[int, int]:
    """The least and the most instances that are asked for; RequestError."""
    least = whole_number(parameters, "min_worker", 1)
    most = whole_number(parameters, "max_worker", least)
    if most < least:
        raise RequestError("max_worker cannot be less than min_worker.")
    return checked(least, "min_worker"), checked(most, "max_worker")


def checked(count: int, key: str) -> int:
    """A number of instances; RequestError if there cannot be so many."""
    if not 0 <= count <= MOST_WORKERS:
        raise RequestError(f"{key} must be from 0 to {MOST_WORKERS}.")
    return count


class Page(NamedTuple):
    """Some of the models' names, and where the next ones begin."""

    names: Sequence[str]
    next_token: str | None


def page(names: Sequence[str], limit: int, token: int) -> Page:
    """As TorchServe: no more than PAGE at once, and what makes no sense means the first ones."""
    limit = limit if 0 < limit <= PAGE else PAGE
    token = max(token, 0)
    last = token + limit
    return Page(names[token:last], str(last) if last < len(names) else None)


def registered(routes: Mapping[int, VersionRoute]) -> list[VersionRoute]:
    """Those versions of a model that are not unloaded, in order."""
    return [route for _, route in sorted(routes.items()) if route.state != State.UNLOADED]


def listing(found: Page) -> dict[str, Any]:
    """The answer of GET /models."""
    models = [{"modelName": name, "modelUrl": name} for name in found.names]
    return ({"nextPageToken": found.next_token} if found.next_token else {}) | {"models": models}


def description(route: VersionRoute, facts: VersionFacts) -> dict[str, Any]:
    """What GET /models/{model} says of a version."""
    config = route.config
    batch = route.ready.batching.shown_batch_size if route.ready else 1
    shown: dict[str, Any] = {
        "modelName": route.model,
        "modelVersion": str(route.version),
        "modelUrl": route.model,
        "engine": route.framework,
        "runtime": "python",
        "minWorkers": facts.least,
        "maxWorkers": facts.most,
        "batchSize": batch,
        "maxBatchDelay": config.max_queue_delay_microseconds // 1000,
        "stateful": config.stateful,
        "status": route.state,
        "loadedAtStartup": facts.at_startup,
        "workers": [
            {
                "id": each.name,
                "startTime": _time(each.started),
                "status": "READY" if each.ready else "LOADING",
                "memoryUsage": each.memory,
                "pid": each.pid,
                "gpu": each.device != "cpu",
                "gpuUsage": f"gpuId::{each.device} memory.used::{each.gpu_memory}" if each.device != "cpu" else "N/A",
            }
            for each in facts.instances
        ],
        "jobQueueStatus": {
            "remainingCapacity": max(config.max_queue_size - facts.under_way, 0),
            "pendingRequests": facts.under_way,
        },
    }
    return shown | ({"reason": route.reason} if route.reason else {})


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
