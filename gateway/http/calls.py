"""Which inference call a path is: of which dialect, and for which model version."""

import re
from urllib.parse import unquote_to_bytes

import msgspec

from gateway.errors import GatewayError
from gateway.http import generate, oip, tfserving
from gateway.http.dialect import Dialect
from gateway.http.waiting import Wish
from gateway.routing import RoutingTable, Target

CALLS = 4096
LONGEST_PATH = 512
"""Paths of that many bytes, and so many of them, are remembered; others only cost looking again."""
_ORIGIN = re.compile(rb"https?://[^/]*")
_PATTERNS: tuple[tuple[re.Pattern[bytes], Dialect], ...] = (
    (oip.PATH, oip.INFER),
    (generate.PATH, generate.GENERATE),
    (generate.STREAM_PATH, generate.GENERATE_STREAM),
    (tfserving.PREDICT_PATH, tfserving.PREDICT),
    (tfserving.CLASSIFY_PATH, tfserving.CLASSIFY),
    (tfserving.REGRESS_PATH, tfserving.REGRESS),
)
"""POST to one of these is an inference.

Group 1 is the model; group 2, where there is one, the version or label; group 3, where there is one, a label.
"""


class Call(msgspec.Struct, frozen=True):
    """An inference call; `target` is the version that answers it, or why there is none."""

    dialect: Dialect
    wish: Wish
    target: Target | GatewayError


def match(path: bytes) -> tuple[Dialect, Wish] | None:
    """What a path asks for; None if it is no inference call."""
    if path.startswith(b"http") and (origin := _ORIGIN.match(path)):
        path = path[origin.end() :]
    for pattern, dialect in _PATTERNS:
        if found := pattern.fullmatch(path):
            model, version, label = (
                unquote_to_bytes(part).decode("utf-8", "replace") if part else None
                for part in (*found.groups(), None, None)[:3]
            )
            if label is not None:
                version = tfserving.NUMERIC_LABEL * label.isdigit() + label
            return dialect, (model or "", version)
    return None


class Calls:
    """The calls by their paths under one routing table: each is looked at once."""

    def __init__(self, table: RoutingTable) -> None:
        self._table = table
        self._known: dict[bytes, Call] = {}
        self.get = self._known.get

    def find(self, path: bytes) -> Call | None:
        """The call that a path, without its query, is; None if it is none."""
        matched = match(path)
        if matched is None:
            return None
        dialect, wish = matched
        if dialect.zero_is_latest and wish[1] == "0" and 0 not in self._table.models.get(wish[0], {0}):
            wish = (wish[0], None)
        try:
            target = self._table.target(*wish)
        except GatewayError as error:
            return Call(dialect, wish, error)  # not kept: errors are raised, and remember where
        call = Call(dialect, wish, target)
        if len(path) <= LONGEST_PATH:
            if len(self._known) >= CALLS:
                self._known.clear()
            self._known[path] = call
        return call
