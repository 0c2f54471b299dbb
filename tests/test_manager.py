import asyncio
from typing import Any

import pytest
from stage import PATIENCE, Stage, artifact, ready_of, staged

from gateway.errors import LoadFailed, ModelNotFound
from gateway.lifecycle import keeper as module
from gateway.lifecycle import loader
from gateway.lifecycle.keeper import QUICK_DEATHS, STARTS
from gateway.lifecycle.placement import CPU, Device
from gateway.lifecycle.state import State
from gateway.store.manifest import InstanceGroup, TensorConfig, VersionPolicy
from gateway.store.source import Inventory


@pytest.fixture(autouse=True)
def _no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_BACKOFF_SECONDS", 0.0)


async def test_a_version_is_loaded_then_routed() -> None:
    async with staged(artifact()) as stage:
        await stage.serve()
        assert stage.version().state is State.READY
        assert stage.settled == ["m/1 READY"]
        assert stage.manager.settled
        assert [route.state for table in stage.tables for route in table][:2] == ["LOADING", "READY"]
        assert stage.log[:3] == ["publish nothing", "spawn m/1#0.0", "publish m/1#0.0"]
        route = stage.tables[-1][0]
        assert route.ready == stage.version().ready
        assert stage.version().load_seconds >= 0


async def test_the_reason_of_a_failed_load_is_told_and_nothing_is_routed() -> None:
    async with staged(artifact()) as stage:
        stage.node.on_spawn = lambda instance: stage.node.fail(instance, "no layer fits")
        await stage.serve()
        route = stage.tables[-1][0]
        assert (route.state, route.reason, route.instances, route.ready) == ("FAILED", "no layer fits", [], None)
        assert stage.settled == ["m/1 FAILED"]
        assert stage.manager.settled
        assert not stage.node.running


async def test_an_artifact_with_a_problem_fails_without_a_process() -> None:
    async with staged(artifact(problem="model.yaml is not YAML"), artifact("good")) as stage:
        await stage.serve()
        assert stage.version().reason == "model.yaml is not YAML"
        assert [instance.artifact.model for instance in stage.node.spawned] == ["good"]
        assert stage.states() == {"m/1": "FAILED", "good/1": "READY"}


async def test_a_model_that_is_not_ready_in_time_fails_and_its_process_ends() -> None:
    async with staged(artifact(), timeout=0.01) as stage:
        stage.node.on_spawn = lambda _: None
        await stage.serve()
        assert stage.version().state is State.FAILED
        assert "0.01 s" in stage.version().reason
        assert not stage.node.running


async def test_every_instance_of_a_group_is_started_and_routed() -> None:
    config: dict[str, Any] = {"instance_group": [InstanceGroup(count=2, kind="cpu"), InstanceGroup(kind="cpu")]}
    async with staged(artifact(**config)) as stage:
        await stage.serve()
        assert stage.routed() == ["m/1#0.0", "m/1#1.1", "m/1#2.2"]


async def test_one_instance_that_cannot_load_fails_the_version_and_ends_its_siblings() -> None:
    async with staged(artifact(instance_group=InstanceGroup(count=3))) as stage:
        stage.node.on_spawn = lambda instance: (
            stage.node.fail(instance, "out of luck") if instance.index == 1 else stage.node.succeed(instance)
        )
        await stage.serve()
        assert stage.version().reason == "out of luck"
        assert not stage.node.running
        assert stage.version().instances == []


async def test_a_runner_that_cannot_start_fails_the_version() -> None:
    async with staged(artifact()) as stage:

        def refuse() -> None:
            raise LoadFailed("is pytorch installed?")

        stage.node.before_spawn = refuse
        await stage.serve()
        assert stage.version().reason == "is pytorch installed?"


async def test_a_gpu_that_is_not_there_fails_the_version() -> None:
    async with staged(artifact(instance_group=InstanceGroup(kind="gpu"))) as stage:
        await stage.serve()
        assert stage.version().state is State.FAILED
        assert "GPU" in stage.version().reason
        assert not stage.node.spawned


