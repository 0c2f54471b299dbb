"""YAML as untrusted text: whatever PyYAML makes of it, it is read or refused with one sentence."""

from typing import Any

import yaml

MOST_LEVELS = 64
"""Of lists and objects within each other. The C library takes long for thousands of them, and then all the stack."""
MOST_ALIASES = 16
"""Each may double what a text comes to (the billion laughs)."""
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read(text: bytes | str) -> Any:
    """What the text says, None if that is nothing; ValueError with one line if it is no YAML.

    PyYAML lets any exception out of its constructors: `!!bool x` is a KeyError, `!!int x` a ValueError.
    """
    try:
        _check_events(text)
        return yaml.load(text, _LOADER)  # noqa: S506 - a safe loader, both of them
    except Exception as error:  # noqa: BLE001 - see above
        reason = " ".join(str(error).split()) if isinstance(error, yaml.YAMLError) else "a value is not of its tag"
        raise ValueError(reason[:300] or "it makes no sense") from None


def _check_events(text: bytes | str) -> None:
    levels = aliases = 0
    for event in yaml.parse(text, _LOADER):
        if isinstance(event, yaml.CollectionStartEvent):
            levels += 1
            if levels > MOST_LEVELS:
                raise yaml.YAMLError(f"more than {MOST_LEVELS} lists and objects within each other")
        elif isinstance(event, yaml.CollectionEndEvent):
            levels -= 1
        elif isinstance(event, yaml.AliasEvent):
            aliases += 1
            if aliases > MOST_ALIASES:
                raise yaml.YAMLError(f"more than {MOST_ALIASES} aliases")
