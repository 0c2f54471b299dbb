"""A worker's lines to all instances: connects them, and learns why one was cut before its requests are told."""

import asyncio
import functools
import logging
from collections.abc import Callable, Iterable

from gateway.errors import InstanceDied
from gateway.ipc.abandonment import GRACE_SECONDS
from gateway.ipc.channel import Channel
from gateway.ipc.messages import Died, InstanceAddress, VersionRoute
from gateway.metrics import Counters, VersionCounters

log = logging.getLogger("gateway.worker")

RECONNECT_SECONDS = 0.5
DEATH_PATIENCE_SECONDS = 2.0
"""How long the supervisor may take to say why an instance is gone; after that it died of nothing in particular."""
VERDICTS = 1024
"""So many deaths are remembered whose lines are not cut yet."""


class Lines:
    """The channels by instance. `on_lost` is called with one that is cut, `reconnect` when it is time to try again."""

    def __init__(
        self,
        timeout: float,
        counters: Counters,
        on_lost: Callable[[Channel], None],
        reconnect: Callable[[], None],
        explain: Callable[[list[str]], None] = lambda _: None,
        abandoned: Callable[[str, int, int, int], None] = lambda *_: None,
    ) -> None:
        """Two more are called.

        `explain` with instances that a cancelled request has ended, `abandoned` with an instance that computes only
        cancelled requests, and what AbandonmentWatch reports.
        """
        self._timeout = timeout
        self._counters = counters
        self._on_lost = on_lost
        self._reconnect = reconnect
        self._explain = explain
        self._abandoned = abandoned
        self._channels: dict[str, Channel] = {}
        self._wanted: set[str] = set()
        self._unreached: set[str] = set()
        self._verdicts: dict[str, Died] = {}
        self._lines: dict[Channel, VersionCounters] = {}
        """All that may have requests under way: also those that nothing more is sent on."""
        self._cut: dict[Channel, asyncio.TimerHandle] = {}
        self._again: asyncio.TimerHandle | None = None

    def channels(self, addresses: Iterable[InstanceAddress]) -> list[Channel]:
        """The channels to those of these instances that are reached."""
        return [self._channels[each.instance] for each in addresses if each.instance in self._channels]

    async def connect(self, wanted: dict[str, tuple[InstanceAddress, VersionRoute]]) -> None:
        """Connect to those of these instances to which there is no line; they are all there is."""
        self._wanted = set(wanted)
        self._unreached &= self._wanted
        await asyncio.gather(*(self._connect(*wanted[name]) for name in wanted.keys() - self._channels.keys()))

    async def _connect(self, address: InstanceAddress, route: VersionRoute) -> None:
        try:
            channel = await Channel.connect(address.instance, address.socket_path, self._timeout, self._lost)
        except OSError as error:
            if address.instance not in self._unreached:
                self._unreached.add(address.instance)
                log.warning("instance %s cannot be reached: %s", address.instance, error.strerror)
            self._try_again()
            return
        batching = route.ready.batching.max_batch_size if route.ready else 1
        channel.max_rows = route.config.max_queue_size + batching
        channel.max_executing = batching + 1
        channel.max_bytes = route.config.queue_bytes
        channel.abandonment.report = functools.partial(self._abandoned, address.instance)
        if route.ready:  # what takes its place has to be loaded, too
            channel.abandonment.grace = max(GRACE_SECONDS, route.ready.load_seconds)
        counters = self._lines[channel] = self._counters.of(route.model, str(route.version), route.framework)
        channel.on_execution = counters.executed
        self._channels[address.instance] = channel
        self._unreached.discard(address.instance)
        for cut in [cut for cut in self._cut if cut.instance == address.instance]:
            self._settle(cut, blameless=True)

    def keep_only_wanted(self) -> None:
        """Routes without the others are in force: let go of them, and tell the requests of those that were cut."""
        for name in self._channels.keys() - self._wanted:
            self._channels.pop(name).close_when_idle()
        for cut in [cut for cut in self._cut if cut.instance not in self._wanted]:
            self._settle(cut)

    def count_pending(self) -> None:
        """Write down in the counters how many requests are under way."""
        self._counters.none_pending()
        for channel, counters in self._lines.items():
            counters.pending += len(channel.pending)

    def counts_for(self, model: str, version: str) -> bool:
        """Whether a line of this version may have requests under way."""
        return any((each.model, each.version) == (model, version) for each in self._lines.values())

    def died(self, death: Died) -> None:
        """The supervisor says how an instance ended."""
        while len(self._verdicts) >= VERDICTS:
            del self._verdicts[next(iter(self._verdicts))]
        self._verdicts[death.instance] = death
        for cut in [cut for cut in self._cut if cut.instance == death.instance]:
            self._settle(cut)

    def _lost(self, channel: Channel) -> None:
        """A line is cut: nothing is sent there any more, and its requests are told as soon as it is known why."""
        if self._channels.get(channel.instance) is channel:
            del self._channels[channel.instance]
        self._on_lost(channel)
        known = channel.instance in self._verdicts or channel.instance not in self._wanted
        if known or channel.distrusted or not channel.pending:
            self._settle(channel)
        else:
            loop = asyncio.get_running_loop()
            self._cut[channel] = loop.call_later(DEATH_PATIENCE_SECONDS, self._settle, channel)
        self._try_again()

    def _settle(self, channel: Channel, *, blameless: bool = False) -> None:
        self._lines.pop(channel, None)
        timer = self._cut.pop(channel, None)
        if timer is not None:
            timer.cancel()
        death = self._verdicts.get(channel.instance)
        if death is None:
            channel.settle(InstanceDied.code, "", blameless=blameless)
        elif channel.settle(death.error_code, death.reason, blameless=death.blameless):
            self._explain([channel.instance])

    def _try_again(self) -> None:
        """If the instance died, new routes come soon; if only the line to it was cut, connect anew."""
        if self._again is None:
            self._again = asyncio.get_running_loop().call_later(RECONNECT_SECONDS, self._is_time)

    def _is_time(self) -> None:
        self._again = None
        if self._wanted - self._channels.keys():
            self._reconnect()