async def test_models_that_load_together_are_spread_over_the_gpus() -> None:
    gpus = [CPU, Device("cuda:0", "a"), Device("cuda:1", "b")]
    async with staged(artifact("one"), artifact("two"), devices=gpus) as stage:
        await stage.serve()
        assert sorted(instance.device.name for instance in stage.node.spawned) == ["cuda:0", "cuda:1"]


async def test_a_model_loaded_later_goes_where_there_is_least() -> None:
    gpus = [CPU, Device("cuda:0", "a"), Device("cuda:1", "b")]
    async with staged(artifact("one"), devices=gpus) as stage:
        await stage.serve()
        stage.store.append(artifact("two"))
        await stage.load("two")
        assert [instance.device.name for instance in stage.node.spawned] == ["cuda:0", "cuda:1"]


async def test_an_instance_that_dies_is_taken_out_of_the_routes_and_replaced() -> None:
    async with staged(artifact()) as stage:
        await stage.serve()
        stage.log.clear()
        stage.node.end(stage.node.spawned[0], -11)
        await stage.until(lambda: stage.routed() == ["m/1#0.1"])
        assert stage.log == ["publish nothing", "spawn m/1#0.1", "publish m/1#0.1"]
        assert stage.version().state is State.READY
        assert stage.keeper.restarts == {("m/1", "signal 11"): 1}
        assert stage.version().ready == ready_of(stage.node.spawned[1].pid)


async def test_while_one_of_two_instances_is_replaced_the_other_serves() -> None:
    async with staged(artifact(instance_group=InstanceGroup(count=2))) as stage:
        await stage.serve()
        stage.tables.clear()
        stage.node.end(stage.node.spawned[0], 3)
        await stage.until(lambda: bool(stage.tables) and len(stage.routed()) == 2)
        assert all("m/1#1.1" in [each.instance for each in table[0].instances] for table in stage.tables)
        assert stage.node.spawned[2].index == 0
        assert stage.keeper.restarts == {("m/1", "exit 3"): 1}


async def test_a_version_whose_instances_keep_dying_at_once_is_failed_in_the_end() -> None:
    async with staged(artifact(instance_group=InstanceGroup(count=2))) as stage:
        await stage.serve()
        stage.node.on_spawn = lambda instance: (stage.node.succeed(instance), stage.node.end(instance, 7))[0]
        stage.node.end(stage.node.spawned[0], 7)
        await stage.until(lambda: stage.states() == {"m/1": "FAILED"})
        assert f"ended {QUICK_DEATHS + 1} times" in stage.version().reason
        assert "exit 7" in stage.version().reason
        assert len(stage.node.spawned) == 2 + QUICK_DEATHS
        assert stage.routed() == []
        await stage.until_quiet()
        assert not stage.node.running


async def test_deaths_of_instances_that_lived_a_while_never_fail_a_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUICK_SECONDS", -1.0)
    async with staged(artifact()) as stage:
        await stage.serve()
        for number in range(2 * QUICK_DEATHS):
            stage.node.end(stage.node.spawned[number], 1)
            await stage.until(lambda number=number: stage.routed() == [f"m/1#0.{number + 1}"])  # type: ignore[misc]
        assert stage.version().state is State.READY


async def test_a_version_whose_replacement_cannot_start_is_failed_after_five_attempts() -> None:
    async with staged(artifact()) as stage:
        await stage.serve()
        stage.node.on_spawn = lambda instance: stage.node.fail(instance, "disk full")
        stage.node.end(stage.node.spawned[0], 1)
        await stage.until(lambda: stage.states() == {"m/1": "FAILED"})
        assert len(stage.node.spawned) == 1 + STARTS
        assert "disk full" in stage.version().reason


