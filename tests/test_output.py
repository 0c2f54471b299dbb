import asyncio
import itertools
import logging
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.nodes import output
from gateway.nodes.output import Allowance, Lines, Output, harmless


@given(data=st.binary(max_size=4000), cuts=st.lists(st.integers(0, 4000)))
def test_lines_are_the_same_however_they_arrive(data: bytes, cuts: list[int]) -> None:
    whole = Lines()
    expected = whole.feed(data) + whole.end()
    pieces, found = Lines(), []
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    for start, stop in itertools.pairwise(edges):
        found += pieces.feed(data[start:stop])
    assert [line[: output.LINE] for line in found + pieces.end()] == [line[: output.LINE] for line in expected]


@given(data=st.binary(max_size=4000))
def test_no_line_is_long_or_moves_a_cursor(data: bytes) -> None:
    lines = Lines()
    for line in lines.feed(data) + lines.end():
        assert line.isprintable()
        assert len(line) <= 10 * output.LINE + 1  # one byte may be written as \\U0010ffff


def test_a_line_that_never_ends_is_cut_once_and_forgotten() -> None:
    lines = Lines()
    found = [line for _ in range(100) for line in lines.feed(b"x" * 1000)]
    assert found == ["x" * output.LINE + "…"]
    assert lines.feed(b"still the same\nthe next\n") == ["the next"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J", "\\x1b[2J"),
        ("a\rb\tc\0", "a\\rb\\tc\\x00"),
        ("\u202eevil\u2028", "\\u202eevil\\u2028"),
        ("äß 漢字 🙂", "äß 漢字 🙂"),
    ],
)
def test_what_terminals_obey_is_escaped(text: str, shown: str) -> None:
    assert harmless(text) == shown


def test_an_allowance_is_a_burst_and_then_a_rate() -> None:
    allowance = Allowance(0.0)
    spent = 0
    while allowance.spend(1000, 0.0):
        spent += 1000
    assert output.BURST <= spent <= output.BURST + 1000
    assert not allowance.spend(1, 0.0)
    assert allowance.spend(1, 10.0)
    spent = 0
    while allowance.spend(1000, 20.0):
        spent += 1000
    assert spent <= 20 * output.RATE + 1000


class Printer:
    """A pipe whose other end is read by an Output."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        self._caplog = caplog
        readable, self.fd = output.pipe()
        self.now = 0.0
        self.output = Output(readable, "m.odel", "m.odel/1#0.7", lambda: self.now)

    def write(self, data: bytes) -> int:
        """What the pipe takes; it never makes the writer wait."""
        try:
            return os.write(self.fd, data)
        except BlockingIOError:
            return 0

    @property
    def logged(self) -> list[str]:
        return [record.getMessage() for record in self._caplog.records if record.name == "gateway.model.m.odel"]

    async def logs(self, number: int) -> list[str]:
        async with asyncio.timeout(10):
            while len(self.logged) < number:  # noqa: ASYNC110 - records come without an event
                await asyncio.sleep(0)
        return self.logged

    async def idle(self) -> None:
        """Until the pipe has been read as far as it is going to be."""
        for _ in range(200):
            await asyncio.sleep(0)


async def test_lines_are_logged_under_the_models_name_with_the_instance(caplog: pytest.LogCaptureFixture) -> None:
    printer = Printer(caplog)
    printer.write(b"one\n\ntwo\nthr")
    assert await printer.logs(2) == ["m.odel/1#0.7: one", "m.odel/1#0.7: two"]
    printer.write(b"ee\n")
    assert (await printer.logs(3))[2:] == ["m.odel/1#0.7: three"]
    os.close(printer.fd)
    printer.output.close()


async def test_the_last_words_of_an_instance_are_logged_at_its_end(caplog: pytest.LogCaptureFixture) -> None:
    printer = Printer(caplog)
    lines = b"".join(b"line %d\n" % number for number in range(200))
    printer.write(lines + b"no newline")
    os.close(printer.fd)
    printer.output.close()
    assert len(printer.logged) == output.LAST_LINES + 1
    assert "151 lines are not shown" in printer.logged[0]
    assert printer.logged[-2:] == ["m.odel/1#0.7: line 199", "m.odel/1#0.7: no newline"]
    printer.output.close()


@pytest.mark.parametrize("data", [b"\n" * 4096, b"x\n" * 2048, b"x" * 4096, b"a line of some length\n" * 190])
async def test_a_flood_is_read_at_a_bounded_rate_and_the_writer_never_waits(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    monkeypatch.setattr(output, "REST_SECONDS", 0.01)
    printer = Printer(caplog)
    taken = 0
    for second in range(20):
        printer.now = float(second)
        for _ in range(50):
            taken += printer.write(data)
            await asyncio.sleep(0)
    # The burst, what a second allows, and at each look a chunk at the most; of 4 MB offered.
    assert taken < output.BURST + 20 * (output.RATE + (16 << 10)) + (64 << 10)
    assert sum(len(line) for line in printer.logged) < output.BURST + 20 * output.RATE + 20_000
    os.close(printer.fd)
    printer.output.close()


async def test_how_much_was_dropped_is_said_once_in_an_interval(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "REST_SECONDS", 0.05)
    printer = Printer(caplog)
    while printer.write(b"x\n" * 1024):
        await printer.idle()
    async with asyncio.timeout(10):
        while not any("printed too much" in line for line in printer.logged):  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.01)
    (said,) = (line for line in printer.logged if "printed too much" in line)
    assert "and more that was not counted" in said
    os.close(printer.fd)
    printer.output.close()
