"""Ten times more requests than a model can answer: those it accepts must be as many and as soon as ever."""

import asyncio
import statistics
import sys
from typing import Any

import busy
import uvloop
from client import ClosedLoop, OpenLoop, Tally
from fleet import build
from report import Report, arguments
from running import Running, private_bytes, running, workplace

FLAT_BYTES = 8 << 20
LATE_SHARE = 0.01


class Memory:
    """Private memory of the worker and of the instance, sampled."""

    def __init__(self, gateway: Running) -> None:
        self._pids = {
            "worker": next(iter(gateway.pids("http worker"))),
            "instance": next(iter(gateway.pids("instance "))),
        }
        self.samples: dict[str, list[int]] = {name: [] for name in self._pids}

    async def watch(self) -> None:
        """Until cancelled."""
        while True:
            for name, pid in self._pids.items():
                self.samples[name].append(private_bytes(pid))
            await asyncio.sleep(0.5)

    def growth(self, name: str) -> int:
        """The median of the last third over that of the first."""
        samples = self.samples[name]
        third = max(1, len(samples) // 3)
        return int(statistics.median(samples[-third:]) - statistics.median(samples[:third]))


async def measure(gateway: Running, args: Any, report: Report) -> None:
    """Capacity in a closed loop, then the overload."""
    rounds = int(await asyncio.to_thread(busy.rounds_per_second, gateway) * args.row / 1000)
    shot = busy.shot(rounds, busy.answers)
    await ClosedLoop(gateway.address, [shot], args.connections).run(1.0)
    before = await asyncio.to_thread(busy.executions, gateway)
    peak = await ClosedLoop(gateway.address, [shot], args.connections).run(args.seconds)
    between = await asyncio.to_thread(busy.executions, gateway)
    _busy(report, "capacity", before, between, peak.seconds)
    report.say(f"capacity, {args.connections} connections: {peak.shown()}")
    rate = args.times * peak.rate
    under_way = args.queue + args.spare
    memory = Memory(gateway)
    load = OpenLoop(gateway.address, [shot], rate, under_way, waiting=int(rate))
    total = Tally()
    async with load:
        await asyncio.sleep(args.warmup)
        load.take()
        before = await asyncio.to_thread(busy.executions, gateway)
        watching = asyncio.create_task(memory.watch())
        for _ in range(max(1, round(args.seconds / 5))):
            await asyncio.sleep(min(5.0, args.seconds))
            part = load.take()
            report.say(f"overload at {rate:.0f}/s: {part.shown()}")
            total.add(part)
        watching.cancel()
        _busy(report, "overload", before, await asyncio.to_thread(busy.executions, gateway), total.seconds)
    judge(args, report, peak, total)
    for name in memory.samples:
        grown = memory.growth(name) / 1e6
        report.figure(f"memory of the {name}", memory.samples[name][-1] / 1e6, "MB")
        report.bar(f"memory of the {name}, growth", grown, f"<= {FLAT_BYTES / 1e6:.0f} MB", grown <= FLAT_BYTES / 1e6)


def _busy(report: Report, when: str, before: tuple[float, float], after: tuple[float, float], seconds: float) -> None:
    """Whether the model or the machine was short: rows that take longer than in the other phase had to share a core."""
    rows, computing = (late - early for early, late in zip(before, after, strict=True))
    report.figure(f"{when}: milliseconds computing a row", 1000 * computing / max(rows, 1), "ms")
    report.figure(f"{when}: share of the time spent computing", computing / seconds)


def judge(args: Any, report: Report, peak: Tally, total: Tally) -> None:
    """Hold what was counted against the bars."""
    sent = total.total / total.seconds
    row = 1 / total.rate if total.rate else float("inf")
    bound = 1000 * row * (args.queue + 1) * (1 + args.slack)
    p99 = total.percentile(99)
    report.figure("peak, closed loop", peak.rate, "/s")
    report.figure("milliseconds per row in overload", row * 1000, "ms")
    report.bar("sent", sent, f">= {0.9 * args.times * peak.rate:.0f}", sent >= 0.9 * args.times * peak.rate, "/s")
    report.figure("late (the generator's connections were all taken)", total.late)
    report.bar("share of late ones", total.late / total.total, f"<= {LATE_SHARE}", total.late <= LATE_SHARE * sent)
    report.bar("goodput", total.rate, f">= {0.9 * peak.rate:.1f}", total.rate >= 0.9 * peak.rate, "/s")
    report.bar("goodput / peak", total.rate / peak.rate, ">= 0.9", total.rate >= 0.9 * peak.rate)
    report.figure("p50 of accepted", total.percentile(50), "ms")
    report.bar("p99 of accepted", p99, f"<= {bound:.0f} ms", p99 <= bound, "ms")
    refused = total.failures["429"]
    report.bar("refused with 429 and Retry-After", refused, "> 0", refused > 0)
    other = total.failed - refused
    report.bar("any other failure", other, "0", other == 0)
    for kind, number in total.failures.items():
        if kind != "429":
            report.say(f"{number} x {kind}, such as {total.examples[kind]!r}")


def main() -> int:
    """Build, overload, report."""
    parser = arguments(__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="of capacity, and of overload")
    parser.add_argument("--warmup", type=float, default=2.0, help="seconds of overload before it counts")
    parser.add_argument("--times", type=float, default=10.0, help="requests sent, in capacities")
    parser.add_argument("--row", type=float, default=5.0, help="milliseconds that the model takes, about")
    parser.add_argument("--queue", type=int, default=64, help="max_queue_size of the model")
    parser.add_argument("--connections", type=int, default=8, help="of the closed loop")
    parser.add_argument("--spare", type=int, default=192, help="connections of the open loop beyond the queue")
    parser.add_argument("--slack", type=float, default=0.2, help="added to the bound of p99 for the machine's noise")
    args = parser.parse_args()
    report = Report(f"{args.times:g} times more requests than can be answered")
    with workplace() as directory:
        store = directory / "store"
        build([busy.model(store, f"max_queue_size: {args.queue}\n")])
        with running(store) as gateway:
            report.say("serving")
            uvloop.run(measure(gateway, args, report))
    return report.finish(args.json)


if __name__ == "__main__":
    sys.exit(main())