async def test_while_one_instance_cannot_be_replaced_the_other_serves_on() -> None:
    async with staged(artifact(instance_group=InstanceGroup(count=2))) as stage:
        await stage.serve()
        stage.node.on_spawn = lambda instance: stage.node.fail(instance, "disk full")
        stage.node.end(stage.node.spawned[0], 1)
        await stage.node.until_spawned(3 * STARTS)
        assert stage.states() == {"m/1": "READY"}
        stage.node.on_spawn = stage.node.succeed
        await stage.until(lambda: len(stage.routed()) == 2)


async def test_a_process_that_dies_while_loading_is_tried_again() -> None:
    async with staged(artifact()) as stage:
        deaths = iter(range(STARTS - 1))
        stage.node.on_spawn = lambda instance: (
            stage.node.end(instance, -9) if next(deaths, None) is not None else stage.node.succeed(instance)
        )
        await stage.serve()
        assert stage.states() == {"m/1": "READY"}
        assert len(stage.node.spawned) == STARTS


async def test_a_process_that_always_dies_while_loading_fails_the_version_and_no_other() -> None:
    async with staged(artifact("bad"), artifact("good")) as stage:
        stage.node.on_spawn = lambda instance: (
            stage.node.end(instance, -11) if instance.artifact.model == "bad" else stage.node.succeed(instance)
        )
        await stage.serve()
        assert stage.states() == {"bad/1": "FAILED", "good/1": "READY"}
        assert f"{STARTS} times" in stage.version("bad").reason
        assert stage.manager.settled


async def test_the_workers_hear_of_a_death_and_why_before_the_routes_without_it() -> None:
    async with staged(artifact(execution_timeout=7.0)) as stage:
        await stage.serve()
        for number, (code, verdict, expected) in enumerate(
            [
                (-9, None, "instance_died"),
                (-14, None, "deadline"),
                (-9, ("out_of_memory", "too much"), "out_of_memory"),
            ]
        ):
            heard_at: list[int] = []
            stage.on_died = lambda _: heard_at.append(len(stage.tables))  # noqa: B023 - called in this turn
            before = len(stage.tables)
            instance = stage.node.spawned[number]
            instance.verdict = verdict
            stage.node.end(instance, code)
            await stage.until(lambda number=number: stage.routed() == [f"m/1#0.{number + 1}"])  # type: ignore[misc]
            assert (stage.died[-1].instance, stage.died[-1].error_code) == (instance.name, expected)
            assert heard_at == [before]
        assert "7 s" in stage.died[1].reason


async def test_a_replacement_that_is_not_ready_in_time_is_ended() -> None:
    async with staged(artifact(), timeout=0.01) as stage:
        await stage.serve()
        stage.node.on_spawn = lambda _: None
        stage.node.end(stage.node.spawned[0], 1)
        await stage.until(lambda: stage.states() == {"m/1": "FAILED"})
        assert not stage.node.running


async def test_unloading_ends_a_replacement_that_is_still_loading() -> None:
    async with staged(artifact()) as stage:
        await stage.serve()
        stage.node.on_spawn = lambda _: None
        stage.node.end(stage.node.spawned[0], 1)
        await stage.node.until_spawned(2)
        await stage.manager.unload("m")
        replacement = stage.node.spawned[1]
        stage.node.succeed(replacement)  # it becomes ready when nobody wants it any more
        for _ in range(10):
            await asyncio.sleep(0)
        assert stage.states() == {"m/1": "UNLOADED"}
        assert not stage.node.running


async def test_unloading_takes_a_version_out_of_the_routes_before_its_instances_are_stopped() -> None:
    async with staged(artifact(instance_group=InstanceGroup(count=2))) as stage:
        await stage.serve()
        stage.log.clear()
        await stage.manager.unload("m")
        assert stage.log == ["publish nothing", "stop m/1#0.0", "stop m/1#1.1", "publish nothing"]
        assert [table[0].state for table in stage.tables[-2:]] == ["DRAINING", "UNLOADED"]
        assert not stage.keeper.restarts


