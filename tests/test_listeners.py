import logging
import socket
from collections.abc import Iterator

import pytest

from gateway.errors import ConfigError
from gateway.listeners import listen
from gateway.settings import Settings


@pytest.fixture
def taken() -> Iterator[str]:
    """An address that another program listens on."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield f"127.0.0.1:{other.getsockname()[1]}"


def test_each_listener_has_an_address_or_is_off() -> None:
    listeners = listen(Settings(port=0, management_address="127.0.0.1:0", metrics_address="off"))
    try:
        assert set(listeners.sockets) == {"http", "management"}
        assert listeners.is_loopback("management")
        assert listeners.url("management").startswith("http://127.0.0.1:")
    finally:
        listeners.close()


def test_an_address_that_nobody_chose_and_is_taken_is_only_warned_of(
    taken: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Settings.model_fields["management_address"], "default", taken)
    Settings.model_rebuild(force=True)
    try:
        with caplog.at_level(logging.WARNING):
            listeners = listen(Settings(port=0, metrics_address="off"))
        listeners.close()
    finally:
        monkeypatch.undo()
        Settings.model_rebuild(force=True)
    assert set(listeners.sockets) == {"http"}
    assert f"cannot listen on {taken}" in caplog.text
    assert "--management-address sets another" in caplog.text


def test_an_address_that_somebody_chose_and_is_taken_is_an_error(taken: str) -> None:
    with pytest.raises(ConfigError, match=f"cannot listen on {taken}"):
        listen(Settings(port=0, management_address=taken, metrics_address="off"))
