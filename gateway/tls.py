"""TLS: the certificate and key that all listeners serve with, checked at the start and read again when they change."""

import asyncio
import logging
import ssl
from pathlib import Path

from gateway.errors import ConfigError

log = logging.getLogger("gateway.tls")

LOOK_SECONDS = 5.0


def server_context(cert: Path, key: Path) -> ssl.SSLContext:
    """A context of TLS 1.2 or newer; ConfigError if the files cannot be read or do not belong together."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    _load(context, cert, key)
    return context


def _load(context: ssl.SSLContext, cert: Path, key: Path) -> None:
    def no_password() -> str:
        raise ConfigError(f"the TLS key {key} is encrypted; give one that is not, such as openssl rsa writes")

    for what, path in (("certificate", cert), ("key", key)):
        try:
            path.read_bytes()
        except OSError as error:
            raise ConfigError(f"the TLS {what} {path} cannot be read: {error.strerror}") from None
    try:
        context.load_cert_chain(cert, key, password=no_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ConfigError(f"the TLS certificate {cert} and the key {key} do not belong together") from None
        raise ConfigError(f"{cert} and {key} are no TLS certificate (PEM) and its key: {error.reason}") from None
    except OSError as error:
        raise ConfigError(f"the TLS files {cert} and {key} cannot be read: {error.strerror}") from None


def _stamp(cert: Path, key: Path) -> list[tuple[int, int, int]]:
    return [(found.st_ino, found.st_mtime_ns, found.st_size) for found in (cert.stat(), key.stat())]


async def keep_current(context: ssl.SSLContext, cert: Path, key: Path) -> None:
    """Serve new connections with what is in the files whenever that changes, until cancelled.

    What cannot be used is logged, and the old certificate stays.
    """
    loaded = _stamp(cert, key)
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        try:
            found = _stamp(cert, key)
            if found == loaded:
                continue
            loaded = found
            server_context(cert, key)  # elsewhere first: half a pair would spoil the one in use
            _load(context, cert, key)
        except OSError as error:
            log.warning("the TLS files are not there (%s); the certificate until now stays", error.strerror)
        except ConfigError as error:
            log.warning("%s; the certificate until now stays", error.message)
        else:
            log.info("%s: a new certificate", cert)
