"""The dashboards in deploy/grafana: what is committed is what the code makes, and each panel says what it shows."""

import json
import subprocess
import sys
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

DEPLOY = Path(__file__).parents[1] / "deploy"
GRAFANA = DEPLOY / "grafana"
DASHBOARDS = {path.stem: json.loads(path.read_text()) for path in sorted((GRAFANA / "dashboards").glob("*.json"))}
PANELS = {
    f"{name}: {panel['title']}": panel
    for name, dashboard in DASHBOARDS.items()
    for panel in dashboard["panels"]
    if panel["type"] != "row"
}
SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def test_what_is_committed_is_what_the_code_makes(tmp_path: Path) -> None:
    subprocess.run([sys.executable, GRAFANA / "dashboards.py", tmp_path], check=True, timeout=60, capture_output=True)
    made = {path.stem: json.loads(path.read_text()) for path in tmp_path.iterdir()}
    assert made == DASHBOARDS, "`make dashboards` writes them anew"


def test_there_are_three_dashboards_and_each_leads_to_the_others() -> None:
    assert set(DASHBOARDS) == {"overview", "model", "memory"}
    assert len({each["uid"] for each in DASHBOARDS.values()}) == 3
    for dashboard in DASHBOARDS.values():
        assert dashboard["description"].endswith(".")
        (link,) = dashboard["links"]
        assert set(link["tags"]) <= set(dashboard["tags"])


def test_titles_are_unique_within_a_dashboard() -> None:
    assert len(PANELS) == sum(panel["type"] != "row" for each in DASHBOARDS.values() for panel in each["panels"])


@pytest.mark.parametrize("panel", PANELS.values(), ids=PANELS)
def test_a_panel_says_what_it_shows_in_which_unit_and_where_from(panel: dict[str, Any]) -> None:
    assert panel["description"].endswith((".", "instance_died."))
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["datasource"] == SOURCE
    assert panel["targets"]
    for target in panel["targets"]:
        assert target["datasource"] == SOURCE
        assert target["expr"]
    names = [target["refId"] for target in panel["targets"]]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", DASHBOARDS)
def test_panels_are_numbered_and_do_not_cover_each_other(name: str) -> None:
    panels = DASHBOARDS[name]["panels"]
    assert [panel["id"] for panel in panels] == list(range(1, len(panels) + 1))
    places = [panel["gridPos"] for panel in panels]
    for place in places:
        assert place["x"] + place["w"] <= 24
    for one, other in combinations(places, 2):
        beside = any(
            first[start] + first[size] <= second[start]
            for first, second in ((one, other), (other, one))
            for start, size in (("x", "w"), ("y", "h"))
        )
        assert beside, (one, other)
    assert all(one["y"] <= other["y"] for one, other in pairwise(places))


@pytest.mark.parametrize("name", DASHBOARDS)
def test_every_variable_of_an_expression_is_one_of_the_dashboard(name: str) -> None:
    known = {variable["name"] for variable in DASHBOARDS[name]["templating"]["list"]}
    text = json.dumps([panel.get("targets", []) for panel in DASHBOARDS[name]["panels"]])
    for piece in text.split("$")[1:]:
        assert piece.startswith(("__rate_interval", "{datasource}", *known)), piece[:30]


def test_swaps_are_noted_in_the_dashboard_of_a_model() -> None:
    notes = DASHBOARDS["model"]["annotations"]["list"]
    assert [note["name"] for note in notes] == ["READY", "no longer READY"]
    for note in notes:
        assert note["target"]["expr"]
        assert note["datasource"] == SOURCE
        assert "{{version}}" in note["titleFormat"]


def test_what_is_provisioned_fits_together() -> None:
    """One scrape interval, and the folder that compose.yaml mounts."""
    (source,) = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yaml").read_text())["datasources"]
    prometheus = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
    assert source["jsonData"]["timeInterval"] == prometheus["global"]["scrape_interval"]
    (provider,) = yaml.safe_load((GRAFANA / "provisioning/dashboards/gateway.yaml").read_text())["providers"]
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    mounted = compose["services"]["grafana"]["volumes"]
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in mounted
