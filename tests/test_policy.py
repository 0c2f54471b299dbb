from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.lifecycle.policy import absent_shadows, aspired, dangling_labels, labels_now, missing, to_drain
from gateway.lifecycle.state import State
from gateway.store.manifest import ModelConfig, Shadow, VersionPolicy
from gateway.store.source import Artifact

NEW, LOADING, READY, COLD, FAILED = State.NEW, State.LOADING, State.READY, State.COLD, State.FAILED


def versions(*numbers: int, **config: Any) -> list[Artifact]:
    return [Artifact("m", number, "pytorch_torchscript", Path("model.pt"), ModelConfig(**config)) for number in numbers]


def wanted(artifacts: list[Artifact]) -> list[int]:
    return [artifact.version for artifact in aspired(artifacts)]


def test_by_default_the_highest_version_is_served() -> None:
    assert wanted(versions(9, 10, 2)) == [10]


def test_latest_may_be_several() -> None:
    assert wanted(versions(9, 10, 2, version_policy=VersionPolicy(latest=2))) == [10, 9]
    assert wanted(versions(9, version_policy=VersionPolicy(latest=2))) == [9]


def test_versions_with_traffic_are_served_beside_those_of_the_policy() -> None:
    artifacts = versions(9, 10, 2, traffic={2: 90, 9: 0, 7: 10})
    assert wanted(artifacts) == [10, 2]
    assert missing(artifacts) == ["traffic names version 7, which 'm' does not have"]


def test_a_shadow_that_is_no_model_is_told() -> None:
    assert absent_shadows(versions(1, shadow=Shadow(5, model="m"))) == []
    there = [*versions(1, shadow=Shadow(5, model="b")), Artifact("b", 1, "", Path("x"), ModelConfig())]
    assert absent_shadows(there) == []
    assert absent_shadows(there[:1]) == ["shadow of 'm' names model 'b', which is not there"]


def test_a_shadow_of_the_same_model_is_served_beside_the_policy() -> None:
    artifacts = versions(9, 10, 2, shadow=Shadow(5, version=2))
    assert wanted(artifacts) == [10, 2]
    assert wanted(versions(9, 10, shadow=Shadow(5, model="m", version=9))) == [10, 9]
    assert wanted(versions(9, 10, shadow=Shadow(5, model="other", version=9))) == [10]
    assert missing(artifacts) == []
    assert missing(versions(9, shadow=Shadow(5, version=2))) == ["shadow names version 2, which 'm' does not have"]


def test_all_is_all() -> None:
    assert wanted(versions(9, 10, 2, version_policy="all")) == [10, 9, 2]


def test_specific_versions_are_served_if_they_are_there() -> None:
    artifacts = versions(9, 10, 2, version_policy=VersionPolicy(specific=[2, 9, 7]))
    assert wanted(artifacts) == [9, 2]
    assert missing(artifacts) == ["version_policy names version 7, which 'm' does not have"]


@pytest.mark.parametrize("policy", ["latest", "all", VersionPolicy(latest=3), VersionPolicy(specific=[1])])
def test_of_nothing_nothing_is_served_or_missing(policy: Any) -> None:
    assert (aspired([]), missing([])) == ([], [])
    assert missing(versions(1, version_policy=policy)) == []


def test_the_highest_version_knows_the_policy_while_another_has_not_settled() -> None:
    assert wanted([*versions(1), *versions(2, version_policy="all")]) == [2, 1]


def test_a_version_with_a_problem_is_wanted_all_the_same() -> None:
    broken = Artifact("m", 3, "", Path(), ModelConfig(), "no artifact")
    assert aspired([broken, *versions(2)]) == [broken]


@pytest.mark.parametrize("starting", [NEW, LOADING])
def test_no_version_that_serves_goes_while_a_wanted_one_loads(starting: State) -> None:
    assert to_drain({1: READY, 2: COLD}, [READY, starting]) == []
    assert to_drain({1: FAILED, 2: READY}, [starting]) == [1]


def test_all_go_when_the_wanted_ones_are_there() -> None:
    assert to_drain({1: READY, 2: COLD, 3: FAILED}, [READY]) == [1, 2, 3]
    assert to_drain({1: READY}, [COLD]) == [1]


def test_all_go_when_nothing_is_wanted() -> None:
    assert to_drain({1: READY, 2: READY}, []) == [1, 2]


def test_for_each_wanted_one_that_failed_the_highest_that_serves_is_kept() -> None:
    assert to_drain({1: READY, 2: READY, 3: READY}, [FAILED]) == [1, 2]
    assert to_drain({1: READY, 2: READY, 3: FAILED}, [FAILED, READY]) == [1, 3]
    assert to_drain({1: READY, 2: READY}, [FAILED, FAILED, FAILED]) == []


def test_what_already_goes_is_not_sent_again() -> None:
    assert to_drain({1: State.DRAINING, 2: State.UNLOADED, 3: LOADING, 4: READY}, [READY]) == [4]


states = st.dictionaries(st.integers(0, 9), st.sampled_from(State))


@given(states, st.lists(st.sampled_from(State), max_size=5))
def test_the_model_never_serves_fewer_versions_than_are_wanted_if_it_could(
    unwanted: dict[int, State], wanted_ones: list[State]
) -> None:
    def serving(of: list[State]) -> int:
        return sum(state in (READY, COLD) for state in of)

    going = to_drain(unwanted, wanted_ones)
    kept = [state for version, state in unwanted.items() if version not in going]
    lacking = sum(state in (NEW, LOADING, FAILED) for state in wanted_ones)
    assert serving(kept) >= min(lacking, serving(list(unwanted.values())))
    assert going == sorted(going)


def test_labels_of_versions_that_are_not_there_are_told() -> None:
    config = ModelConfig(version_labels={"stable": 1, "old": 1, "canary": 7})
    assert dangling_labels(config, [1, 2]) == ["label 'canary' points to version 7, which is not served"]
    assert dangling_labels(ModelConfig(), [1]) == []


def test_a_label_moves_when_the_version_it_is_to_name_serves_and_not_before() -> None:
    before = labels_now({"stable": 1}, {1}, {})
    assert before == {"stable": 1}
    assert labels_now({"stable": 2}, {1}, before) == {"stable": 1}
    assert labels_now({"stable": 2}, {1, 2}, before) == {"stable": 2}


def test_a_label_whose_versions_do_not_serve_names_the_one_that_it_should() -> None:
    assert labels_now({"stable": 2}, set(), {"stable": 1}) == {"stable": 2}
    assert labels_now({}, {1}, {"stable": 1}) == {}
