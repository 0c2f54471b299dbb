"""What has been asked and how long it took, in Triton's words."""

import time
from typing import Any

from gateway.http.statistics import statistics
from gateway.metrics import BATCH_SIZES, Counters, VersionCounters, pack, summed, unpack

DURATIONS = {"success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss"}


def counted(requests: int, rows: int, seconds: float) -> VersionCounters:
    """What a worker has counted of one version."""
    counters = Counters()
    made = counters.of("m", "2", "pytorch")
    timings = counters.timings_of(made)
    for _ in range(requests):
        timings.last_used = time.perf_counter()
        timings.add((seconds * 4, seconds, 0.0, seconds, 0.0, seconds))
        made.executed(seconds, rows)
        made.count(200, "oip")
    made.count(400, "oip")
    made.failed(ValueError(), 0.5)  # type: ignore[arg-type] # any will do
    return unpack(counters.packed())[0]


def test_the_counters_of_all_workers_are_added_up() -> None:
    packed = pack(summed([[counted(3, 2, 0.25)], [counted(1, 8, 0.5)], [counted(2, 2, 0.25)]]))
    (stats,) = statistics([("m", [2])], packed)["model_stats"]
    assert (stats["name"], stats["version"]) == ("m", "2")
    assert (stats["inference_count"], stats["execution_count"]) == (18, 6)
    assert set(stats["inference_stats"]) == DURATIONS
    assert stats["inference_stats"]["success"] == {"count": 6, "ns": 7_000_000_000}
    assert stats["inference_stats"]["fail"] == {"count": 3, "ns": 1_500_000_000}
    assert stats["inference_stats"]["compute_infer"] == {"count": 6, "ns": 1_750_000_000}
    assert stats["inference_stats"]["cache_hit"] == {"count": 0, "ns": 0}
    two, eight = stats["batch_stats"]
    assert (two["batch_size"], two["compute_infer"]) == (2, {"count": 5, "ns": 1_250_000_000})
    assert (eight["batch_size"], eight["compute_infer"]) == (8, {"count": 1, "ns": 500_000_000})
    assert set(two) == {"batch_size", "compute_input", "compute_infer", "compute_output"}
    assert abs(stats["last_inference"] / 1000 - time.time()) < 60


def test_a_version_that_was_never_asked_has_zeros() -> None:
    stats = statistics([("a", [1, 2]), ("b", [])], pack([]))["model_stats"]
    assert [(each["name"], each["version"]) for each in stats] == [("a", "1"), ("a", "2")]
    assert all(each["last_inference"] == 0 and each["batch_stats"] == [] for each in stats)


def test_the_time_of_the_last_request_stays_as_it_is_until_there_is_another() -> None:
    counters = Counters()
    timings = counters.timings_of(counters.of("m", "1", "pytorch"))
    timings.last_used = time.perf_counter()
    first = [unpack(counters.packed())[0].last_inference for _ in range(50)]
    assert len(set(first)) == 1
    timings.last_used += 5.0
    assert unpack(counters.packed())[0].last_inference >= first[0] + 4999


def test_a_client_that_sends_every_batch_size_there_is_fills_no_memory() -> None:
    made = VersionCounters("m", "1", "pytorch")
    for rows in range(1, 2 * BATCH_SIZES):
        made.executed(0.1, rows)
    assert len(made.by_rows) == BATCH_SIZES
    assert made.executions == 2 * BATCH_SIZES - 1


def test_all_models_have_statistics_and_each_has_its_own(gateway: Any) -> None:
    with gateway.connect() as connection:
        assert connection.ask(gateway.good()).status == 200
    everything = gateway.http.get("/v2/models/stats").json()["model_stats"]
    index = gateway.http.post("/v2/repository/index").json()
    assert {(each["name"], each["version"]) for each in everything} == {
        (each["name"], each["version"]) for each in index
    }
    (mlp,) = gateway.http.get("/v2/models/mlp/versions/3/stats").json()["model_stats"]
    assert abs(mlp["last_inference"] / 1000 - time.time()) < 600
    assert (
        sum(each["batch_size"] * each["compute_infer"]["count"] for each in mlp["batch_stats"])
        == (mlp["inference_count"])
    )
    assert gateway.http.get("/v2/models/nobody/stats").status_code == 404


def test_failed_requests_and_their_time_are_counted(gateway: Any, helpers: Any) -> None:
    before = gateway.http.get("/v2/models/raises/stats").json()["model_stats"][0]["inference_stats"]["fail"]
    assert gateway.infer("raises", {"inputs": [helpers.tensor("x", "FP32", [1], [-1])]}).status == 500
    after = gateway.http.get("/v2/models/raises/stats").json()["model_stats"][0]["inference_stats"]["fail"]
    assert after["count"] == before["count"] + 1
    assert after["ns"] > before["ns"]
