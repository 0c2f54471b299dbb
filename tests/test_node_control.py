"""One reader of an instance's messages: reports go to whoever wants them, everything else to whoever asks for it."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from gateway.ipc.batch_reports import TEXT, BatchesAgree, BatchesDisagree
from gateway.ipc.messages import Failed, MessageStream, pack
from gateway.ipc.recording import FromInstance
from gateway.nodes.control import MOST_REPORTS, Control, cleaned


class Talk:
    """Both ends of a control socket."""

    def __init__(self, control: Control, theirs: socket.socket, reports: list[Any]) -> None:
        self.control, self.theirs, self.reports = control, theirs, reports

    def says(self, *messages: Any) -> None:
        for message in messages:
            data = message if isinstance(message, bytes) else pack(message)
            self.theirs.sendall(struct.pack("<I", len(data)) + data)

    async def hears(self) -> Any:
        return await asyncio.wait_for(self.control.receive(), 5)


@pytest.fixture
async def talk() -> AsyncIterator[Talk]:
    ours, theirs = socket.socketpair()
    reports: list[Any] = []
    stream: MessageStream[FromInstance] = await MessageStream.over(ours, FromInstance)
    control = Control(stream, reports.append)
    yield Talk(control, theirs, reports)
    control.close()
    theirs.close()


async def test_reports_are_heard_although_nobody_asks_and_answers_stay_in_their_order(talk: Talk) -> None:
    first, last = Failed(reason="1"), Failed(reason="2")
    talk.says(BatchesAgree(batches=32), first, BatchesDisagree(difference="y"), last)
    assert [await talk.hears(), await talk.hears()] == [first, last]
    assert talk.reports == [BatchesAgree(batches=32), BatchesDisagree(difference="y")]


async def test_an_instance_cannot_flood_with_reports(talk: Talk) -> None:
    end = Failed(reason="end")
    talk.says(*[BatchesDisagree(difference=str(number)) for number in range(100)], end)
    assert await talk.hears() == end
    assert len(talk.reports) == MOST_REPORTS


async def test_the_end_is_met_by_every_call(talk: Talk) -> None:
    talk.theirs.close()
    assert [await talk.hears(), await talk.hears()] == [None, None]


async def test_nonsense_is_raised_and_nothing_is_read_after_it(talk: Talk) -> None:
    talk.says(b"\xc1", Failed(reason="late"))
    for _ in range(2):
        with pytest.raises(msgspec.DecodeError):
            await talk.hears()


async def test_whoever_waits_meets_the_end_when_it_is_closed(talk: Talk) -> None:
    waiting = asyncio.create_task(talk.hears())
    await asyncio.sleep(0)
    talk.control.close()
    assert await waiting is None


def test_a_report_is_cleaned_before_it_is_shown() -> None:
    assert cleaned(BatchesAgree(batches=0)) is None
    assert cleaned(BatchesAgree(batches=1 << 40)) is None
    assert cleaned(BatchesDisagree(difference="a\x1b[31m\nb" + "x" * 1000)) == BatchesDisagree(
        difference=("a [31m b" + "x" * 1000)[:TEXT]
    )
    assert cleaned(BatchesDisagree(difference="")) == BatchesDisagree(difference="the answers differ")
