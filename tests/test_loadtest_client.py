"""The load client counts what happened and nothing else: a load test that cannot see a failure proves nothing."""

import asyncio
import importlib.util
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

Answer = Callable[[int, asyncio.StreamWriter], Awaitable[None]]


def load(name: str) -> Any:
    """A module of loadtests/, which is no package."""
    path = Path(__file__).parent.parent / "loadtests" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"loadtests_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and named tuples look themselves up there
    spec.loader.exec_module(module)
    return module


client = load("client")
SHOT = client.Shot(client.request("POST", "/", b"hello"), client.any_200)
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"


@asynccontextmanager
async def server(answer: Answer) -> AsyncIterator[tuple[str, int]]:
    """A server that answers the n-th request of all its connections with `answer(n, writer)`."""
    number = 0
    writers = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal number
        writers.append(writer)
        while not writer.is_closing():
            try:
                await reader.readuntil(b"hello")
            except (asyncio.IncompleteReadError, ConnectionError):
                break
            number += 1
            await answer(number, writer)
        writer.close()

    started = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with started:
        yield started.sockets[0].getsockname()
        for writer in writers:
            writer.close()


async def until(found: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not found():  # noqa: ASYNC110 - the loop's counters tell nobody when they change
            await asyncio.sleep(0.001)


async def right(_: int, writer: asyncio.StreamWriter) -> None:
    writer.write(OK)


async def count(answer: Answer, *, number: int = 10, patience: float = 5.0, shot: Any = SHOT) -> Any:
    """The tally of so many requests on two connections."""
    async with server(answer) as address:
        return await client.ClosedLoop(address, [shot], 2, patience, number).finish(10)


async def test_every_right_answer_is_timed() -> None:
    tally = await count(right)
    assert (tally.right, tally.failed, tally.total) == (10, 0, 10)
    assert 0 < tally.percentile(50) <= tally.percentile(99) < 5000
    assert tally.rate > 0


async def test_an_answer_in_pieces_is_one_answer() -> None:
    async def dribble(_: int, writer: asyncio.StreamWriter) -> None:
        for at in range(len(OK)):
            writer.write(OK[at : at + 1])
            await writer.drain()
            await asyncio.sleep(0)

    tally = await count(dribble)
    assert (tally.right, tally.failed) == (10, 0)


async def test_a_status_is_a_failure_of_its_kind_with_an_example() -> None:
    async def refuse(number: int, writer: asyncio.StreamWriter) -> None:
        writer.write(OK if number % 2 else b"HTTP/1.1 503 Sorry\r\nContent-Length: 4\r\n\r\nlate")

    tally = await count(refuse)
    assert tally.right == 5
    assert tally.failures == {"status 503": 5}
    assert tally.examples == {"status 503": "late"}


async def test_a_wrong_body_is_what_the_check_calls_it() -> None:
    shot = client.Shot(SHOT.data, lambda _status, _head, body: "" if body == b"ho" else "wrong answer")
    tally = await count(right, shot=shot)
    assert tally.failures == {"wrong answer": 10}


async def test_a_connection_cut_in_mid_answer_is_a_reset_and_the_load_goes_on() -> None:
    async def cut(number: int, writer: asyncio.StreamWriter) -> None:
        if number in (3, 4):
            writer.write(OK[:20])
            await writer.drain()
            writer.close()
        else:
            writer.write(OK)

    tally = await count(cut)
    assert tally.right == 8
    assert tally.failures == {"reset": 2}


async def test_a_connection_closed_between_requests_is_no_failure() -> None:
    async def once(_: int, writer: asyncio.StreamWriter) -> None:
        writer.write(OK.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"))
        writer.close()

    tally = await count(once)
    assert (tally.right, tally.failed) == (10, 0)


async def test_an_answer_that_does_not_come_is_a_timeout() -> None:
    async def silent(number: int, writer: asyncio.StreamWriter) -> None:
        if number != 2:
            writer.write(OK)

    tally = await count(silent, patience=0.3)
    assert tally.right == 9
    assert tally.failures == {"timeout": 1}


@pytest.mark.parametrize("answer", [b"HTTP/1.1 200 OK\r\n\r\nhi", OK + b"more"], ids=["no length", "too much"])
async def test_what_cannot_be_read_is_a_failure(answer: bytes) -> None:
    async def strange(number: int, writer: asyncio.StreamWriter) -> None:
        writer.write(answer if number == 1 else OK)

    tally = await count(strange)
    assert tally.right == 9
    assert tally.failed == 1


async def test_nobody_listening_is_a_failure_that_ends() -> None:
    async with server(right) as address:
        pass
    loop = client.ClosedLoop(address, [SHOT], 1, timeout=1.5)
    with pytest.raises(TimeoutError):
        await loop.run(0.1)
    assert loop.tally.failures == {"refused": 1}


async def test_a_check_or_a_source_of_requests_that_raises_is_not_lost() -> None:
    def raises(*_: object) -> str:
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        await count(right, shot=client.Shot(SHOT.data, raises))
    async with server(right) as address:
        with pytest.raises(ArithmeticError):
            await client.ClosedLoop(address, raises, 2).run(0.01)


async def test_taking_a_tally_begins_another() -> None:
    async with server(right) as address, client.ClosedLoop(address, [SHOT], 2) as loop:
        await until(lambda: loop.tally.right >= 5)
        taken = loop.take()
        assert taken.right >= 5
        assert taken.seconds > 0
        assert loop.tally.right == 0
    assert not any(line.open for line in loop.lines)


async def test_an_open_loop_keeps_its_rate_and_counts_time_from_when_a_request_was_due() -> None:
    waiting: list[asyncio.StreamWriter] = []
    freed = False

    async def hold(_: int, writer: asyncio.StreamWriter) -> None:
        if freed:
            writer.write(OK)
        else:
            waiting.append(writer)

    async with server(hold) as address, client.OpenLoop(address, [SHOT], 500.0, 2, waiting=20) as loop:
        await until(lambda: loop.tally.failures["not sent"])
        assert len(waiting) == 2
        assert loop.tally.late == 20
        freed = True
        for writer in waiting:
            writer.write(OK)
        await until(lambda: loop.tally.right >= 30)
        tally = loop.take()
    assert set(tally.failures) == {"not sent"}
    assert max(tally.latencies) > 18 / 500  # the first ones waited while at least 18 more came due


async def test_a_tally_adds_up() -> None:
    first, second = client.Tally(), client.Tally()
    first.latencies.append(0.1)
    second.latencies.append(0.3)
    second.fail("reset", b"\xff")
    first.add(second)
    assert (first.right, first.failed, first.examples) == (2, 1, {"reset": "\\xff"})
    assert first.percentile(50) == pytest.approx(200.0)
