"""The dashboard of everything: traffic, errors and latency of all models, and of the frameworks side by side."""

from grafana_foundation_sdk.builders import dashboard as build
from panels import (
    BYTES,
    COUNT,
    PER_SECOND,
    PERCENTILES,
    REQUESTS,
    SECONDS,
    SHARE,
    Query,
    board,
    comparison,
    labels_of,
    mean,
    number,
    quantile,
    rate,
    ratio,
    series,
    states,
)

MINE = 'model=~"$model"'
FAILED = f'{MINE}, code=~"5.."'
DURATION = "gateway_request_duration_seconds"


def overview() -> build.Dashboard:
    """Built anew at each call, as the SDK's builders change themselves."""
    dashboard = board("gateway-overview", "Gateway: overview", "All models, and PyTorch and TensorFlow side by side.")
    dashboard.with_variable(labels_of("model", "Model", "label_values(gateway_version_state, model)"))
    _now(dashboard.with_row(build.Row("Now")))
    _frameworks(dashboard.with_row(build.Row("Frameworks side by side")))
    _models(dashboard.with_row(build.Row("Models")))
    return dashboard


def _now(dashboard: build.Dashboard) -> None:
    firing = 'count(ALERTS{alertname=~"Gateway.*", alertstate="firing"}) or vector(0)'
    recent = "sum(rate(gateway_requests_total{{{}}}[5m]))".format
    for panel in (
        number("Gateways", COUNT, "Gateways that answer Prometheus.", Query('sum(up{job="gateway"})')),
        number("Alerts", COUNT, "Alerts of the gateway that fire; Prometheus' page /alerts has them.", Query(firing)),
        number(
            "Traffic",
            REQUESTS,
            "Requests answered in a second, whatever the answer.",
            Query(f"sum(rate(gateway_requests_total{{{MINE}}}[$__rate_interval]))"),
        ),
        number(
            "Errors, five minutes",
            SHARE,
            "Answers with 500 or more among all answers, in the last five minutes. No traffic: no value.",
            Query(f"({recent(FAILED)} or vector(0)) / {recent(MINE)}"),
        ),
        number(
            "Versions that answer",
            COUNT,
            "READY, or COLD: loaded by its next request.",
            Query(f'sum(gateway_version_state{{{MINE}, state=~"READY|COLD"}})'),
        ),
        number(
            "Versions that failed",
            COUNT,
            "FAILED; `gateway ls` says why.",
            Query(f'sum(gateway_version_state{{{MINE}, state="FAILED"}})'),
        ),
    ):
        dashboard.with_panel(panel)


def _frameworks(dashboard: build.Dashboard) -> None:
    recorded = "max by (framework) (framework:gateway_{})".format
    dashboard.with_panel(
        comparison(
            "PyTorch and TensorFlow",
            "All models of a framework together, in the last five minutes; requests since the gateway's start.",
            "framework",
            [
                ("requests", COUNT, "sum by (framework) (gateway_requests_total)"),
                ("requests/s", REQUESTS, recorded("requests:rate5m")),
                ("server errors", SHARE, recorded("request_errors:ratio_rate5m")),
                *((name, SECONDS, recorded(f"request_duration_seconds:{name}_rate5m")) for name in PERCENTILES),
                ("rows an execution", COUNT, recorded("batch_size:mean_rate5m")),
                ("private memory", BYTES, recorded("instance_memory_bytes:sum")),
            ],
        )
    )
    for name in PERCENTILES:
        dashboard.with_panel(
            series(
                f"Latency, {name}",
                SECONDS,
                f"From a request's headers to its answer, {name} over all models of a framework (interpolated).",
                Query(quantile(name, DURATION, "framework", MINE), "{{framework}}"),
            )
        )
    split = "{{framework}}"
    for panel in (
        series(
            "Requests",
            REQUESTS,
            "Answers in a second.",
            Query(rate("gateway_requests_total", "framework", MINE), split),
        ),
        series(
            "Server errors",
            SHARE,
            "Answers with 500 or more among all.",
            Query(ratio("5..", "framework", MINE), split),
        ),
        series(
            "Rows an execution",
            COUNT,
            "How many rows the framework computes together: the mean batch size.",
            Query(mean("gateway_batch_size", "framework", MINE), split),
        ),
        series(
            "Time in the framework",
            SECONDS,
            "The mean of one execution, which is of a whole batch.",
            Query(mean("gateway_execution_duration_seconds", "framework", MINE), split),
        ),
        series(
            "Queue, p95",
            SECONDS,
            "What requests wait until their batch is begun. Grows when a model is asked faster than it computes.",
            Query(quantile("p95", "gateway_stage_duration_seconds", "framework", f'{MINE}, stage="queue"'), split),
        ),
        series(
            "Private memory",
            BYTES,
            "What all instances of a framework have to themselves, and give back when they end.",
            Query(f'sum by (framework) (gateway_instance_memory_bytes{{{MINE}, kind="private"}})', split),
        ),
    ):
        dashboard.with_panel(panel)


def _models(dashboard: build.Dashboard) -> None:
    for panel in (
        series(
            "Requests by model",
            REQUESTS,
            "Answers in a second.",
            Query(rate("gateway_requests_total", "model", MINE), "{{model}}"),
        ),
        series(
            "Latency by model, p99",
            SECONDS,
            "From a request's headers to its answer.",
            Query(quantile("p99", DURATION, "model", MINE), "{{model}}"),
        ),
        series(
            "Server errors by model",
            SHARE,
            "Answers with 500 or more among all.",
            Query(ratio("5..", "model", MINE), "{{model}}"),
        ),
        series(
            "Answers by status and protocol",
            REQUESTS,
            "Status codes by the API that they were asked in: oip, tfserving, torchserve and others.",
            Query(rate("gateway_requests_total", "code, protocol", MINE), "{{code}} {{protocol}}"),
            span=12,
        ),
        series(
            "Rows computed",
            PER_SECOND,
            "Rows in a second, by model: what a model does, however requests are cut.",
            Query(rate("gateway_inferences_total", "model", MINE), "{{model}}"),
            span=12,
        ),
        states("Versions", "The state of each version; of several gateways the worst.", MINE),
    ):
        dashboard.with_panel(panel)
