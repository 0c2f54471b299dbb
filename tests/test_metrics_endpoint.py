"""GET /metrics: names, labels and numbers that are right."""

from typing import Any

import pytest

MODEL = {"model": "mlp", "version": "3", "framework": "pytorch"}
VERSION = frozenset(MODEL)
FAMILIES = {
    "gateway_request_duration_seconds": ("histogram", set()),
    "gateway_stage_duration_seconds": ("histogram", {"stage"}),
    "gateway_execution_duration_seconds": ("histogram", set()),
    "gateway_batch_size": ("histogram", set()),
    "gateway_requests": ("counter", {"code", "protocol"}),
    "gateway_inferences": ("counter", set()),
    "gateway_executions": ("counter", set()),
    "gateway_pending_requests": ("gauge", set()),
    "gateway_instance_memory_bytes": ("gauge", {"instance", "device", "kind", "source"}),
    "gateway_version_state": ("gauge", {"state"}),
    "gateway_model_load_seconds": ("gauge", set()),
}


def send(gateway: Any, rows: int = 1, number: int = 1) -> None:
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [rows, 16], "data": [0.5] * 16 * rows}]}
    with gateway.connect() as connection:
        for _ in range(number):
            assert connection.ask(gateway.inference("mlp", body)).status == 200


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_its_type_and_its_labels(gateway: Any, name: str) -> None:
    send(gateway)
    kind, labels = FAMILIES[name]
    family = gateway.metrics().families[name]
    assert family.type == kind
    assert family.documentation.endswith(".")
    mine = [sample for sample in family.samples if MODEL.items() <= sample.labels.items()]
    assert mine
    for sample in mine:
        assert set(sample.labels) - {"le"} == VERSION | labels, sample.name


def test_the_page_is_prometheus_text(gateway: Any) -> None:
    answer = gateway.http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert answer.text.endswith("\n")


def test_dropped_requests_and_restarts_are_families_of_their_own(gateway: Any) -> None:
    families = gateway.metrics().families
    assert families["gateway_requests_dropped"].type == "counter"
    assert families["gateway_instance_restarts"].type == "counter"


def test_histograms_are_cumulative_and_agree_with_their_counts(gateway: Any) -> None:
    send(gateway, number=3)
    metrics = gateway.metrics()
    for name in ("gateway_request_duration_seconds", "gateway_execution_duration_seconds", "gateway_batch_size"):
        buckets = [s for s in metrics.samples if s.name == f"{name}_bucket" and MODEL.items() <= s.labels.items()]
        values = [s.value for s in sorted(buckets, key=lambda s: float(s.labels["le"]))]
        assert values == sorted(values)
        assert buckets[-1].labels["le"] == "+Inf"
        assert values[-1] == metrics.of(f"{name}_count", **MODEL) > 0
        assert metrics.of(f"{name}_sum", **MODEL) > 0


def test_counts_are_exactly_those_of_the_requests_sent(gateway: Any) -> None:
    def numbers() -> dict[str, float]:
        metrics = gateway.metrics()
        stages = ("decode", "queue", "compute", "ipc", "encode")
        return {
            "ok": metrics.of("gateway_requests_total", **MODEL, code="200", protocol="oip"),
            "bad": metrics.of("gateway_requests_total", **MODEL, code="400", protocol="oip"),
            "all": metrics.of("gateway_requests_total", **MODEL),
            "everywhere": metrics.of("gateway_requests_total"),
            "inferences": metrics.of("gateway_inferences_total", **MODEL),
            "executions": metrics.of("gateway_executions_total", **MODEL),
            "executions timed": metrics.of("gateway_execution_duration_seconds_count", **MODEL),
            "batches": metrics.of("gateway_batch_size_count", **MODEL),
            "rows": metrics.of("gateway_batch_size_sum", **MODEL),
            "rows of one": metrics.of("gateway_batch_size_bucket", **MODEL, le="1.0"),
            "durations": metrics.of("gateway_request_duration_seconds_count", **MODEL),
            **{stage: metrics.of("gateway_stage_duration_seconds_count", **MODEL, stage=stage) for stage in stages},
        }

    before = numbers()
    send(gateway, number=7)
    send(gateway, rows=5, number=2)
    for _ in range(3):
        assert gateway.infer("mlp", b"{}").status == 400
    assert gateway.infer("nobody", b"{}").status == 404
    after = numbers()
    assert {key: after[key] - before[key] for key in before} == {
        "ok": 9,
        "bad": 3,
        "all": 12,
        "everywhere": 12,  # names that clients make up get no series
        "inferences": 17,
        "executions": 9,
        "executions timed": 9,
        "batches": 9,
        "rows": 17,
        "rows of one": 7,
        "durations": 9,
        "decode": 9,
        "queue": 9,
        "compute": 9,
        "ipc": 9,
        "encode": 9,
    }


