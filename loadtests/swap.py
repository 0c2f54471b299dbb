"""Swap versions under load: no request may fail or be wrong, and another model must hardly notice.

Periods with swaps and periods of the same length without alternate. In the former a new version directory is renamed
into the store, alternately for a TorchScript model and a SavedModel, each as soon as the one before is served and its
predecessor gone.
"""

import asyncio
import contextlib
import itertools
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import uvloop
from client import ClosedLoop, Tally
from fleet import Scale, build, scale_shot
from report import Report, arguments
from running import Running, running, until, workplace

SWAPPED = {"swapped_torch": "pytorch", "swapped_tf": "tensorflow"}
OTHER = "other"
LATEST = "version_policy: {latest: 1}\n"


class Swapper:
    """Puts one version after another in place."""

    def __init__(self, gateway: Running, staging: Path, store: Path, args: Any, report: Report) -> None:
        self.factors: dict[str, dict[str, int]] = {model: {"1": 1} for model in SWAPPED}
        self.seconds: list[float] = []
        self._gateway, self._staging, self._store = gateway, staging, store
        self._trigger: str = args.trigger
        self._patience: float = args.patience
        self._report = report
        self._turn = itertools.cycle(SWAPPED)

    def swap(self) -> None:
        """One swap, until the new version is READY and the old one gone."""
        model = next(self._turn)
        old = max(map(int, self.factors[model]))
        new = old + 1
        self.factors[model][str(new)] = new
        began = time.monotonic()
        (self._staging / model / str(new)).rename(self._store / model / str(new))
        if self._trigger == "load":
            status, body = self._gateway.load(model)
            if status != 200:
                self._report.say(f"load of {model} answered {status}: {body!r}")

        def swapped() -> bool:
            versions = self._gateway.index()[model]
            return list(versions) == [new] and versions[new][0] == "READY"

        until(swapped, self._patience, f"swapped: {model} from {old} to {new}")
        self.seconds.append(time.monotonic() - began)


async def period(args: Any, other: ClosedLoop, swapper: Swapper, seconds: float) -> tuple[Tally, Tally, float]:
    """The other model's tallies of a period with swaps and of one without, and how long each was."""
    other.take()
    began = time.monotonic()
    for _ in range(args.each):
        await asyncio.to_thread(swapper.swap)
    await asyncio.sleep(max(0.0, seconds - (time.monotonic() - began)))
    with_swaps, length = other.take(), time.monotonic() - began
    await asyncio.sleep(length)
    return with_swaps, other.take(), length


async def measure(args: Any, gateway: Running, swapper: Swapper, report: Report) -> None:
    """Everything that is done under load."""
    shots = [scale_shot(model, swapper.factors[model]) for model in SWAPPED]
    swapped = ClosedLoop(gateway.address, shots, args.connections - args.other)
    other = ClosedLoop(gateway.address, [scale_shot(OTHER, {"1": 1000})], args.other)
    apart: list[tuple[float, float]] = []
    all_other = Tally()
    broken = ""
    async with swapped, other:
        await asyncio.sleep(args.warmup)
        all_other.add(other.take())
        for number in range(args.swaps // args.each):
            try:
                busy, calm, length = await period(args, other, swapper, args.seconds)
            except (TimeoutError, KeyError) as error:
                broken = str(error)
                report.say(broken)
                break
            all_other.add(busy)
            all_other.add(calm)
            apart.append((busy.percentile(99), calm.percentile(99)))
            done = f"{(number + 1) * args.each} swaps, {swapped.tally.total + all_other.total} requests"
            failed = swapped.tally.failed + all_other.failed
            report.say(
                f"{done}, {failed} failed; period of {length:.1f} s, p99 with {apart[-1][0]:.2f} ms, "
                f"without {apart[-1][1]:.2f} ms"
            )
    tally = swapped.tally
    all_other.add(other.tally)
    tally.add(all_other)
    report.bar("swaps", len(swapper.seconds), f">= {args.swaps}", len(swapper.seconds) >= args.swaps)
    report.none_failed(f"{args.connections} connections during the swaps", tally)
    report.bar("requests", tally.total, f">= {args.requests}", tally.total >= args.requests)
    if swapper.seconds:
        for index, model in enumerate(SWAPPED):
            if took := swapper.seconds[index :: len(SWAPPED)]:
                report.figure(f"rename to old version gone, {model}, median", statistics.median(took), "s")
    if apart:
        busy99, calm99 = (statistics.median(column) for column in zip(*apart, strict=True))
        report.figure("p99 of another model without swaps", calm99, "ms")
        report.figure("p99 of another model during swaps", busy99, "ms")
        report.bar(
            "ratio of the two", busy99 / calm99, f"<= {args.ratio}", not broken and busy99 <= args.ratio * calm99
        )


def main() -> int:
    """Build, swap, report."""
    parser = arguments(__doc__)
    parser.add_argument("--swaps", type=int, default=20)
    parser.add_argument("--each", type=int, default=2, help="swaps in a period")
    parser.add_argument("--seconds", type=float, default=0.0, help="least length of a period; 0: as its swaps take")
    parser.add_argument("--warmup", type=float, default=3.0, help="seconds before the first period")
    parser.add_argument("--connections", type=int, default=32, help="of all models together")
    parser.add_argument("--other", type=int, default=8, help="of these those of the model that is not swapped")
    parser.add_argument("--requests", type=int, default=50_000, help="so many must be sent in all")
    parser.add_argument("--ratio", type=float, default=1.5)
    parser.add_argument("--trigger", choices=["watch", "load"], default="watch", help="who tells the gateway")
    parser.add_argument("--patience", type=float, default=60.0, help="seconds that a swap may take")
    args = parser.parse_args()
    report = Report(f"{args.swaps} swaps under {args.connections} connections")
    with workplace() as directory:
        store, staging = directory / "store", directory / "staging"
        models = [Scale(store / OTHER / "1", "pytorch", 1000)]
        for model, framework in SWAPPED.items():
            models.append(Scale(store / model / "1", framework, 1, LATEST))
            models += [Scale(staging / model / str(n), framework, n) for n in range(2, 2 + (args.swaps + 1) // 2)]
        report.say(f"building {len(models)} models")
        build(models)
        with running(store) as gateway, contextlib.suppress(KeyboardInterrupt):
            report.say("serving")
            swapper = Swapper(gateway, staging, store, args, report)
            uvloop.run(measure(args, gateway, swapper, report))
    return report.finish(args.json)


if __name__ == "__main__":
    sys.exit(main())
