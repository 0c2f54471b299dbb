"""What must be right before anything is started: a temporary directory, keys, TLS, packages named or needed."""

import contextlib
import resource
from importlib.util import find_spec
from urllib.parse import urlsplit

from gateway import keys, tls
from gateway.errors import ConfigError
from gateway.nodes import scratch
from gateway.settings import Settings


def check(settings: Settings) -> None:
    """ConfigError if a file of the settings cannot be used, or what they ask for is not installed."""
    scratch.remove(scratch.private_directory())
    if (settings.tls_cert is None) != (settings.tls_key is None):
        raise ConfigError("tls_cert and tls_key belong together: set both, or neither")
    if settings.tls_cert is not None and settings.tls_key is not None:
        tls.server_context(settings.tls_cert, settings.tls_key)
    if settings.keys_file is not None:
        if not settings.keys_file.exists():
            raise ConfigError(
                f"the keys file {settings.keys_file} is not there; "
                f"`gateway keys add NAME --scope admin --keys-file {settings.keys_file}` makes it"
            )
        keys.read(settings.keys_file)
    _check_libraries(settings)
    if settings.otlp_endpoint is not None:
        url = urlsplit(settings.otlp_endpoint)
        if url.scheme not in ("http", "https") or not url.netloc:
            raise ConfigError("bad value for setting 'otlp_endpoint': write a URL such as http://127.0.0.1:4318")
        if not _can_trace():
            raise ConfigError("otlp_endpoint needs OpenTelemetry: pip install 'model-serving-gateway[tracing]'")


def raise_open_files() -> None:
    """Raise the soft limit of open files to the hard one, for this process and its children.

    A worker has a descriptor for each client and several for each instance. Nothing in the gateway uses select(2), for
    which the low soft limit exists; an instance lowers its own limit again (instance/sandbox.py).
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _check_libraries(settings: Settings) -> None:
    """ConfigError for a package with operators that is not installed."""
    for name in (*settings.torch_library, *settings.tensorflow_library):
        # Only the package itself: looking for what is in it would import it here.
        if find_spec(name.partition(".")[0]) is None:
            setting = "torch_library" if name in settings.torch_library else "tensorflow_library"
            raise ConfigError(f"bad value for setting '{setting}': no package {name} is installed")


def _can_trace() -> bool:
    try:
        return find_spec("opentelemetry.sdk.trace") is not None and (
            find_spec("opentelemetry.exporter.otlp.proto.http") is not None
        )
    except ModuleNotFoundError:
        return False
