"""How often, when and in which versions Triton runs a model, in the words of model.yaml."""

from typing import Any

from gateway.errors import ConfigError
from gateway.importing.fields import Fields
from gateway.importing.report import Translation

_KINDS = {"KIND_CPU": "cpu", "KIND_GPU": "gpu", "KIND_AUTO": "auto", "KIND_MODEL": "auto"}
MAX_DELAY = 10_000_000


def scheduling(fields: Fields, translation: Translation) -> None:
    """Read instance groups, batching, sequences, warm-up and the version policy; ConfigError for what is refused."""
    if "instance_group" in fields:
        _instances(fields, translation)
    if (batching := fields.section("dynamic_batching")) is not None:
        _batching(batching, translation)
    if (sequences := fields.section("sequence_batching")) is not None:
        _sequences(sequences, translation)
    if (policy := fields.section("version_policy")) is not None:
        _versions(policy, translation)
    if "model_warmup" in fields:
        _warmup(fields, translation)


def _instances(fields: Fields, translation: Translation) -> None:
    groups: list[dict[str, Any]] = []
    for section in fields.sections("instance_group"):
        said = section.text("kind") or "KIND_AUTO"
        if said not in _KINDS:
            raise ConfigError(f"{section.path('kind')} {said!r:.80} is not known here")
        count, gpus = section.number("count"), section.numbers("gpus")
        if (count is not None and count < 1) or any(gpu < 0 for gpu in gpus):
            raise ConfigError(f"{section.path('count')} and gpus must not be negative, and count not 0")
        group = {"count": count or 1, "kind": _KINDS[said], "gpus": gpus}
        groups.append({key: value for key, value in group.items() if value not in (1, "auto", [])} or {"count": 1})
        key = section.path("")[:-1]
        if said == "KIND_MODEL":
            translation.changed(f"{key}.kind", "kind: auto, an instance has one device")
        if said in ("KIND_GPU", "KIND_AUTO") and not gpus:
            translation.changed(key, f"{count or 1} in all, on the GPUs with most free memory; in Triton, on each GPU")
        else:
            translation.kept(key, f"instance_group: count {count or 1}, kind {_KINDS[said]}")
    if groups != [{"count": 1}]:
        translation.keys["instance_group"] = groups


def _batching(section: Fields, translation: Translation) -> None:
    translation.kept("dynamic_batching", "requests that wait are joined")
    delay = section.number("max_queue_delay_microseconds")
    if delay is not None and delay > MAX_DELAY:
        translation.changed(section.path("max_queue_delay_microseconds"), f"{MAX_DELAY}, the most there is")
    elif delay is not None:
        translation.kept(section.path("max_queue_delay_microseconds"), f"max_queue_delay_microseconds: {delay}")
    if delay:
        translation.keys["max_queue_delay_microseconds"] = max(0, min(delay, MAX_DELAY))
    if (policy := section.section("default_queue_policy")) is not None:
        _queue(policy, translation)
    section.drop_names(
        translation,
        {
            "preferred_batch_size": "a batch is what has arrived, up to max_batch_size",
            "preserve_ordering": "the answers on one connection are always in the order of its requests",
            "priority_levels": "each request may say its priority, in as many levels as it likes",
            "default_priority_level": "each request may say its priority",
            "priority_queue_policy": "requests of all priorities share one queue and its bounds",
        },
    )


def _queue(policy: Fields, translation: Translation) -> None:
    size = policy.number("max_queue_size")
    if size == 0:
        translation.changed(policy.path("max_queue_size"), "a queue without a bound gets the usual one, 1024 rows")
    elif size is not None and size > 0:
        translation.keys["max_queue_size"] = size
        translation.changed(policy.path("max_queue_size"), f"max_queue_size: {size}, in rows where Triton has requests")
    elif size is not None:
        raise ConfigError(f"{policy.path('max_queue_size')} is negative")
    policy.drop_names(
        translation,
        {
            "timeout_action": "a request is dropped when its time is over",
            "default_timeout_microseconds": "the time of a request is the server's request_timeout, or its own",
            "allow_timeout_override": "a request may always say how long it waits",
        },
    )


def _sequences(section: Fields, translation: Translation) -> None:
    for key in ("control_input", "state"):
        if key in section:
            raise ConfigError(f"{section.path(key)}: inputs that Triton makes for a sequence are not made here")
    translation.keys["stateful"] = True
    translation.changed(
        "sequence_batching", "stateful: true; requests are never joined, and sequences are not told apart"
    )
    section.drop_names(
        translation,
        dict.fromkeys((*section.tree,), "sequences are not scheduled"),
    )


def _versions(policy: Fields, translation: Translation) -> None:
    given = [key for key in ("latest", "all", "specific") if key in policy]
    if len(given) != 1:
        raise ConfigError("version_policy says not exactly one of latest, all and specific")
    section = policy.section(given[0])
    assert section is not None
    said: Any
    if given == ["all"]:
        said = "all"
    elif given == ["latest"]:
        number = section.number("num_versions")
        said = "latest" if number in (None, 1) else {"latest": number}
    else:
        said = {"specific": section.numbers("versions")}
    if said != "latest":
        translation.keys["version_policy"] = said
    translation.kept(f"version_policy.{given[0]}", f"version_policy: {said}")


def _warmup(fields: Fields, translation: Translation) -> None:
    sizes, counts = set(), set()
    for section in fields.sections("model_warmup"):
        sizes.add(max(section.number("batch_size") or 1, 1))
        counts.add(max(section.number("count") or 1, 1))
        section.ignore("name", "inputs")
    translation.keys["warmup"] = {"batch_sizes": sorted(sizes)}
    if counts - {1}:
        translation.keys["warmup"]["iterations"] = max(counts)
    translation.changed("model_warmup", "calls of the same batch sizes, with values that the gateway makes up")
