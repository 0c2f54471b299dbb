"""Requests that nobody waits for any more: those abandoned by their client, and those whose deadline has passed.

While the model is busy with one long request, others are sent and abandoned or left to expire; a last one follows. The
model must have been executed for the first and the last, and for nothing else.
"""

import asyncio
import sys
import time
from typing import Any

import busy
import uvloop
from client import ClosedLoop, Shot, Tally
from fleet import build
from report import Report, arguments
from running import Running, running, until, workplace

PARALLEL = 200
"""Connections opened at once."""
DEADLINE_SECONDS = 0.1
PATIENCE = 30.0


class Abandoning(asyncio.Protocol):
    """Sends one request and goes away: orderly every second time, else with a reset."""

    def __init__(self, data: bytes, number: int) -> None:
        self._data, self._number = data, number
        self.gone = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        """Called by asyncio."""
        transport.write(self._data)
        asyncio.get_running_loop().call_later(0.02, transport.close if self._number % 2 else transport.abort)

    def connection_lost(self, _: Exception | None) -> None:
        """Called by asyncio."""
        self.gone.set_result(None)


async def abandon(address: tuple[str, int], shot: Shot, count: int) -> None:
    """So many requests, each abandoned as soon as it is sent."""
    loop = asyncio.get_running_loop()
    for begin in range(0, count, PARALLEL):
        numbers = range(begin, min(count, begin + PARALLEL))
        made = [loop.create_connection(lambda n=n: Abandoning(shot.data, n), *address) for n in numbers]
        await asyncio.gather(*(protocol.gone for _, protocol in await asyncio.gather(*made)))


class Trial:
    """The busy model, and what it was executed for."""

    def __init__(self, gateway: Running, report: Report, rounds: int, connections: int) -> None:
        self._gateway, self._report = gateway, report
        self._rounds, self._connections = rounds, connections

    async def _occupy(self) -> "asyncio.Task[Tally]":
        """One long request, under way when this returns."""
        load = ClosedLoop(self._gateway.address, [busy.shot(self._rounds, busy.answers)], 1, 120.0, count=1)
        task = asyncio.create_task(load.finish(120.0))

        def waiting() -> bool:
            return self._gateway.metrics().of("gateway_pending_requests", model=busy.MODEL) >= 1

        await asyncio.to_thread(until, waiting, PATIENCE, "under way")
        return task

    async def _counted(self) -> tuple[float, dict[str, float]]:
        metrics = await asyncio.to_thread(self._gateway.metrics)
        executed = metrics.of("gateway_executions_total", model=busy.MODEL)
        return executed, metrics.by("gateway_requests_dropped_total", "reason")

    async def abandoned(self, count: int) -> None:
        """The bar of abandoned requests."""
        executed, dropped = await self._counted()
        long = await self._occupy()
        began = time.monotonic()
        await abandon(self._gateway.address, busy.shot(self._rounds // 10, busy.answers), count)
        self._report.say(f"{count} requests abandoned in {time.monotonic() - began:.2f} s")
        still = not long.done()
        last = await ClosedLoop(self._gateway.address, [busy.shot(1, busy.answers)], 1, 120.0, count=1).finish(120.0)
        first = await long
        after, counted = await self._counted()
        report = self._report
        report.bar("abandoned while the model was busy", float(still), "1", still)
        report.none_failed("abandoned: the first and the last request", add(first, last))
        report.bar("abandoned: executions beside these", after - executed - 2, "0", after - executed == 2)
        report.figure("abandoned: the last one waited", last.percentile(50), "ms")
        gone = counted.get("disconnected", 0.0) - dropped.get("disconnected", 0.0)
        report.bar('gateway_requests_dropped_total{reason="disconnected"}', gone, f">= {count}", gone >= count)

    async def expired(self, what: str, shot: Shot, count: int) -> None:
        """The bar of one way to set a deadline."""
        executed, dropped = await self._counted()
        long = await self._occupy()
        began = time.monotonic()
        tally = await ClosedLoop(self._gateway.address, [shot], self._connections, 120.0, count=count).finish(120.0)
        took = time.monotonic() - began
        still = not long.done()
        last = await ClosedLoop(self._gateway.address, [busy.shot(1, busy.answers)], 1, 120.0, count=1).finish(120.0)
        first = await long
        after, counted = await self._counted()
        report = self._report
        report.none_failed(f"{what}: answered 504 instead of computed", tally)
        report.bar(f"{what}: 504 came while the model was busy", float(still), "1", still)
        report.figure(f"{what}: p50 of 504 (deadline {DEADLINE_SECONDS * 1000:.0f} ms)", tally.percentile(50), "ms")
        report.figure(f"{what}: seconds for {count}", took, "s")
        report.none_failed(f"{what}: the first and the last request", add(first, last))
        report.bar(f"{what}: executions beside these", after - executed - 2, "0", after - executed == 2)
        reasons = ", ".join(f"{key} {n - dropped.get(key, 0):.0f}" for key, n in sorted(counted.items()))
        report.say(f"{what}: dropped by reason: {reasons or 'none'}")


def add(*tallies: Tally) -> Tally:
    """All of them together."""
    total = Tally()
    for tally in tallies:
        total.add(tally)
    return total


def deadline_exceeded(status: int, _head: bytes, _body: bytes) -> str:
    """The check of a request that must not be computed."""
    return "" if status == 504 else f"status {status}"


async def measure(gateway: Running, args: Any, report: Report) -> None:
    """All trials."""
    rounds = int(await asyncio.to_thread(busy.rounds_per_second, gateway) * args.seconds)
    trial = Trial(gateway, report, rounds, args.connections)
    report.say("abandoned requests")
    await trial.abandoned(args.count)
    report.say("parameters.timeout")
    timeout = {"timeout": int(DEADLINE_SECONDS * 1e6)}
    shot = busy.shot(rounds // 10, deadline_exceeded, parameters=timeout)
    await trial.expired("parameters.timeout", shot, args.expired)
    report.say("X-Request-Timeout")
    shot = busy.shot(rounds // 10, deadline_exceeded, f"X-Request-Timeout: {DEADLINE_SECONDS:g}")
    await trial.expired("X-Request-Timeout", shot, args.expired)


def main() -> int:
    """Build, abandon, report."""
    parser = arguments(__doc__)
    parser.add_argument("--seconds", type=float, default=4.0, help="that the first request keeps the model busy")
    parser.add_argument("--count", type=int, default=1000, help="abandoned requests")
    parser.add_argument("--expired", type=int, default=200, help="requests whose deadline passes")
    parser.add_argument("--connections", type=int, default=50, help="that send these")
    args = parser.parse_args()
    report = Report("Requests that nobody waits for")
    with workplace() as directory:
        store = directory / "store"
        build([busy.model(store, f"max_queue_size: {2 * args.count}\n")])
        with running(store) as gateway:
            report.say("serving")
            uvloop.run(measure(gateway, args, report))
    return report.finish(args.json)


if __name__ == "__main__":
    sys.exit(main())
