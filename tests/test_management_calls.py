from typing import Any

import pytest

from gateway.errors import ModelNotFound, RequestError
from gateway.http.management_calls import (
    MOST_WORKERS,
    Page,
    check_runtime,
    description,
    flag,
    in_store,
    listing,
    number_of,
    page,
    registered,
    whole_number,
    workers_of,
)
from gateway.ipc import facts
from gateway.ipc.facts import InstanceFacts, VersionFacts
from gateway.ipc.messages import ANY, VersionRoute
from gateway.store.manifest import ModelConfig


@pytest.mark.parametrize(
    ("url", "name", "found"),
    [("m", None, ("m", ANY)), ("m", "m", ("m", ANY)), ("m/2", "", ("m", 2)), ("m.x-1/3.0", None, ("m.x-1", 3))],
)
def test_a_url_is_a_name_in_the_model_store(url: str, name: str | None, found: tuple[str, int]) -> None:
    assert in_store(url, name) == found


@pytest.mark.parametrize(
    ("url", "error", "said"),
    [
        (None, RequestError, "Parameter url is required."),
        ("", RequestError, "Parameter url is required."),
        (7, RequestError, "must be a string"),
        ("../m", ModelNotFound, "Relative path is not allowed in url: ../m"),
        ("m/..", ModelNotFound, "Relative path is not allowed in url"),
        ("file:///etc/passwd", ModelNotFound, "Given URL file:///etc/passwd does not match any allowed"),
        ("HTTPS://host/m.mar", ModelNotFound, "does not match any allowed URL"),
        ("/etc/passwd", ModelNotFound, "Model not found in model store: /etc/passwd"),
        ("m/2/3", ModelNotFound, "Model not found in model store"),
        ("m\n2", ModelNotFound, "Model not found in model store"),
        ("m.mar", ModelNotFound, "`gateway import` reads model archives"),
    ],
)
def test_a_url_is_nothing_else(url: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said.replace("(", "\\(")):
        in_store(url, None)


def test_a_model_has_no_other_name_than_in_the_store() -> None:
    with pytest.raises(RequestError, match="model_name can be no other"):
        in_store("m", "other")


def test_workers_are_one_by_default_and_no_more_at_most_than_said() -> None:
    assert workers_of({}) == (1, 1)
    assert workers_of({"min_worker": "3"}) == (3, 3)
    assert workers_of({"min_worker": "0", "max_worker": "2"}) == (0, 2)


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"min_worker": "2", "max_worker": "1"}, "max_worker cannot be less than min_worker."),
        ({"min_worker": "-1"}, "min_worker must be from 0"),
        ({"min_worker": str(MOST_WORKERS + 1)}, "must be from 0 to 128"),
        ({"min_worker": 1.5}, "must be a whole number"),
        ({"min_worker": True}, "must be a whole number"),
    ],
)
def test_workers_that_cannot_be_are_refused(parameters: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        workers_of(parameters)


def test_parameters_are_read_from_text_and_from_json() -> None:
    assert (flag({"synchronous": "True"}, "synchronous"), flag({"synchronous": True}, "synchronous")) == (True, True)
    assert not flag({}, "synchronous")
    assert (whole_number({"n": 3}, "n", 0), whole_number({"n": "-3"}, "n", 0)) == (3, -3)
    assert flag({}, "synchronous", default=True)
    assert (number_of("1.0"), number_of("12"), number_of("1.5"), number_of("stable")) == (1, 12, None, None)


@pytest.mark.parametrize("value", ["", "many", "1.0", "9" * 5000, " 1", "2147483648", "٣"])
def test_text_that_is_no_number_means_the_default_as_torchserve_reads_it(value: str) -> None:
    assert whole_number({"limit": value}, "limit", 100) == 100
    assert workers_of({"min_worker": value}) == (1, 1)


def test_a_runtime_that_torchserve_has_not_is_refused() -> None:
    for known in ({}, {"runtime": "python"}, {"runtime": "python3"}, {"runtime": "LSP"}):
        check_runtime(known)
    for wrong in ("InvalidRuntime", "", "ruby"):
        with pytest.raises(RequestError, match=f"^Invalid RuntimeType value: {wrong}$"):
            check_runtime({"runtime": wrong})


def test_a_page_says_where_the_next_one_begins() -> None:
    names = [f"m{number:03}" for number in range(150)]
    assert page(names, 100, 0) == Page(names[:100], "100")
    assert page(names, 100, 100) == Page(names[100:], None)
    assert page(names, 1000, -1) == page(names, -1, 0) == Page(names[:100], "100")
    assert listing(page(["a"], 100, 0)) == {"models": [{"modelName": "a", "modelUrl": "a"}]}
    assert listing(page(["a", "b"], 1, 0))["nextPageToken"] == "1"


def route_of(version: int, state: str = "READY") -> VersionRoute:
    return VersionRoute("m", version, "pytorch_torchscript", "pytorch", state, "", ModelConfig(max_queue_size=10))


def test_what_is_unloaded_is_not_registered() -> None:
    routes = {2: route_of(2), 1: route_of(1, "UNLOADED"), 3: route_of(3, "FAILED")}
    assert [route.version for route in registered(routes)] == [2, 3]


def test_a_version_is_described_in_torchserves_form() -> None:
    one = InstanceFacts("m/2#0.1", 17, "cpu", 1_700_000_000.5, ready=True, memory=9 << 20)
    two = InstanceFacts("m/2#1.2", 18, "cuda:1", 1_700_000_000.0, ready=False, gpu_memory=5)
    (known,) = facts.unpack(facts.pack([VersionFacts(2, 1, 3, at_startup=True, under_way=4, instances=[one, two])]))
    said = description(route_of(2), known)
    assert (said["modelName"], said["modelVersion"], said["minWorkers"], said["maxWorkers"]) == ("m", "2", 1, 3)
    assert said["jobQueueStatus"] == {"remainingCapacity": 6, "pendingRequests": 4}
    assert said["workers"][0] == {
        "id": "m/2#0.1",
        "startTime": "2023-11-14T22:13:20.500Z",
        "status": "READY",
        "memoryUsage": 9 << 20,
        "pid": 17,
        "gpu": False,
        "gpuUsage": "N/A",
    }
    assert said["workers"][1]["gpu"]
    assert said["workers"][1]["status"] == "LOADING"
