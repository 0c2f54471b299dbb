"""A model as its metadata describe it to a client: its signatures, as far as they can be read."""

from typing import Any, NamedTuple

from gateway.commands.client import Client, did_you_mean
from gateway.errors import CallFailed, RequestError
from gateway.tensors import DTYPES, Signature, TensorSpec


class Model(NamedTuple):
    """One version of a model."""

    name: str
    version: str | None
    """None if the server does not say which version answered."""
    platform: str
    signatures: dict[str, Signature]
    default_signature: str
    metadata: dict[str, Any]

    def signature(self, name: str | None) -> Signature:
        """The one of that name; RequestError names those there are."""
        found = self.signatures.get(name or self.default_signature)
        if found is None:
            known = sorted(self.signatures)
            meant = did_you_mean(name or "", known) or "it has " + ", ".join(known)
            raise RequestError(f"model '{self.name}' has no signature '{name}'; {meant}")
        return found


def describe(client: Client, name: str, version: str | None) -> Model:
    """Ask a server for a model; CallFailed if it says no, or what it says cannot be understood."""
    metadata = client.metadata(name, version)
    ours = metadata.get("parameters") or {}
    try:
        default = str(ours.get("default_signature", "default"))
        described = ours.get("signatures") or {default: metadata}
        signatures = {
            key: Signature(key, _specs(each["inputs"]), _specs(each.get("outputs", [])))
            for key, each in described.items()
        }
        known = str(ours["version"]) if "version" in ours else version
        return Model(name, known, str(metadata.get("platform", "")), signatures, default, metadata)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise CallFailed(f"what {client.url} says of model '{name}' cannot be understood") from None


def _specs(described: Any) -> tuple[TensorSpec, ...]:
    specs = []
    for each in described:
        shape = None if each.get("any_rank") else tuple(map(int, each["shape"]))
        if each["datatype"] not in DTYPES:
            raise ValueError(each["datatype"])
        guessed = bool(each.get("guessed"))
        optional = bool(each.get("optional"))
        specs.append(TensorSpec(str(each["name"]), each["datatype"], shape, optional, not guessed, guessed))
    return tuple(specs)
