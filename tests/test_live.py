import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from gateway.errors import DeadlineExceeded, QueueFull
from gateway.http import live as module
from gateway.http.live import Live

PATIENCE = 5


class Gateway:
    """An overview that the test changes, and how often it was looked at."""

    def __init__(self) -> None:
        self.versions: dict[str, Any] = {"a/1": {"requests": 1}, "b/1": {"requests": 1}}
        self.looks = 0
        self.error: Exception | None = None
        self.looked = asyncio.Event()

    async def look(self) -> bytes:
        self.looks += 1
        self.looked.set()
        if self.error is not None:
            raise self.error
        return orjson.dumps({"time": self.looks, "versions": self.versions})


@contextlib.asynccontextmanager
async def watching(live: Live) -> AsyncIterator[Any]:
    events = live.events()

    async def following() -> Any:
        text = await asyncio.wait_for(anext(events), PATIENCE)
        assert text.startswith(b"data: ")
        assert text.endswith(b"\n\n")
        return json.loads(text[6:])

    try:
        yield following
    finally:
        await events.aclose()


@pytest.fixture
def gateway() -> Gateway:
    return Gateway()


async def test_the_first_event_shows_everything_and_the_next_what_has_changed(gateway: Gateway) -> None:
    async with watching(Live(gateway.look, 0.01)) as following:
        assert (await following())["versions"] == gateway.versions
        gateway.versions = {"a/1": {"requests": 2}, "b/1": {"requests": 1}, "c/1": {}}
        event = await following()
        while not event["versions"]:
            event = await following()
        assert event["versions"] == {"a/1": {"requests": 2}, "c/1": {}}
        assert event["gone"] == []
        del gateway.versions["b/1"]
        event = await following()
        while not event["gone"]:
            event = await following()
        assert event["gone"] == ["b/1"]


async def test_nobody_is_looked_at_for_nobody(gateway: Gateway) -> None:
    live = Live(gateway.look, 0.01)
    async with watching(live) as following:
        await following()
    looks = gateway.looks
    await asyncio.sleep(0.05)  # several looks' time
    assert gateway.looks == looks
    async with watching(live) as following:  # and somebody later is told everything anew
        assert (await following())["versions"] == gateway.versions


async def test_one_look_serves_all_who_watch(gateway: Gateway) -> None:
    live = Live(gateway.look, 60.0)
    async with contextlib.AsyncExitStack() as stack:
        following = [await stack.enter_async_context(watching(live)) for _ in range(10)]
        events = await asyncio.gather(*(each() for each in following))
    assert all(event == events[0] for event in events)
    assert gateway.looks == 1


async def test_who_comes_late_is_told_everything_too(gateway: Gateway) -> None:
    live = Live(gateway.look, 0.01)
    async with watching(live) as first:
        await first()
        await first()
        async with watching(live) as second:
            assert (await second())["versions"] == gateway.versions


async def test_a_look_that_fails_is_followed_by_another(gateway: Gateway) -> None:
    gateway.error = DeadlineExceeded("overview took too long")
    async with watching(Live(gateway.look, 0.01)) as following:
        first = asyncio.create_task(following())
        await asyncio.wait_for(gateway.looked.wait(), PATIENCE)
        gateway.error = None
        assert (await first)["versions"] == gateway.versions


async def test_there_are_none_when_the_gateway_has_ended(gateway: Gateway) -> None:
    live = Live(gateway.look, 60.0)
    await live.close()
    assert [event async for event in live.events()] == []


async def test_a_bug_does_not_end_the_looking(gateway: Gateway) -> None:
    gateway.error = KeyError("versions")
    async with watching(Live(gateway.look, 0.01)) as following:
        first = asyncio.create_task(following())
        await asyncio.wait_for(gateway.looked.wait(), PATIENCE)
        gateway.error = None
        assert (await first)["versions"] == gateway.versions


async def test_who_is_told_nothing_at_all_hears_why(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_SECONDS", 0.05)
    gateway.error = DeadlineExceeded("overview took too long")
    live = Live(gateway.look, 0.01)
    async with watching(live) as following:
        with pytest.raises(DeadlineExceeded, match=r"nothing to show within 0\.05 s"):
            await following()
    gateway.error = None
    async with watching(live) as following:
        assert (await following())["versions"] == gateway.versions


async def test_a_stream_ends_after_a_while_for_the_key_to_be_looked_at_again(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STREAM_SECONDS", 0.05)
    events = [event async for event in Live(gateway.look, 0.01).events()]
    assert events


async def test_no_more_than_so_many_may_watch(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 1)
    live = Live(gateway.look, 0.01)
    async with watching(live) as first:
        await first()
        async with watching(live) as second:
            with pytest.raises(QueueFull, match="1 browsers watch this worker already"):
                await second()
        await first()


async def test_events_end_when_the_gateway_does(gateway: Gateway) -> None:
    live = Live(gateway.look, 60.0)
    events = live.events()
    await anext(events)
    rest = asyncio.create_task(anext(events, None))
    await live.close()
    assert await asyncio.wait_for(rest, PATIENCE) is None
