"""Many models and memory for a quarter of them: every answer right, the budget kept, and a cold answer soon.

First one connection asks for models at random; the repository index tells before each request whether the model is
COLD. Then several connections ask at once. The memory is read from the kernel all the while.
"""

import asyncio
import contextlib
import random
import shutil
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import Any, Self

import uvloop
from client import ClosedLoop, Shot
from fleet import Scale, build, scale_shot
from report import Report, arguments
from running import Running, private_bytes, running, workplace

BARS = {"pytorch": 150.0, "tensorflow": 400.0}
"""Milliseconds of the median cold answer."""
MB = 1e6


class Watch(threading.Thread):
    """Samples the private memory of all instances; `with` starts and ends it."""

    def __init__(self, gateway: Running, seconds: float) -> None:
        super().__init__(daemon=True)
        self._gateway, self._pause = gateway, seconds
        self._over = threading.Event()
        self.totals: list[int] = []
        self.residents: list[int] = []

    def run(self) -> None:
        """Called by threading. Reading walks the page tables of every instance: milliseconds each, so not too often."""
        while not self._over.wait(self._pause):
            self.sample()

    def sample(self) -> None:
        """Once."""
        sizes = [private_bytes(pid) for pid in self._gateway.instances()]
        self.totals.append(sum(sizes))
        self.residents.append(sum(1 for size in sizes if size))

    def __enter__(self) -> Self:
        self.sample()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()
        self.sample()


def footprint(directory: Path, frameworks: dict[str, str], report: Report) -> dict[str, float]:
    """Private bytes of an idle model of each framework, measured in a gateway of its own."""
    store = directory / "sample" / "store"
    store.mkdir(parents=True)
    chosen = {framework: model for model, framework in frameworks.items()}
    for model in chosen.values():
        shutil.copytree(directory / "store" / model, store / model)
    with running(store) as gateway:
        for model in chosen.values():
            gateway.call("POST", *_asked(model))
        metrics = gateway.metrics()
    found = {
        framework: metrics.of("gateway_instance_memory_bytes", model=model, kind="private")
        for framework, model in chosen.items()
    }
    report.say(", ".join(f"{framework} {size / MB:.1f} MB" for framework, size in found.items()) + " of private memory")
    return found


def _asked(model: str) -> tuple[str, bytes]:
    shot = scale_shot(model, {})
    return f"/v2/models/{model}/infer", shot.data.partition(b"\r\n\r\n")[2]


async def one_by_one(gateway: Running, shots: dict[str, Shot], frameworks: dict[str, str], args: Any) -> dict[str, Any]:
    """Milliseconds of cold answers by framework and of warm ones, and the failures."""
    choose = random.Random(args.seed)
    chosen = [choose.choice(sorted(shots)) for _ in range(args.single)]
    upcoming = iter(chosen)
    found: dict[str, Any] = {"pytorch": [], "tensorflow": [], "warm": [], "failed": 0, "unready": 0}
    load = ClosedLoop(gateway.address, lambda: shots[next(upcoming)], 1, args.patience, count=0)
    end = time.monotonic() + args.seconds
    async with load:
        (line,) = load.lines
        for model in chosen:
            if time.monotonic() > end:
                break
            index = await asyncio.to_thread(gateway.index)
            state = index[model][1][0]
            load.take()
            load.allow(line)
            while line.shot is not None:  # noqa: ASYNC110 - the line tells its load, which counts
                await asyncio.sleep(0.0005)
            tally = load.take()
            found["failed"] += tally.failed
            if state not in ("COLD", "READY"):
                found["unready"] += 1
            found["warm" if state == "READY" else frameworks[model]] += [1000 * each for each in tally.latencies]
            if tally.failed:
                print(f"{model}, which was {state}: {dict(tally.examples)}", flush=True)
            if not line.open:
                break
    return found


async def at_once(gateway: Running, shots: dict[str, Shot], args: Any, report: Report) -> None:
    """Several connections, each asking for models at random."""
    choose = random.Random(args.seed + 1)
    models = sorted(shots)
    load = ClosedLoop(
        gateway.address, lambda: shots[choose.choice(models)], args.connections, args.patience, count=args.requests
    )
    running_load = asyncio.create_task(load.finish(args.seconds))
    while not running_load.done():
        await asyncio.wait([running_load], timeout=10.0)
        report.say(f"{load.tally.total} requests, {load.tally.failed} failed")
    tally = running_load.result()
    report.none_failed(f"{args.connections} connections at random", tally)
    report.figure("their requests/s", tally.rate)
    report.figure("their p50", tally.percentile(50), "ms")
    report.figure("their p99", tally.percentile(99), "ms")


