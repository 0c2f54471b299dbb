from dataclasses import replace
from itertools import takewhile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from gateway.store.contents import Contents
from gateway.store.manifest import ModelConfig
from gateway.store.settling import Settling
from gateway.store.source import Artifact, Inventory

SECONDS = 10.0
NOW = 1_000_000.0
"""The wall clock when the monotonic one is at 0."""


def artifact(version: int = 1, stamp: int = 1, changed: float = 0.0, **more: object) -> Artifact:
    made = Artifact("m", version, "pytorch_torchscript", Path("model.pt"), ModelConfig(), stamp=stamp, changed=changed)
    return replace(made, **{"contents": Contents(entries=1)} | more)


class Looks:
    """Settling with a clock that the test turns."""

    def __init__(self) -> None:
        self.settling = Settling(SECONDS)
        self.again: float | None = None

    def at(self, now: float, *artifacts: Artifact, **more: object) -> list[Artifact]:
        found, self.again = self.settling.filter(Inventory(list(artifacts), **more), NOW + now, now)
        return found.artifacts


def test_what_was_there_long_before_is_there_at_once() -> None:
    looks = Looks()
    assert looks.at(0, artifact(changed=NOW - SECONDS)) == [artifact(changed=NOW - SECONDS)]
    assert looks.again is None


def test_what_changed_a_moment_ago_is_there_when_it_was_left_alone() -> None:
    looks, new = Looks(), artifact(changed=NOW - 4)
    assert looks.at(0, new) == []
    assert looks.again == pytest.approx(6)
    assert looks.at(5.9, new) == []
    assert looks.at(6, new) == [new]


def test_each_change_that_we_see_begins_the_time_anew() -> None:
    looks = Looks()
    for second in range(9):
        assert looks.at(second, artifact(stamp=second, changed=NOW + second)) == []
    assert looks.again == pytest.approx(SECONDS)
    assert looks.at(17.9, artifact(stamp=8, changed=NOW + 8)) == []
    assert looks.at(18, artifact(stamp=8, changed=NOW + 8)) != []


def test_a_clock_of_the_file_system_that_is_ahead_delays_nothing_for_long() -> None:
    looks, ahead = Looks(), artifact(changed=NOW + 3600)
    assert looks.at(0, ahead) == []
    assert looks.again == pytest.approx(SECONDS)
    assert looks.at(SECONDS, ahead) == [ahead]


def test_a_clock_of_the_file_system_that_is_behind_does_not_make_a_change_that_we_saw_old() -> None:
    looks = Looks()
    looks.at(0, artifact(contents=Contents()))
    assert looks.at(1, artifact(stamp=2, changed=NOW - 3600)) == []
    assert looks.at(11, artifact(stamp=2, changed=NOW - 3600)) != []


def test_a_version_that_is_being_changed_is_told_as_it_was() -> None:
    looks = Looks()
    (before,) = looks.at(0, artifact())
    assert not before.settling
    (during,) = looks.at(1, artifact(stamp=2, changed=NOW + 1, problem="no artifact"))
    assert (during.stamp, during.problem, during.settling) == (1, "", True)
    (after,) = looks.at(11, artifact(stamp=2, changed=NOW + 1, problem="no artifact"))
    assert (after.stamp, after.problem, after.settling) == (2, "no artifact", False)


def test_a_directory_that_disappears_is_gone_at_once_and_new_when_it_comes_back() -> None:
    looks = Looks()
    assert looks.at(0, artifact()) != []
    assert looks.at(1) == []
    assert looks.at(2, artifact(stamp=2, changed=NOW + 1)) == []
    assert looks.at(3) == []
    assert looks.at(4, artifact(stamp=3, changed=NOW - 100)) != []


def test_an_empty_directory_is_not_there_yet() -> None:
    looks, empty = Looks(), artifact(contents=Contents())
    assert looks.at(0, empty) == []
    assert looks.at(100, empty) == []
    assert looks.again is None


def test_a_directory_that_is_emptied_is_gone_when_it_stays_so() -> None:
    looks, emptied = Looks(), artifact(stamp=2, contents=Contents())
    looks.at(0, artifact())
    assert looks.at(1, emptied)[0].settling
    assert looks.at(11, emptied) == []


