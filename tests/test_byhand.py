"""What is done by hand through the manager: register, scale, unregister, choose the default."""

from collections.abc import Callable
from typing import Any

import pytest
from stage import Stage, artifact, staged

from gateway.errors import Conflict, LoadFailed, ModelNotFound, VersionNotFound
from gateway.ipc.messages import ANY
from gateway.lifecycle.state import State

BOTH = (artifact(version=1), artifact(version=2))


def defaults(stage: Stage) -> list[int]:
    return [route.version for route in stage.tables[-1] if route.default]


async def test_more_instances_are_started_then_routed() -> None:
    async with staged(artifact()) as stage:
        await stage.serve()
        await stage.manager.scale("m", ANY, 3, 3)
        assert stage.routed() == ["m/1#0.0", "m/1#1.1", "m/1#2.2"]
        assert stage.tables[-1][0].wanted == 3


async def test_instances_leave_the_routes_before_they_are_stopped() -> None:
    async with staged(artifact()) as stage:
        await stage.serve()
        await stage.manager.scale("m", 1, 3, 3)
        stage.log.clear()
        await stage.manager.scale("m", 1, 1, 2)
        assert stage.log == ["publish m/1#0.0 m/1#1.1", "stop m/1#2.2"]


async def test_none_is_started_or_stopped_where_the_bounds_allow_what_there_is() -> None:
    async with staged(artifact()) as stage:
        await stage.serve()
        stage.log.clear()
        await stage.manager.scale("m", 1, 0, 5)
        assert not [line for line in stage.log if not line.startswith("publish")]


async def test_if_one_cannot_be_started_all_is_as_before() -> None:
    async with staged(artifact()) as stage:
        await stage.serve()

        def fail_third(instance: Any) -> None:
            if instance.index == 2:
                stage.node.fail(instance, "no")
            else:
                stage.node.succeed(instance)

        stage.node.on_spawn = fail_third
        with pytest.raises(LoadFailed, match="no"):
            await stage.manager.scale("m", 1, 3, 3)
        assert stage.node.running == ["m/1#0.0"]
        assert stage.routed() == ["m/1#0.0"]
        assert stage.version().workers is None


async def test_a_scaled_version_replaces_what_dies_and_comes_back_as_large() -> None:
    async with staged(artifact()) as stage:
        await stage.serve()
        await stage.manager.scale("m", 1, 2, 2)
        stage.node.end(stage.node.spawned[1], -9)
        await stage.until(lambda: stage.routed() == ["m/1#0.0", "m/1#1.2"])
        assert await stage.manager.loader.evict(("m", 1))
        await stage.manager.wake("m", 1)
        assert len(stage.routed()) == 2


async def test_none_at_all_is_cold_and_woken_by_a_request() -> None:
    async with staged(artifact()) as stage:
        await stage.serve()
        await stage.manager.scale("m", 1, 0, 0)
        assert stage.states() == {"m/1": "COLD"}
        await stage.serve()
        assert stage.states() == {"m/1": "COLD"}
        await stage.manager.wake("m", 1)
        assert stage.routed() == ["m/1#0.1"]
        await stage.manager.scale("m", 1, 0, 0)
        await stage.manager.scale("m", 1, 2, 2)
        assert len(stage.routed()) == 2


async def test_a_failed_version_is_tried_again_by_scaling_it() -> None:
    async with staged(artifact()) as stage:
        stage.node.on_spawn = lambda instance: stage.node.fail(instance, "no")
        await stage.serve()
        with pytest.raises(LoadFailed, match="no"):
            await stage.manager.scale("m", 1, 2, 2)
        assert stage.states() == {"m/1": "FAILED"}
        stage.node.on_spawn = stage.node.succeed
        await stage.manager.scale("m", 1, 2, 2)
        assert len(stage.routed()) == 2


async def test_a_version_beside_the_policys_is_registered_and_stays() -> None:
    async with staged(*BOTH) as stage:
        await stage.serve()
        assert stage.states() == {"m/2": "READY"}
        version = await stage.manager.register("m", BOTH, 1, 1)
        assert version.is_ready()
        await stage.serve()
        assert stage.states() == {"m/1": "READY", "m/2": "READY"}
        with pytest.raises(Conflict, match="version 1 is already registered for model m"):
            await stage.manager.register("m", BOTH, 1, 1)
        with pytest.raises(VersionNotFound, match="no version 7"):
            await stage.manager.register("m", BOTH, 7, 1)


async def test_registered_with_no_instance_it_is_cold() -> None:
    async with staged(*BOTH) as stage:
        await stage.serve()
        version = await stage.manager.register("m", BOTH, 1, 0)
        assert version.state is State.COLD
        assert len(stage.node.spawned) == 1


async def test_the_default_is_chosen_and_falls_back_when_it_goes() -> None:
    async with staged(*BOTH) as stage:
        await stage.serve()
        await stage.manager.register("m", BOTH, 1, 1)
        assert defaults(stage) == []
        await stage.manager.set_default("m", 1)
        assert defaults(stage) == [1]
        await stage.serve()
        assert defaults(stage) == [1]
        with pytest.raises(Conflict, match="Cannot remove default version for model m"):
            await stage.manager.unregister("m", ANY)
        await stage.manager.set_default("m", 2)
        await stage.manager.unregister("m", 1)
        assert stage.states() == {"m/1": "UNLOADED", "m/2": "READY"}
        await stage.serve()
        assert stage.states() == {"m/1": "UNLOADED", "m/2": "READY"}


async def test_the_last_version_is_unregistered_and_registered_again() -> None:
    async with staged(*BOTH) as stage:
        await stage.serve()
        await stage.manager.unregister("m", ANY)
        await stage.serve()
        assert stage.states() == {"m/2": "UNLOADED"}
        assert not stage.node.running
        with pytest.raises(ModelNotFound):
            await stage.manager.scale("m", ANY, 1, 1)
        await stage.manager.register("m", BOTH, ANY, 1)
        assert stage.states() == {"m/2": "READY"}


async def test_a_reload_forgets_what_was_said_by_hand() -> None:
    async with staged(*BOTH) as stage:
        await stage.serve()
        await stage.manager.register("m", BOTH, 1, 1)
        await stage.manager.set_default("m", 1)
        await stage.manager.scale("m", 2, 2, 2)
        await stage.load()
        assert stage.states() == {"m/2": "READY"}
        assert defaults(stage) == []
        assert len(stage.routed()) == 1


@pytest.mark.parametrize(
    "act",
    [
        lambda manager: manager.scale("nobody", ANY, 1, 1),
        lambda manager: manager.unregister("nobody", ANY),
        lambda manager: manager.set_default("nobody", 1),
    ],
)
async def test_what_is_not_there_is_said_so(act: Callable[[Any], Any]) -> None:
    async with staged(artifact()) as stage:
        await stage.serve()
        with pytest.raises(ModelNotFound):
            await act(stage.manager)
        with pytest.raises(VersionNotFound):
            await stage.manager.scale("m", 7, 1, 1)
