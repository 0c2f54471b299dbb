"""Spans of requests for an OpenTelemetry collector. Imported only where one is configured: the SDK is an extra."""

import logging
import os
import re
import threading
from functools import lru_cache

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
    set_span_in_context,
)
from opentelemetry.util.types import AttributeValue

from gateway import __version__
from gateway.http.identity import TraceParent
from gateway.http.visit import GONE, Visit

MOST_SPANS = 1 << 14
"""That wait for the collector; those beyond are dropped. OTEL_BSP_MAX_QUEUE_SIZE says otherwise."""
MOST_STATE = 512
"""Of a tracestate, in characters (W3C Trace Context, 3.3.1.5)."""
TRACES = "/v1/traces"
_PLACES = (
    (re.compile(r"/models/[^/:]+"), "/models/{model}"),
    (re.compile(r"/versions/[^/:]+"), "/versions/{version}"),
    (re.compile(r"/labels/[^/:]+"), "/labels/{label}"),
    (re.compile(r"/predictions/[^/]+/[^/]+"), "/predictions/{model}/{version}"),
    (re.compile(r"/predictions/[^/{}]+$"), "/predictions/{model}"),
)


@lru_cache(maxsize=1024)
def route_of(path: str) -> str:
    """The path of an inference call with placeholders for model and version."""
    for pattern, placeholder in _PLACES:
        path = pattern.sub(placeholder, path, count=1)
    return path


logging.getLogger("opentelemetry.trace.span").setLevel(logging.CRITICAL)  # it logs what clients send


class Tracing:
    """Sends spans in a thread of the SDK's, as the OTEL_* variables say where no setting does."""

    def __init__(self, endpoint: str) -> None:
        named = "OTEL_SERVICE_NAME" in os.environ or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
        described: dict[str, AttributeValue] = {"service.version": __version__}
        if not named:
            described["service.name"] = "gateway"
        self._provider = TracerProvider(resource=Resource.create(described), shutdown_on_exit=False)
        most = None if "OTEL_BSP_MAX_QUEUE_SIZE" in os.environ else MOST_SPANS
        url = endpoint if endpoint.endswith(TRACES) else endpoint.rstrip("/") + TRACES
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(url), max_queue_size=most))
        self._tracer = self._provider.get_tracer("gateway", __version__)

    def begin(self, visit: Visit, parent: TraceParent | None, state: str) -> None:
        """Begin the span of a request, below its caller's span if it has one."""
        context = Context()
        if parent is not None:
            caller = SpanContext(
                int(parent.trace_id, 16),
                int(parent.span_id, 16),
                is_remote=True,
                trace_flags=TraceFlags(parent.flags),
                trace_state=TraceState.from_header([state]) if 0 < len(state) <= MOST_STATE else None,
            )
            context = set_span_in_context(NonRecordingSpan(caller), context)
        span = self._tracer.start_span(
            visit.method,
            context,
            SpanKind.SERVER,
            {"http.request.method": visit.method, "url.path": visit.path, "url.scheme": visit.scheme},
            start_time=_nanoseconds(visit.started + visit.offset),
        )
        visit.span = span
        visit.trace_id = f"{span.get_span_context().trace_id:032x}"

    def end(self, visit: Visit) -> None:
        """End it, with spans for the stages below it if the model was asked."""
        span: Span = visit.span
        if not span.is_recording():
            return
        route = visit.route or (route_of(visit.path) if visit.protocol else "")
        if route:
            span.update_name(f"{visit.method} {route}")
        span.set_attributes({name: value for name, value in _described(visit, route).items() if value != ""})
        if visit.status >= 500:
            span.set_status(Status(StatusCode.ERROR))
        if visit.received:
            context = set_span_in_context(span, Context())
            computing = visit.sent + visit.queue
            for name, start, end in (
                ("decode", visit.sent - visit.decode, visit.sent),
                ("queue", visit.sent, computing),
                ("compute", computing, computing + visit.compute),
                ("encode", visit.received, visit.ended),
            ):
                child = self._tracer.start_span(name, context, start_time=_nanoseconds(start + visit.offset))
                child.end(_nanoseconds(end + visit.offset))
        span.end(_nanoseconds(visit.ended + visit.offset))

    def close(self, seconds: float) -> None:
        """Send what is left, as far as that takes no longer than this."""
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(seconds)


def _described(visit: Visit, route: str) -> dict[str, AttributeValue]:
    """The attributes of OpenTelemetry's conventions for HTTP servers, and ours; empty where nothing is known."""
    gone = visit.status == GONE
    return {
        "http.route": route,
        "http.response.status_code": "" if gone else visit.status,
        "http.request.body.size": visit.bytes_in,
        "http.response.body.size": visit.bytes_out,
        "client.address": visit.client,
        "error.type": visit.error if visit.status >= 500 or gone else "",
        "gateway.model": visit.model,
        "gateway.version": visit.version,
        "gateway.protocol": visit.protocol,
        "gateway.request_id": visit.request_id,
        "gateway.key": visit.key,
    }


def _nanoseconds(moment: float) -> int:
    return int(moment * 1e9)
