"""The supervisor's end of an instance's control socket: one reader, which tells reports of batches from answers."""

import asyncio
from collections.abc import Callable

import msgspec

from gateway.ipc.batch_reports import TEXT, BatchesAgree, BatchesDisagree
from gateway.ipc.messages import Message, MessageStream
from gateway.ipc.recording import FromInstance

Report = BatchesAgree | BatchesDisagree
MOST_REPORTS = 2
"""An instance reports once that its batches agree, and once that they do not."""
MOST_BATCHES = 1 << 31


class Control:
    """Messages to and from one instance. `on_report` is called with each of its few reports, as `cleaned` leaves it."""

    def __init__(self, stream: MessageStream[FromInstance], on_report: Callable[[Report], None]) -> None:
        self._stream = stream
        self._on_report = on_report
        self._reports = 0
        # One message waits at most: an instance that sends more is not read on until `receive` is called.
        self._messages: asyncio.Queue[FromInstance | Exception | None] = asyncio.Queue(1)
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        while True:
            message: FromInstance | Exception | None
            try:
                message = await self._stream.receive()
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                message = error
            if isinstance(message, Report):
                if self._reports < MOST_REPORTS and (report := cleaned(message)) is not None:
                    self._reports += 1
                    self._on_report(report)
                continue
            await self._messages.put(message)
            if message is None or isinstance(message, Exception):
                return

    async def receive(self) -> FromInstance | None:
        """The next message that is no report, None at the end; what the stream raises if it makes no sense."""
        message = await self._messages.get()
        if message is None or isinstance(message, Exception):
            self._messages.put_nowait(message)  # the next call meets the end again
        if isinstance(message, Exception):
            raise message
        return message

    def send(self, message: Message) -> None:
        """Queue a message."""
        self._stream.send(message)

    def close(self) -> None:
        """Close the connection; whoever waits in `receive` meets the end."""
        self._reader.cancel()
        self._stream.close()
        if self._messages.empty():
            self._messages.put_nowait(None)


def cleaned(report: Report) -> Report | None:
    """A report as it may be shown to people; None if it cannot be true."""
    if isinstance(report, BatchesAgree):
        return report if 0 < report.batches < MOST_BATCHES else None
    text = "".join(each if each.isprintable() else " " for each in report.difference[:TEXT])
    return BatchesDisagree(difference=text or "the answers differ")
