"""Locks of models, whose names anybody can make up."""

import asyncio
import weakref

from gateway.lifecycle.registry import Registry


async def publish() -> None:
    """Nobody listens."""


async def test_locks_of_names_that_nobody_uses_do_not_pile_up() -> None:
    registry = Registry(publish)
    locks = []
    for number in range(10):
        async with registry.lock(f"unknown{number}"):
            locks.append(weakref.ref(registry.lock(f"unknown{number}")))
    assert [lock() for lock in locks] == [None] * 10


async def test_a_lock_that_is_held_keeps_others_out() -> None:
    registry = Registry(publish)
    order: list[str] = []

    async def hold(name: str) -> None:
        async with registry.lock("m"):
            order.append(name)
            await asyncio.sleep(0)
            order.append(name)

    await asyncio.gather(*(hold(name) for name in "abc"))
    assert order == list("aabbcc")
