import asyncio
from dataclasses import replace

import pytest
from stage import PATIENCE, Stage, artifact, staged

from gateway.errors import ModelNotReady, OutOfMemory, VersionNotFound
from gateway.lifecycle import keeper, scarcity
from gateway.lifecycle import residency as module
from gateway.lifecycle.placement import CPU, LEAST_BYTES, Device
from gateway.lifecycle.state import State
from gateway.nodes.node import DeviceMemory, Instance
from gateway.store.manifest import InstanceGroup

BUDGET = {"cpu": 31}


def of_ten_bytes(stage: Stage) -> None:
    """Every model takes ten bytes, and that is known."""
    stage.guess = 10
    stage.node.private = dict.fromkeys("abcdef", 10)


async def wake(stage: Stage, name: str) -> None:
    await wake_version(stage, name, 1)


async def wake_version(stage: Stage, name: str, number: int) -> None:
    async with asyncio.timeout(PATIENCE):
        await stage.manager.wake(name, number)


async def test_at_the_start_as_many_are_loaded_as_there_is_room_for() -> None:
    async with staged(*map(artifact, "abcde"), budgets=BUDGET) as stage:
        of_ten_bytes(stage)
        await stage.serve()
        assert sorted(stage.states().values()) == ["COLD", "COLD", "READY", "READY", "READY"]
        assert stage.manager.settled
        assert not stage.residency.account.evictions


async def test_pinned_models_are_loaded_first_and_never_evicted() -> None:
    pinned = [artifact(name, pinned=True) for name in "de"]
    async with staged(*map(artifact, "abc"), *pinned, budgets=BUDGET) as stage:
        of_ten_bytes(stage)
        await stage.serve()
        for name in "abcabc":
            await wake(stage, name)
        states = stage.states()
        assert (states["d/1"], states["e/1"]) == ("READY", "READY")
        assert sorted(states.values()) == ["COLD", "COLD", "READY", "READY", "READY"]


async def test_a_cold_model_is_loaded_for_a_request_and_the_least_recently_used_one_goes() -> None:
    async with staged(*map(artifact, "abcd"), budgets=BUDGET) as stage:
        of_ten_bytes(stage)
        await stage.serve()
        now = asyncio.get_running_loop().time()
        stage.usage = {("a", 1): (now + 3, 0), ("b", 1): (now + 1, 0), ("c", 1): (now + 2, 0)}
        await wake(stage, "d")
        assert stage.states() == {"a/1": "READY", "b/1": "COLD", "c/1": "READY", "d/1": "READY"}
        assert stage.residency.account.evictions == {("b", 1): 1}
        assert stage.residency.account.reclaimed == {"cpu": 10}


async def test_the_memory_is_back_before_the_next_model_is_started() -> None:
    async with staged(*map(artifact, "abcd"), budgets=BUDGET) as stage:
        of_ten_bytes(stage)
        await stage.serve()
        stage.log.clear()
        await wake(stage, "d")
        stopped = next(index for index, line in enumerate(stage.log) if line.startswith("stop"))
        started = next(index for index, line in enumerate(stage.log) if line.startswith("spawn"))
        assert stopped < started
        assert len(stage.node.running) == 3


async def test_the_routes_say_cold_while_a_model_goes_cold_so_that_requests_wait() -> None:
    async with staged(*map(artifact, "abcd"), budgets=BUDGET) as stage:
        of_ten_bytes(stage)
        await stage.serve()
        stage.tables.clear()
        await wake(stage, "d")
        seen = {route.state for table in stage.tables for route in table}
        assert seen == {"READY", "COLD"}


async def test_a_model_in_use_is_not_evicted_but_waited_for() -> None:
    async with staged(*map(artifact, "abcd"), budgets=BUDGET) as stage:
        of_ten_bytes(stage)
        await stage.serve()
        stage.usage = {(name, 1): (1.0, 1) for name in "abc"}
        waking = asyncio.create_task(wake(stage, "d"))
        await stage.until_quiet()
        assert not waking.done()
        assert stage.states()["d/1"] == "COLD"
        stage.usage[("c", 1)] = (1.0, 0)
        await waking
        assert stage.states()["c/1"] == "COLD"


