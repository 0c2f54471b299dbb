"""Kill processes of a gateway under load, one kind after another, and count what clients notice."""

import asyncio
import os
import random
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvloop
from client import ClosedLoop
from fleet import Scale, build, scale_shot
from report import Report, arguments
from running import Running, running, until, workplace

MODELS = {"torch_a": ("pytorch", 3), "torch_b": ("pytorch", 5), "tf_a": ("tensorflow", 7)}
GONE_SECONDS = 2.0
REPLACED_SECONDS = 90.0
KINDS = ["instance", "runner", "worker", "supervisor"]


def kill(pid: int) -> None:
    """What no process can prepare for."""
    os.kill(pid, signal.SIGKILL)


def client_ports(pid: int) -> set[int]:
    """The remote ports of a process's TCP connections."""
    inodes = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = entry.readlink().name
        except OSError:
            continue
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    lines = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
    fields = [line.split() for line in lines]
    return {int(each[2].rpartition(":")[2], 16) for each in fields if each[9] in inodes and each[3] == "01"}


class Faults:
    """One gateway under one load; each method is one kind of fault."""

    def __init__(self, gateway: Running, args: Any, report: Report) -> None:
        self._gateway, self._args, self._report = gateway, args, report
        self._random = random.Random(args.seed)
        self._shots = [scale_shot(model, {"1": factor}) for model, (_, factor) in MODELS.items()]

    def _load(self) -> ClosedLoop:
        return ClosedLoop(self._gateway.address, self._shots, self._args.connections)

    def _settled(self) -> bool:
        states = {state for versions in self._gateway.index().values() for state, _ in versions.values()}
        return states == {"READY"} and set(self._gateway.instances().values()) >= {f"{model}/1" for model in MODELS}

    async def _replaced(self, old: set[int], what: str) -> float:
        """Seconds until every model has an instance again and none of the old processes lives."""
        return await asyncio.to_thread(
            until,
            lambda: not old & self._gateway.processes().keys() and self._settled(),
            REPLACED_SECONDS,
            f"replaced: {what}",
        )

    async def instance(self) -> None:
        """One instance a second."""
        args, report = self._args, self._report
        kills = missing = 0
        end = time.monotonic() + args.seconds
        async with self._load() as load:
            await asyncio.sleep(1.0)
            before = load.take()
            while time.monotonic() < end:
                begun = time.monotonic()
                found = await asyncio.to_thread(self._gateway.instances)
                if found:
                    kill(self._random.choice(sorted(found)))
                    kills += 1
                else:
                    missing += 1
                if kills % 10 == 0:
                    report.say(f"{kills} instances killed, {load.tally.total} requests, {load.tally.failed} failed")
                await asyncio.sleep(max(0.0, args.interval - (time.monotonic() - begun)))
        tally = load.tally
        report.figure("instances: kills", kills)
        report.none_failed("instances", tally)
        report.figure("instances: requests/s before", before.rate)
        report.figure("instances: requests/s meanwhile", tally.rate)
        report.figure("instances: longest request", max(tally.latencies, default=0.0) * 1000, "ms")
        report.bar("instances: seconds without any to kill", missing, "0", missing == 0)
        took = await self._replaced(set(), "the last instance")
        report.figure("instances: all models answer after", took, "s")

    async def runner(self) -> None:
        """Each runner once; its instances die with it."""
        report = self._report
        async with self._load() as load:
            for pid, title in sorted((await asyncio.to_thread(self._gateway.pids, "runner ")).items()):
                report.say(f"killing {title}")
                old = {pid}
                kill(pid)
                took = await self._replaced(old, title)
                report.figure(f"{title}: all models answer after", took, "s")
                await asyncio.sleep(1.0)
        report.none_failed("runners", load.tally)
        report.figure("runners: longest request", max(load.tally.latencies, default=0.0) * 1000, "ms")

    async def worker(self) -> None:
        """One HTTP worker; whoever was connected to the other one notices nothing."""
        report = self._report
        async with self._load() as load:
            await asyncio.sleep(1.0)
            workers = await asyncio.to_thread(self._gateway.pids, "http worker")
            pid = self._random.choice(sorted(workers))
            mine = {line.port for line in load.lines} & client_ports(pid)
            kill(pid)
            report.say(f"killed a worker with {len(mine)} of {len(load.lines)} connections")
            await asyncio.sleep(0.5)
            first = load.take()
            broken = {port for _, port in load.broken}
            took = await asyncio.to_thread(
                until,
                lambda: len(self._gateway.pids("http worker").keys() - {pid}) == len(workers),
                REPLACED_SECONDS,
                "replaced: the worker",
            )
            await asyncio.sleep(1.0)
        others = len(broken - mine)
        report.figure("worker: requests it took with it", len(broken & mine))
        report.bar("worker: connections of others that broke", others, "0", others == 0)
        wrong = first.failed - first.failures["reset"]
        report.bar("worker: failures that are no broken connection", wrong, "0", wrong == 0)
        report.none_failed("worker: afterwards", load.tally)
        report.figure("worker: replaced after", took, "s")

    async def supervisor(self) -> None:
        """The supervisor; nothing may be left."""
        async with self._load():
            await asyncio.sleep(0.5)
            began = time.monotonic()
            kill(self._gateway.process.pid)
            try:
                await asyncio.to_thread(until, lambda: not self._gateway.processes(), 10 * GONE_SECONDS, "gone")
            except TimeoutError:
                self._report.say(f"left: {self._gateway.processes()}")
            took = time.monotonic() - began
        self._report.bar("supervisor: nothing left after", took, f"<= {GONE_SECONDS:g} s", took <= GONE_SECONDS, "s")


async def run(gateway: Running, kinds: Sequence[str], args: Any, report: Report) -> None:
    """These kinds of faults; the supervisor's must be the last."""
    faults = Faults(gateway, args, report)
    for kind in kinds:
        report.say(f"killing: {kind}")
        try:
            await getattr(faults, kind)()
        except TimeoutError as error:
            report.say(f"{kind}: {error}")
            report.bar(f"{kind}: {error}", 1, "0", met=False)


def main() -> int:
    """Build, kill, report."""
    parser = arguments(__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="for so long instances are killed")
    parser.add_argument("--interval", type=float, default=1.0, help="seconds from one killed instance to the next")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    args = parser.parse_args()
    report = Report(f"Killed processes under {args.connections} connections")
    with workplace() as directory:
        store = directory / "store"
        report.say("building the models")
        build([Scale(store / model / "1", framework, factor) for model, (framework, factor) in MODELS.items()])
        with running(store, "--workers", str(args.workers)) as gateway:
            report.say("serving")
            uvloop.run(run(gateway, [kind for kind in KINDS if kind in args.kinds], args, report))
    return report.finish(args.json)


if __name__ == "__main__":
    sys.exit(main())
