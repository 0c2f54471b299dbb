"""What all dashboards are made of: panels with a description and a unit, variables, notes of swaps."""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

from grafana_foundation_sdk.builders import common, heatmap, prometheus, stat, statetimeline, table, timeseries
from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import prometheus as prometheus_models
from grafana_foundation_sdk.models import units

SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
COLOURS = {"pytorch": "#d1495b", "tensorflow": "#e08e0b"}
"""Those of the load test's picture."""
PERCENTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
COUNT, SECONDS, BYTES, SHARE = units.Short, units.Seconds, units.BytesIEC, units.PercentUnit
PER_SECOND, REQUESTS = units.OpsPerSecond, units.RequestsPerSecond
STATES = {
    "READY": "green", "COLD": "blue", "UNLOADED": "text", "NEW": "light-yellow", "LOADING": "yellow",
    "DRAINING": "orange", "FAILED": "red",
}  # fmt: skip
"""From what is fine to what is not, with colours: the worst is shown where gateways differ."""

P = TypeVar(
    "P", stat.Panel, timeseries.Panel, heatmap.Panel, statetimeline.Panel, table.Panel
)  # the builders share methods, but no class


class Query(NamedTuple):
    """PromQL, and what its series are called: text with {{labels}}."""

    expr: str
    legend: str = ""


def _panel(panel: P, title: str, unit: str, description: str, span: int, height: int) -> P:
    return panel.title(title).description(description).unit(unit).datasource(SOURCE).span(span).height(height)


def _target(number: int, query: Query) -> prometheus.Dataquery:
    target = prometheus.Dataquery().datasource(SOURCE).ref_id(chr(ord("A") + number)).expr(query.expr)
    return target.legend_format(query.legend) if query.legend else target


def series(
    title: str, unit: str, description: str, *queries: Query, span: int = 8, height: int = 8, stacked: bool = False
) -> timeseries.Panel:
    """Lines over time, or areas on each other."""
    panel = _panel(timeseries.Panel(), title, unit, description, span, height)
    panel.min(0).line_width(1.5).fill_opacity(40 if stacked else 5).show_points(common_models.VisibilityMode.NEVER)
    panel.tooltip(common.VizTooltipOptions().mode(common_models.TooltipDisplayMode.MULTI))
    legend = common.VizLegendOptions().show_legend(True)
    legend.display_mode(common_models.LegendDisplayMode.LIST).placement(common_models.LegendPlacement.BOTTOM)
    panel.legend(legend)
    if stacked:
        panel.stacking(common.StackingConfig().mode(common_models.StackingMode.NORMAL).group("A"))
    for number, query in enumerate(queries):
        panel.with_target(_target(number, query).range())
    for framework, colour in COLOURS.items():
        panel.override_by_regexp(f"/^{framework}\\b/", [_property("color", {"mode": "fixed", "fixedColor": colour})])
    return panel


def with_limits(panel: timeseries.Panel, names: str) -> timeseries.Panel:
    """Show the series with such names (a regular expression) as dashed lines that are not stacked."""
    properties = {
        "custom.stacking": {"mode": "none"},
        "custom.fillOpacity": 0,
        "custom.lineStyle": {"fill": "dash", "dash": [10, 10]},
        "color": {"mode": "fixed", "fixedColor": "red"},
    }
    return panel.override_by_regexp(f"/{names}/", [_property(*each) for each in properties.items()])


def number(title: str, unit: str, description: str, query: Query, *, span: int = 4) -> stat.Panel:
    """The value that holds now."""
    panel = _panel(stat.Panel(), title, unit, description, span, 4)
    panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    return panel.graph_mode(common_models.BigValueGraphMode.NONE).with_target(_target(0, query).instant())


def frequencies(title: str, unit: str, description: str, query: Query, *, span: int = 8) -> heatmap.Panel:
    """How often each bucket of a histogram was hit over time."""
    panel = _panel(heatmap.Panel(), title, unit, description, span, 8)
    panel.y_axis(heatmap.YAxisConfig().unit(unit))
    return panel.with_target(_target(0, query).range().format(prometheus_models.PromQueryFormat.HEATMAP))


