"""Prometheus' configuration and rules, by promtool: they are right, and each alert is tested both ways."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROMETHEUS = ROOT / "deploy" / "prometheus"
TESTS = sorted((PROMETHEUS / "tests").glob("*.yml"))
RULES = [
    rule
    for path in sorted((PROMETHEUS / "rules").glob("*.yml"))
    for group in yaml.safe_load(path.read_text())["groups"]
    for rule in group["rules"]
]
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}
RECORDED = [rule["record"] for rule in RULES if "record" in rule]


@pytest.fixture
def promtool(helpers: Any) -> str:
    found: str = helpers.installed("promtool", "prometheus")
    return found


@pytest.mark.parametrize(
    "arguments", [("check", "config", PROMETHEUS / "prometheus.yml"), ("test", "rules", *TESTS)], ids=("check", "test")
)
def test_promtool_finds_nothing_wrong(promtool: str, arguments: tuple[str | Path, ...]) -> None:
    done = subprocess.run([promtool, *arguments], check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_says_what_is_wrong_how_bad_it_is_and_what_to_do(name: str) -> None:
    alert = ALERTS[name]
    assert alert["labels"]["severity"] in {"critical", "warning"}
    assert "{{ $labels." in alert["annotations"]["summary"], "of whom?"
    assert len(alert["annotations"]["description"]) > 100
    assert alert["annotations"]["description"].endswith(".")


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_is_tested_when_it_fires(name: str) -> None:
    """That it does not fire otherwise each scenario sees, for it asks for all alerts."""
    expected = [
        sample["labels"]
        for path in TESTS
        for scenario in yaml.safe_load(path.read_text())["tests"]
        for question in scenario["promql_expr_test"]
        for sample in question["exp_samples"]
    ]
    assert any(f'alertname="{name}"' in labels for labels in expected)


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_is_in_the_documentation_with_its_thresholds(name: str) -> None:
    rows = (ROOT / "docs" / "monitoring.md").read_text().splitlines()
    (row,) = [row for row in rows if row.startswith(f"| `{name}`")]
    assert ALERTS[name].get("for", "at once") in row
    assert ALERTS[name]["labels"]["severity"] in row
    for limit in map(float, re.findall(r"> (\d[\d.]*)", ALERTS[name]["expr"])):
        assert limit == 0 or f"more than {limit:g} " in row or f"more than {limit * 100:g} %" in row, limit


def test_recorded_series_are_named_by_level_metric_and_operation() -> None:
    assert len(set(RECORDED)) == len(RECORDED)
    for name in RECORDED:
        level, metric, operation = name.split(":")
        assert metric.startswith("gateway_"), name
        assert set(level.split("_")) <= {"model", "version", "framework", "stage", "instance", "device"}, name
        assert operation, name
