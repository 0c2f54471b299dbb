"""YAML as untrusted text: whatever PyYAML makes of it, it is read or refused with one sentence."""

from typing import Any

import yaml

MOST_LEVELS = 64
"""Of lists and objects within each other. The C library takes long for thousands of them, and then all the stack."""
MOST_NODES = 1 << 20
"""With what aliases stand for counted each time: a few of them can come to billions (the billion laughs)."""
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read(text: bytes | str) -> Any:
    """What the text says, None if that is nothing; ValueError with one line if it is no YAML.

    PyYAML lets any exception out of its constructors: `!!bool x` is a KeyError, `!!int x` a ValueError.
    """
    try:
        bounds = _Bounds()
        for event in yaml.parse(text, _LOADER):
            bounds.see(event)
        return yaml.load(text, _LOADER)  # noqa: S506 - a safe loader, both of them
    except Exception as error:  # noqa: BLE001 - see above
        reason = " ".join(str(error).split()) if isinstance(error, yaml.YAMLError) else "a value is not of its tag"
        raise ValueError(reason[:300] or "it makes no sense") from None


class _Bounds:
    """Raises where a text is nested too deeply or comes to too much; it sees the events of a parse, one by one."""

    def __init__(self) -> None:
        self._nodes = 0
        self._sizes: dict[str | None, int] = {}
        self._open: list[tuple[str | None, int]] = []

    def see(self, event: yaml.Event) -> None:
        if isinstance(event, yaml.CollectionStartEvent):
            self._begin(event.anchor)
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = self._open.pop()
            self._sizes[anchor] = self._nodes - before
        elif isinstance(event, yaml.ScalarEvent):
            self._nodes += 1
            self._sizes[event.anchor] = 1
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in self._sizes:
                raise yaml.YAMLError(f"alias '{event.anchor}' stands for nothing before it, or for what it is in")
            self._nodes += self._sizes[event.anchor]
        if self._nodes > MOST_NODES:
            raise yaml.YAMLError(f"more than {MOST_NODES} values, with what aliases stand for")

    def _begin(self, anchor: str | None) -> None:
        self._sizes.pop(anchor, None)  # until it ends an alias to it would lead in circles
        self._open.append((anchor, self._nodes))
        self._nodes += 1
        if len(self._open) > MOST_LEVELS:
            raise yaml.YAMLError(f"more than {MOST_LEVELS} lists and objects within each other")