async def test_unloading_waits_until_the_instances_have_answered() -> None:
    async with staged(artifact()) as stage:
        await stage.serve()
        stopped = asyncio.Event()
        stage.node.on_stop = lambda _: stopped.set()
        unloading = asyncio.create_task(stage.manager.unload("m"))
        await asyncio.wait_for(stopped.wait(), PATIENCE)
        assert stage.version().state is State.DRAINING
        assert not unloading.done()
        stage.node.end(stage.node.spawned[0], 0)
        await asyncio.wait_for(unloading, PATIENCE)
        assert stage.version().state is State.UNLOADED


async def test_an_instance_that_does_not_stop_is_killed() -> None:
    async with staged(artifact(), timeout=0.02) as stage:
        await stage.serve()
        stage.node.on_stop = lambda _: None
        await stage.manager.unload("m")
        assert stage.log[-2:] == ["kill m/1#0.0", "publish nothing"]
        assert not stage.node.running


async def test_unloading_twice_is_no_error_and_what_was_never_there_is() -> None:
    async with staged(artifact()) as stage:
        await stage.serve()
        await stage.manager.unload("m")
        await stage.manager.unload("m")
        with pytest.raises(ModelNotFound):
            await stage.manager.unload("nobody")
        with pytest.raises(ModelNotFound):
            await stage.load("nobody")


async def test_an_unloaded_model_can_be_loaded_again() -> None:
    async with staged(artifact()) as stage:
        await stage.serve()
        await stage.manager.unload("m")
        await stage.load()
        assert stage.routed() == ["m/1#0.1"]
        assert stage.states() == {"m/1": "READY"}


async def test_a_failed_model_can_be_loaded_again() -> None:
    async with staged(artifact(problem="no artifact")) as stage:
        await stage.serve()
        stage.store[:] = [artifact()]
        await stage.load()
        assert stage.states() == {"m/1": "READY"}


async def test_a_failed_unload_of_a_failed_model_is_no_error() -> None:
    async with staged(artifact(problem="no artifact")) as stage:
        await stage.serve()
        await stage.manager.unload("m")
        assert stage.states() == {"m/1": "UNLOADED"}


@pytest.mark.parametrize("number", [1, 2])
async def test_a_reload_swaps_without_a_gap(number: int) -> None:
    async with staged(artifact()) as stage:
        await stage.serve()
        stage.store[:] = [artifact(version=number)]
        stage.tables.clear()
        stage.log.clear()
        await stage.load()
        assert all(any(route.instances for route in table) for table in stage.tables)
        assert stage.log.index("stop m/1#0.0") > stage.log.index(f"spawn m/{number}#0.1")
        assert stage.routed() == [f"m/{number}#0.1"]
        assert stage.node.running == [f"m/{number}#0.1"]
        assert list(stage.manager.versions) == [("m", number)]


async def test_the_old_version_is_stopped_only_when_the_workers_route_by_the_new_one() -> None:
    async with staged(artifact()) as stage:
        await stage.serve()
        stage.store[:] = [artifact(version=2)]
        await stage.load()
        stop = stage.log.index("stop m/1#0.0")
        assert stage.log[stop - 1] == "publish m/2#0.1"


@pytest.mark.parametrize("number", [1, 2])
async def test_a_reload_that_fails_leaves_the_old_version_serving(number: int) -> None:
    async with staged(artifact()) as stage:
        await stage.serve()
        stage.store[:] = [artifact(version=number)]
        stage.node.on_spawn = lambda instance: stage.node.fail(instance, "torn file")
        with pytest.raises(LoadFailed, match=f"'m' version {number}.*torn file"):
            await stage.load()
        await stage.publish()
        assert stage.routed() == ["m/1#0.0"]
        assert stage.node.running == ["m/1#0.0"]


async def test_loads_of_one_model_come_one_after_another() -> None:
    async with staged(artifact()) as stage:
        await stage.serve()
        await asyncio.gather(*(stage.load() for _ in range(3)))
        assert len(stage.node.running) == 1
        assert stage.routed() == stage.node.running