async def test_where_everything_stays_in_use_the_request_is_told() -> None:
    async with staged(*map(artifact, "abcd"), budgets=BUDGET) as stage:
        of_ten_bytes(stage)
        await stage.serve()
        stage.residency.patience = 0.01
        stage.usage = {(name, 1): (1.0, 1) for name in "abc"}
        with pytest.raises(OutOfMemory, match="in use"):
            await wake(stage, "d")
        assert stage.states()["d/1"] == "COLD", "its next request tries again"


async def test_a_version_that_waits_for_memory_holds_up_no_other_that_fits() -> None:
    async with staged(*map(artifact, "abcd"), artifact("big"), budgets=BUDGET) as stage:
        of_ten_bytes(stage)
        stage.footprints.known = {"big": 30}
        stage.node.private["big"] = 30
        await stage.serve()
        for name in "abc":
            await wake(stage, name)
        stage.usage = {("a", 1): (1.0, 1), ("b", 1): (1.0, 1)}
        waiting = asyncio.create_task(stage.manager.wake("big", 1))
        await stage.until_quiet()
        await wake(stage, "d")
        assert stage.states() == {"a/1": "READY", "b/1": "READY", "c/1": "COLD", "d/1": "READY", "big/1": "COLD"}
        assert not waiting.done()
        stage.usage = {}
        await asyncio.wait_for(waiting, PATIENCE)
        assert stage.states()["big/1"] == "READY"


async def test_a_version_that_waits_for_memory_holds_up_no_other_of_its_model_nor_its_unload() -> None:
    both = [artifact("a", number, version_policy="all") for number in (1, 2)]
    async with staged(*both, artifact("b"), artifact("c"), budgets=BUDGET) as stage:
        of_ten_bytes(stage)
        await stage.serve()
        await stage.unload_until_cold("a", 1)
        stage.usage = dict.fromkeys(stage.manager.versions, (1.0, 1))
        waiting = asyncio.create_task(stage.manager.wake("a", 1))
        await stage.until_quiet()
        await wake_version(stage, "a", 2)
        async with asyncio.timeout(PATIENCE):
            await stage.manager.unload("a")
            with pytest.raises(ModelNotReady, match="UNLOADED"):
                await waiting


async def test_while_others_go_for_one_version_their_memory_is_not_given_to_another() -> None:
    async with staged(*map(artifact, "abcd"), artifact("big"), budgets=BUDGET) as stage:
        of_ten_bytes(stage)
        stage.footprints.known = {"big": 30}
        stage.node.private["big"] = 30
        await stage.serve()
        for name in "abc":
            await wake(stage, name)
        leaving: list[Instance] = []
        stage.node.on_stop = leaving.append
        waiting = asyncio.create_task(stage.manager.wake("big", 1))
        await stage.until(lambda: len(leaving) == 3)
        stage.node.end(leaving[0], 0)
        late = asyncio.create_task(stage.manager.wake("d", 1))
        await stage.until_quiet()
        assert not late.done()
        for each in leaving[1:]:
            stage.node.end(each, 0)
        await asyncio.wait_for(waiting, PATIENCE)
        stage.node.on_stop = lambda instance: stage.node.end(instance, 0)
        await asyncio.wait_for(late, PATIENCE)


async def test_versions_of_one_model_take_turns_in_memory() -> None:
    both = [artifact("a", number, version_policy="all") for number in (1, 2)]
    async with staged(*both, budgets={"cpu": 11}) as stage:
        of_ten_bytes(stage)
        await stage.serve()
        for number in (1, 2, 1):
            await wake_version(stage, "a", number)
            assert stage.states() == {"a/1": "COLD", "a/2": "COLD"} | {f"a/{number}": "READY"}


