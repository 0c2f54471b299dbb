"""What goes on beside requests must not cost them anything: a shadow, and browsers that show the console."""

import argparse
import asyncio
import contextlib
import json
import shutil
import statistics
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import uvloop
from client import ClosedLoop, OpenLoop, Shot, Tally, any_200, request
from report import Report, arguments
from running import Running, running, until, workplace

SHIPPED = Path(__file__).parents[1] / "model_store"
MODEL, SHADOW = "digits_torch", "digits_tensorflow"
SWITCH_SECONDS = 20.0
MOST = 1.02
"""Of a latency with, to that without; of a throughput without, to that with."""


class Switch:
    """Gives the one model a shadow of the other framework, and takes it away again, while it serves on."""

    def __init__(self, gateway: Running, store: Path) -> None:
        self._gateway = gateway
        self._file = store / MODEL / "model.yaml"
        self._plain = self._file.read_text()

    def turn(self, percent: float) -> None:
        """Return when so many requests are copied; 0: none."""
        new = self._file.with_name("new")
        shadow = f"\nshadow: {{model: {SHADOW}, percent: {percent:g}}}\n" if percent else ""
        new.write_text(self._plain + shadow)
        new.rename(self._file)
        until(lambda: self._percent() == percent, SWITCH_SECONDS, "in force")

    def _percent(self) -> float:
        status, body = self._gateway.call("GET", f"/v2/models/{MODEL}")
        if status != 200:
            raise RuntimeError(f"the model's metadata answered {status}: {body[:200]!r}")
        return float(json.loads(body)["parameters"].get("shadow", {}).get("percent", 0))


def shot() -> Shot:
    """A request of one row."""
    row = [round(at / 64, 3) for at in range(64)]
    body = {"inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 64], "data": row}]}
    return Shot(request("POST", f"/v2/models/{MODEL}/infer", json.dumps(body).encode()), any_200)


async def at_a_rate(gateway: Running, args: argparse.Namespace) -> Tally:
    """One round at a constant rate."""
    return await OpenLoop(gateway.address, [shot()], args.rate, args.connections).run(args.seconds)


async def as_fast_as_it_goes(gateway: Running, args: argparse.Namespace) -> Tally:
    """One round in a closed loop."""
    return await ClosedLoop(gateway.address, [shot()], args.connections).run(args.seconds)


@contextlib.asynccontextmanager
async def watching(gateway: Running, browsers: int) -> AsyncIterator[list[int]]:
    """So many connections follow the console's events as browsers do; the bytes that each has got."""
    got = [0] * browsers
    begun = [asyncio.Event() for _ in got]

    async def follow(number: int) -> None:
        reader, writer = await asyncio.open_connection(*gateway.address)
        with contextlib.closing(writer):
            writer.write(request("GET", "/console/events"))
            while data := await reader.read(1 << 16):
                got[number] += len(data)
                begun[number].set()

    following = [asyncio.create_task(follow(number)) for number in range(browsers)]
    try:
        async with asyncio.timeout(10):
            await asyncio.gather(*(each.wait() for each in begun))
        yield got
    finally:
        for task in following:
            task.cancel()
        await asyncio.gather(*following, return_exceptions=True)


def paired(report: Report, name: str, pairs: list[tuple[float, float]]) -> float:
    """The median of the ratios of with to without, and how far they spread."""
    ratios = sorted(one / other for one, other in pairs)
    middle = statistics.median(ratios)
    low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
    report.say(f"{name}: ratios of {len(ratios)} rounds {low:.3f} to {high:.3f} (middle half), median {middle:.3f}")
    return middle


async def shadow(gateway: Running, switch: Switch, args: argparse.Namespace, report: Report) -> None:
    """Rounds with and without in turn, at a constant rate."""
    tallies: dict[bool, list[Tally]] = {False: [], True: []}
    for turn in range(args.rounds):
        for shadowed in (False, True)[:: -1 if turn % 2 else 1]:
            await asyncio.to_thread(switch.turn, args.percent if shadowed else 0)
            tallies[shadowed].append(await at_a_rate(gateway, args))
    await asyncio.to_thread(switch.turn, 0)
    failed = sum(tally.failed for each in tallies.values() for tally in each)
    report.bar("shadow: failed requests", failed, "0", failed == 0)
    for percent in (50, 95, 99):
        pairs = [
            (with_one.percentile(percent), without.percentile(percent))
            for with_one, without in zip(tallies[True], tallies[False], strict=True)
        ]
        ratio = paired(report, f"shadow, p{percent}", pairs)
        name = f"p{percent} at {args.rate:g}/s with a shadow of {args.percent:g} % to without"
        if percent == 99:
            report.bar(name, ratio, f"<= {MOST}", ratio <= MOST)
        else:
            report.figure(name, ratio)
    pooled = {shadowed: Tally() for shadowed in tallies}
    for shadowed, each in tallies.items():
        for tally in each:
            pooled[shadowed].add(tally)
    report.figure("the same of all rounds together", pooled[True].percentile(99) / pooled[False].percentile(99))
    report.figure("p99 without", pooled[False].percentile(99), "ms")
    found = (await asyncio.to_thread(gateway.metrics)).by("gateway_shadow_requests_total", "outcome")
    report.figure("copies of a thousand requests", 1000 * sum(found.values()) / sum(t.total for t in tallies[True]))
    for outcome, number in sorted(found.items()):
        report.figure(f"copies that {outcome}", number)


async def console(gateway: Running, args: argparse.Namespace, report: Report) -> None:
    """Rounds with and without browsers in turn, as fast as it goes."""
    pairs = []
    for _ in range(args.rounds):
        without = await as_fast_as_it_goes(gateway, args)
        async with watching(gateway, args.browsers) as got:
            with_them = await as_fast_as_it_goes(gateway, args)
        pairs.append((without.rate, with_them.rate))
    report.figure("bytes of events to each browser in a second", statistics.mean(got) / args.seconds)
    ratio = paired(report, "console", pairs)
    report.bar(f"throughput without to that with {args.browsers} browsers", ratio, f"<= {MOST}", ratio <= MOST)


def main() -> int:
    """Build, measure, report."""
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=20, help="of each kind")
    parser.add_argument("--seconds", type=float, default=3.0, help="of one round")
    parser.add_argument("--rate", type=float, default=1000.0, help="requests a second, for the shadow")
    parser.add_argument("--percent", type=float, default=5.0, help="of the requests are copied")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--browsers", type=int, default=10)
    args = parser.parse_args()
    report = Report("A shadow, and browsers that show the console")
    with workplace() as directory:
        store = directory / "store"
        for model in (MODEL, SHADOW):
            shutil.copytree(SHIPPED / model, store / model)
        with running(store) as gateway:
            report.say("serving")
            uvloop.run(shadow(gateway, Switch(gateway, store), args, report))
            uvloop.run(console(gateway, args, report))
    return report.finish(args.json)


if __name__ == "__main__":
    sys.exit(main())