async def test_a_death_during_a_reload_does_not_bring_the_old_version_back() -> None:
    async with staged(artifact()) as stage:
        await stage.serve()
        stage.store[:] = [artifact(version=2)]
        stage.node.on_spawn = lambda instance: (
            stage.node.end(stage.node.spawned[0], -9) if instance.artifact.version == 2 else None,
            stage.node.succeed(instance),
        )[-1]
        await stage.load()
        for _ in range(20):
            await asyncio.sleep(0)
        assert list(stage.manager.versions) == [("m", 2)]
        assert stage.node.running == [name for name in stage.node.running if name.startswith("m/2")]


@pytest.mark.parametrize("action", ["load", "unload"])
async def test_a_call_of_the_repository_while_the_server_starts_does_not_end_the_server(action: str) -> None:
    async with staged(artifact()) as stage:
        stage.node.on_spawn = lambda _: None
        serving = asyncio.create_task(stage.serve())
        await stage.node.until_spawned(1)
        stage.node.on_spawn = stage.node.succeed
        call = asyncio.create_task(stage.load() if action == "load" else stage.manager.unload("m"))
        for _ in range(20):
            await asyncio.sleep(0)
        stage.node.succeed(stage.node.spawned[0])
        await asyncio.wait_for(call, PATIENCE)
        await asyncio.wait_for(serving, PATIENCE)
        assert stage.states() == {"m/1": "READY" if action == "load" else "UNLOADED"}
        assert len(stage.node.running) == (1 if action == "load" else 0)


async def test_nothing_is_replaced_once_the_manager_is_closed() -> None:
    stage = Stage(artifact())
    await stage.serve()
    await stage.manager.close()
    stage.node.end(stage.node.spawned[0], -9)
    for _ in range(10):
        await asyncio.sleep(0)
    assert len(stage.node.spawned) == 1


async def test_an_unexpected_error_of_the_node_fails_one_version_only() -> None:
    async with staged(artifact("bad"), artifact("good")) as stage:
        calls = iter([OSError("too many open files"), None])

        def refuse_once() -> None:
            error = next(calls, None)
            if error:
                raise error

        stage.node.before_spawn = refuse_once
        await stage.serve()
        assert sorted(stage.states().values()) == ["FAILED", "READY"]
        assert stage.manager.settled


# The store changes


async def test_a_new_version_takes_over_without_a_gap() -> None:
    async with staged(artifact()) as stage:
        await stage.serve()
        stage.store.append(artifact(version=2))
        stage.tables.clear()
        await stage.serve()
        assert all(any(route.instances for route in table) for table in stage.tables)
        assert stage.states() == {"m/2": "READY"}
        assert stage.log.index("stop m/1#0.0") > stage.log.index("publish m/1#0.0 m/2#0.1")
        assert stage.node.in_background == ["m/2#0.1"], "what serves goes first"


async def test_a_new_version_that_fails_leaves_the_old_one_serving_and_stands_in_the_index() -> None:
    async with staged(artifact()) as stage:
        await stage.serve()
        stage.store.append(artifact(version=2))
        stage.node.on_spawn = lambda instance: stage.node.fail(instance, "torn file")
        await stage.serve()
        assert stage.states() == {"m/1": "READY", "m/2": "FAILED"}
        assert stage.version(number=2).reason == "torn file"
        assert stage.routed() == ["m/1#0.0"]
        spawned = len(stage.node.spawned)
        await stage.serve()
        assert len(stage.node.spawned) == spawned, "the same files are not tried again"
        stage.node.on_spawn = stage.node.succeed
        stage.store[-1] = artifact(version=2, stamp=1)
        await stage.serve()
        assert stage.states() == {"m/2": "READY"}


