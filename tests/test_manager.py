import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import LoadFailed, ModelNotFound
from gateway.ipc.messages import Batching, Ready, VersionRoute
from gateway.lifecycle import manager as module
from gateway.lifecycle.manager import RESTARTS, Manager, Version
from gateway.lifecycle.placement import CPU, Device
from gateway.lifecycle.state import State
from gateway.nodes.node import Instance
from gateway.store.manifest import InstanceGroup, ModelConfig
from gateway.store.source import Artifact, Inventory

PATIENCE = 5


def artifact(name: str = "m", version: int = 1, problem: str = "", **config: Any) -> Artifact:
    return Artifact(name, version, "pytorch_torchscript", Path("model.pt"), ModelConfig(**config), problem)


def ready_of(pid: int) -> Ready:
    return Ready(
        pid=pid,
        platform="pytorch_torchscript",
        signatures={},
        default_signature="forward",
        batching=Batching(1, "off"),
        notes=[],
        load_seconds=0.1,
    )


class FakeNode:
    """A node whose instances do what the test says; what is asked of it lies in `log`."""

    def __init__(self, log: list[str], devices: Sequence[Device]) -> None:
        self.log = log
        self.spawned: list[Instance] = []
        self.on_spawn: Callable[[Instance], None] = self.succeed
        self.on_stop: Callable[[Instance], None] = lambda instance: self.end(instance, 0)
        self.before_spawn: Callable[[], Any] | None = None
        self._devices = devices
        self._more = asyncio.Condition()

    def devices(self) -> Sequence[Device]:
        return self._devices

    async def cuda(self, framework: str) -> bool:
        assert framework
        return True

    async def spawn(self, artifact: Artifact, index: int, device: Device) -> Instance:
        await asyncio.sleep(0)  # as the real one, which waits for its runner
        if self.before_spawn:
            self.before_spawn()
        loop = asyncio.get_running_loop()
        number = len(self.spawned)
        name = f"{artifact.model}/{artifact.version}#{index}.{number}"
        instance = Instance(artifact, name, index, device, "/nowhere", loop.create_future(), loop.create_future())
        instance.ready.add_done_callback(lambda future: future.cancelled() or future.exception())
        self.spawned.append(instance)
        self.log.append(f"spawn {name}")
        self.on_spawn(instance)
        async with self._more:
            self._more.notify_all()
        return instance

    async def until_spawned(self, count: int) -> None:
        async with asyncio.timeout(PATIENCE), self._more:
            await self._more.wait_for(lambda: len(self.spawned) >= count)

    def succeed(self, instance: Instance) -> None:
        instance.pid = 1000 + len(self.spawned)
        if not instance.ready.done():
            instance.ready.set_result(ready_of(instance.pid))

    def fail(self, instance: Instance, reason: str) -> None:
        instance.ready.set_exception(LoadFailed(reason))
        self.end(instance, 1)

    def end(self, instance: Instance, code: int) -> None:
        if not instance.ready.done():
            instance.ready.set_exception(LoadFailed("its process ended while loading"))
        if not instance.exited.done():
            instance.exited.set_result(code)

    def stop(self, instance: Instance, *, kill: bool = False) -> None:
        if instance.exited.done():
            return
        self.log.append(f"{'kill' if kill else 'stop'} {instance.name}")
        if kill:
            self.end(instance, -9)
        else:
            self.on_stop(instance)

    async def close(self) -> None:
        pass

    @property
    def running(self) -> list[str]:
        return [instance.name for instance in self.spawned if not instance.exited.done()]


