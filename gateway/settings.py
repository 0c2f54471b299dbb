"""Settings of `gateway serve`: gateway.yaml, over it GATEWAY_* variables, over them the command line."""

import json
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import yaml
from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from gateway import yaml_text
from gateway.errors import ConfigError
from gateway.sizes import parse_size

CONFIG_FILE = "gateway.yaml"
_CLIENT_VARIABLES = {"GATEWAY_URL", "GATEWAY_API_KEY"}
"""What the commands that ask a server read from the environment (commands/client.py); no settings of the server."""
# Kubernetes sets these in every pod beside a Service called "gateway"; they are not meant for us.
_SERVICE_LINK = re.compile(r"GATEWAY_(\w+_)?(SERVICE_(HOST|PORT)\w*|PORT_\d+_\w+)")
LIBRARY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
_ORIGIN = re.compile(r"[a-z][a-z0-9+.\-]*://[^/\s?#@,]+")

Size = Annotated[int, BeforeValidator(parse_size), Field(gt=0)]
"""Bytes, written as 512MB or 8GiB."""


def _checked_address(value: str) -> str:
    if value != "off":
        split_address(value)
    return value


Address = Annotated[str, AfterValidator(_checked_address)]
"""HOST:PORT, or off."""


def split_address(address: str) -> tuple[str, int]:
    """Host and port of HOST:PORT or [HOST]:PORT; ValueError if it is none."""
    host, colon, port = address.rpartition(":")
    if not colon or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise ValueError("must be HOST:PORT or off")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _checked_origin(value: str) -> str:
    if value not in ("*", "null") and not _ORIGIN.fullmatch(value):
        raise ValueError("must be an origin such as https://example.org, without a path, or *")
    return value


Origin = Annotated[str, AfterValidator(_checked_origin)]
"""Scheme, host and, where it is not the scheme's own, port, as browsers send them."""


def _listed(value: Any) -> Any:
    """A list from YAML or the command line, a JSON list or a comma-separated text from the environment."""
    if not isinstance(value, str):
        return value
    return json.loads(value) if value.startswith("[") else [part.strip() for part in value.split(",") if part.strip()]


def _checked_library(value: str) -> str:
    if not LIBRARY.fullmatch(value):
        raise ValueError("must be the name of a Python module, such as torchvision")
    return value


Libraries = Annotated[list[Annotated[str, AfterValidator(_checked_library)]], NoDecode, BeforeValidator(_listed)]
"""Names of Python packages that register operators with a framework."""


def _state_directory() -> Path:
    if base := os.environ.get("XDG_STATE_HOME", ""):
        return Path(base) / "model-serving-gateway"
    try:
        home = Path.home()
    except RuntimeError:  # a container's user without HOME and without an entry in /etc/passwd
        return Path("/var/lib/model-serving-gateway")
    return home / ".local" / "state" / "model-serving-gateway"


