"""Everything at once for a long time: traffic, swaps, kills, bad and hostile requests, overload, COLD models.

Each minute a line; at the end what failed that should not have, restarts that nobody caused, and how fast the memory of
each kind of process grows (least squares, after the first quarter).
"""

import argparse
import asyncio
import contextlib
import itertools
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import busy
import numpy as np
import uvloop
from abandon import abandon
from client import ClosedLoop, Load, OpenLoop, Shot, Tally, request
from fleet import Scale, X, build, scale_shot
from hostile_bodies import hostile_bodies
from mutations import good_requests, mutant
from report import Report, arguments
from running import Running, private_bytes, running, until, workplace

STEADY = {"steady_torch": "pytorch", "steady_tf": "tensorflow"}
VICTIMS = {"victim_torch": "pytorch", "victim_tf": "tensorflow"}
SWAPPED = {"swapped_torch": "pytorch", "swapped_tf": "tensorflow"}
COLD = {f"cold_{number:02}": "tensorflow" if number % 3 == 2 else "pytorch" for number in range(30)}
KINDS = 4
"""Different models that take turns as versions of a swapped one."""
QUEUE = 64
ROW_SECONDS = 0.005
HOSTILE_A_SECOND = 1.0
FLOOR_SECONDS = 60.0
BURST_SECONDS = 3.0
SWAP_SECONDS = 120.0
NOISE_BYTES = 3 << 20
"""So much may be fitted over the whole time without being called growth: what a page here and there amounts to."""
MB = 1e6


def models(directory: Path) -> list[Scale]:
    """The whole store, and the versions to come."""
    store, staging = directory / "store", directory / "staging"
    pinned = "pinned: true\n"
    found = [busy.model(store, f"max_queue_size: {QUEUE}\n{pinned}")]
    for group in (STEADY, VICTIMS, COLD):
        found += [
            Scale(store / model / "1", framework, _factor(model), "" if group is COLD else pinned)
            for model, framework in group.items()
        ]
    for model, framework in SWAPPED.items():
        found.append(Scale(store / model / "1", framework, 2, "version_policy: {latest: 1}\n"))
        found += [Scale(staging / model / str(kind), framework, 2 + kind) for kind in range(KINDS)]
    return found


def _factor(model: str) -> int:
    return 10 + [*STEADY, *VICTIMS, *COLD].index(model)


class Swaps:
    """New versions, whose predecessors' files are removed once they are gone."""

    def __init__(self, gateway: Running, directory: Path) -> None:
        self.factors = {model: {"1": 2} for model in SWAPPED}
        self._gateway, self._directory = gateway, directory
        self._turn = itertools.cycle(SWAPPED)
        self.over = False
        """Set to have nobody wait for a swap any more."""

    def swap(self) -> None:
        """One; TimeoutError if it does not come about."""
        model = next(self._turn)
        old = max(map(int, self.factors[model]))
        new = old + 1
        kind = new % KINDS
        self.factors[model][str(new)] = 2 + kind
        incoming = self._directory / f"incoming-{model}-{new}"
        shutil.copytree(self._directory / "staging" / model / str(kind), incoming)
        home = self._directory / "store" / model
        incoming.rename(home / str(new))

        def swapped() -> bool:
            versions = self._gateway.index().get(model, {})
            return self.over or (list(versions) == [new] and versions[new][0] == "READY")

        until(swapped, SWAP_SECONDS, f"swapped: {model} to {new}")
        shutil.rmtree(home / str(old))


