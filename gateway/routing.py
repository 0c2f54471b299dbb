"""Which model versions there are and which instance gets a request: the HTTP worker's view, replaced as a whole."""

from collections.abc import Iterable, Sequence
from typing import Protocol

import orjson

from gateway.errors import ModelNotFound, ModelNotReady, RequestError, VersionNotFound, from_code
from gateway.ipc.channel import Channel
from gateway.ipc.messages import VersionRoute
from gateway.ipc.reply import Reply
from gateway.metrics import Timings, VersionCounters
from gateway.tensors import Buffer, Signature, TensorSpec


class NotYet(ModelNotReady):
    """A version that cannot answer now and soon may: it is cold or waking, or its instances are being replaced."""

    def __init__(self, route: VersionRoute, message: str) -> None:
        super().__init__(message)
        self.route = route


class NotServed(ModelNotReady):
    """A version that is in the store, and of which nobody is waiting to answer: it has failed, or is unloaded."""


class Unloaded(NotServed):
    """A version that somebody has unloaded."""


class Shadow(Protocol):
    """Has copies of a version's requests answered by another."""

    def see(
        self, header: bytes, payload: Sequence[Buffer], rows: int, channel: Channel, reply: Reply, sent: float
    ) -> None:
        """A request was sent at `sent`, as this frame, and answered: what is wanted of it has to be copied now."""


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
        self.max_rows = route.ready.batching.max_batch_size
        self.batched = route.ready.batching.shown_batch_size > 1
        """Whether tensors have rows, as Triton means it; also where requests are not joined any more."""
        self.signatures = route.ready.signatures
        self.default_signature = route.ready.default_signature
        self.response_start = orjson.dumps({"model_name": self.model, "model_version": self.version})[:-1]
        self.shadow: Shadow | None = None
        """Who else gets copies of its requests."""
        self.forms: dict[object, object] = {}
        """Request forms that have been checked (http/form.py)."""
        self.specs: dict[str, dict[str, TensorSpec]] = {
            name: {spec.name: spec for spec in signature.inputs} for name, signature in self.signatures.items()
        }
        self.required: dict[str, frozenset[str]] = {
            name: frozenset(spec.name for spec in signature.inputs if not spec.optional)
            for name, signature in self.signatures.items()
        }

        self.labels: dict[str, list[str]] = {
            each.name: each.labels for each in route.config.outputs if isinstance(each.labels, list)
        }
        """What the classes of an output are called."""

    def signature(self, name: str | None) -> Signature:
        """The signature a request asks for; RequestError names those there are."""
        signature = self.signatures.get(name or self.default_signature)
        if signature is None:
            known = ", ".join(f"'{known}'" for known in sorted(self.signatures))
            raise RequestError(f"model '{self.model}' has no signature '{(name or '')[:100]}'; it has {known}")
        return signature


def pick(target: Target) -> Channel:
    """The instance with the fewest rows under way; NotYet if none is left."""
    channels = target.channels
    if len(channels) == 1:
        return channels[0]
    if not channels:
        message = f"model '{target.model}' version {target.version} has no running instance; try again soon"
        raise NotYet(target.route, message)
    return min(channels, key=lambda channel: channel.rows)


