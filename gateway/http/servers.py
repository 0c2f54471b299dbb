"""What an HTTP worker serves, by listener: the API, TorchServe's management calls, metrics alone."""

import asyncio
import contextlib
import math
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from gateway import tls
from gateway.http import cors
from gateway.http.app import create_app, create_metrics_app
from gateway.http.guard import Guard
from gateway.http.management import create_management_app
from gateway.http.protocol import GuardedProtocol, InferenceProtocol
from gateway.http.state import WorkerState
from gateway.ipc.messages import Start

GOODBYE_SECONDS = 1.0


class _Server(uvicorn.Server):
    """uvicorn that says when it listens, and leaves signals alone: the supervisor decides when to stop."""

    def __init__(self, config: uvicorn.Config, on_listening: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_listening = on_listening

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Called by uvicorn."""
        await super().startup(sockets)
        self._on_listening()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Called by uvicorn."""
        parting = asyncio.create_task(self._part()) if self.config.is_ssl else None
        await super().shutdown(sockets)
        if parting is not None:
            parting.cancel()

    async def _part(self) -> None:
        """Wait no longer for TLS clients that have all they get and do not answer the goodbye, as they need not.

        The event loop would wait for that for half a minute (RFC 8446, 6.1).
        """
        before: set[asyncio.Transport] = set()
        while True:
            await asyncio.sleep(GOODBYE_SECONDS)
            transports = [each.transport for each in self.server_state.connections]
            silent = {each for each in transports if each.is_closing() and each.get_write_buffer_size() == 0}
            for transport in silent & before:
                transport.abort()
            before = silent

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Called by uvicorn."""
        yield


class Servers:
    """One uvicorn for each listener, all on one event loop; `on_listening` is called when all of them listen."""

    def __init__(self, start: Start, state: WorkerState, on_listening: Callable[[], None]) -> None:
        self._on_listening = on_listening
        self._start = start
        self._silent = set(start.listeners)
        self._certificate: tuple[ssl.SSLContext, Path, Path] | None = None
        if start.tls_cert:
            cert, key = Path(start.tls_cert), Path(start.tls_key)
            self._certificate = tls.server_context(cert, key), cert, key
        self._servers = {name: self._server(name, self._app(name, state)) for name in start.listeners}

    def _app(self, name: str, state: WorkerState) -> FastAPI:
        create = {"metrics": create_metrics_app, "management": create_management_app}.get(name, create_app)
        app = create()
        app.state.worker = state
        if name == "http" and self._start.cors_origins:
            cors.allow(app, self._start.cors_origins)
        start = self._start
        app.add_middleware(
            Guard, state=state, listener=name, loopback=name in start.loopback, origins=start.cors_origins
        )
        return app

    def _server(self, name: str, app: FastAPI) -> _Server:
        start, certificate = self._start, self._certificate
        config = uvicorn.Config(
            app,
            http=InferenceProtocol if name == "http" else GuardedProtocol,
            ws="none",
            lifespan="off",
            proxy_headers=False,
            access_log=False,
            log_level="warning",
            timeout_keep_alive=start.keep_alive_seconds,
            timeout_graceful_shutdown=math.ceil(start.drain_timeout),
            backlog=2048,
            ssl_context_factory=None if certificate is None else lambda *_: certificate[0],
        )
        return _Server(config, lambda: self._listens(name))

    def _listens(self, name: str) -> None:
        self._silent.discard(name)
        if not self._silent:
            self._on_listening()

    async def serve(self) -> None:
        """Serve until stopped."""
        if self._certificate is not None:
            self._watching = asyncio.create_task(tls.keep_current(*self._certificate))
        await asyncio.gather(
            *(
                server.serve([socket.socket(fileno=self._start.listeners[name])])
                for name, server in self._servers.items()
            )
        )

    def stop(self) -> None:
        """Finish the requests under way, then end."""
        for server in self._servers.values():
            server.should_exit = True
