"""Which inference call a path is: of which dialect, and for which model version."""

import math
import random
import re
from collections.abc import Mapping
from urllib.parse import unquote_to_bytes

import msgspec

from gateway.errors import GatewayError
from gateway.http import generate, oip, tfserving, torchserve
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
    (torchserve.PATH, torchserve.PREDICTIONS),
)
"""POST to one of these is an inference, and PUT where its dialect takes that.

Group 1 is the model; group 2, where there is one, the version or label; group 3, where there is one, a label.
"""
DIALECTS: tuple[Dialect, ...] = tuple(dialect for _, dialect in _PATTERNS)
"""In an order by which two processes can name them."""


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


class Split:
    """The versions that share the requests of one path, taken in turn, the rarer ones spread among the others."""

    def __init__(self, dialect: Dialect, model: str, shares: Mapping[int, int]) -> None:
        self._dialect = dialect
        self._model = model
        self._order = spread(shares)
        self._next = random.randrange(len(self._order))  # noqa: S311 - so that workers do not all begin with the same

    def call(self, table: RoutingTable) -> Call:
        """The call of the next request."""
        self._next = (self._next + 1) % len(self._order)
        wish = (self._model, str(self._order[self._next]))
        try:
            # Meanwhile it may go: then any version will do, as the client has named none.
            return Call(self._dialect, (self._model, None), table.target(*wish))
        except GatewayError as error:
            return Call(self._dialect, wish, error.with_traceback(None))  # see Calls.find


def spread(shares: Mapping[int, int]) -> list[int]:
    """The versions in an order in which each comes as often as its part says, as evenly as can be.

    Smooth weighted round-robin, as nginx does it.
    """
    whole = math.gcd(*shares.values())
    weights = {version: part // whole for version, part in shares.items()}
    total = sum(weights.values())
    credit = dict.fromkeys(weights, 0)
    order = []
    for _ in range(total):
        for version, weight in weights.items():
            credit[version] += weight
        chosen = max(credit, key=lambda version: credit[version])
        credit[chosen] -= total
        order.append(chosen)
    return order


class Calls:
    """The calls by their paths under one routing table: each is looked at once."""

    def __init__(self, table: RoutingTable) -> None:
        self._table = table
        self._known: dict[bytes, Call] = {}
        self._split: dict[bytes, Split] = {}
        self.get = self._known.get

    def find(self, path: bytes) -> Call | None:
        """The call that a path, without its query, is; None if it is none."""
        if split := self._split.get(path):
            return split.call(self._table)
        matched = match(path)
        if matched is None:
            return None
        dialect, wish = matched
        if dialect.zero_is_latest and wish[1] == "0" and 0 not in self._table.models.get(wish[0], {0}):
            wish = (wish[0], None)
        if wish[1] is None and len(shares := self._table.shares(wish[0])) > 0:
            split = Split(dialect, wish[0], shares)
            if len(path) <= LONGEST_PATH and len(self._split) < CALLS:
                self._split[path] = split
            return split.call(self._table)
        try:
            target = self._table.target(*wish)
        except GatewayError as error:
            # Not kept, for errors are raised. Where this one was it must not remember: the frames there hold the call,
            # so that call, routing table and connection would stay until the collector comes.
            return Call(dialect, wish, error.with_traceback(None))
        call = Call(dialect, wish, target)
        if len(path) <= LONGEST_PATH:
            if len(self._known) >= CALLS:
                self._known.clear()
            self._known[path] = call
        return call