def judge(found: dict[str, Any], report: Report) -> None:
    """Hold the single connection's times against the bars."""
    report.bar("one connection: failed requests", found["failed"], "0", found["failed"] == 0)
    report.bar("models neither COLD nor READY when asked", found["unready"], "0", found["unready"] == 0)
    for framework, bar in BARS.items():
        times = found[framework]
        report.figure(f"cold answers of {framework}", len(times))
        median = statistics.median(times) if times else float("nan")
        report.bar(f"cold {framework}, p50", median, f"<= {bar:.0f} ms", bool(times) and median <= bar, "ms")
        if len(times) > 1:
            report.figure(f"cold {framework}, p90", statistics.quantiles(times, n=10)[-1], "ms")
    if found["warm"]:
        report.figure("warm answers, p50", statistics.median(found["warm"]), "ms")


async def measure(gateway: Running, frameworks: dict[str, str], budget: float, args: Any, report: Report) -> None:
    """Both phases, with the memory watched."""
    shots = {model: scale_shot(model, {"1": number}) for number, model in enumerate(frameworks, start=1)}
    with Watch(gateway, args.sample) as watch:
        report.say(f"{watch.residents[0]} models resident")
        found = await one_by_one(gateway, shots, frameworks, args)
        judge(found, report)
        report.say(
            f"one connection: {len(found['warm'])} warm, {len(found['pytorch'])} cold TorchScript, "
            f"{len(found['tensorflow'])} cold SavedModel, {watch.residents[-1]} resident"
        )
        await at_once(gateway, shots, args, report)
    exposed = await asyncio.to_thread(gateway.metrics)
    private = exposed.of("gateway_instance_memory_bytes", kind="private")
    report.figure("budget", budget / MB, "MB")
    report.bar(
        "most private memory, by the kernel", max(watch.totals) / MB, "<= budget", max(watch.totals) <= budget, "MB"
    )
    report.bar("private memory at the end, by /metrics", private / MB, "<= budget", private <= budget, "MB")
    report.figure("samples of memory", len(watch.totals))
    report.bar("most models resident", max(watch.residents), f"< {len(shots)}", max(watch.residents) < len(shots))
    evictions = exposed.of("gateway_evictions_total")
    report.bar("gateway_evictions_total", evictions, "> 0", evictions > 0)
    report.figure("reclaimed", exposed.of("gateway_memory_reclaimed_bytes_total") / MB, "MB")


def main() -> int:
    """Build, ask, report."""
    parser = arguments(__doc__)
    parser.add_argument("--models", type=int, default=200, help="half of each framework")
    parser.add_argument("--resident", type=int, default=50, help="the budget is for about so many")
    parser.add_argument("--budget", type=float, help="in MB instead")
    parser.add_argument("--single", type=int, default=300, help="requests on one connection")
    parser.add_argument("--requests", type=int, default=2000, help="requests on several connections")
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=300.0, help="the most that either phase may take")
    parser.add_argument("--sample", type=float, default=1.0, help="seconds between looks at the memory")
    parser.add_argument("--patience", type=float, default=60.0, help="seconds that a request may take")
    args = parser.parse_args()
    report = Report(f"{args.models} models, memory for about {args.resident}")
    with workplace() as directory, contextlib.suppress(KeyboardInterrupt):
        frameworks = {}
        for number in range(1, args.models + 1):
            framework = "pytorch" if number % 2 else "tensorflow"
            frameworks[f"{framework}_{number:03}"] = framework
        report.say(f"building {args.models} models")
        build(
            Scale(directory / "store" / model / "1", framework, number)
            for number, (model, framework) in enumerate(frameworks.items(), start=1)
        )
        each = footprint(directory, frameworks, report)
        budget = args.budget * MB if args.budget else args.resident * statistics.mean(each.values())
        report.say(f"budget {budget / MB:.0f} MB")
        with running(directory / "store", "--memory-budget", str(int(budget))) as gateway:
            report.say("serving")
            uvloop.run(measure(gateway, frameworks, budget, args, report))
    return report.finish(args.json)


if __name__ == "__main__":
    sys.exit(main())
