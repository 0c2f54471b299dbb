"""An HTTP worker process: uvicorn on the shared listening socket, and the line to the supervisor."""

import asyncio
import gc
import itertools
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import uvloop
from setproctitle import setproctitle

from gateway import cpus
from gateway.errors import DeadlineExceeded, ModelNotReady, from_code
from gateway.http.cors import Cors
from gateway.http.edge import open_edge
from gateway.http.lines import Lines
from gateway.http.servers import Servers
from gateway.http.shadow import Shadows
from gateway.http.state import WorkerState
from gateway.ipc.channel import Channel
from gateway.ipc.lifeline import die_with_parent
from gateway.ipc.messages import (
    Abandoned,
    Answer,
    Applied,
    Ask,
    AskUsage,
    Collect,
    Condemned,
    Counts,
    Died,
    Explained,
    Hello,
    Keys,
    MessageStream,
    Ping,
    Pong,
    Routes,
    Start,
    ToWorker,
    Usage,
)
from gateway.routing import RoutingTable, Target

log = logging.getLogger("gateway.worker")

ASK_SECONDS = {
    "load": 600.0,
    "unload": 60.0,
    "wake": 3600.0,
    "register": 600.0,
    "scale": 600.0,
    "unregister": 60.0,
    "profile": 600.0,
}
ASK_DEFAULT_SECONDS = 10.0
SPARE_THREADS = 4
"""Above the CPUs that can be used: some threads wait for others or for memory."""
LAST_WORDS_SECONDS = 1.0
"""So long may access log and spans take at the end."""


class Worker:
    """Keeps the routing table and the channels as the supervisor says, and asks it what it alone knows."""

    def __init__(self, stream: MessageStream[ToWorker], start: Start) -> None:
        self.state = WorkerState(self, start.max_body_bytes, start.request_timeout)
        self.state.edge = open_edge(start)
        self.state.server_name = start.server_name
        self.state.strict_readiness = start.strict_readiness
        self.state.compare_report = start.compare_report
        self.state.cors = Cors(start.cors_origins) if start.cors_origins else None
        self._stream = stream
        self._lines = Lines(
            start.request_timeout,
            self.state.counters,
            on_lost=self._drop,
            reconnect=self._reconnect,
            explain=self.explain,
            abandoned=self._abandoned,
        )
        self._shadows = Shadows(self.state)
        self._routes: Routes | None = None
        self._applying = asyncio.Lock()
        self._reconnecting: asyncio.Task[None] | None = None
        self.routed = asyncio.Event()
        """Set when the first routes are in force: before that every model would be unknown."""
        self._tickets = itertools.count(1)
        self._asked: dict[int, asyncio.Future[bytes]] = {}

    async def ask(
        self,
        what: str,
        model: str = "",
        version: int = 0,
        workers: tuple[int, int] = (0, 0),
        *,
        seconds: float = 0.0,
        instance: int = 0,
    ) -> bytes:
        """Put a question to the supervisor; DeadlineExceeded if it takes too long, else the error it answers."""
        ticket = next(self._tickets)
        future = self._asked[ticket] = asyncio.get_running_loop().create_future()
        self._stream.send(
            Ask(
                ticket=ticket,
                what=what,
                model=model,
                version=version,
                workers=workers,
                seconds=seconds,
                instance=instance,
            )
        )
        try:
            return await asyncio.wait_for(future, ASK_SECONDS.get(what, ASK_DEFAULT_SECONDS))
        except TimeoutError:
            raise DeadlineExceeded(f"{what} took too long") from None
        finally:
            del self._asked[ticket], future  # which has the error that is raised here

    def condemn(self, digest: bytes) -> None:
        """Refuse a request from now on, and have the supervisor tell the other workers."""
        self.state.condemned.add(digest)
        self._stream.send(Condemned(digest=digest))

    def explain(self, instances: Sequence[str]) -> None:
        """Tell the supervisor that these instances were ended by a request."""
        self._stream.send(Explained(instances=list(instances)))

    def _abandoned(self, instance: str, execution: int, requests: int, total: int) -> None:
        """Tell the supervisor that no client of this worker waits for what an instance computes."""
        self._stream.send(Abandoned(instance=instance, execution=execution, requests=requests, total=total))

    async def listen(self, servers: Servers) -> None:
        """Act on what the supervisor says until it is gone, or no longer understood; then stop the servers."""
        try:
            while (message := await self._stream.receive()) is not None:
                if isinstance(message, Routes):
                    self._routes = message
                    await self._apply()
                    self._stream.send(Applied(epoch=message.epoch))
                    self.routed.set()
                    if message.stopping:
                        await self.state.live.close()
                        servers.stop()
                else:
                    self._hear(message)
        except Exception:
            log.exception("the supervisor's word could not be followed")  # another worker takes over, with new routes
        for future in self._asked.values():
            if not future.done():
                future.set_exception(ModelNotReady("the server is stopping"))
        await self.state.live.close()
        servers.stop()  # the supervisor is gone

    def _hear(self, message: ToWorker) -> None:
        """Act on anything but new routes."""
        if isinstance(message, Ping):
            self._stream.send(Pong())
        elif isinstance(message, Collect):
            self._forget(message.forget)
            self._lines.count_pending()
            self._stream.send(Counts(ticket=message.ticket, packed=self.state.counters.packed()))
        elif isinstance(message, Died):
            self._lines.died(message)
        elif isinstance(message, Keys) and self.state.edge is not None:
            self.state.edge.use(message)
        elif isinstance(message, Condemned):
            self.state.condemned.add(message.digest)
        elif isinstance(message, AskUsage):
            self._stream.send(Usage(ticket=message.ticket, versions=self._usage()))
        elif isinstance(message, Answer) and (future := self._asked.get(message.ticket)) and not future.done():
            if message.error_code:
                future.set_exception(from_code(message.error_code, message.text.decode()))
            else:
                future.set_result(message.text)

    def _forget(self, versions: list[tuple[str, str]]) -> None:
        """Drop the counters of versions that are gone, unless they are back or have requests under way."""
        for model, version in versions:
            back = version.isdecimal() and int(version) in self.state.table.models.get(model, {})
            if not back and not self._lines.counts_for(model, version):
                self.state.counters.forget(model, version)

    async def _apply(self) -> None:
        """Put the latest routes in force: connect to new instances, let go of those that are gone, and of who waits."""
        async with self._applying:
            state, routes = self.state, self._routes
            assert routes is not None
            await self._lines.connect({a.instance: (a, route) for route in routes.versions for a in route.instances})
            targets = []
            for route in routes.versions:
                if route.ready is not None and route.state == "READY":
                    counters = state.counters.of(route.model, str(route.version), route.framework)
                    channels = self._lines.channels(route.instances)
                    targets.append(Target(route, channels, counters, state.counters.timings_of(counters)))
            self._shadows.assign(targets)
            state.use(RoutingTable(routes.versions, targets, routes.settled, routes.stopping, before=state.table))
            self._lines.keep_only_wanted()
            state.waiting.look_again()

    def _drop(self, channel: Channel) -> None:
        """The line to an instance is cut."""
        self.state.table.drop(channel)

    def _reconnect(self) -> None:
        """Some instances of the routes in force are not reached: try again."""
        self._reconnecting = asyncio.get_running_loop().create_task(self._apply())

    def _usage(self) -> list[tuple[str, int, float, int]]:
        state = self.state
        used = []
        for model, versions in state.table.models.items():
            for version, route in versions.items():
                last = state.counters.last_used(model, str(version))
                pending = sum(len(channel.pending) for channel in self._lines.channels(route.instances))
                used.append((model, version, last, pending + state.waiting.waiting_for(model, version)))
        return used


