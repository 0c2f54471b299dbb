"""The dashboard of one model: where its time goes, its versions over each other, and when they were swapped."""

from grafana_foundation_sdk.builders import dashboard as build
from panels import (
    COUNT,
    PER_SECOND,
    PERCENTILES,
    REQUESTS,
    SECONDS,
    SHARE,
    SOURCE,
    Query,
    board,
    frequencies,
    labels_of,
    mean,
    quantile,
    rate,
    series,
    states,
)

MINE = 'model="$model", version=~"$version"'
READY = 'gateway_version_state{model="$model", state="READY"}'
BEFORE = f"({READY} offset $__rate_interval == 1)"
SWAPS = {
    "READY": ("green", f"({READY} == 1) unless {BEFORE}"),
    "no longer READY": ("orange", f"{BEFORE} unless ({READY} == 1)"),
}
"""Noted at the time axis. A new version's series appear with it, so it is not their change that is looked for."""


def model() -> build.Dashboard:
    """Built anew at each call, as the SDK's builders change themselves."""
    dashboard = board("gateway-model", "Gateway: model", "One model: stages, batches, versions over each other, swaps.")
    dashboard.with_variable(labels_of("model", "Model", "label_values(gateway_version_state, model)", several=False))
    versions = 'label_values(gateway_request_duration_seconds_count{model="$model"}, version)'
    dashboard.with_variable(labels_of("version", "Version", versions))
    for name, (colour, expr) in SWAPS.items():
        note = build.AnnotationQuery().name(name).datasource(SOURCE).enable(True).icon_color(colour).expr(expr)
        dashboard.annotation(note)
    _time(dashboard.with_row(build.Row("Where the time goes")))
    _versions(dashboard.with_row(build.Row("Versions over each other")))
    _instances(dashboard.with_row(build.Row("Instances")))
    _shadow(dashboard.with_row(build.Row("Shadow")))
    return dashboard


def _time(dashboard: build.Dashboard) -> None:
    stage = "gateway_stage_duration_seconds"
    for panel in (
        series(
            "Stages",
            SECONDS,
            "The mean request, stage on stage: decode (JSON or bytes to tensors), queue (waiting for its batch, and "
            "the way there), compute (the batch in the framework), ipc (the way back), encode. Together they are the "
            "request's duration.",
            Query(mean(stage, "stage", MINE), "{{stage}}"),
            span=12,
            stacked=True,
        ),
        series(
            "Stages, p95",
            SECONDS,
            "Each stage's own p95; these do not add up.",
            Query(quantile("p95", stage, "stage", MINE), "{{stage}}"),
            span=12,
        ),
        series(
            "Rows an execution",
            COUNT,
            "The mean batch size of each version.",
            Query(mean("gateway_batch_size", "version", MINE), "version {{version}}"),
        ),
        frequencies(
            "Batch sizes",
            COUNT,
            "Executions in a second by the rows of their batch.",
            Query(rate("gateway_batch_size_bucket", "le", MINE), "{{le}}"),
        ),
        series(
            "Rows and executions",
            PER_SECOND,
            "Rows in a second, and the executions that computed them.",
            Query(rate("gateway_inferences_total", "version", MINE), "rows, version {{version}}"),
            Query(rate("gateway_executions_total", "version", MINE), "executions, version {{version}}"),
        ),
    ):
        dashboard.with_panel(panel)