def test_what_cannot_be_read_now_is_told_as_it_was() -> None:
    looks = Looks()
    closed = artifact(stamp=2, problem="it cannot be read", contents=Contents(entries=1, unreadable=True))
    looks.at(0, artifact())
    for now in (1, 100):
        assert [(each.stamp, each.settling) for each in looks.at(now, closed)] == [(1, True)]
    assert [each.stamp for each in looks.at(101, unreadable={"m"})] == [1]
    assert looks.at(102, artifact())[0].settling is False


def test_what_could_never_be_read_says_so() -> None:
    closed = artifact(problem="it cannot be read", contents=Contents(unreadable=True, entries=1))
    assert Looks().at(0, closed)[0].problem == "it cannot be read"


def test_a_model_whose_configuration_breaks_keeps_the_last_one_that_held() -> None:
    looks, config = Looks(), ModelConfig(version_policy="all", version_labels={"stable": 1})
    looks.at(0, artifact(1, config=config), artifact(2, config=config))
    broken = [artifact(version, stamp=9, problem="model.yaml is not YAML") for version in (1, 2, 3)]
    during = looks.at(1, *broken, misconfigured={"m"})
    assert [(each.version, each.problem) for each in during] == [(1, ""), (2, ""), (3, "model.yaml is not YAML")]
    after = looks.at(11, *broken, misconfigured={"m"})
    assert [(each.config, each.problem) for each in after] == [(config, "model.yaml is not YAML")] * 3
    assert [each.config for each in looks.at(12)] == []
    assert [each.config for each in looks.at(13, broken[0], misconfigured={"m"})] == [ModelConfig()]


def test_without_time_to_settle_everything_is_there_at_once() -> None:
    settling = Settling(0)
    for stamp in range(3):
        found, again = settling.filter(Inventory([artifact(stamp=stamp, changed=NOW + 99)]), NOW, 0)
        assert ([each.stamp for each in found.artifacts], again) == ([stamp], None)


class Store(RuleBasedStateMachine):
    """A store that changes while it is looked at, against an oracle that remembers every look."""

    def __init__(self) -> None:
        super().__init__()
        self.settling = Settling(SECONDS)
        self.now = 0.0
        self.skew = 0.0
        self.stamps = 0
        self.there: dict[int, Artifact] = {}
        self.looks: dict[int, list[tuple[float, Artifact]]] = {}
        self.told: dict[int, Artifact] = {}
        self.again: float | None = None

    @rule(version=st.integers(1, 3), age=st.sampled_from([0.0, 0.0, 5.0, 20.0]), empty=st.booleans())
    def change(self, version: int, age: float, empty: bool) -> None:
        """Write into a version, or move older files into it."""
        self.stamps += 1
        changed = NOW + self.now + self.skew - age
        self.there[version] = artifact(version, self.stamps, changed, contents=Contents(entries=int(not empty)))

    @rule(version=st.integers(1, 3))
    def delete(self, version: int) -> None:
        self.there.pop(version, None)

    @rule(seconds=st.sampled_from([0.25, 1.0, 4.0, 10.0, 30.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(skew=st.sampled_from([-100.0, 0.0, 100.0]))
    def step_the_clock_of_the_file_system(self, skew: float) -> None:
        self.skew = skew

    @rule()
    def look(self) -> None:
        found, self.again = self.settling.filter(Inventory(list(self.there.values())), NOW + self.now, self.now)
        for version in self.looks.keys() - self.there.keys():
            del self.looks[version]
            self.told.pop(version, None)
        for version, current in self.there.items():
            looks = self.looks.setdefault(version, [])
            looks.append((self.now, current))
            same = list(takewhile(lambda each: each[1] is current, reversed(looks)))  # noqa: B023 - used at once
            since = same[-1][0]
            alone = len(same) == len(looks)
            if self.now - since >= SECONDS or (alone and NOW + self.now - current.changed >= SECONDS):
                self.told[version] = current
                if not current.contents.entries:
                    del self.told[version]
        assert [each.version for each in found.artifacts] == sorted(self.told)
        for each in found.artifacts:
            assert each == self.told[each.version]
            assert each.settling == (each.stamp != self.there[each.version].stamp)

    @precondition(lambda self: self.again is not None)
    @rule()
    def look_when_told_to(self) -> None:
        assert self.again is not None
        assert 0 < self.again <= SECONDS
        self.now += self.again
        self.look()

    def teardown(self) -> None:
        self.look()
        for _ in range(4):
            if self.again is None:
                break
            self.look_when_told_to()
        assert self.again is None
        assert self.told == {version: each for version, each in self.there.items() if each.contents.entries}


TestStore = Store.TestCase
TestStore.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
