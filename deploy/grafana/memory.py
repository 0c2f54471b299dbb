"""The dashboard of memory: what each version takes on each device, against the budget, and what had to go."""

from grafana_foundation_sdk.builders import dashboard as build
from panels import BYTES, COUNT, SECONDS, SHARE, Query, board, labels_of, series, with_limits

MINE = 'model=~"$model", device=~"$device"'
VERSION = "{{model}}/{{version}} {{device}}"
OF_ONE = "{{model}}/{{version}}"
BUDGET = 'sum by (device) (gateway_memory_budget_bytes{device=~"$device"})'


def memory() -> build.Dashboard:
    """Built anew at each call, as the SDK's builders change themselves."""
    dashboard = board("gateway-memory", "Gateway: memory", "Per model, version and device, against the budget.")
    dashboard.with_variable(labels_of("model", "Model", "label_values(gateway_version_state, model)"))
    dashboard.with_variable(labels_of("device", "Device", "label_values(gateway_memory_budget_bytes, device)"))
    _budget(dashboard.with_row(build.Row("Budget")))
    _instances(dashboard.with_row(build.Row("Measured")))
    _coming_and_going(dashboard.with_row(build.Row("Coming and going")))
    _gpus(dashboard.with_row(build.Row("GPUs")))
    return dashboard


def _budget(dashboard: build.Dashboard) -> None:
    held = series(
        "Held against the budget",
        BYTES,
        "What each version in memory counts for, stacked, and the budget (--memory-budget, --gpu-memory-budget).",
        Query(f"sum by (model, version, device) (gateway_memory_held_bytes{{{MINE}}})", VERSION),
        Query(BUDGET, "budget of {{device}}"),
        span=16,
        height=10,
        stacked=True,
    )
    dashboard.with_panel(with_limits(held, "^budget of"))
    share = f'sum by (device) (gateway_memory_held_bytes{{device=~"$device"}})\n/ {BUDGET}'
    description = "Of each device's budget, by all models. Near 1 the next model that is needed makes another one COLD."
    dashboard.with_panel(series("Taken", SHARE, description, Query(share, "{{device}}"), height=10).max(1))


def _instances(dashboard: build.Dashboard) -> None:
    measured = "gateway_instance_memory_bytes"
    mine = f'{MINE}, kind="private"'
    for panel in (
        series(
            "Private memory",
            BYTES,
            "Measured: what only the instances of a version have and give back when they end. It grows with a leak.",
            Query(f"sum by (model, version, device) ({measured}{{{mine}}})", VERSION),
            stacked=True,
        ),
        series(
            "With its share of what is shared",
            BYTES,
            "With each instance's part of the framework's memory, which all instances of a runner share (PSS).",
            Query(f'sum by (model, version, device) ({measured}{{{MINE}, kind="pss"}})', VERSION),
            stacked=True,
        ),
        series(
            "Private memory of an instance, by framework",
            BYTES,
            "The mean over all instances of a framework.",
            Query(f"avg by (framework) ({measured}{{{mine}}})", "{{framework}}"),
        ),
    ):
        dashboard.with_panel(panel)


def _coming_and_going(dashboard: build.Dashboard) -> None:
    one = 'model=~"$model"'
    for panel in (
        series(
            "Evictions",
            COUNT,
            "How often a version was made COLD since the gateway's start, for its memory or its idle_ttl. "
            "Steep: the models in use do not fit into the budget together.",
            Query(f"sum by (model, version) (gateway_evictions_total{{{one}}})", OF_ONE),
        ),
        series(
            "Reclaimed",
            BYTES,
            "Memory that versions gave back when they were made COLD, since the gateway's start.",
            Query('sum by (device) (gateway_memory_reclaimed_bytes_total{device=~"$device"})', "{{device}}"),
        ),
        series(
            "Restarts",
            COUNT,
            "Instances replaced since the gateway's start, by what ended them.",
            Query(
                f"sum by (model, version, reason) (gateway_instance_restarts_total{{{one}}})",
                f"{OF_ONE}: {{{{reason}}}}",
            ),
        ),
        series(
            "Load",
            SECONDS,
            "The last load of each version, from the wish to READY: what a request to a COLD one waits for.",
            Query(f"max by (model, version) (gateway_model_load_seconds{{{one}}})", OF_ONE),
            span=12,
        ),
        series(
            "Start of an instance",
            SECONDS,
            "From its fork to its being ready, without waiting for memory or other loads.",
            Query(f"max by (model, version) (gateway_instance_ready_seconds{{{one}}})", OF_ONE),
            span=12,
        ),
    ):
        dashboard.with_panel(panel)


def _gpus(dashboard: build.Dashboard) -> None:
    whole = 'gateway_device_memory_bytes{{device=~"$device", kind="{}"}}'.format
    devices = series(
        "Memory of the devices",
        BYTES,
        "Taken by whomever, not by the gateway alone, and what there is. CPU only: empty.",
        Query(f"sum by (device) ({whole('used')})", "{{device}}"),
        Query(f"sum by (device) ({whole('total')})", "all of {{device}}"),
        span=12,
    )
    dashboard.with_panel(with_limits(devices, "^all of"))
    dashboard.with_panel(
        series(
            "Memory of instances on GPUs",
            BYTES,
            "By version, as NVML or the framework measures it (label source). CPU only: empty.",
            Query(
                f'sum by (model, version, device, source) (gateway_instance_memory_bytes{{{MINE}, kind="gpu"}})',
                f"{VERSION} ({{{{source}}}})",
            ),
            span=12,
            stacked=True,
        )
    )