def states(title: str, description: str, selector: str, *, span: int = 24) -> statetimeline.Panel:
    """The state of each version over time."""
    numbered = [f'{number} * gateway_version_state{{{selector}, state="{name}"}}' for number, name in enumerate(STATES)]
    query = Query(f"max by (model, version) (\n  {chr(10).join(numbered).replace(chr(10), f'{chr(10)}  or ')}\n)")
    shown = {
        str(code): models.ValueMappingResult(text=name, color=colour, index=code)
        for code, (name, colour) in enumerate(STATES.items())
    }
    panel = _panel(statetimeline.Panel(), title, units.NoUnit, description, span, 8)
    panel.mappings([models.ValueMap(options=shown)]).merge_values(True)
    panel.show_value(common_models.VisibilityMode.NEVER)
    return panel.with_target(_target(0, query._replace(legend="{{model}}/{{version}}")).range())


def comparison(
    title: str, description: str, label: str, columns: Sequence[tuple[str, str, str]], *, height: int = 6
) -> table.Panel:
    """What holds now as a table: a row for each value of a label, and columns of name, unit and PromQL."""
    panel = _panel(table.Panel(), title, COUNT, description, 24, height)
    for number, (name, unit, expr) in enumerate(columns):
        target = _target(number, Query(expr)).instant().format(prometheus_models.PromQueryFormat.TABLE)
        panel.with_target(target).override_by_name(name, [_property("unit", unit)])
    renamed = {f"Value #{chr(ord('A') + number)}": name for number, (name, _, _) in enumerate(columns)}
    order = {label: 0} | {value: number for number, value in enumerate(renamed, start=1)}
    organize = {"excludeByName": {"Time": True}, "renameByName": renamed, "indexByName": order}
    panel.with_transformation(models.DataTransformerConfig(id_val="merge", options={}))
    return panel.with_transformation(models.DataTransformerConfig(id_val="organize", options=organize))


def _property(name: str, value: Any) -> models.DynamicConfigValue:
    return models.DynamicConfigValue(id_val=name, value=value)


def rate(metric: str, by: str, selector: str) -> str:
    """PromQL: how much a counter grows in a second, summed by labels."""
    return f"sum by ({by}) (rate({metric}{{{selector}}}[$__rate_interval]))"


def mean(metric: str, by: str, selector: str) -> str:
    """PromQL: the mean of what a histogram observed."""
    return f"{rate(f'{metric}_sum', by, selector)}\n/ {rate(f'{metric}_count', by, selector)}"


def quantile(name: str, metric: str, by: str, selector: str) -> str:
    """PromQL: p50, p95 or p99 of what a histogram observed."""
    labels = f"{by}, le" if by else "le"
    return f"histogram_quantile({PERCENTILES[name]}, {rate(f'{metric}_bucket', labels, selector)})"


def ratio(part: str, by: str, selector: str) -> str:
    """PromQL: the share of answers with such a code (a regular expression) among all, 0 where there is none."""
    everything = rate("gateway_requests_total", by, selector)
    some = rate("gateway_requests_total", by, f'{selector}, code=~"{part}"')
    return f"({some} or 0 * {everything})\n/ {everything}"


def labels_of(name: str, title: str, query: str, *, several: bool = True) -> build.QueryVariable:
    """A variable whose values are those that Prometheus knows of a label."""
    variable = build.QueryVariable(name).label(title).datasource(SOURCE).query(query)
    variable.refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED).sort(models.VariableSort.ALPHABETICAL_ASC)
    if several:
        variable.multi(True).include_all(True).all_value(".+")
        variable.current(models.VariableOption(selected=True, text="All", value="$__all"))
    return variable


def board(uid: str, title: str, description: str) -> build.Dashboard:
    """A dashboard without panels, with links to the others."""
    dashboard = (
        build.Dashboard(title).uid(uid).description(description).tags(["gateway"]).timezone("browser").editable()
    )
    dashboard.time("now-30m", "now").refresh("10s").tooltip(models.DashboardCursorSync.CROSSHAIR)
    links = build.DashboardLink("Gateway").type(models.DashboardLinkType.DASHBOARDS).tags(["gateway"])
    dashboard.link(links.as_dropdown(False).keep_time(True).include_vars(True))
    return dashboard.with_variable(build.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