async def test_files_changed_in_place_are_swapped_in() -> None:
    async with staged(artifact()) as stage:
        await stage.serve()
        stage.store[:] = [artifact(stamp=1)]
        stage.tables.clear()
        await stage.serve()
        assert all(table[0].instances for table in stage.tables)
        assert stage.node.running == ["m/1#0.1"]
        await stage.serve()
        assert stage.node.running == ["m/1#0.1"]


async def test_files_changed_in_place_that_fail_leave_the_running_ones_and_say_so() -> None:
    async with staged(artifact()) as stage:
        await stage.serve()
        stage.store[:] = [artifact(stamp=1)]
        stage.node.on_spawn = lambda instance: stage.node.fail(instance, "torn file")
        await stage.serve()
        await stage.serve()
        assert stage.node.running == ["m/1#0.0"]
        assert len(stage.node.spawned) == 2
        route = stage.tables[-1][0]
        assert (route.state, "torn file" in route.reason) == ("READY", True)


async def test_a_model_that_leaves_the_store_is_drained_and_gone() -> None:
    async with staged(artifact("a"), artifact("b")) as stage:
        await stage.serve()
        del stage.store[0]
        await stage.serve()
        assert stage.states() == {"b/1": "READY"}
        assert [name.split("#")[0] for name in stage.node.running] == ["b/1"]


async def test_an_unloaded_model_stays_so_when_the_store_changes_until_it_is_loaded() -> None:
    async with staged(artifact()) as stage:
        await stage.serve()
        await stage.manager.unload("m")
        stage.store.append(artifact(version=2))
        await stage.serve()
        assert not stage.node.running
        await stage.load()
        assert stage.states() == {"m/2": "READY"}


async def test_the_labels_of_classes_change_without_a_reload() -> None:
    def labelled(*labels: str) -> dict[str, Any]:
        return {"outputs": [TensorConfig("y", "FP32", [-1, 2], list(labels))]}

    async with staged(artifact(**labelled("cat", "dog"))) as stage:
        await stage.serve()
        spawned = len(stage.node.spawned)
        stage.store[:] = [artifact(**labelled("Katze", "Hund"))]
        await stage.serve()
        assert stage.tables[-1][0].config.outputs[0].labels == ["Katze", "Hund"]
        assert len(stage.node.spawned) == spawned


async def test_several_versions_are_served_if_the_policy_says_so_and_labels_follow() -> None:
    policy: dict[str, Any] = {"version_policy": VersionPolicy(latest=2), "version_labels": {"stable": 1, "canary": 2}}
    async with staged(artifact(**policy), artifact(version=2, **policy)) as stage:
        await stage.serve()
        assert stage.states() == {"m/1": "READY", "m/2": "READY"}
        assert {route.version: route.labels for route in stage.tables[-1]} == {1: ["stable"], 2: ["canary"]}
        moved = policy | {"version_labels": {"stable": 2}}
        stage.store[:] = [artifact(**moved), artifact(version=2, **moved)]
        spawned = len(stage.node.spawned)
        await stage.serve()
        assert {route.version: route.labels for route in stage.tables[-1]} == {1: [], 2: ["stable"]}
        assert len(stage.node.spawned) == spawned, "a label moves without a reload"


async def test_other_settings_of_an_instance_are_a_reload() -> None:
    async with staged(artifact()) as stage:
        await stage.serve()
        stage.store[:] = [artifact(threads=2)]
        await stage.serve()
        assert stage.node.running == ["m/1#0.1"]
        assert stage.version().artifact.config.threads == 2


async def test_a_label_names_a_serving_version_throughout_a_swap() -> None:
    labelled: dict[str, Any] = {"version_labels": {"stable": 1}}
    async with staged(artifact(**labelled)) as stage:
        await stage.serve()
        stage.tables.clear()
        stage.store[:] = [artifact(stamp=1, **labelled)]
        await stage.serve()
        moved: dict[str, Any] = {"version_labels": {"stable": 2}}
        stage.store[:] = [artifact(stamp=1, **moved), artifact(version=2, **moved)]
        await stage.serve()
        for table in stage.tables:
            assert [route.state for route in table if "stable" in route.labels] == ["READY"]
        assert [route.version for route in stage.tables[-1] if "stable" in route.labels] == [2]


