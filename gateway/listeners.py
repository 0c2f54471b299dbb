"""The sockets that the gateway listens on: one for the API, one for TorchServe's management calls, one for metrics."""

import errno
import ipaddress
import logging
import socket
from dataclasses import dataclass

from gateway.errors import ConfigError
from gateway.settings import Settings, split_address

log = logging.getLogger("gateway.listeners")


@dataclass(frozen=True)
class Listeners:
    """The sockets by the name of what is served there: http, management, metrics."""

    sockets: dict[str, socket.socket]
    scheme: str = "http"

    def url(self, name: str) -> str:
        """Where one of them is reached."""
        host, port = self.sockets[name].getsockname()[:2]
        return f"{self.scheme}://[{host}]:{port}" if ":" in host else f"{self.scheme}://{host}:{port}"

    def is_loopback(self, name: str) -> bool:
        """Whether only this machine reaches it."""
        return ipaddress.ip_address(self.sockets[name].getsockname()[0]).is_loopback

    def close(self) -> None:
        """Close this process's side of them."""
        for sock in self.sockets.values():
            sock.close()


def listen(settings: Settings) -> Listeners:
    """Open all of them; ConfigError if an address cannot be had.

    Of an address that nobody chose, and that another program has, only a warning tells: two gateways on one machine
    are no mistake.
    """
    sockets = {"http": listening_socket(settings.host, settings.port)}
    for name, address in (("management", settings.management_address), ("metrics", settings.metrics_address)):
        if address == "off":
            continue
        host, port = split_address(address)
        try:
            sockets[name] = listening_socket(host, port)
        except ConfigError as error:
            if f"{name}_address" in settings.model_fields_set or not _is_taken(error):
                Listeners(sockets).close()
                raise
            log.warning("%s; go on without it (--%s-address sets another)", error.message, name)
    return Listeners(sockets, "https" if settings.tls_cert else "http")


def _is_taken(error: ConfigError) -> bool:
    cause = error.__cause__
    return isinstance(cause, OSError) and cause.errno == errno.EADDRINUSE


def listening_socket(host: str, port: int) -> socket.socket:
    """The socket that all workers accept from; ConfigError if the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror}") from error
    sock.listen(2048)
    return sock
