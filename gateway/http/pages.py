"""Web pages and a gateway without keys: what changes it is not for pages of others that a browser here shows.

A browser sends simple requests to any address without asking (Fetch standard, 3.3), and takes a name for this machine
that its owner points here (DNS rebinding); there is no key then that such a page would not have.
"""

import ipaddress
from collections.abc import Collection, Sequence

from gateway.errors import Forbidden

_NOT_PUBLIC = {"localhost", "local", "internal", "test"}
"""Last parts of names that nobody can register (RFC 6761, RFC 6762; ICANN has reserved `internal`)."""
_MINE = {b"same-origin", b"none"}


def check_page(headers: Sequence[tuple[bytes, bytes]], origins: Collection[str]) -> None:
    """Forbidden if a page sends this that is neither the gateway's own nor of these origins; names in lower case."""
    found = dict(headers)
    host, origin, site = found.get(b"host", b""), found.get(b"origin"), found.get(b"sec-fetch-site")
    if origin is not None and origin.decode("latin-1") in origins:
        return
    if not _is_local(host.decode("latin-1")):
        raise Forbidden(
            "this call is for this machine only, by address or as localhost, until there is a key for it "
            "(gateway keys add)"
        )
    if origin is not None and origin.partition(b"://")[2] == host:
        return
    if origin is not None or (site is not None and site not in _MINE):
        raise Forbidden(
            "web pages of other origins may not make this call; --cors-origins names those that may, * does not"
        )


def _is_local(host: str) -> bool:
    """Whether a Host header names an address, or a name that nobody can point here from outside."""
    host = host.lower()
    if host.startswith("["):
        return True
    before, _, port = host.rpartition(":")
    name = (before if port.isdigit() else host).rstrip(".")
    if "." not in name or name.rpartition(".")[2] in _NOT_PUBLIC:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
