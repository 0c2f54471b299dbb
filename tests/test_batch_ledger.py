"""What an instance found out about its batches holds for the whole version, for as long as its files are the same."""

import logging

import msgspec
import pytest
from stage import Stage, artifact, ready_of, staged

from gateway.ipc.batch_reports import BatchesAgree, BatchesDisagree
from gateway.ipc.batching import Batching
from gateway.lifecycle import batch_ledger
from gateway.lifecycle import keeper as module
from gateway.nodes.node import Instance
from gateway.store.manifest import InstanceGroup

DIFFERENCE = "output 'y' differs by up to 2"
TWO = InstanceGroup(count=2)
OFF = f"off: {batch_ledger.FOUND}: {DIFFERENCE}"


@pytest.fixture(autouse=True)
def _no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_BACKOFF_SECONDS", 0.0)


def checked(stage: Stage) -> Stage:
    """Have all instances start with batching that traffic is to confirm, unless they are told otherwise."""

    def succeed(instance: Instance) -> None:
        found = stage.node.told_of_disagreement[instance.name]
        batching = Batching(1, f"off: {found}", shown=32) if found else Batching(32, "on: proved", checked=32)
        instance.ready.set_result(msgspec.structs.replace(ready_of(1), batching=batching))

    stage.node.on_spawn = succeed
    return stage


def told_to_run_alone(stage: Stage) -> list[str]:
    return [line.removeprefix("alone ") for line in stage.log if line.startswith("alone ")]


def routed(stage: Stage) -> Batching:
    ready = stage.tables[-1][0].ready
    assert ready is not None
    return ready.batching


async def test_a_disagreement_switches_batching_off_in_all_instances_and_is_published(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with staged(artifact(instance_group=TWO)) as stage:
        await checked(stage).serve()
        one, other = stage.node.spawned
        assert routed(stage).max_batch_size == 32
        with caplog.at_level(logging.WARNING):
            one.on_report(BatchesDisagree(difference=DIFFERENCE))
            one.on_report(BatchesDisagree(difference="again"))
            other.on_report(BatchesDisagree(difference="too"))
        await stage.until_quiet()
        assert told_to_run_alone(stage) == [other.name]
        assert (routed(stage).max_batch_size, routed(stage).shown_batch_size, routed(stage).reason) == (1, 32, OFF)
        assert stage.version().disagreement == f"{batch_ledger.FOUND}: {DIFFERENCE}"
        assert stage.keeper.batches.violations["m/1"] == 3
        (line,) = [record.getMessage() for record in caplog.records if "not joined any more" in record.getMessage()]
        assert DIFFERENCE in line
        assert one.name in line


async def test_a_replacement_is_told_when_it_is_spawned() -> None:
    async with staged(artifact()) as stage:
        await checked(stage).serve()
        stage.node.spawned[0].on_report(BatchesDisagree(difference=DIFFERENCE))
        stage.node.end(stage.node.spawned[0], -9)
        await stage.until(lambda: stage.routed() == ["m/1#0.1"])
        assert stage.node.told_of_disagreement["m/1#0.1"] == f"{batch_ledger.FOUND}: {DIFFERENCE}"
        assert routed(stage).reason == OFF


async def test_an_instance_that_loads_meanwhile_is_told_too() -> None:
    async with staged(artifact(instance_group=TWO)) as stage:
        await checked(stage).serve()
        stage.node.on_spawn = lambda _: None
        stage.node.end(stage.node.spawned[1], -9)
        await stage.node.until_spawned(3)
        await stage.until_quiet()
        stage.node.spawned[0].on_report(BatchesDisagree(difference=DIFFERENCE))
        assert told_to_run_alone(stage) == ["m/1#1.2"]
        stage.node.spawned[2].ready.set_result(
            msgspec.structs.replace(ready_of(1), batching=Batching(32, "on: proved", checked=32))
        )
        await stage.until(lambda: len(stage.routed()) == 2)
        assert routed(stage).reason == OFF


async def test_it_holds_for_the_same_files_loaded_again_and_not_for_others() -> None:
    async with staged(artifact(stamp=1)) as stage:
        await checked(stage).serve()
        stage.node.spawned[0].on_report(BatchesDisagree(difference=DIFFERENCE))
        await stage.load()
        assert routed(stage).reason == OFF
        stage.store = [artifact(stamp=2)]
        await stage.serve()
        assert routed(stage).max_batch_size == 32
        assert stage.version().disagreement == ""


async def test_that_batches_agree_is_said_once_of_the_version() -> None:
    async with staged(artifact(instance_group=TWO)) as stage:
        await checked(stage).serve()
        assert routed(stage).reason.endswith("; the first 32 batches of different requests are computed alone, too")
        tables = len(stage.tables)
        for instance in stage.node.spawned:
            instance.on_report(BatchesAgree(batches=32))
        await stage.until_quiet()
        assert len(stage.tables) == tables + 1
        assert routed(stage).reason == "on: proved; 32 batches of real requests agree"
        assert not stage.keeper.batches.violations


async def test_only_so_many_files_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_ledger, "MOST_FILES", 2)
    artifacts = [artifact(f"m{number}") for number in range(3)]
    async with staged(*artifacts) as stage:
        await checked(stage).serve()
        for instance in stage.node.spawned:
            instance.on_report(BatchesDisagree(difference=DIFFERENCE))
        known = [bool(stage.keeper.batches.against(each.artifact)) for each in stage.node.spawned]
        assert known == [False, True, True]