async def test_a_load_with_a_model_yaml_that_says_nothing_takes_nothing_away() -> None:
    both: dict[str, Any] = {"version_policy": "all", "version_labels": {"stable": 1}}
    async with staged(artifact(**both), artifact(version=2, **both)) as stage:
        await stage.serve()
        stage.store[:] = [artifact(version=number, problem="model.yaml is not YAML") for number in (1, 2)]
        with pytest.raises(LoadFailed, match="not YAML"):
            await stage.load()
        await stage.publish()
        assert stage.states() == {"m/1": "READY", "m/2": "READY"}
        assert [route.version for route in stage.tables[-1] if "stable" in route.labels] == [1]


async def test_models_that_hang_while_they_load_do_not_hold_up_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "TURN_SECONDS", 0.01)
    hanging = [artifact(f"hangs{number}") for number in range(20)]
    async with staged(*hanging, artifact("good")) as stage:
        stage.node.on_spawn = lambda instance: (
            stage.node.succeed(instance) if instance.artifact.model == "good" else None
        )
        serving = asyncio.create_task(stage.manager.reconcile(Inventory(stage.store)))
        await stage.until(lambda: bool(stage.tables) and stage.states().get("good/1") == "READY")
        assert not serving.done(), "the others hang still"
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


async def test_an_unloaded_model_stays_in_the_index_for_as_long_as_it_is_in_the_store() -> None:
    async with staged(artifact("a")) as stage:
        await stage.serve()
        await stage.manager.unload("a")
        stage.store.append(artifact("b"))
        await stage.serve()
        assert stage.states() == {"a/1": "UNLOADED", "b/1": "READY"}
        await stage.manager.unload("a")
        del stage.store[0]
        await stage.serve()
        assert stage.states() == {"b/1": "READY"}


async def test_a_change_of_one_model_is_published_for_that_model_alone() -> None:
    async with staged(*(artifact(f"m{number}") for number in range(50))) as stage:
        await stage.serve()
        stage.tables.clear()
        stage.store.append(artifact("new"))
        await stage.serve()
        assert len(stage.tables) <= 4


async def test_an_instance_whose_device_is_gone_for_good_is_not_asked_for_again_and_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "FIRST_BACKOFF_SECONDS", 60.0)
    gpus = [CPU, Device("cuda:0", "a"), Device("cuda:1", "b")]
    async with staged(artifact(instance_group=InstanceGroup(gpus=[0, 1])), devices=gpus) as stage:
        await stage.serve()
        asked = 0

        def count() -> list[Device]:
            nonlocal asked
            asked += 1
            return gpus[:2]

        stage.node.devices = count  # type: ignore[method-assign,assignment]
        stage.node.end(stage.node.spawned[1], -9)
        await stage.until(lambda: stage.routed() == ["m/1#0.0"])
        await stage.until_quiet()
        assert 1 <= asked <= 3
        assert stage.states() == {"m/1": "READY"}


async def test_a_load_that_waits_for_its_turn_does_not_serve_files_that_have_left_the_store_meanwhile() -> None:
    async with staged(artifact()) as stage:
        stage.node.on_spawn = lambda _: None
        serving = asyncio.create_task(stage.serve())
        await stage.node.until_spawned(1)
        loading = asyncio.create_task(stage.load())
        await stage.until_quiet()
        stage.store.clear()
        leaving = asyncio.create_task(stage.serve())
        await stage.until_quiet()
        stage.node.on_spawn = stage.node.succeed
        stage.node.succeed(stage.node.spawned[0])
        with pytest.raises(ModelNotFound):
            await asyncio.wait_for(loading, PATIENCE)
        await asyncio.gather(serving, leaving)
        assert stage.manager.versions == {}
        assert not stage.node.running