class Memory:
    """Private memory by kind of process over time, and the processes that must stay the same."""

    def __init__(self, gateway: Running) -> None:
        self._gateway = gateway
        self.series: dict[str, list[tuple[float, int]]] = defaultdict(list)
        self.lasting = self._lasting(gateway.processes())
        self.instances = 0

    @staticmethod
    def _lasting(processes: dict[int, str]) -> dict[int, str]:
        steady = tuple(f"gateway: instance {model}/" for model in STEADY)
        return {
            pid: title.removeprefix("gateway: ")
            for pid, title in processes.items()
            if title.startswith(("gateway: http worker", "gateway: runner", *steady))
        }

    def sample(self) -> None:
        """Once."""
        now, found = time.monotonic(), Counter[str]()
        processes = self._gateway.processes()
        found["supervisor"] = private_bytes(self._gateway.process.pid)
        for pid, title in self.lasting.items():
            if pid in processes:
                found[title] = private_bytes(pid)
        instances = [pid for pid, title in processes.items() if title.startswith("gateway: instance ")]
        self.instances = len(instances)
        found["all instances"] = sum(map(private_bytes, instances))
        for kind, size in found.items():
            self.series[kind].append((now, size))

    def gone(self) -> list[str]:
        """The titles of those that did not last."""
        alive = self._gateway.processes()
        return [title for pid, title in self.lasting.items() if pid not in alive]

    def growth(self, kind: str) -> tuple[float, float]:
        """(bytes an hour, bytes over the time looked at), by least squares after the first quarter.

        Of each minute the least counts: what one large body takes while it is read is no growth.
        """
        floors: dict[int, tuple[float, int]] = {}
        for at, size in self.series[kind][len(self.series[kind]) // 4 :]:
            minute = int(at / FLOOR_SECONDS)
            if minute not in floors or size < floors[minute][1]:
                floors[minute] = at, size
        series = np.array(list(floors.values()), float)
        if len(series) < 3:
            return 0.0, 0.0
        times = series[:, 0] - series[0, 0]
        slope = float(np.polyfit(times, series[:, 1], 1)[0])
        return slope * 3600, slope * float(times[-1])

    def shown(self) -> str:
        """The latest sample."""
        latest = ", ".join(f"{kind} {series[-1][1] / MB:.0f}" for kind, series in self.series.items())
        return f"MB: {latest} ({self.instances})"


class Soak:
    """All the traffic and all the trouble."""

    def __init__(self, gateway: Running, directory: Path, args: argparse.Namespace, report: Report) -> None:
        self._gateway, self._args, self._report = gateway, args, report
        self._random = random.Random(args.seed)
        self._swaps = Swaps(gateway, directory)
        self._rounds = 0
        self.events: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.requests: Counter[str] = Counter()
        self.bursts = Tally()

    # Traffic

    def loads(self) -> dict[str, Load]:
        """What goes on all the time."""
        address, args = self._gateway.address, self._args
        served = [scale_shot(model, {"1": _factor(model)}) for model in (*STEADY, *VICTIMS)]
        served += [scale_shot(model, self._swaps.factors[model]) for model in SWAPPED]
        cold = [scale_shot(model, {"1": _factor(model)}) for model in COLD]
        return {
            "served": ClosedLoop(address, served, args.connections, args.patience),
            "cold": ClosedLoop(address, lambda: self._random.choice(cold), args.cold_connections, args.patience),
            "bad": ClosedLoop(address, self._bad().__next__, 1, args.patience),
            "hostile": OpenLoop(address, self._hostile(), HOSTILE_A_SECOND, 4, args.patience),
        }

    def _bad(self) -> Iterator[Shot]:
        good = good_requests("x", "FP32", [1, 4], X)
        names = list(STEADY)
        while True:
            wrong = mutant(self._random, self._random.choice(good))
            data = request("POST", f"/v2/models/{self._random.choice(names)}/infer", wrong.body, *wrong.headers)
            yield Shot(data, self._no_server_error(data))

    def _hostile(self) -> list[Shot]:
        paths = [f"/v2/models/{next(iter(STEADY))}/infer", f"/v1/models/{next(iter(STEADY))}:predict"]
        found = []
        for number, hostile in enumerate(hostile_bodies().values()):
            data = request("POST", paths[number % 2], hostile.body, *hostile.headers)
            found.append(Shot(data, self._no_server_error(data)))
        return found

    def _no_server_error(self, data: bytes) -> Callable[[int, bytes, bytes], str]:
        def check(status: int, _head: bytes, body: bytes) -> str:
            if status < 500 or (status == 504 and b"timeout" in data.lower()):
                return ""  # a mutant may allow itself a microsecond
            self._report.say(f"answered {status} {body!r}: {data[:2000]!r}")
            return f"status {status}"

        return check

    # Trouble

    async def swap(self) -> None:
        """A new version of a model."""
        await asyncio.to_thread(self._swaps.swap)

    async def kill(self) -> None:
        """An instance of a model that must go on answering."""
        wanted = {f"{model}/1" for model in (*VICTIMS, busy.MODEL)}
        instances = await asyncio.to_thread(self._gateway.instances)
        if found := sorted(pid for pid, title in instances.items() if title in wanted):
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._random.choice(found), signal.SIGKILL)

    async def abandon(self) -> None:
        """Requests whose clients go away."""
        await abandon(self._gateway.address, busy.shot(self._rounds, busy.answers), 50)

    async def overload(self) -> None:
        """Ten times more requests than can be answered."""
        shot = busy.shot(self._rounds, busy.answers)
        load = OpenLoop(self._gateway.address, [shot], 10 / ROW_SECONDS, 2 * QUEUE, self._args.patience)
        tally = await load.run(BURST_SECONDS)
        tally.failures.pop("not sent", None)  # the generator's own bound
        self.requests["overload"] += tally.total
        self.events["refused with 429"] += tally.failures.pop("429", 0)
        self._note("overload", tally)

    def _note(self, name: str, tally: Tally) -> None:
        for kind, number in tally.failures.items():
            self.failures[f"{name}: {kind}"] += number
            self._report.say(f"{name}: {number} x {kind}, such as {tally.examples[kind]!r}")

    async def _every(self, seconds: float, name: str, action: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(seconds * self._random.uniform(0.5, 1.5))
            try:
                await action()
                self.events[name] += 1
            except (OSError, RuntimeError) as error:  # TimeoutError is an OSError
                self.failures[f"{name}: {error}"] += 1
                self._report.say(f"{name}: {error}")

    # All of it

    async def run(self, memory: Memory) -> None:
        """Until the time is over."""
        args = self._args
        rate = await asyncio.to_thread(busy.rounds_per_second, self._gateway)
        self._rounds = int(rate * ROW_SECONDS)
        loads = self.loads()
        async with contextlib.AsyncExitStack() as stack:
            for load in loads.values():
                await stack.enter_async_context(load)
            trouble = [
                asyncio.create_task(self._every(args.swap, "swaps", self.swap)),
                asyncio.create_task(self._every(args.kill, "kills", self.kill)),
                asyncio.create_task(self._every(args.abandon, "abandoned bursts", self.abandon)),
                asyncio.create_task(self._every(args.overload, "overload bursts", self.overload)),
            ]
            end = time.monotonic() + 60 * args.minutes
            while (left := end - time.monotonic()) > 0:
                await self._minute(loads, memory, min(args.line, left))
            self._swaps.over = True
            for task in trouble:
                task.cancel()
            await asyncio.gather(*trouble, return_exceptions=True)
        for name, load in loads.items():
            self.requests[name] += load.tally.total
            self._note(name, load.tally)

    async def _minute(self, loads: dict[str, Load], memory: Memory, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            await asyncio.sleep(min(self._args.sample, left))
            await asyncio.to_thread(memory.sample)
        shown = []
        for name, load in loads.items():
            tally = load.take()
            self.requests[name] += tally.total
            self._note(name, tally)
            shown.append(f"{name} {tally.right} right, {tally.failed} failed, p99 {tally.percentile(99):.0f} ms")
        events = ", ".join(f"{number} {name}" for name, number in self.events.items())
        self._report.say(f"{'; '.join(shown)}; so far {events}; {memory.shown()}")


def judge(soak: Soak, memory: Memory, gateway: Running, args: argparse.Namespace, report: Report) -> None:
    """Hold it all against the bars."""
    for name, number in soak.requests.items():
        report.figure(f"requests, {name}", number)
    for name, number in soak.events.items():
        report.figure(name, number)
    failed = soak.failures.total()
    report.bar("failures", failed, "0", failed == 0)
    for kind, number in soak.failures.most_common(10):
        report.figure(f"failures, {kind[:80]}", number)
    gone = memory.gone()
    report.bar(f"lasting processes that ended{': ' * bool(gone)}{', '.join(gone)}", len(gone), "0", not gone)
    metrics = gateway.metrics()
    restarts, kills = metrics.of("gateway_instance_restarts_total"), soak.events["kills"]
    report.bar("instances replaced", restarts, f"<= {kills} kills", restarts <= kills)
    report.figure("evictions", metrics.of("gateway_evictions_total"))
    budget = args.budget * MB
    most = max(size for _, size in memory.series["all instances"])
    report.bar("most private memory of all instances", most / MB, f"<= {args.budget} MB", most <= budget, "MB")
    for kind in memory.series:
        hourly, whole = memory.growth(kind)
        if kind == "all instances":
            report.figure(f"growth of {kind}", hourly / MB, "MB/h")
        else:
            met = hourly <= args.slope * MB or whole <= NOISE_BYTES
            report.bar(f"growth of {kind} ({whole / MB:.1f} MB in all)", hourly / MB, f"<= {args.slope:g}", met, "MB/h")


def main() -> int:
    """Build, soak, report."""
    parser = arguments(__doc__)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--line", type=float, default=60.0, help="seconds between lines")
    parser.add_argument("--sample", type=float, default=3.0, help="seconds between looks at the memory")
    parser.add_argument("--connections", type=int, default=8, help="to models that are always there")
    parser.add_argument("--cold-connections", type=int, default=2, help="to those that mostly are not")
    parser.add_argument("--patience", type=float, default=90.0, help="seconds until a request counts as failed")
    parser.add_argument("--budget", type=int, default=350, help="MB for all instances")
    parser.add_argument("--slope", type=float, default=12.0, help="MB an hour that a process may grow")
    for name, seconds in (("swap", 20), ("kill", 10), ("abandon", 15), ("overload", 45)):
        parser.add_argument(f"--{name}", type=float, default=seconds, help="seconds from one to the next, about")
    args = parser.parse_args()
    report = Report(f"{args.minutes:g} minutes of everything at once")
    with workplace() as directory:
        report.say("building the models")
        build(models(directory))
        with running(directory / "store", "--memory-budget", f"{args.budget}MB") as gateway:
            memory = Memory(gateway)
            report.say(f"serving; {', '.join(sorted(memory.lasting.values()))}")
            soak = Soak(gateway, directory, args, report)
            uvloop.run(soak.run(memory))
            judge(soak, memory, gateway, args, report)
            code = gateway.stop()
            report.bar("exit code after SIGTERM", code, "0", code == 0)
    return report.finish(args.json)


if __name__ == "__main__":
    sys.exit(main())
