"""A real Prometheus scrapes a gateway: every expression of dashboards and rules has data, and the right numbers."""

import bisect
import json
import os
import re
import shutil
import signal
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_server import DEPLOY, FORCED, SCRAPE_SECONDS, Prometheus, compared

from gateway.metrics import DURATION_BOUNDS

MODELS = ["mlp", "slow", "raises", "digits_tensorflow", "digits_torch"]
FRAMEWORKS = {"digits_tensorflow": "tensorflow"}
"""All others are PyTorch's."""
TIMED = {"slow": 9, "digits_tensorflow": 15}
"""Model → requests whose times are compared: long ones, for a client also waits for what is not the gateway's time."""
ROWS = 2048
WINDOW = f"{4 * SCRAPE_SECONDS}s"
"""Grafana's $__rate_interval at its smallest."""
CAUSED = {"GatewayErrorRatioHigh", "GatewayRequestsRefused"}
"""Alerts for which `drive` does what is wrong, if not for long enough."""
NEEDS_A_GPU = ('kind="gpu"', "gateway_device_memory_bytes")
"""Empty on a machine without one; test_gpus.py has a stand-in that shows these families."""
DASHBOARDS = {
    path.stem: json.loads(path.read_text()) for path in sorted((DEPLOY / "grafana/dashboards").glob("*.json"))
}
RULES = [
    rule
    for path in sorted((DEPLOY / "prometheus" / "rules").glob("*.yml"))
    for group in yaml.safe_load(path.read_text())["groups"]
    for rule in group["rules"]
]


def expressions() -> dict[str, tuple[str, bool, str]]:
    """Each expression of the dashboards, whether it is asked for over time, and what its series are called."""
    found = {}
    for name, dashboard in DASHBOARDS.items():
        for panel in dashboard["panels"]:
            for target in panel.get("targets", []):
                title = f"{name}: {panel['title']} {target['refId']}"
                found[title] = target["expr"], bool(target.get("range")), target.get("legendFormat", "")
        for note in dashboard.get("annotations", {}).get("list", []):
            found[f"{name}: noted, {note['name']}"] = note["target"]["expr"], True, note["titleFormat"]
    return found


EXPRESSIONS = expressions()


class Load:
    """Requests that are counted, by model and status, and timed where that is compared."""

    def __init__(self, gateway: Any) -> None:
        self.gateway = gateway
        self.sent: Counter[tuple[str, int]] = Counter()
        self.seconds: dict[str, list[float]] = {}
        self._lock = threading.Lock()

    def ask(self, model: str, request: bytes) -> int:
        """The status of one answer."""
        with self.gateway.connect() as connection:
            return self.ask_on(connection, model, request)

    def ask_on(self, connection: Any, model: str, request: bytes) -> int:
        """The same on a connection that there is."""
        began = time.perf_counter()
        status: int = connection.ask(request).status
        seconds = time.perf_counter() - began
        with self._lock:
            self.sent[model, status] += 1
            self.seconds.setdefault(model, []).append(seconds)
        return status

    def together(self, model: str, requests: list[bytes]) -> None:
        """All at the same time."""
        threads = [threading.Thread(target=self.ask, args=(model, request)) for request in requests]
        for each in threads:
            each.start()
        for each in threads:
            each.join(30)

    def total(self) -> int:
        """How many were sent."""
        return sum(self.sent.values())

    def of(self, framework: str) -> int:
        """How many were sent to a framework's models."""
        return sum(number for (model, _), number in self.sent.items() if FRAMEWORKS.get(model, "pytorch") == framework)


def prepare(store: Path) -> None:
    """`narrow` is `slow` with a short queue; digits_torch goes COLD at once; mlp has a shadow."""
    shutil.copytree(store / "slow", store / "narrow")
    with (store / "narrow" / "model.yaml").open("a") as config:
        config.write("max_queue_size: 2\nmax_batch_size: 1\n")
    with (store / "mlp" / "model.yaml").open("a") as config:
        config.write("shadow: {version: 2, percent: 100}\n")
    with (store / "digits_torch" / "model.yaml").open("a") as config:
        config.write("idle_ttl: 0.5\n")


def requests(gateway: Any, helpers: Any) -> dict[str, tuple[bytes, int]]:
    """One for each of some models, and how it is answered."""
    negative = {"inputs": [helpers.tensor("x", "FP32", [1], [-1.0])]}
    digits = {"inputs": [helpers.tensor("image", "FP32", [ROWS, 64], [0.5] * 64 * ROWS)]}
    return {
        "slow": (gateway.slow(0.1), 200),
        "digits_tensorflow": (gateway.inference("digits_tensorflow", digits), 200),
        "raises": (gateway.inference("raises", negative), 500),
        "mlp": (gateway.good(), 200),
    }


