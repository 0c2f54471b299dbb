"""Which model versions there are and which instance gets a request: the HTTP worker's view, replaced as a whole."""

from collections.abc import Iterable
from urllib.parse import quote

import orjson

from gateway.errors import ModelNotFound, ModelNotReady, RequestError, VersionNotFound
from gateway.ipc.channel import Channel
from gateway.ipc.messages import VersionRoute
from gateway.metrics import Timings, VersionCounters
from gateway.tensors import Signature, TensorSpec


class Target:
    """One ready model version, with everything that answering a request for it needs looked up beforehand."""

    def __init__(
        self,
        route: VersionRoute,
        channels: list[Channel],
        counters: VersionCounters,
        timings: Timings | None = None,
    ) -> None:
        assert route.ready is not None
        self.route = route
        self.model = route.model
        self.version = str(route.version)
        self.channels = channels
        self.counters = counters
        self.timings = timings or Timings(counters)
        self.signatures = route.ready.signatures
        self.default_signature = route.ready.default_signature
        self.response_start = orjson.dumps({"model_name": self.model, "model_version": self.version})[:-1]
        self.forms: dict[object, object] = {}
        """Request forms that have been checked (http/form.py)."""
        self.specs: dict[str, dict[str, TensorSpec]] = {
            name: {spec.name: spec for spec in signature.inputs} for name, signature in self.signatures.items()
        }
        self.required: dict[str, frozenset[str]] = {
            name: frozenset(spec.name for spec in signature.inputs if not spec.optional)
            for name, signature in self.signatures.items()
        }

    def signature(self, name: str | None) -> Signature:
        """The signature a request asks for; RequestError names those there are."""
        signature = self.signatures.get(name or self.default_signature)
        if signature is None:
            known = ", ".join(f"'{known}'" for known in sorted(self.signatures))
            raise RequestError(f"model '{self.model}' has no signature '{(name or '')[:100]}'; it has {known}")
        return signature


def pick(target: Target) -> Channel:
    """The instance with the fewest requests under way; ModelNotReady if none is left."""
    channels = target.channels
    if len(channels) == 1:
        return channels[0]
    if not channels:
        raise ModelNotReady(f"model '{target.model}' version {target.version} has no running instance; try again soon")
    return min(channels, key=lambda channel: len(channel.pending))


class RoutingTable:
    """All versions by name, and by request path for those that can answer."""

    def __init__(
        self, routes: Iterable[VersionRoute] = (), targets: Iterable[Target] = (), settled: bool = False
    ) -> None:
        self.settled = settled
        self.models: dict[str, dict[int, VersionRoute]] = {}
        for route in routes:
            self.models.setdefault(route.model, {})[route.version] = route
        self._targets = {(target.model, int(target.version)): target for target in targets}
        self.infer_paths: dict[bytes, Target] = {}
        for model in self.models:
            for version, target in self._ready(model):
                base = f"/v2/models/{quote(model, safe='')}"
                self.infer_paths[f"{base}/versions/{version}/infer".encode()] = target
                # Ascending order: the highest ready version is left as the one without a version in its path.
                self.infer_paths[f"{base}/infer".encode()] = target

    def _ready(self, model: str) -> list[tuple[int, Target]]:
        return [(v, self._targets[model, v]) for v in sorted(self.models[model]) if (model, v) in self._targets]

    def find(self, model: str, version: str | None = None) -> VersionRoute:
        """The version asked for, else the highest ready one, else the highest.

        ModelNotFound or VersionNotFound if there is none.
        """
        versions = self.models.get(model)
        if not versions:
            raise ModelNotFound(f"Request for unknown model: '{model[:200]}' is not found")
        if version is None:
            ready = self._ready(model)
            return versions[ready[-1][0] if ready else max(versions)]
        number = int(version) if version.isascii() and version.isdigit() and len(version) <= 20 else -1
        if number not in versions:
            raise VersionNotFound(f"Request for unknown model: '{model}' version '{version[:40]}' is not found")
        return versions[number]

    def target(self, model: str, version: str | None = None) -> Target:
        """The same version as something that can answer; ModelNotReady says why it cannot."""
        route = self.find(model, version)
        target = self._targets.get((route.model, route.version))
        if target is None:
            why = f": {route.reason}" if route.reason else ""
            raise ModelNotReady(f"model '{model}' version {route.version} is {route.state}{why}")
        return target

    @property
    def targets(self) -> Iterable[Target]:
        """Every version that can answer."""
        return self._targets.values()

    def drop(self, channel: Channel) -> None:
        """Send nothing more to an instance that is gone."""
        for target in self._targets.values():
            if channel in target.channels:
                target.channels.remove(channel)

    @property
    def ready(self) -> bool:
        """Whether every version that the server was started with has become READY or FAILED."""
        return self.settled
