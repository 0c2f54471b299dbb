import json
import os
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import ConfigError
from gateway.settings import Settings, read_settings


@pytest.fixture(autouse=True)
def _bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith("GATEWAY_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model_store").mkdir()


def yaml(text: str) -> None:
    Path("gateway.yaml").write_text(text)


def test_without_anything_the_defaults_hold() -> None:
    settings = read_settings()
    assert settings.port == 8000
    assert settings.host == "127.0.0.1"
    assert settings.model_store == Path("model_store")


def test_the_environment_beats_the_file_and_the_command_line_beats_both(monkeypatch: pytest.MonkeyPatch) -> None:
    yaml("port: 1111\nworkers: 2\nrequest_timeout: 3.5")
    assert read_settings().port == 1111
    monkeypatch.setenv("GATEWAY_PORT", "2222")
    assert read_settings().port == 2222
    settings = read_settings(port=3333, workers=None)
    assert (settings.port, settings.workers, settings.request_timeout) == (3333, 2, 3.5)


def test_every_setting_can_be_set_in_every_place(monkeypatch: pytest.MonkeyPatch) -> None:
    values: dict[str, Any] = {
        "model_store": Path(),
        "host": "::1",
        "port": 1,
        "workers": 3,
        "max_body_bytes": 7,
        "request_timeout": 1.5,
        "load_timeout": 2.5,
        "keep_alive_seconds": 9,
        "drain_timeout": 0,
        "memory_budget": 10,
        "gpu_memory_budget": 11,
        "sandbox": "require",
        "torch_library": ["torchvision", "a.b"],
        "tensorflow_library": ["tensorflow_text"],
        "watch": "poll",
        "settle_seconds": 0.5,
        "state_directory": Path("state"),
        "compare_report": Path("report"),
        "management_address": "[::1]:1",
        "metrics_address": "off",
        "keys_file": Path("keys"),
        "tls_cert": Path("cert"),
        "tls_key": Path("key"),
        "cors_origins": ["https://a", "*"],
        "server_name": "triton",
        "access_log": True,
        "strict_readiness": True,
        "otlp_endpoint": "http://127.0.0.1:4318",
    }
    texts = {name: json.dumps(value) if isinstance(value, list) else str(value) for name, value in values.items()}
    assert set(values) == set(Settings.model_fields)
    assert read_settings(**values).model_dump() == values
    yaml("".join(f"{name}: {json.dumps(value, default=str)}\n" for name, value in values.items()))
    assert read_settings().model_dump() == values
    Path("gateway.yaml").unlink()
    for name, text in texts.items():
        monkeypatch.setenv(f"GATEWAY_{name.upper()}", text)
    assert read_settings().model_dump() == values


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("prot: 1", "'prot' in gateway.yaml"),
        ("port: many", "'port'"),
        ("port: 65536", "'port'"),
        ("port: -1", "'port'"),
        ("management_address: here", "'management_address'"),
        ("metrics_address: 127.0.0.1:66666", "'metrics_address'"),
        ("workers: 0", "'workers'"),
        ("request_timeout: 0", "'request_timeout'"),
        ("max_body_bytes: 0", "'max_body_bytes'"),
        ("keep_alive_seconds: 0", "'keep_alive_seconds'"),
        ("drain_timeout: -1", "'drain_timeout'"),
        ("model_store: nowhere", "'model_store'"),
        ("port: [1", "gateway.yaml"),
        ("- port", "gateway.yaml"),
        ("just text", "gateway.yaml"),
        ("port: 2024-13-45", "gateway.yaml"),
    ],
)
def test_what_is_wrong_in_the_file_is_named_in_one_line(text: str, named: str) -> None:
    yaml(text)
    with pytest.raises(ConfigError) as caught:
        read_settings()
    assert named in caught.value.message
    assert "\n" not in caught.value.message


def test_a_user_without_a_home_has_a_state_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert read_settings().state_directory == Path("/var/lib/model-serving-gateway")


@pytest.mark.parametrize("text", ["", "# port: 1\n", "{}"])
def test_a_file_that_says_nothing_means_the_defaults(text: str) -> None:
    yaml(text)
    assert read_settings().port == 8000


def test_a_file_that_is_no_text_is_refused() -> None:
    Path("gateway.yaml").write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(ConfigError, match=r"gateway\.yaml"):
        read_settings()


@pytest.mark.parametrize("name", ["GATEWAY_PROT", "gateway_prot", "GATEWAY_", "GATEWAY_SERVER"])
def test_an_unknown_variable_is_named_with_those_there_are(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "1")
    with pytest.raises(ConfigError, match=name) as caught:
        read_settings()
    assert "GATEWAY_PORT" in caught.value.message


@pytest.mark.parametrize(
    ("name", "value"), [("GATEWAY_PORT", "many"), ("GATEWAY_WORKERS", ""), ("GATEWAY_WORKERS", "0")]
)
def test_a_bad_variable_names_its_key(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=name.removeprefix("GATEWAY_").lower()):
        read_settings()


# What Kubernetes sets in every pod beside a Service called "gateway".
LINKS = {
    "GATEWAY_SERVICE_HOST": "10.0.0.11",
    "GATEWAY_SERVICE_PORT": "8000",
    "GATEWAY_SERVICE_PORT_HTTP": "8000",
    "GATEWAY_PORT_8000_TCP": "tcp://10.0.0.11:8000",
    "GATEWAY_PORT_8000_TCP_PROTO": "tcp",
    "GATEWAY_PORT_8000_TCP_PORT": "8000",
    "GATEWAY_PORT_8000_TCP_ADDR": "10.0.0.11",
}


def test_the_service_links_of_kubernetes_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in LINKS.items():
        monkeypatch.setenv(name, value)
    assert read_settings() == Settings()


def test_the_service_link_that_looks_like_the_port_is_ignored_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_PORT", "tcp://10.0.0.11:8000")
    assert read_settings().port == 8000


def test_the_model_store_must_be_a_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"'model_store'.*not a directory"):
        read_settings(model_store=tmp_path / "file")