def drive(load: Load, helpers: Any) -> None:
    """Everything that there is a panel for happens: traffic, errors, drops, a death, a swap, an eviction."""
    gateway = load.gateway
    for model, (request, status) in requests(gateway, helpers).items():
        with gateway.connect() as connection:
            for _ in range(TIMED.get(model, 5)):
                assert load.ask_on(connection, model, request) == status
    request = gateway.slow(0.02).replace(b"/slow/", b"/narrow/")
    load.together("narrow", [request] * 12)
    assert load.sent["narrow", 429] > 0
    instance = gateway.pid("instance narrow/")
    os.kill(instance, signal.SIGSTOP)
    waiting = threading.Thread(target=load.ask, args=("narrow", request))
    waiting.start()
    helpers.until(lambda: gateway.metrics().of("gateway_pending_requests", model="narrow"), 10)
    os.kill(instance, signal.SIGKILL)
    waiting.join(30)
    store = Path(gateway.log).parent / "store" / "mlp"
    shutil.copytree(store / "3", store.parent.parent / "4")
    (store.parent.parent / "4").rename(store / "4")
    helpers.until(lambda: gateway.metrics().of("gateway_version_state", model="mlp", version="4", state="READY"), 20)
    assert load.ask("mlp", gateway.good()) == 200


class Monitored:
    """A Prometheus that has seen a gateway at work, and what the load was."""

    def __init__(self, prometheus: Prometheus, load: Load) -> None:
        self.prometheus = prometheus
        self.load = load

    def found(self, ask: Callable[[str], list[Any]], expr: str, window: str = WINDOW) -> list[Any]:
        """The series of an expression with numbers, of whichever driven model has some, as soon as there are any."""
        expr = expr.replace("$__rate_interval", window).replace("$version", ".+").replace("$device", ".+")
        models = [".+"] if '=~"$model"' in expr else ["narrow", "mlp", "slow"]
        if "$model" not in expr:
            models = models[:1]
        asked = [expr.replace("$model", model) for model in models]
        found: list[Any] = self.prometheus.until(
            lambda: [series for each in asked for series in ask(each) if series.finite()], 15
        )
        return found


@pytest.fixture(scope="module")
def monitored(
    start_gateway: Callable[..., Any], helpers: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Monitored]:
    program = helpers.installed("prometheus")
    metrics = ("--metrics-address", "127.0.0.1:0")
    with start_gateway(
        MODELS, *metrics, "--state-directory", str(tmp_path_factory.mktemp("state")), prepare=prepare
    ) as gateway:
        target = gateway.listener("metrics").removeprefix("http://")
        prometheus = Prometheus(program, tmp_path_factory.mktemp("prometheus"), target)
        try:
            load = Load(gateway)
            for model, (request, status) in requests(gateway, helpers).items():
                assert load.ask(model, request) == status
            load.sent["slow", 200] += 1  # with which `gateway.slow` has measured how fast this machine is
            counted = "sum(gateway_requests_total)"
            prometheus.until(lambda: prometheus.value(counted) == load.total(), 20)  # counters count from there
            drive(load, helpers)
            prometheus.until(lambda: prometheus.value(counted) == load.total(), 20)
            prometheus.until(lambda: prometheus.query("gateway_evictions_total"), 20)
            yield Monitored(prometheus, load)
        finally:
            prometheus.stop()


@pytest.mark.parametrize(
    "title", [each for each, (expr, *_) in EXPRESSIONS.items() if not any(map(expr.count, NEEDS_A_GPU))]
)
def test_an_expression_of_a_dashboard_has_data(monitored: Monitored, title: str) -> None:
    expr, over_time, legend = EXPRESSIONS[title]
    prometheus = monitored.prometheus
    found = monitored.found(prometheus.over_time if over_time else prometheus.query, expr)
    assert found
    for each in found:
        assert set(re.findall(r"{{(\w+)}}", legend)) <= each.labels.keys()


@pytest.mark.parametrize("rule", RULES, ids=[rule.get("record") or rule["alert"] for rule in RULES])
def test_an_expression_of_a_rule_has_data(monitored: Monitored, rule: dict[str, Any]) -> None:
    """Of an alert, where nothing is wrong, the answer to its comparison: 0 or 1."""
    if any(map(rule["expr"].count, NEEDS_A_GPU)):
        assert rule.get("alert") == "GatewayGpuMemoryNearFull"
        return
    prometheus = monitored.prometheus
    assert monitored.found(prometheus.query, compared(rule["expr"], r"> bool \g<threshold>"))
    if "record" in rule:
        assert monitored.found(prometheus.query, rule["record"])


def test_every_rule_is_evaluated_without_an_error(monitored: Monitored) -> None:
    groups = monitored.prometheus.ask("rules")["groups"]
    states = {
        rule["name"]: (rule["health"], rule.get("lastError", ""))
        for group in groups
        for rule in group["rules"]
        if not rule["name"].startswith(FORCED)
    }
    assert states == {rule.get("record") or rule["alert"]: ("ok", "") for rule in RULES}


