from stage import artifact

from gateway.lifecycle.wanted import Wanted, default_now, workers_now
from gateway.store.manifest import VersionPolicy
from gateway.store.source import Artifact


def wanted_of(*artifacts: Artifact) -> Wanted:
    wanted = Wanted()
    wanted.see(artifacts)
    return wanted


def numbers(wanted: Wanted) -> list[int]:
    return [each.version for each in wanted.now("m")]


def test_the_chosen_default_counts_while_it_serves() -> None:
    assert default_now(1, [1, 2]) == 1
    assert default_now(3, [1, 2]) == 2
    assert default_now(None, [1, 2]) == 2
    assert default_now(1, []) is None


def test_instances_are_as_many_as_before_within_the_bounds() -> None:
    assert [workers_now(have, 2, 4) for have in (1, 3, 9)] == [2, 3, 4]


def test_versions_added_by_hand_are_wanted_beside_those_of_the_policy() -> None:
    wanted = wanted_of(artifact(version=1), artifact(version=2))
    assert numbers(wanted) == [2]
    wanted.add("m", {1})
    assert numbers(wanted) == [2, 1]
    wanted.remove("m", 2)
    assert numbers(wanted) == [1]
    assert wanted.remembers(("m", 2))
    wanted.load("m")
    assert numbers(wanted) == [2]


def test_what_is_said_by_hand_outlives_a_look_at_the_store_but_not_a_changed_model_yaml() -> None:
    wanted = wanted_of(artifact(version=1), artifact(version=2))
    wanted.add("m", {1})
    wanted.see([artifact(version=1, stamp=7), artifact(version=2)])
    assert numbers(wanted) == [2, 1]
    changed = VersionPolicy(latest=1)
    wanted.see([artifact(version=number, version_policy=changed, threads=3) for number in (1, 2)])
    assert numbers(wanted) == [2]


def test_of_an_unloaded_model_only_what_is_added_is_wanted() -> None:
    wanted = wanted_of(artifact(version=1), artifact(version=2))
    wanted.unload("m")
    assert numbers(wanted) == []
    assert wanted.remembers(("m", 2))
    wanted.add("m", {1})
    assert numbers(wanted) == [1]