async def test_workers_are_asked_once_however_many_versions_wait_for_memory() -> None:
    async with staged(*map(artifact, "abcdef"), budgets=BUDGET) as stage:
        of_ten_bytes(stage)
        await stage.serve()
        cold = [name[0] for name, state in stage.states().items() if state == "COLD"]
        stage.usage = dict.fromkeys(stage.manager.versions, (1.0, 1))
        asked: list[int] = []
        first, answered = asyncio.Event(), asyncio.Event()

        async def usage() -> dict[tuple[str, int], tuple[float, int]]:
            asked.append(1)
            first.set()
            await answered.wait()
            return {}

        stage.on_usage = usage
        waking = [asyncio.create_task(wake(stage, name)) for name in cold]
        await asyncio.wait_for(first.wait(), PATIENCE)
        await stage.until_quiet()
        assert (len(cold), len(asked)) == (3, 1)
        answered.set()
        await asyncio.gather(*waking)


async def test_what_can_never_fit_is_failed_with_both_numbers() -> None:
    async with staged(artifact("a"), budgets=BUDGET) as stage:
        stage.guess = 32
        await stage.serve()
        route = stage.tables[-1][0]
        assert (route.state, route.refusal) == ("FAILED", "out_of_memory")
        assert route.reason == "it needs 32 B of memory and the budget is 31 B"
        assert not stage.node.spawned


async def test_what_turns_out_never_to_fit_is_failed_and_ended() -> None:
    async with staged(artifact("a"), budgets=BUDGET) as stage:
        stage.node.private = {"a": 32}
        await stage.serve()
        route = stage.tables[-1][0]
        assert (route.state, route.refusal) == ("FAILED", "out_of_memory")
        assert not stage.node.running
        assert not stage.residency.account.held


async def test_a_measured_footprint_counts_from_then_on_also_for_the_next_start() -> None:
    async with staged(*map(artifact, "ab"), budgets=BUDGET) as stage:
        stage.node.private = {"a": 20, "b": 20}
        await stage.serve()
        assert stage.footprints.known == {"a": 20, "b": 20}
        await stage.look_at_memory()
        assert sorted(stage.states().values()) == ["COLD", "READY"], "together they are over the budget"


async def test_a_model_that_grows_over_the_budget_makes_others_go() -> None:
    async with staged(*map(artifact, "abc"), budgets=BUDGET) as stage:
        of_ten_bytes(stage)
        await stage.serve()
        stage.usage = {("a", 1): (9.0, 1), ("b", 1): (1.0, 0), ("c", 1): (2.0, 0)}
        stage.node.grown = {"a": 5}
        await stage.look_at_memory()
        assert stage.states() == {"a/1": "READY", "b/1": "COLD", "c/1": "READY"}


async def test_the_most_memory_that_an_instance_was_seen_with_is_remembered() -> None:
    async with staged(artifact("a"), budgets=BUDGET) as stage:
        of_ten_bytes(stage)
        await stage.serve()
        for grown in (7, 2):
            stage.node.grown = {"a": grown}
            await stage.look_at_memory()
        assert list(stage.residency.account.peaks.values()) == [17]


async def test_an_instance_over_its_memory_limit_is_ended_alone_and_its_requests_are_told() -> None:
    async with staged(artifact("a", memory_limit=15), artifact("b")) as stage:
        of_ten_bytes(stage)
        await stage.serve()
        stage.node.grown = {"a": 5, "b": 50}
        await stage.look_at_memory()
        assert not stage.died
        stage.node.grown = {"a": 6, "b": 50}
        await stage.look_at_memory()
        stage.node.grown = {}
        await stage.until(lambda: len(stage.node.running) == 2)
        assert [(died.instance.split("#")[0], died.error_code) for died in stage.died] == [("a/1", "out_of_memory")]
        assert "15 B" in stage.died[0].reason


