"""What a model prints: read at a bounded rate, cut into bounded lines of harmless characters, logged under its name."""

import asyncio
import contextlib
import fcntl
import logging
import os
import struct
import termios
import time
from collections.abc import Callable

LINE = 1000
"""Longer lines are cut."""
BURST = 64 << 10
"""Bytes that are read at once; every line counts as LINE_COST more, for it costs as much time to log."""
RATE = 4 << 10
"""Bytes that are read in a second from a model that does not stop."""
LINE_COST = 100
REST_SECONDS = 5.0
"""A model that prints too much is not listened to for so long."""
LAST_LINES = 50
"""Of what is left in the pipe at the end of an instance."""
_CHUNK, _PIPE = 16 << 10, 64 << 10


def pipe() -> tuple[int, int]:
    """Both ends of a pipe that makes nobody wait: what does not fit is lost."""
    return os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)


def harmless(text: str) -> str:
    """The text with everything escaped that a terminal or a reader of logs might take for something else."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )


class Lines:
    """Cuts a stream of bytes into lines, however the bytes arrive."""

    def __init__(self) -> None:
        self._rest = b""
        self._skipping = False  # the rest of a line that was cut

    def feed(self, data: bytes) -> list[str]:
        """The lines that `data` completes, without empty ones."""
        *whole, rest = (self._rest + data).split(b"\n")
        found = []
        for line in whole:
            if not self._skipping:
                found.append(self._text(line))
            self._skipping = False
        self._rest = rest
        if self._skipping:
            self._rest = b""
        elif len(rest) > LINE:
            found.append(self._text(rest))
            self._rest, self._skipping = b"", True
        return [line for line in found if line]

    def end(self) -> list[str]:
        """The last line, if nothing ended it."""
        return self.feed(b"\n")

    @staticmethod
    def _text(line: bytes) -> str:
        text = harmless(line[:LINE].decode(errors="backslashreplace").rstrip())
        return text + "…" * (len(line) > LINE)


class Allowance:
    """How much may be read and logged now: so much at once, and then so much a second."""

    def __init__(self, now: float) -> None:
        self._left = float(BURST)
        self._then = now

    def spend(self, cost: int, now: float) -> bool:
        """Whether there was something left; it is less by the cost then."""
        self._left = min(BURST, self._left + (now - self._then) * RATE)
        self._then = now
        if self._left <= 0:
            return False
        self._left -= cost
        return True


class Output:
    """Logs what comes out of one instance's pipe until it is closed."""

    def __init__(self, fd: int, model: str, instance: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._fd = fd
        self._log = logging.getLogger(f"gateway.model.{model}")
        self._instance = instance
        self._clock = clock
        self._lines = Lines()
        self._allowance = Allowance(clock())
        self._dropped = 0
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(fd, self._read)
        self._rest: asyncio.TimerHandle | None = None

    def close(self) -> None:
        """Log the end of what is left in the pipe, and close it."""
        if self._fd < 0:
            return
        self._loop.remove_reader(self._fd)
        if self._rest is not None:
            self._rest.cancel()
        data = b""
        with contextlib.suppress(OSError):
            data = os.read(self._fd, 1 << 20)  # the most that a pipe can be made to hold
        lines = self._lines.feed(data) + self._lines.end()
        self._dropped += max(0, len(lines) - LAST_LINES)
        self._say_dropped(lost=False)
        for line in lines[-LAST_LINES:]:
            self._say(line)
        os.close(self._fd)
        self._fd = -1

    def _read(self) -> None:
        try:
            data = os.read(self._fd, _CHUNK)
        except BlockingIOError:
            return
        if not data:  # nobody has the other end any more
            self._loop.remove_reader(self._fd)
            return
        now = self._clock()
        plenty = self._allowance.spend(len(data), now)
        for line in self._lines.feed(data):
            plenty = self._allowance.spend(LINE_COST, now)
            if plenty:
                self._say(line)
            else:
                self._dropped += 1
        if not plenty:
            self._loop.remove_reader(self._fd)
            self._rest = self._loop.call_later(REST_SECONDS, self._listen_again)

    def _listen_again(self) -> None:
        (waiting,) = struct.unpack("i", fcntl.ioctl(self._fd, termios.FIONREAD, bytes(4)))
        self._say_dropped(lost=waiting > _PIPE // 2)
        self._loop.add_reader(self._fd, self._read)

    def _say_dropped(self, *, lost: bool) -> None:
        if self._dropped:
            more = ", and more that was not counted" if lost else ""
            self._log.warning("%s: printed too much; %d lines are not shown%s", self._instance, self._dropped, more)
            self._dropped = 0

    def _say(self, line: str) -> None:
        self._log.info("%s: %s", self._instance, line)
