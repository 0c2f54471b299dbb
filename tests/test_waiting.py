import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gateway.errors import DeadlineExceeded, GatewayError, LoadFailed, ModelNotFound, OutOfMemory, QueueFull
from gateway.http import waiting as module
from gateway.http.waiting import WaitingRoom
from gateway.ipc.messages import VersionRoute
from gateway.routing import NotYet, Target
from gateway.store.manifest import ModelConfig

WISH = ("m", None)


def route_of(model: str = "m", state: str = "COLD", **config: Any) -> VersionRoute:
    return VersionRoute(
        model=model,
        version=1,
        platform="p",
        framework="pytorch",
        state=state,
        reason="",
        config=ModelConfig(**config),
    )


class Someone:
    """Who waits and writes down what becomes of it."""

    def __init__(self, name: object, told: list[Any]) -> None:
        self.name = name
        self.told = told

    def resume(self) -> None:
        self.told.append(self.name)

    def give_up(self, error: GatewayError) -> None:
        self.told.append((self.name, error))


class Room:
    """A waiting room whose routes and supervisor are the test's."""

    def __init__(self) -> None:
        self.routes: dict[str, VersionRoute | GatewayError | None] = {}
        self.woken: list[tuple[str, int]] = []
        self.answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.told: list[Any] = []
        self.room = WaitingRoom(self.resolve, self.wake)

    def resolve(self, wish: tuple[str, str | None]) -> Target:
        route = self.routes[wish[0]]
        if isinstance(route, VersionRoute):
            raise NotYet(route, "not yet")
        if route is not None:
            raise route
        return cast("Target", SimpleNamespace(channels=["one"], name=wish[0]))

    async def wake(self, model: str, version: int) -> None:
        self.woken.append((model, version))
        await self.answer

    def enter(self, *names: object, model: str = "m", size: int = 1, **route: Any) -> list[Someone]:
        made = route_of(model, **route)
        self.routes[model] = made
        waiters = [Someone(name, self.told) for name in names]
        for waiter in waiters:
            self.room.enter((model, None), made, waiter, size)
        return waiters

    def ready(self, model: str = "m") -> None:
        self.routes[model] = None
        self.room.look_again()


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - what is waited for sets no event
            await asyncio.sleep(0.001)


async def test_who_waits_for_a_cold_version_has_it_loaded_once_and_goes_on_in_order_of_arrival() -> None:
    room = Room()
    room.enter(1, 2, 3)
    await turns()
    assert room.woken == [("m", 1)]
    assert (len(room.room), room.room.waiting_for("m", 1)) == (3, 3)
    room.ready()
    assert room.told == [1, 2, 3]
    assert (len(room.room), room.room.waiting_for("m", 1)) == (0, 0)
    room.answer.set_result(None)


async def test_a_version_whose_process_is_being_replaced_is_not_loaded() -> None:
    room = Room()
    room.enter(1, state="READY")
    await turns()
    assert room.woken == []
    room.room.look_again()
    assert room.told == []
    room.ready()
    assert room.told == [1]


async def test_when_loading_is_refused_those_who_wait_for_it_hear_why_and_nobody_else() -> None:
    room = Room()
    room.enter(1, 2)
    room.enter("other", model="n", state="READY")
    await turns()
    refusal = OutOfMemory("it needs 3 GB, the budget is 2 GB")
    room.answer.set_exception(refusal)
    await turns()
    assert room.told == [(1, refusal), (2, refusal)]
    assert len(room.room) == 1


async def test_who_waits_for_what_will_never_be_hears_why() -> None:
    room = Room()
    room.enter(1, state="READY")
    room.routes["m"] = gone = ModelNotFound("gone")
    room.room.look_again()
    assert room.told == [(1, gone)]


async def test_a_version_that_is_cold_again_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AGAIN_SECONDS", 0.001)
    room = Room()
    room.enter(1)
    room.answer.set_result(None)  # loaded, and thrown out before its routes came
    await eventually(lambda: len(room.woken) >= 2)
    assert room.told == []
    room.ready()
    assert room.told == [1]
    await asyncio.sleep(0.01)


async def test_who_leaves_is_not_called_and_takes_its_bytes_along() -> None:
    room = Room()
    first, _ = room.enter(1, 2, state="READY", max_queue_size=2)
    with pytest.raises(QueueFull):
        room.enter(3, state="READY", max_queue_size=2)
    room.room.leave(WISH, first)
    room.room.leave(WISH, first)
    room.enter(3, state="READY", max_queue_size=2)
    room.ready()
    assert room.told == [2, 3]


async def test_a_model_waits_for_no_more_bytes_than_its_queue_may_have() -> None:
    room = Room()
    room.enter(1, size=2000, state="READY", max_queue_bytes=1000)  # one always may
    with pytest.raises(QueueFull, match="model 'm'"):
        room.enter(2, state="READY", max_queue_bytes=1000)
    room.enter("other", model="n", state="READY", max_queue_bytes=1000)
    assert len(room.room) == 2


async def test_all_models_together_have_a_bound_and_a_refusal_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MOST", 2)
    room = Room()
    room.enter(1, model="a", state="READY")
    room.enter(2, model="b", state="READY")
    with pytest.raises(QueueFull):
        room.enter(3, model="c")
    await turns()
    assert room.woken == []
    assert len(room.room._groups) == 2  # noqa: SLF001 - the refused one left none
    assert len(room.room) == 2


async def test_a_waiter_that_comes_back_at_once_waits_on() -> None:
    room = Room()
    other = route_of(state="READY")

    class Returns(Someone):
        def resume(self) -> None:
            super().resume()
            room.room.enter(WISH, other, self, 1)

    waiter = Returns(1, room.told)
    room.room.enter(WISH, other, waiter, 1)
    room.ready()
    assert (room.told, len(room.room)) == ([1], 1)


async def test_a_coroutine_gets_the_version_when_it_is_there() -> None:
    room = Room()
    room.routes["m"] = route_of()
    waiting = asyncio.create_task(room.room.target(WISH, 5.0))
    await turns()
    assert room.woken == [("m", 1)]
    room.ready()
    assert cast("Any", await waiting).name == "m"
    room.answer.set_result(None)


async def test_a_coroutine_waits_no_longer_than_it_says_and_hears_of_failure() -> None:
    room = Room()
    room.routes["m"] = route_of(state="READY")
    with pytest.raises(DeadlineExceeded, match="not yet"):
        await room.room.target(WISH, 0.01)
    assert len(room.room) == 0
    waiting = asyncio.create_task(room.room.target(WISH, 5.0))
    await turns()
    room.routes["m"] = LoadFailed("no layer fits")
    room.room.look_again()
    with pytest.raises(LoadFailed, match="no layer fits"):
        await waiting