MATTERS = scarcity.matters(scarcity.RESERVE_BYTES)


def short_of_memory(stage: Stage, **grown: int) -> None:
    """Models have grown by so much, and hardly any memory is left."""
    stage.node.grown = grown
    stage.node.left = scarcity.RESERVE_BYTES - 1


def ended(stage: Stage) -> list[tuple[str, str]]:
    return [(died.instance.split("#")[0], died.error_code) for died in stage.died]


async def look(stage: Stage, times: int = 1) -> None:
    for _ in range(times):
        await stage.look_at_memory()
        await stage.until_quiet()


async def test_before_the_machine_runs_out_of_memory_the_instance_that_has_grown_most_is_ended() -> None:
    async with staged(*map(artifact, "abc")) as stage:
        await stage.serve()
        stage.node.grown = {"a": MATTERS, "b": 2 * MATTERS}
        await look(stage)
        assert not stage.died
        short_of_memory(stage, a=MATTERS, b=2 * MATTERS)
        await look(stage)
        assert ended(stage) == [("b/1", "out_of_memory")]
        assert "has grown by 134.2 MB" in stage.died[0].reason
        assert stage.keeper.restarts == {("b/1", "low_memory"): 1}
        assert "has grown by 134.2 MB" in stage.version("b").reason


async def test_memory_that_other_programs_took_ends_no_model_that_has_hardly_grown(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with staged(*map(artifact, "abc")) as stage:
        await stage.serve()
        short_of_memory(stage, a=MATTERS - 1, b=11 << 20, c=24 << 20)
        await look(stage, 5)
        assert not stage.died
        assert len([record for record in caplog.records if "other programs" in record.message]) == 1


async def test_for_lack_of_memory_one_instance_is_ended_at_a_time() -> None:
    async with staged(*map(artifact, "abc")) as stage:
        await stage.serve()
        short_of_memory(stage, a=MATTERS, b=3 * MATTERS, c=2 * MATTERS)
        await look(stage, 5)
        assert ended(stage) == [("b/1", "out_of_memory")]


async def test_the_next_instance_is_not_ended_before_the_last_one_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EFFECT_SECONDS", 0.0)
    async with staged(*map(artifact, "ab")) as stage:
        await stage.serve()
        killed: list[Instance] = []
        monkeypatch.setattr(stage.node, "stop", lambda instance, *, kill: killed.append(instance) if kill else None)
        short_of_memory(stage, a=MATTERS, b=2 * MATTERS)
        await look(stage, 3)
        assert [each.artifact.model for each in killed] == ["b"]
        stage.node.end(killed[0], -9)
        stage.node.grown.pop("b")
        await look(stage)
        assert [each.artifact.model for each in killed] == ["b", "a"]
        monkeypatch.undo()


async def test_what_leaked_slowly_has_grown_most_however_often_it_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FRESH_SECONDS", -1.0)
    async with staged(*map(artifact, "ab")) as stage:
        await stage.serve()
        for leaked in (MATTERS, 2 * MATTERS, 3 * MATTERS):
            stage.node.grown = {"a": leaked}
            stage.node.private = {"a": leaked}
            await stage.look_at_memory()
        short_of_memory(stage, a=3 * MATTERS, b=2 * MATTERS)
        await look(stage)
        assert [name for name, _ in ended(stage)] == ["a/1"]


async def test_a_replacement_is_measured_too() -> None:
    async with staged(artifact("a", memory_limit=15)) as stage:
        of_ten_bytes(stage)
        await stage.serve()
        stage.node.end(stage.node.spawned[0], -9)
        await stage.until(lambda: stage.routed("a") == ["a/1#0.1"])
        await stage.look_at_memory()
        stage.node.grown = {"a": 6}
        await stage.look_at_memory()
        await stage.until_quiet()
        assert [died.error_code for died in stage.died] == ["instance_died", "out_of_memory"]


async def test_a_model_idle_for_longer_than_its_idle_ttl_goes_cold() -> None:
    async with staged(artifact("a", idle_ttl=5.0), artifact("b")) as stage:
        await stage.serve()
        now = asyncio.get_running_loop().time()
        stage.version("a").ready_since = now - 100
        for last_used, under_way, expected in ((now - 1, 0, "READY"), (now - 9, 1, "READY"), (now - 9, 0, "COLD")):
            stage.usage = {("a", 1): (last_used, under_way)}
            await stage.look_at_memory()
            await stage.publish()
            assert stage.states() == {"a/1": expected, "b/1": "READY"}


async def test_waking_is_done_once_however_many_ask() -> None:
    async with staged(*map(artifact, "abcd"), budgets=BUDGET) as stage:
        of_ten_bytes(stage)
        await stage.serve()
        spawned = len(stage.node.spawned)
        await asyncio.gather(*(wake(stage, "d") for _ in range(10)))
        assert len(stage.node.spawned) == spawned + 1


async def test_a_cold_version_that_fails_to_load_says_why_and_one_that_is_gone_too() -> None:
    async with staged(*map(artifact, "abcd"), budgets=BUDGET) as stage:
        of_ten_bytes(stage)
        await stage.serve()
        stage.node.on_spawn = lambda instance: stage.node.fail(instance, "torn file")
        with pytest.raises(Exception, match="torn file"):
            await wake(stage, "d")
        assert stage.states()["d/1"] == "FAILED"
        with pytest.raises(VersionNotFound):
            await stage.manager.wake("d", 2)


async def test_many_models_are_woken_at_random_and_the_budget_is_kept_throughout() -> None:
    names = "abcdef"
    async with staged(*map(artifact, names), budgets=BUDGET) as stage:
        of_ten_bytes(stage)
        await stage.serve()
        for turn in range(60):
            chosen = [names[(turn * 5 + step) % 6] for step in range(3)]
            await asyncio.gather(*(wake(stage, name) for name in chosen))
            assert len(stage.node.running) <= 3
            assert sum(holds.get("cpu", 0) for holds in stage.residency.account.held.values()) <= 31


async def test_a_cold_version_is_unloaded_and_loaded_like_any_other() -> None:
    async with staged(*map(artifact, "abcd"), budgets=BUDGET) as stage:
        of_ten_bytes(stage)
        await stage.serve()
        await stage.manager.unload("d")
        assert stage.states()["d/1"] == "UNLOADED"
        await stage.load("d")
        assert stage.states()["d/1"] == "READY"
        assert stage.version("d").state is State.READY
        assert len(stage.node.running) == 3


async def test_what_was_loaded_a_moment_ago_and_not_used_yet_is_not_the_first_to_go() -> None:
    async with staged(*map(artifact, "abcd"), budgets=BUDGET) as stage:
        of_ten_bytes(stage)
        await stage.serve()
        now = asyncio.get_running_loop().time()
        stage.version("c").ready_since = now + 5
        stage.usage = {("a", 1): (now + 2, 0), ("b", 1): (now + 1, 0)}
        await wake(stage, "d")
        assert stage.states()["b/1"] == "COLD"


async def test_a_version_that_is_given_up_holds_no_memory() -> None:
    async with staged(artifact("a"), artifact("b"), budgets={"cpu": 12}) as stage:
        of_ten_bytes(stage)
        await stage.serve()
        resident = stage.node.spawned[0].artifact.model
        other = "b" if resident == "a" else "a"
        stage.node.on_spawn = lambda instance: stage.node.fail(instance, "disk full")
        stage.node.end(stage.node.spawned[0], 1)
        await stage.until(lambda: stage.states()[f"{resident}/1"] == "FAILED")
        await stage.until_quiet()
        assert not stage.residency.account.held
        stage.node.on_spawn = stage.node.succeed
        await wake(stage, other)
        assert stage.states()[f"{other}/1"] == "READY"


async def test_a_cold_version_beside_one_that_serves_stays_cold_if_there_is_no_room_now() -> None:
    versions = [artifact("a", number, version_policy="all") for number in (1, 2)]
    async with staged(*versions, artifact("b"), artifact("c"), budgets=BUDGET) as stage:
        of_ten_bytes(stage)
        await stage.serve()
        await stage.unload_until_cold("a", 1)
        cold = stage.version("a", 1)
        stage.residency.patience = 0.01
        stage.usage = dict.fromkeys(stage.manager.versions, (1.0, 1))
        with pytest.raises(OutOfMemory):
            await stage.manager.wake(*cold.key)
        assert cold.state is State.COLD
        stage.usage = {}
        await stage.manager.wake(*cold.key)
        assert cold.state is State.READY


async def test_a_replacement_that_was_to_come_does_not_come_after_its_version_went_cold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with staged(artifact("a")) as stage:
        await stage.serve()
        stage.node.end(stage.version("a").instances[0], -9)
        await stage.until(lambda: stage.routed("a") == ["a/1#0.1"])
        monkeypatch.setattr(keeper, "FIRST_BACKOFF_SECONDS", 0.05)  # the second quick death makes the next start wait
        stage.node.end(stage.version("a").instances[0], -9)
        await stage.until(lambda: stage.routed("a") == [])
        assert await stage.manager.loader.evict(("a", 1))
        await wake(stage, "a")
        await asyncio.sleep(0.2)  # longer than the wait that was under way: what must not come would have come
        assert len(stage.version("a").instances) == 1
        assert len(stage.node.running) == 1


GPUS = [CPU, Device("cuda:0", "a"), Device("cuda:1", "b")]


async def test_models_that_load_together_go_where_memory_is_free_less_what_is_promised() -> None:
    async with staged(*map(artifact, "abc"), devices=GPUS) as stage:

        def take(instance: Instance) -> None:  # for what has loaded has promised nothing any more
            memory = stage.node.gpu_memory[instance.device.name]
            stage.node.gpu_memory[instance.device.name] = replace(memory, free=memory.free - LEAST_BYTES)
            stage.node.succeed(instance)

        stage.node.on_spawn = take
        stage.node.gpu_memory = {
            "cuda:0": DeviceMemory(4 * LEAST_BYTES, 3 * LEAST_BYTES, LEAST_BYTES),
            "cuda:1": DeviceMemory(4 * LEAST_BYTES, 2 * LEAST_BYTES - 1, LEAST_BYTES),
        }
        await stage.serve()
        assert sorted(each.device.name for each in stage.node.spawned) == ["cuda:0", "cuda:0", "cuda:1"]


async def test_an_instance_whose_gpu_is_lost_is_replaced_on_another() -> None:
    async with staged(artifact("a"), devices=list(GPUS)) as stage:
        await stage.serve()
        lost = stage.node.spawned[0].device
        stage.node.lose(lost)
        stage.node.end(stage.node.spawned[0], -9)
        await stage.until(lambda: stage.routed("a") == ["a/1#0.1"])
        assert stage.node.spawned[1].device.name == ("cuda:1" if lost.name == "cuda:0" else "cuda:0")


async def test_the_memory_of_an_instance_that_is_being_replaced_is_not_given_away() -> None:
    two = artifact("a", instance_group=InstanceGroup(count=2))
    async with staged(two, artifact("b"), budgets={"cpu": 26}) as stage:
        of_ten_bytes(stage)
        await stage.serve()
        stage.node.on_spawn = lambda _: None
        stage.node.end(stage.version("a").instances[0], -9)
        await stage.until(lambda: len(stage.routed("a")) == 1)
        await stage.look_at_memory()
        assert stage.residency.account.held[stage.version("a")] == {"cpu": 20}
