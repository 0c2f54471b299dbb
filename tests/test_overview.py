"""What the console is told, of versions that never ran."""

from collections import Counter
from pathlib import Path
from typing import Any

import orjson

from gateway.lifecycle.placement import CPU
from gateway.lifecycle.residency import Account
from gateway.lifecycle.state import State
from gateway.lifecycle.version import Version
from gateway.metrics import DURATION_BOUNDS, STAGES, VersionCounters
from gateway.overview import overview
from gateway.store.manifest import ModelConfig
from gateway.store.source import Artifact


def version(model: str, number: int, *states: State, reason: str = "") -> Version:
    made = Version(Artifact(model, number, "pytorch_torchscript", Path("model.pt"), ModelConfig()))
    for state in states:
        made.become(state, reason if state is State.FAILED else "")
    return made


def shown(versions: list[Version], **known: Any) -> Any:
    told = {"counters": [], "account": Account({CPU.name: 1000}), "restarts": {}, "chosen": {}, "now": 7.0}
    return orjson.loads(overview(versions=versions, **(told | known)))


READY = (State.LOADING, State.READY)


def test_every_version_is_shown_with_its_state_and_reason() -> None:
    found = shown([version("a", 1, *READY), version("b", 2, State.LOADING, State.FAILED, reason="no archive")])
    assert found["time"] == 7.0
    assert {key: (each["state"], each["reason"]) for key, each in found["versions"].items()} == {
        "a/1": ("READY", ""),
        "b/2": ("FAILED", "no archive"),
    }
    assert "requests" not in found["versions"]["a/1"]  # nothing was counted yet


def test_the_default_is_the_highest_that_serves_unless_somebody_has_chosen() -> None:
    versions = [version("a", 1, *READY), version("a", 2, *READY), version("a", 3, State.LOADING)]

    def defaults(**known: Any) -> list[str]:
        return [key for key, each in shown(versions, **known)["versions"].items() if each["default"]]

    assert defaults() == ["a/2"]
    assert defaults(chosen={"a": 1}) == ["a/1"]
    assert defaults(chosen={"a": 3}) == ["a/2"]


def test_memory_and_what_happened_to_a_version_are_shown() -> None:
    mine = version("a", 1, *READY)
    account = Account({"cpu": 1000, "cuda:0": 500}, {mine: {"cpu": 300}}, Counter({("a", 1): 2}))
    found = shown([mine], account=account, restarts={("a/1", "crashed"): 3, ("a/1", "killed"): 1})
    assert found["devices"]["cpu"]["budget"] == 1000
    assert found["versions"]["a/1"]["held"] == {"cpu": 300}
    assert found["versions"]["a/1"]["evictions"] == 2
    assert found["versions"]["a/1"]["restarts"] == 4


def test_what_was_found_against_batching_is_shown() -> None:
    sound, mixed = version("a", 1, *READY), version("b", 1, *READY)
    mixed.disagreement = "output 'y' differs by up to 2"
    found = shown([sound, mixed])["versions"]
    assert (found["a/1"]["disagreement"], found["b/1"]["disagreement"]) == ("", "output 'y' differs by up to 2")


def test_counts_stand_beside_the_bounds_they_belong_to() -> None:
    counted = VersionCounters("a", "1", "pytorch")
    counted.requests = {"200 oip": 5, "400 oip": 2, "503 tfserving": 1}
    counted.duration.count(DURATION_BOUNDS, 0.002)
    counted.stages[2].count((1.0,) * 18, 0.5)
    found = shown([version("a", 1, *READY)], counters=[counted])
    mine = found["versions"]["a/1"]
    assert (mine["requests"], mine["failed"]) == (8, 3)
    assert len(mine["durations"]) == len(found["constants"]["bounds"]) + 1
    assert dict(zip(found["constants"]["stages"], mine["stages"], strict=True))[STAGES[2]] == 0.5
