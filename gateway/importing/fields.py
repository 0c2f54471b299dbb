"""Reading a foreign configuration key by key, so that no key goes unread without being named."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from gateway.errors import ConfigError
from gateway.importing.report import Translation
from gateway.importing.text_proto import MAX_DEPTH, MAX_VALUES, Tree, Word


def tree_of(value: Mapping[Any, Any]) -> Tree:
    """An object of JSON or YAML in the form of text_proto; ConfigError if it is nested too deep or too large."""
    left = itertools.count(MAX_VALUES, -1)

    def tree(value: Mapping[Any, Any], depth: int) -> Tree:
        if depth > MAX_DEPTH:
            raise ConfigError(f"it is nested more than {MAX_DEPTH} deep")
        found: Tree = {}
        for key, each in value.items():
            values = each if isinstance(each, list) else [] if each is None else [each]
            found[str(key)] = here = []
            for item in values:
                if next(left) == 0:  # an alias of YAML is as large as what it stands for
                    raise ConfigError(f"it holds more than {MAX_VALUES} values")
                here.append(tree(item, depth + 1) if isinstance(item, dict) else item)
        return found

    return tree(value, 0)


class Fields:
    """One object of a foreign configuration; each getter is None, or empty, for what is not there.

    All raise ConfigError, which names the key, for a value of another type and an integer of more than 64 bits.
    """

    def __init__(self, tree: Tree, path: str = "") -> None:
        self.tree = tree
        self._path = path
        self._asked: set[str] = set()
        self._below: list[Fields] = []

    def __contains__(self, key: str) -> bool:
        return key in self.tree

    def path(self, key: str) -> str:
        """The whole name of a key, as it stands in a report."""
        return f"{self._path}{key}"

    def _values(self, key: str, kind: type | tuple[type, ...], noun: str) -> list[Any]:
        self._asked.add(key)
        values = self.tree.get(key, [])
        for value in values:
            if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
                raise ConfigError(f"{self.path(key)} is not {noun}")
            if isinstance(value, int) and not -(1 << 63) <= value < 1 << 64:
                raise ConfigError(f"{self.path(key)} has more than 64 bits")
        return values

    def texts(self, key: str) -> list[str]:
        """All values of a text; words without quotes count."""
        return list(self._values(key, str, "text"))

    def text(self, key: str) -> str | None:
        """The last value, as protocol buffers have it."""
        return next(reversed(self.texts(key)), None)

    def numbers(self, key: str) -> list[int]:
        """All values of an integer."""
        return list(self._values(key, int, "an integer"))

    def number(self, key: str) -> int | None:
        """As text."""
        return next(reversed(self.numbers(key)), None)

    def amount(self, key: str) -> float | None:
        """As number, but of any number."""
        return next(map(float, reversed(self._values(key, (int, float), "a number"))), None)

    def flag(self, key: str) -> bool | None:
        """A boolean of JSON, or the word of a text proto."""
        value = next(reversed(self._values(key, (bool, Word), "true or false")), None)
        if value is None or isinstance(value, bool):
            return value
        if value.lower() not in ("true", "false", "t", "f"):
            raise ConfigError(f"{self.path(key)} is not true or false")
        return str(value).lower() in ("true", "t")

    def sections(self, key: str) -> "list[Fields]":
        """All objects of that name."""
        values = self._values(key, dict, "an object")
        many = len(values) > 1
        found = [Fields(tree, f"{self.path(key)}{f'[{i}]' * many}.") for i, tree in enumerate(values)]
        self._below += found
        return found

    def section(self, key: str) -> "Fields | None":
        """The one object of that name; ConfigError if there are several."""
        found = self.sections(key)
        if len(found) > 1:
            raise ConfigError(f"{self.path(key)} stands there more than once")
        return found[0] if found else None

    def ignore(self, *keys: str) -> None:
        """Whoever asks has spoken of these already."""
        self._asked.update(keys)

    def rest(self) -> Iterator[str]:
        """The whole names of keys that nobody has asked for, here and in the objects that were asked for."""
        for key in self.tree:
            if key not in self._asked:
                yield self.path(key)
        for below in self._below:
            yield from below.rest()

    def drop_rest(self, translation: Translation, why: Callable[[str], str]) -> None:
        """Put what nobody has asked for into the report."""
        for key in self.rest():
            translation.dropped(key, why(key))

    def drop_names(self, translation: Translation, reasons: Mapping[str, str]) -> None:
        """Put those of these keys that are there into the report, each with its reason."""
        for key, why in reasons.items():
            if key in self.tree:
                self._asked.add(key)
                translation.dropped(self.path(key), why)