class RoutingTable:
    """All versions by name, and those of them that can answer."""

    def __init__(
        self,
        routes: Iterable[VersionRoute] = (),
        targets: Iterable[Target] = (),
        settled: bool = False,
        stopping: bool = False,
        before: "RoutingTable | None" = None,
    ) -> None:
        """`before` is the table until now: a version of it that answered, or soon would, and loads now is not new."""
        self._goes_on = settled and not stopping
        self.models: dict[str, dict[int, VersionRoute]] = {}
        self._waking: set[tuple[str, int]] = set()
        for route in routes:
            self.models.setdefault(route.model, {})[route.version] = route
            if route.state == "LOADING" and before is not None and before.answers(route.model, route.version):
                self._waking.add((route.model, route.version))
        self._targets = {(target.model, int(target.version)): target for target in targets}

    def find(self, model: str, version: str | None = None) -> VersionRoute:
        """The version or label asked for, else the default if it answers, now or soon, else the highest that does.

        Whether a version is in memory is not for a client to notice: a cold one counts like one that is ready.

        ModelNotFound or VersionNotFound if there is none.
        """
        versions = self.models.get(model)
        if not versions:
            raise ModelNotFound(f"Request for unknown model: '{model[:200]}' is not found")
        if version is None:
            answering = [number for number in versions if self.answers(model, number)]
            chosen = [number for number in answering if versions[number].default]
            return versions[max(chosen or answering or versions)]
        if not (version.isascii() and version.isdigit()):
            return self._labelled(model, version)
        number = int(version) if len(version) <= 20 else -1
        if number not in versions:
            raise VersionNotFound(f"Request for unknown model: '{model}' version '{version[:40]}' is not found")
        return versions[number]

    def _labelled(self, model: str, label: str) -> VersionRoute:
        versions = self.models[model].values()
        for route in versions:
            if label in route.labels:
                return route
        for route in versions:
            if label in route.config.version_labels:
                meant = route.config.version_labels[label]
                raise VersionNotFound(
                    f"label '{label}' of model '{model}' stands for version {meant}, which is not there"
                )
        raise VersionNotFound(f"Request for unknown model: '{model}' version '{label[:40]}' is not found")

    def shares(self, model: str) -> dict[int, int]:
        """How requests that name no version are split among those that answer: parts by version; empty: not at all.

        A default that somebody has set gets them all; a version that does not answer leaves its part to the others.
        """
        versions = self.models.get(model, {})
        if not versions or any(route.default and self.answers(model, route.version) for route in versions.values()):
            return {}
        traffic = versions[max(versions)].config.traffic
        return {number: part for number, part in traffic.items() if part and self.answers(model, number)}

    def answers_soon(self, model: str, version: int) -> bool:
        """Whether a request for a version that is not ready makes it so, or has."""
        route = self.models.get(model, {}).get(version)
        return route is not None and (route.state == "COLD" or (model, version) in self._waking)

    def answers(self, model: str, version: int) -> bool:
        """Whether a request for a version is answered, now or soon."""
        return (model, version) in self._targets or self.answers_soon(model, version)

    def _answers_now(self, route: VersionRoute) -> bool:
        """Whether a version has an instance, or a request for it is answered as soon as it is loaded."""
        target = self._targets.get((route.model, route.version))
        return bool(target and target.channels) or self.answers_soon(route.model, route.version)

    @property
    def ready(self) -> bool:
        """Whether every version of the start was tried, any version answers, and the server is not about to end."""
        routes = (route for versions in self.models.values() for route in versions.values())
        return self._goes_on and any(map(self._answers_now, routes))

    @property
    def all_ready(self) -> bool:
        """Whether, besides, no version has failed and every model answers, but for those that were unloaded."""
        for versions in self.models.values():
            wanted = [route for route in versions.values() if route.state not in ("UNLOADED", "DRAINING")]
            failed = any(route.state == "FAILED" for route in wanted)
            if failed or (wanted and not any(map(self._answers_now, wanted))):
                return False
        return self.ready

    def target(self, model: str, version: str | None = None) -> Target:
        """The same version as something that can answer; NotYet if it soon will, else the error that says why not."""
        route = self.find(model, version)
        target = self._targets.get((route.model, route.version))
        if target is None:
            why = f": {route.reason}" if route.reason else ""
            message = f"model '{model}' version {route.version} is {route.state}{why}"
            if self.answers_soon(route.model, route.version):
                raise NotYet(route, message)
            if route.state == "UNLOADED":
                raise Unloaded(message)
            if route.state == "FAILED" and not route.refusal:
                raise NotServed(message)
            raise from_code(route.refusal, message) if route.refusal else ModelNotReady(message)
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