async def serve(control: socket.socket) -> None:
    """Run one worker until the supervisor stops it or is gone."""
    # By default there are threads for the host's cores, however few of them this process may use.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(cpus.usable() + SPARE_THREADS))
    stream: MessageStream[ToWorker] = await MessageStream.over(control, ToWorker)
    start = await stream.receive()
    assert isinstance(start, Start), "the supervisor's first word is Start"
    worker = Worker(stream, start)
    servers = Servers(start, worker.state, on_listening=lambda: stream.send(Hello(pid=os.getpid())))
    listening = asyncio.create_task(worker.listen(servers))
    routed = asyncio.create_task(worker.routed.wait())
    await asyncio.wait([listening, routed], return_when=asyncio.FIRST_COMPLETED)
    routed.cancel()
    # What is alive now stays; what requests leave behind is freed by its reference counts. Collecting less often gives
    # 4 to 8 % of throughput at 32 and more connections.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 100)
    await servers.serve()
    listening.cancel()
    if worker.state.edge is not None:
        worker.state.edge.close(LAST_WORDS_SECONDS)


def main() -> None:
    """Entry point: `python -m gateway.http.worker CONTROL_FD SUPERVISOR_PID INDEX`."""
    control_fd, parent, index = (int(argument) for argument in sys.argv[1:4])
    die_with_parent(parent)
    setproctitle(f"gateway: http worker {index}")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # these reach the whole group; the supervisor decides
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    logging.basicConfig(format="%(asctime)s %(name)s %(levelname)s %(message)s", level=logging.INFO)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(socket.socket(fileno=control_fd)))


if __name__ == "__main__":
    main()