def test_a_model_s_own_error_is_counted_as_a_500(gateway: Any, helpers: Any) -> None:
    def failed() -> float:
        return gateway.metrics().of("gateway_requests_total", model="raises", code="500", protocol="oip")

    before = failed()
    assert gateway.infer("raises", {"inputs": [helpers.tensor("x", "FP32", [1], [-1.0])]}).status == 500
    assert failed() == before + 1


def test_the_stages_of_a_slow_request_add_up_to_its_duration(gateway: Any) -> None:
    def sums() -> tuple[float, float, float]:
        metrics = gateway.metrics()
        return (
            metrics.of("gateway_request_duration_seconds_sum", model="slow"),
            metrics.of("gateway_stage_duration_seconds_sum", model="slow"),
            metrics.of("gateway_stage_duration_seconds_sum", model="slow", stage="compute"),
        )

    slow = gateway.slow(0.2)
    before = sums()
    with gateway.connect() as connection:
        assert connection.ask(slow).status == 200
    duration, stages, compute = (now - then for now, then in zip(sums(), before, strict=True))
    assert 0.05 < compute <= stages
    assert stages == pytest.approx(duration, rel=0.05)


def test_time_spent_waiting_for_another_request_is_queueing(gateway: Any) -> None:
    def queued() -> float:
        return gateway.metrics().of("gateway_stage_duration_seconds_sum", model="slow", stage="queue")

    slow = gateway.slow(0.2)
    before = queued()
    with gateway.connect() as first, gateway.connect() as second:
        first.send(slow)
        second.send(slow)
        assert first.response().status == second.response().status == 200
    assert queued() - before > 0.05


def test_requests_under_way_are_pending_until_they_are_answered(gateway: Any, helpers: Any) -> None:
    slow = gateway.slow(0.3)
    with gateway.connect() as first, gateway.connect() as second:
        first.send(slow)
        second.send(slow)
        helpers.until(lambda: gateway.metrics().of("gateway_pending_requests", model="slow") == 2, 5)
        assert first.response().status == second.response().status == 200
    assert gateway.metrics().of("gateway_pending_requests", model="slow") == 0


def test_requests_at_the_same_time_run_in_batches(gateway: Any, helpers: Any) -> None:
    def numbers() -> tuple[float, float, float]:
        metrics = gateway.metrics()
        names = ("gateway_requests_total", "gateway_inferences_total", "gateway_executions_total")
        requests, rows, executions = (metrics.of(name, **MODEL) for name in names)
        return requests, rows, executions

    connections = [gateway.connect() for _ in range(32)]
    before = numbers()
    rounds = 0

    def a_batch_ran() -> bool:
        nonlocal rounds
        rounds += 1
        for connection in connections:
            connection.send(gateway.good())
        assert {connection.response().status for connection in connections} == {200}
        requests, rows, executions = (now - then for now, then in zip(numbers(), before, strict=True))
        assert requests == rows == 32 * rounds
        return executions < requests

    try:
        helpers.until(a_batch_ran, 10)
    finally:
        for connection in connections:
            connection.sock.close()


def test_an_execution_is_counted_although_its_client_has_left(gateway: Any, helpers: Any) -> None:
    def executions() -> float:
        return gateway.metrics().of("gateway_executions_total", model="slow")

    slow = gateway.slow(0.2)
    before = executions()
    with gateway.connect() as leaving:
        leaving.send(slow)
        helpers.until(lambda: gateway.metrics().of("gateway_pending_requests", model="slow"), 5)
    with gateway.connect() as connection:
        assert connection.ask(gateway.slow(0.01)).status == 200
    assert executions() == before + 2


def test_every_instance_has_measured_memory_and_nothing_else_has(gateway: Any) -> None:
    metrics = gateway.metrics()
    running = {name for name, state in gateway.versions().items() if state == "READY"}
    samples = [sample for sample in metrics.samples if sample.name == "gateway_instance_memory_bytes"]
    assert {sample.labels["model"] for sample in samples} == running
    for model in running:
        private = metrics.of("gateway_instance_memory_bytes", model=model, kind="private", instance="0", device="cpu")
        pss = metrics.of("gateway_instance_memory_bytes", model=model, kind="pss", instance="0", device="cpu")
        assert 1e6 < private <= pss < 1e9
    assert metrics.of("gateway_instance_memory_bytes", model="mlp", kind="private") < 30e6  # not a framework each


def test_every_version_is_in_exactly_one_state(gateway: Any) -> None:
    metrics = gateway.metrics()
    for model, state in gateway.versions().items():
        assert metrics.of("gateway_version_state", model=model) == 1
        assert metrics.of("gateway_version_state", model=model, state=state) == 1
        loaded = metrics.of("gateway_model_load_seconds", model=model)
        assert 0 < loaded < 60 if state == "READY" else loaded == 0


def test_metrics_are_gzipped_only_on_request(gateway: Any) -> None:
    packed = gateway.http.get("/metrics", headers={"Accept-Encoding": "gzip"})
    assert packed.headers["content-encoding"] == "gzip"
    assert "gateway_requests_total" in packed.text
    plain = gateway.http.get("/metrics", headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