class Stage:
    """A manager on a fake node, with everything that happens in one log."""

    def __init__(self, *artifacts: Artifact, devices: Sequence[Device] = (CPU,), timeout: float = PATIENCE) -> None:
        self.log: list[str] = []
        self.store = list(artifacts)
        self.node = FakeNode(self.log, devices)
        self.manager = Manager(self.node, lambda: Inventory(self.store), self.publish, timeout)
        self.tables: list[list[VersionRoute]] = []
        self.settled: list[str] = []
        self._published = asyncio.Condition()

    async def publish(self) -> None:
        routes = self.manager.routes()
        self.tables.append(routes)
        routed = [instance.instance for route in routes for instance in route.instances]
        self.log.append(f"publish {' '.join(routed) or 'nothing'}")
        async with self._published:
            self._published.notify_all()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for a publication after which this holds."""
        async with asyncio.timeout(PATIENCE), self._published:
            await self._published.wait_for(condition)

    async def serve(self) -> None:
        async with asyncio.timeout(PATIENCE):
            await self.manager.serve(
                self.store, lambda version: self.settled.append(f"{version.title} {version.state}")
            )

    def version(self, name: str = "m", number: int = 1) -> Version:
        return self.manager.versions[name, number]

    def routed(self, name: str = "m") -> list[str]:
        return [each.instance for route in self.tables[-1] if route.model == name for each in route.instances]

    def states(self) -> dict[str, str]:
        return {f"{route.model}/{route.version}": route.state for route in self.tables[-1]}


@contextlib.asynccontextmanager
async def staged(*artifacts: Artifact, **options: Any) -> AsyncIterator[Stage]:
    stage = Stage(*artifacts, **options)
    yield stage
    await stage.manager.close()


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
        await stage.manager.load("two")
        assert [instance.device.name for instance in stage.node.spawned] == ["cuda:0", "cuda:1"]


async def test_an_instance_that_dies_is_taken_out_of_the_routes_and_replaced() -> None:
    async with staged(artifact()) as stage:
        await stage.serve()
        stage.log.clear()
        stage.node.end(stage.node.spawned[0], -11)
        await stage.until(lambda: stage.routed() == ["m/1#0.1"])
        assert stage.log == ["publish nothing", "spawn m/1#0.1", "publish m/1#0.1"]
        assert stage.version().state is State.READY
        assert stage.manager.restarts == {("m/1", "signal 11"): 1}
        assert stage.version().ready == ready_of(stage.node.spawned[1].pid)


async def test_while_one_of_two_instances_is_replaced_the_other_serves() -> None:
    async with staged(artifact(instance_group=InstanceGroup(count=2))) as stage:
        await stage.serve()
        stage.tables.clear()
        stage.node.end(stage.node.spawned[0], 3)
        await stage.until(lambda: bool(stage.tables) and len(stage.routed()) == 2)
        assert all("m/1#1.1" in [each.instance for each in table[0].instances] for table in stage.tables)
        assert stage.node.spawned[2].index == 0
        assert stage.manager.restarts == {("m/1", "exit 3"): 1}


async def test_a_version_whose_instances_keep_dying_is_failed() -> None:
    async with staged(artifact()) as stage:
        await stage.serve()
        stage.node.on_spawn = lambda instance: (stage.node.succeed(instance), stage.node.end(instance, 7))[0]
        stage.node.end(stage.node.spawned[0], 7)
        await stage.until(lambda: stage.states() == {"m/1": "FAILED"})
        assert "code 7" in stage.version().reason
        assert len(stage.node.spawned) <= 1 + RESTARTS
        assert stage.routed() == []


async def test_a_version_is_failed_after_as_many_deaths_as_its_reason_says() -> None:
    async with staged(artifact()) as stage:
        await stage.serve()
        stage.node.on_spawn = lambda instance: (stage.node.succeed(instance), stage.node.end(instance, 7))[0]
        stage.node.end(stage.node.spawned[0], 7)
        await stage.until(lambda: stage.states() == {"m/1": "FAILED"})
        deaths = len([instance for instance in stage.node.spawned if instance.exited.done()])
        assert f"ended {deaths} times" in stage.version().reason


async def test_replacements_that_cannot_load_count_as_deaths() -> None:
    async with staged(artifact()) as stage:
        await stage.serve()
        stage.node.on_spawn = lambda instance: stage.node.fail(instance, "disk full")
        stage.node.end(stage.node.spawned[0], 1)
        await stage.until(lambda: stage.states() == {"m/1": "FAILED"})
        assert len(stage.node.spawned) <= 1 + RESTARTS


async def test_an_instance_that_lived_long_enough_starts_the_count_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STEADY_SECONDS", -1.0)
    async with staged(artifact()) as stage:
        await stage.serve()
        for number in range(2 * RESTARTS):
            stage.node.end(stage.node.spawned[number], 1)
            await stage.until(lambda number=number: stage.routed() == [f"m/1#0.{number + 1}"])  # type: ignore[misc]
        assert stage.version().state is State.READY


async def test_a_failed_version_keeps_no_process() -> None:
    async with staged(artifact(instance_group=InstanceGroup(count=2))) as stage:
        await stage.serve()
        stage.node.on_spawn = lambda instance: (stage.node.succeed(instance), stage.node.end(instance, 7))[0]
        stage.node.end(stage.node.spawned[0], 7)
        await stage.until(lambda: stage.states() == {"m/1": "FAILED"})
        assert not stage.node.running


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
        assert not stage.manager.restarts


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
            await stage.manager.load("nobody")


async def test_an_unloaded_model_can_be_loaded_again() -> None:
    async with staged(artifact()) as stage:
        await stage.serve()
        await stage.manager.unload("m")
        await stage.manager.load("m")
        assert stage.routed() == ["m/1#0.1"]
        assert stage.states() == {"m/1": "READY"}


async def test_a_failed_model_can_be_loaded_again() -> None:
    async with staged(artifact(problem="no artifact")) as stage:
        await stage.serve()
        stage.store[:] = [artifact()]
        await stage.manager.load("m")
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
        await stage.manager.load("m")
        assert all(any(route.instances for route in table) for table in stage.tables)
        assert stage.log.index("stop m/1#0.0") > stage.log.index(f"spawn m/{number}#0.1")
        assert stage.routed() == [f"m/{number}#0.1"]
        assert stage.node.running == [f"m/{number}#0.1"]
        assert list(stage.manager.versions) == [("m", number)]


async def test_the_old_version_is_stopped_only_when_the_workers_route_by_the_new_one() -> None:
    async with staged(artifact()) as stage:
        await stage.serve()
        stage.store[:] = [artifact(version=2)]
        await stage.manager.load("m")
        stop = stage.log.index("stop m/1#0.0")
        assert stage.log[stop - 1] == "publish m/2#0.1"


@pytest.mark.parametrize("number", [1, 2])
async def test_a_reload_that_fails_leaves_the_old_version_serving(number: int) -> None:
    async with staged(artifact()) as stage:
        await stage.serve()
        stage.store[:] = [artifact(version=number)]
        stage.node.on_spawn = lambda instance: stage.node.fail(instance, "torn file")
        with pytest.raises(LoadFailed, match=f"'m' version {number}.*torn file"):
            await stage.manager.load("m")
        await stage.publish()
        assert stage.routed() == ["m/1#0.0"]
        assert stage.node.running == ["m/1#0.0"]


async def test_loads_of_one_model_come_one_after_another() -> None:
    async with staged(artifact()) as stage:
        await stage.serve()
        await asyncio.gather(*(stage.manager.load("m") for _ in range(3)))
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
        await stage.manager.load("m")
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
        call = asyncio.create_task(getattr(stage.manager, action)("m"))
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
