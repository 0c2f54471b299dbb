"""The edge for every call but inference: an ASGI middleware that refuses, gives ids back and has calls written down."""

import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from fastapi import FastAPI, Request
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.errors import GatewayError
from gateway.http.access import Access, bare, check_rate, key_in, need_of, without_admin
from gateway.http.edge import Edge, Headers
from gateway.http.identity import request_id
from gateway.http.pages import check_page
from gateway.http.state import WorkerState
from gateway.http.visit import GONE, Visit

_NO_KEYS = Access()


class Guard:
    """Stands before the app of one listener (http, management, metrics), which is on loopback or not."""

    def __init__(
        self, app: ASGIApp, state: WorkerState, listener: str, *, loopback: bool, origins: Iterable[str] = ()
    ) -> None:
        self._app = app
        self._state = state
        self._listener = listener
        self._loopback = loopback
        self._origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Called by Starlette."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        edge, headers = self._state.edge, scope["headers"]
        identity = next((request_id(value) for name, value in headers if name == b"x-request-id"), b"")
        visit = None
        if edge is not None and edge.records:
            visit = Visit(
                edge.record, scope["method"], scope["path"], scope["client"], scope["scheme"], time.perf_counter()
            )
            identity = edge.begin(visit, identity, headers)
        cors = self._state.cors if self._listener == "http" else None
        # What answers GET answers HEAD, with the same head and no body (RFC 9110, section 9.3.2).
        only_head = scope["method"] == "HEAD"
        called = {**scope, "method": "GET"} if only_head else scope
        for_pages = cors.pairs(headers) if cors is not None else []
        exchange = _Exchange(called, receive, send, identity, visit, for_pages, only_head=only_head)
        try:
            self._check(edge, scope, headers, visit)
            await self._app(called, exchange.receive, exchange.send)
        except GatewayError as error:
            await exchange.fail(error)
        except Exception:
            await exchange.fail(GatewayError("internal error"))
            raise
        finally:
            exchange.end()

    def _check(self, edge: Edge | None, scope: Scope, headers: Headers, visit: Visit | None) -> None:
        """Raise the refusal of a call that may not be made."""
        pages = self._state.cors is not None and self._listener == "http" and scope["method"] == "OPTIONS"
        preflight = pages and {b"origin", b"access-control-request-method"} <= {name for name, _ in headers}
        need = need_of(self._listener, scope["path"], preflight=preflight)
        access = _NO_KEYS if edge is None else edge.access
        if visit is not None:
            visit.model = need.model or ""
        if need.scope is None:
            return
        if need.scope == "admin" and not self._loopback and not access.administered:
            raise without_admin()
        if edge is None or not access.required:
            if need.scope == "admin":
                check_page(headers, self._origins)
            return
        holder = access.holder(bare(key_in(headers)[2]), time.time())
        if visit is not None:
            visit.key = holder.id
        holder.check(need)
        if holder.interval:
            check_rate(holder, edge.rates, time.monotonic())


class _Exchange:
    """One call's messages on their way between server and app."""

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        identity: bytes,
        visit: Visit | None,
        for_pages: list[tuple[bytes, bytes]],
        *,
        only_head: bool,
    ) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._identity = identity
        self._visit = visit
        self._for_pages = for_pages
        self._only_head = only_head
        self._status = 0
        self._in = self._out = 0

    async def receive(self) -> MutableMapping[str, Any]:
        """What the server has for the app."""
        message = await self._receive()
        self._in += len(message.get("body", b""))
        return message

    async def send(self, message: MutableMapping[str, Any]) -> None:
        """What the app has for the server."""
        if message["type"] == "http.response.start":
            self._status = message["status"]
            if self._identity:
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", self._identity)]
            if self._only_head:
                await self._send(message)
                message = {"type": "http.response.body"}  # so that a stream, which may have no end, ends here
        elif self._only_head:
            return
        else:
            self._out += len(message.get("body", b""))
        await self._send(message)

    async def fail(self, error: GatewayError) -> None:
        """Answer with an error, in the app's own words, if nothing is answered yet."""
        error.without_frames()
        if self._visit is not None:
            self._visit.error = error.code
        if self._status:
            return
        app: FastAPI = self._scope["app"]
        worded: Callable[..., Awaitable[Any]] = app.exception_handlers[GatewayError]  # type: ignore[assignment]
        response = await worded(Request(self._scope), error)
        response.raw_headers.extend(self._for_pages)  # a web page, too, is to hear why
        await response(self._scope, self.receive, self.send)

    def end(self) -> None:
        """Have it written down."""
        if self._visit is not None:
            self._visit.bytes_in, self._visit.bytes_out = self._in, self._out
            self._visit.route = getattr(self._scope.get("route"), "path", "")
            self._visit.end(self._status or GONE)
