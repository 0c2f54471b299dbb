"""Who may do what: which key a call needs, and what a key may do."""

import hmac
import math
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import NamedTuple

from gateway.errors import Forbidden, RateLimited, Unauthenticated
from gateway.http.rates import Memory, take
from gateway.keys import Key, hash_of

LONGEST_KEY = 256
REMEMBERED_MODELS = 1024
MISSING = "this call needs an API key, sent as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'"
_NO_HASH = bytes(32)
_FLAGS = re.IGNORECASE | re.DOTALL
_HEALTH = re.compile(r"/v2/health(?:/.*)?|/ping/?", _FLAGS)
_ADMIN = re.compile(r"/v2/repository(?:/models/(?P<model>[^/]+)/.*|/.*)?", _FLAGS)
_CONSOLE = re.compile(r"/(?:console/?(?:static/.*)?)?", _FLAGS)
"""The page and its files, which ask for a key themselves."""
_METRICS = {"/metrics", "/monitoring/prometheus/metrics", "/console/events"}
_MANAGED = re.compile(r"/models(?:/(?P<model>[^/]+)(?:/.*)?)?/?", _FLAGS)
_OF_A_MODEL = re.compile(
    r"/v2/models/([^/]+)(?:/.*)?|/v1/models/([^/:]+).*|/(?:predictions|explanations)/([^/]+)(?:/.*)?", _FLAGS
)


class Need(NamedTuple):
    """What a call needs: a key with this scope (None: no key), for this model."""

    scope: str | None
    model: str | None = None
    everything: bool = False
    """It shows or changes all models: a key for some of them will not do."""


def need_of(listener: str, path: str, *, preflight: bool = False) -> Need:
    """What a call of a listener (http, management, metrics) needs; the path is decoded, without its query.

    A browser's preflight (Fetch standard, 4.8) carries no key and does nothing, where it is answered as one.
    """
    path = path.removesuffix("\n")  # the router ends its patterns with $, which overlooks one
    if preflight or _HEALTH.fullmatch(path) or (listener == "http" and _CONSOLE.fullmatch(path)):
        return Need(None)
    if listener == "metrics" or (listener == "http" and path in _METRICS):
        return Need("metrics", everything=True)
    found = _ADMIN.fullmatch(path) or _MANAGED.fullmatch(path)
    if found:
        return Need("admin", found["model"], everything=found["model"] is None)
    if listener == "management":
        return Need("admin", everything=True)
    if path == "/v2/models/stats":
        return Need("infer", everything=True)
    if of_one := _OF_A_MODEL.fullmatch(path):
        return Need("infer", next(group for group in of_one.groups() if group is not None))
    return Need("infer")


def without_admin() -> Forbidden:
    """What calls that need the scope admin are answered where other machines reach them and there is no such key."""
    return Forbidden(
        "this call is refused on an address that other machines reach until there is a key for it: make one with "
        "`gateway keys add NAME --scope admin` and name its file to `gateway serve` with --keys-file"
    )


class Holder:
    """A key as each request needs it."""

    __slots__ = (
        "_allowed", "_models", "ahead", "expires", "id", "infer", "interval", "mortal", "place", "scopes", "sha256",
    )  # fmt: skip

    def __init__(self, key: Key, place: int) -> None:
        self.id = key.id
        self.sha256 = bytes.fromhex(key.sha256)
        self.scopes = frozenset({"infer", "metrics", "admin"} if "admin" in key.scopes else key.scopes)
        self.infer = "infer" in self.scopes
        self._models = key.models
        self._allowed: dict[str | None, bool] = {}
        self.expires = key.expires.timestamp() if key.expires else math.inf
        if key.revoked is not None:
            self.expires = -math.inf
        self.mortal = self.expires < math.inf
        self.interval = 1 / key.rate if key.rate else 0.0
        self.ahead = self.interval * ((key.burst or max(1, math.ceil(key.rate))) - 1) if key.rate else 0.0
        self.place = place

    def is_for(self, model: str) -> bool:
        """Whether it may be used for a model."""
        if self._models is None:
            return True
        allowed = self._allowed.get(model)
        if allowed is None:
            if len(self._allowed) >= REMEMBERED_MODELS:
                self._allowed.clear()
            allowed = self._allowed[model] = any(fnmatchcase(model, each) for each in self._models)
        return allowed

    def check(self, need: Need) -> None:
        """Forbidden if it may not be used for what needs this."""
        if need.scope not in self.scopes:
            raise Forbidden(f"this API key has not the scope '{need.scope}'")
        if need.everything and self._models is not None:
            raise Forbidden("this API key is for some models only, this call is about all of them")
        if need.model is not None and not self.is_for(need.model):
            raise Forbidden(f"this API key is not for model '{need.model[:200]}'")


class Access:
    """All keys, as they are in force now; replaced as a whole when they change."""

    def __init__(self, keys: Sequence[Key] = (), places: Sequence[int] = ()) -> None:
        self._holders = {key.id.encode(): Holder(key, place) for key, place in zip(keys, places, strict=True)}
        self.required = bool(keys)
        """Whether calls need a key: as soon as there is one, even if it is not valid any more."""
        self.administered = any(key.revoked is None and "admin" in key.scopes for key in keys)
        """Whether there is a key for the calls that change what is served."""

    def holder(self, key: bytes | None, now: float) -> Holder:
        """Whose key this is; Unauthenticated if it is nobody's, or no longer. Time tells nothing of those there are."""
        if key is None:
            raise Unauthenticated(MISSING)
        parts = key.split(b"_", 2) if len(key) <= LONGEST_KEY else ()
        holder = self._holders.get(parts[1]) if len(parts) == 3 else None
        if not hmac.compare_digest(hash_of(key[:LONGEST_KEY]), holder.sha256 if holder else _NO_HASH) or holder is None:
            raise Unauthenticated("the API key is not known here")
        check_time(holder, now)
        return holder


def check_time(holder: Holder, now: float) -> None:
    """Unauthenticated if the key was good once."""
    if holder.expires > now:
        return
    if math.isinf(holder.expires):
        raise Unauthenticated("the API key has been revoked")
    expired = datetime.fromtimestamp(holder.expires, UTC)
    raise Unauthenticated(f"the API key has expired at {expired:%Y-%m-%dT%H:%M:%SZ}")


def check_rate(holder: Holder, rates: Memory, now: float) -> None:
    """RateLimited if the key has made all requests that it may by `now`, of the monotonic clock."""
    wait = take(rates, holder.place, now, holder.interval, holder.ahead)
    if wait > 0.0:
        error = RateLimited(f"this API key may make {1 / holder.interval:g} requests a second")
        error.retry_after = max(1, math.ceil(wait))
        raise error


def key_in(headers: Iterable[tuple[bytes, bytes]]) -> tuple[int, bytes, bytes | None]:
    """The header that shows a request's key: place, name, and value, bare or after Bearer (RFC 6750, 2.1), or None."""
    for place, (name, value) in enumerate(headers):
        if name == b"x-api-key" or (name == b"authorization" and value[:7].lower() == b"bearer "):
            return place, name, value
    return -1, b"", None


def bare(value: bytes | None) -> bytes | None:
    """The key itself."""
    if value is None:
        return None
    return (value[7:] if value[:7].lower() == b"bearer " else value).strip()