@pytest.mark.parametrize(
    "variable",
    [each for dashboard in DASHBOARDS.values() for each in dashboard["templating"]["list"] if each["type"] == "query"],
    ids=lambda variable: variable["query"],
)
def test_a_variable_has_values(monitored: Monitored, variable: dict[str, Any]) -> None:
    selector, label = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]).groups()  # type: ignore[union-attr]
    values = monitored.prometheus.ask(f"label/{label}/values", **{"match[]": selector.replace("$model", "narrow")})
    assert values
    if label == "model":
        assert set(values) == {*MODELS, "narrow"}


def test_the_counts_are_those_of_the_load_generator(monitored: Monitored) -> None:
    prometheus, sent = monitored.prometheus, monitored.load.sent
    counted = prometheus.query("sum by (model, code) (gateway_requests_total)")
    assert {(each.labels["model"], int(each.labels["code"])): each.values[0] for each in counted} == dict(sent)
    by_framework = monitored.found(prometheus.query, EXPRESSIONS["overview: PyTorch and TensorFlow A"][0])
    found = {each.labels["framework"]: each.values[0] for each in by_framework}
    assert found == {framework: monitored.load.of(framework) for framework in ("pytorch", "tensorflow")}


@pytest.mark.parametrize("model", TIMED)
@pytest.mark.parametrize("where", ["dashboard", "rule"])
def test_the_median_is_what_clients_saw_give_or_take_a_bucket(monitored: Monitored, model: str, where: str) -> None:
    prometheus = monitored.prometheus
    if where == "dashboard":
        expr = EXPRESSIONS["model: Latency, p50 A"][0].replace("$model", model)
        (found,) = monitored.found(prometheus.query, expr, window="5m")
    else:
        (found,) = monitored.found(
            prometheus.query, f'model_framework:gateway_request_duration_seconds:p50_rate5m{{model="{model}"}}'
        )
    measured = statistics.median(monitored.load.seconds[model])
    buckets = [bisect.bisect_left(DURATION_BOUNDS, seconds) for seconds in (found.values[0], measured)]
    assert abs(buckets[0] - buckets[1]) <= 1, (found.values[0], measured)


def test_the_stages_of_the_mean_request_add_up_to_its_duration(monitored: Monitored) -> None:
    expr = EXPRESSIONS["model: Stages A"][0].replace("$model", "slow")
    stages = monitored.found(monitored.prometheus.query, expr, window="5m")
    assert {each.labels["stage"] for each in stages} == {"decode", "queue", "compute", "ipc", "encode"}
    duration = monitored.prometheus.value(
        'sum(rate(gateway_request_duration_seconds_sum{model="slow"}[5m]))'
        ' / sum(rate(gateway_request_duration_seconds_count{model="slow"}[5m]))'
    )
    assert sum(each.values[0] for each in stages) == pytest.approx(duration, rel=0.05)


def test_what_was_done_to_the_gateway_is_seen(monitored: Monitored) -> None:
    """A death with its retry, refusals, an eviction, and a swap noted for the versions that it was of."""
    prometheus = monitored.prometheus
    assert prometheus.value('sum(gateway_instance_restarts_total{model="narrow", reason="signal 9"})') == 1
    assert prometheus.value('sum(gateway_retries_total{model="narrow"})') == 1
    refused = monitored.load.sent["narrow", 429]
    assert prometheus.value('sum(gateway_requests_dropped_total{model="narrow", reason="queue_full"})') == refused
    assert prometheus.value('sum(gateway_evictions_total{model="digits_torch"})') == 1
    for name, version in (("READY", "4"), ("no longer READY", "3")):
        expr = EXPRESSIONS[f"model: noted, {name}"][0].replace("$model", "mlp")
        noted = monitored.found(prometheus.over_time, expr)
        assert version in {each.labels["version"] for each in noted}
        assert all(len(each.values) <= 6 for each in noted), "a moment, not a state"


def alerts(monitored: Monitored, name: str = "") -> list[dict[str, Any]]:
    """Those that fire or would if it went on, all of them or those of a name."""
    found: list[dict[str, Any]] = monitored.prometheus.ask("alerts")["alerts"]
    return [alert for alert in found if name in ("", alert["labels"]["alertname"])]


def test_only_what_is_wrong_is_on_its_way_to_an_alert(monitored: Monitored) -> None:
    names = {alert["labels"]["alertname"] for alert in alerts(monitored)}
    forced = {name for name in names if name.startswith(FORCED)}
    assert forced
    assert names - forced <= CAUSED


@pytest.mark.parametrize("name", [rule["alert"] for rule in RULES if "alert" in rule and "Gpu" not in rule["alert"]])
def test_what_an_alert_says_names_whom_it_is_about(monitored: Monitored, name: str) -> None:
    (annotations,) = [rule["annotations"] for rule in RULES if rule.get("alert") == name]
    named = set(re.findall(r"\$labels\.(\w+)", " ".join(annotations.values())))
    for alert in monitored.prometheus.until(lambda: alerts(monitored, FORCED + name), 15):
        assert named <= alert["labels"].keys()
        for text in alert["annotations"].values():
            assert "<error" not in text
            assert "{{" not in text