class Settings(BaseSettings):
    """Everything that can be set, with its default."""

    model_config = SettingsConfigDict(env_prefix="GATEWAY_", yaml_file=CONFIG_FILE, extra="forbid", frozen=True)

    model_store: Path = Path("model_store")
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    management_address: Address = "127.0.0.1:8081"
    """TorchServe's management calls; off: nowhere."""
    metrics_address: Address = "127.0.0.1:8082"
    """Metrics without the rest of the API; off: nowhere."""
    workers: Annotated[int, Field(ge=1, le=256)] = 1
    max_body_bytes: Annotated[int, Field(ge=1, le=128 << 20)] = 64 << 20
    request_timeout: Annotated[float, Field(gt=0, le=3600)] = 60.0
    """Seconds after which a request that its model has not answered gets 504."""
    strict_readiness: bool = False
    """Whether the server is ready only while every model is, instead of any."""
    load_timeout: Annotated[float, Field(gt=0, le=3600)] = 120.0
    """Seconds a model may take to load before it is FAILED."""
    keep_alive_seconds: Annotated[int, Field(ge=1)] = 5
    drain_timeout: Annotated[float, Field(ge=0, le=3600)] = 30.0
    """Seconds that requests under way are given when the server stops."""
    memory_budget: Size | None = None
    """What all instances together may have in private memory; None: 80 % of what is free at start."""
    gpu_memory_budget: Size | None = None
    """The same for each GPU."""
    sandbox: Literal["auto", "require", "off"] = "auto"
    """Whether instances are sandboxed: as far as the kernel can, or not at all where it cannot do all, or never."""
    torch_library: Libraries = []
    """Packages with operators for PyTorch, imported for all its models."""
    tensorflow_library: Libraries = []
    """The same for TensorFlow."""
    watch: Literal["auto", "poll", "off"] = "auto"
    """How changes of the model store are noticed; `poll` is for network file systems."""
    settle_seconds: Annotated[float, Field(ge=0, le=3600)] = 1.0
    """A version's files must have been left alone for so long before they are loaded."""
    state_directory: Path = Field(default_factory=_state_directory)
    """Where measured footprints are kept across restarts."""
    compare_report: Path = Path("compare-report")
    """Where `gateway compare` has written the report that the console shows."""
    keys_file: Path | None = None
    """API keys; None: nobody needs one, and what changes the server is for this machine only."""
    tls_cert: Path | None = None
    tls_key: Path | None = None
    cors_origins: list[Origin] = []
    """Origins of web pages that may call the API; "*" for all."""
    server_name: Annotated[str, Field(min_length=1, max_length=100)] = "gateway"
    access_log: bool = False
    """Whether each request is a line of JSON on stdout."""
    otlp_endpoint: str | None = None
    """URL of an OpenTelemetry collector (OTLP over HTTP)."""

    @property
    def libraries(self) -> dict[str, list[str]]:
        """Packages with operators by the framework that they are for."""
        return {"pytorch": self.torch_library, "tensorflow": self.tensorflow_library}

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic-settings' signature
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - as above
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Called by pydantic-settings: the sources, strongest first."""
        return init_settings, env_settings, YamlConfigSettingsSource(settings_cls)


def read_settings(**from_command_line: Any) -> Settings:
    """The settings in force; ConfigError names the key that is unknown or whose value is bad."""
    settings = any_settings(**from_command_line)
    if not settings.model_store.is_dir():
        raise ConfigError(
            f"bad value for setting 'model_store': {settings.model_store} is not a directory; --model-store names "
            "the one that holds your models, each in NAME/1/"
        )
    return settings


def any_settings(**from_command_line: Any) -> Settings:
    """The same for commands that serve nothing, and so need no model store."""
    known = {f"GATEWAY_{name.upper()}" for name in Settings.model_fields}
    for variable in sorted(os.environ):
        if _SERVICE_LINK.fullmatch(variable) or (variable == "GATEWAY_PORT" and "://" in os.environ[variable]):
            del os.environ[variable]
        elif variable.upper().startswith("GATEWAY_") and variable.upper() not in known | _CLIENT_VARIABLES:
            raise ConfigError(f"unknown setting {variable} in the environment; known are {', '.join(sorted(known))}")
    given = {name: value for name, value in from_command_line.items() if value is not None}
    try:
        path = Path(CONFIG_FILE)
        if path.is_file() and not isinstance(yaml_text.read(path.read_bytes()), dict | None):
            raise ConfigError(f"{CONFIG_FILE} must be settings, one 'key: value' a line")
        return Settings(**given)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or CONFIG_FILE
        if first["type"] == "extra_forbidden":
            raise ConfigError(f"unknown setting '{key}' in {CONFIG_FILE}") from None
        raise ConfigError(f"bad value for setting '{key}': {first['msg']} (got {first['input']!r})") from None
    except (yaml.YAMLError, OSError, TypeError, ValueError) as error:
        reason = (str(error).splitlines() or ["it makes no sense"])[0]
        raise ConfigError(f"{CONFIG_FILE} cannot be read: {reason}") from None