def _versions(dashboard: build.Dashboard) -> None:
    for name in PERCENTILES:
        expr = quantile(name, "gateway_request_duration_seconds", "version", MINE)
        text = f"From a request's headers to its answer, {name} of each version. Interpolated in a bucket."
        dashboard.with_panel(series(f"Latency, {name}", SECONDS, text, Query(expr, "version {{version}}")))
    for panel in (
        series(
            "Time in the framework, p95",
            SECONDS,
            "Of one execution, which is of a whole batch.",
            Query(quantile("p95", "gateway_execution_duration_seconds", "version", MINE), "version {{version}}"),
        ),
        series(
            "Answers",
            REQUESTS,
            "In a second, by version and status: 429 is a full queue, 504 a deadline that passed.",
            Query(rate("gateway_requests_total", "version, code", MINE), "version {{version}}: {{code}}"),
        ),
        series(
            "Time to READY",
            SECONDS,
            "Of the last load: from the wish to READY, waiting for memory and for other loads included, and from the "
            "fork of an instance to its being ready.",
            Query(f"max by (version) (gateway_model_load_seconds{{{MINE}}})", "load, version {{version}}"),
            Query(f"max by (version) (gateway_instance_ready_seconds{{{MINE}}})", "instance, version {{version}}"),
        ),
        states("State", "Of each version; of several gateways the worst.", 'model="$model"'),
    ):
        dashboard.with_panel(panel)


def _shadow(dashboard: build.Dashboard) -> None:
    whose = "version, shadow_model, shadow_version"
    named = "version {{version}}, shadow {{shadow_model}}/{{shadow_version}}"
    copies, rows = "gateway_shadow_requests_total", "gateway_shadow_rows_total"
    answered = rate(copies, whose, f'{MINE}, outcome=~"agreed|differed"')
    agreed = rate(copies, whose, f'{MINE}, outcome="agreed"')
    same = rate(rows, whose, f'{MINE}, class="same"')
    for panel in (
        series(
            "Agreement",
            SHARE,
            "Of the copies that the shadow has answered, how many as the live version did, within the tolerance; and "
            "of rows of scores, in how many the same class is the highest.",
            Query(f"{agreed}\n/ {answered}", f"{named}: agreed"),
            Query(f"{same}\n/ {rate(rows, whose, MINE)}", f"{named}: same class"),
        ),
        series(
            "Live and shadow",
            SECONDS,
            "The mean of the same requests, from being sent to an instance to its answer.",
            Query(mean("gateway_shadow_duration_seconds", f"{whose}, answer", MINE), f"{named}: {{{{answer}}}}"),
        ),
        series(
            "Copies",
            PER_SECOND,
            "In a second: failed ones the shadow gave no answer to; dropped ones it had no room for.",
            Query(rate(copies, f"{whose}, outcome", MINE), f"{named}: {{{{outcome}}}}"),
        ),
        series(
            "Largest difference, p95",
            COUNT,
            "Of the numbers in the same place of both answers. Interpolated in a bucket.",
            Query(quantile("p95", "gateway_shadow_difference", whose, MINE), named),
        ),
    ):
        dashboard.with_panel(panel)


def _instances(dashboard: build.Dashboard) -> None:
    named, why = "version {{version}}", "version {{version}}: {{reason}}"
    instances = f'count by (version) (gateway_instance_memory_bytes{{{MINE}, kind="private"}})'
    for panel in (
        series(
            "Busy share of instances",
            SHARE,
            "How much of an instance's time is spent in the framework. Near 1 it can do no more: let it batch, or add "
            "instances.",
            Query(f"{rate('gateway_execution_duration_seconds_sum', 'version', MINE)}\n/ {instances}", named),
        ),
        series("Instances", COUNT, "Processes of each version.", Query(instances, "version {{version}}")),
        series(
            "Pending",
            COUNT,
            "Requests under way to an instance now.",
            Query(f"sum by (version) (gateway_pending_requests{{{MINE}}})", "version {{version}}"),
        ),
        series(
            "Dropped",
            COUNT,
            "Requests given up before they were computed, since the gateway's start, and why: queue_full, deadline, "
            "instance_died.",
            Query(f"sum by (version, reason) (gateway_requests_dropped_total{{{MINE}}})", why),
        ),
        series(
            "Retries",
            COUNT,
            "Requests sent again because their instance died, since the gateway's start.",
            Query(f"sum by (version) (gateway_retries_total{{{MINE}}})", "version {{version}}"),
        ),
        series(
            "Restarts",
            COUNT,
            "Instances replaced after their end, since the gateway's start, by what ended them.",
            Query(f"sum by (version, reason) (gateway_instance_restarts_total{{{MINE}}})", why),
        ),
    ):
        dashboard.with_panel(panel)
