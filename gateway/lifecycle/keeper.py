"""Keeps the instances of versions alive: starts them, replaces those that die, ends them."""

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence

from gateway.errors import GatewayError, InstanceDied, LoadFailed
from gateway.ipc.messages import Died, Ready
from gateway.lifecycle.batch_ledger import BatchLedger
from gateway.lifecycle.deaths import counts_as_quick, crashed, crashed_optimised, exit_report, how_it_ended
from gateway.lifecycle.placement import Device, place, scaled
from gateway.lifecycle.state import State
from gateway.lifecycle.version import Version
from gateway.nodes.control import Report
from gateway.nodes.node import Instance, Node
from gateway.store.source import Key

log = logging.getLogger("gateway.keeper")

STARTS = 5
"""So many starts in a row that end in a death or a failure, and the version is FAILED."""
FIRST_BACKOFF_SECONDS = 0.1
LONGEST_BACKOFF_SECONDS = 10.0
QUICK_SECONDS = 0.5
"""An instance that dies sooner after it was ready makes the next one wait."""
QUICK_DEATHS = 20
"""After so many quick deaths in a row, which with the waiting take minutes, the version is FAILED."""


_UNTESTED = (
    ": a request made up to test it did not end; declare its inputs in model.yaml, "
    "or say stateful: true there to have it loaded untested"
)


def backoff(failures: int) -> float:
    """Seconds to wait after so many failures in a row; spread, so that models which fail together do not retry so."""
    longest: float = min(LONGEST_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2 ** min(failures - 1, 20))
    return longest * random.uniform(0.5, 1.0)  # noqa: S311 - nothing secret


MAX_PLAIN = 1024
"""So many are remembered; the oldest go first."""


def _form_key(version: Version) -> tuple[Key, int]:
    """A version with the files that it has now."""
    return version.key, version.artifact.contents.stamp


class Keeper:
    """Starts, replaces and ends instances. `publish` returns when the workers route by what it published."""

    def __init__(
        self,
        node: Node,
        publish: Callable[[], Awaitable[None]],
        tell_died: Callable[[Died], None],
        load_timeout: float,
        drain_timeout: float = 30.0,
    ) -> None:
        self.restarts: Counter[tuple[str, str]] = Counter()
        """(model/version, how the instance ended) → instances replaced."""
        self._node = node
        self._publish = publish
        self._tell_died = tell_died
        self._load_timeout = load_timeout
        self._drain_timeout = drain_timeout
        self.on_end: Callable[[Version], None] = lambda _: None
        """Called when the processes of a version have ended for good."""
        self._plain: dict[tuple[Key, int], str] = {}
        """Versions with these files whose optimised form is not used, and why."""
        self._replacing: dict[Version, dict[asyncio.Task[None], int]] = {}
        """Of each version the tasks that watch and replace its instances, with their indices."""
        self._closing = False
        self.batches = BatchLedger(node.run_alone)
        self._publishing: set[asyncio.Task[None]] = set()

    async def start_all(self, version: Version) -> None:
        """Start an instance on each of the version's devices; if one cannot be started, end the others.

        LoadFailed or OutOfMemory with the reason.
        """
        started = await self._start_each(version, list(enumerate(version.devices)))
        version.instances = [instance for instance, _ in started]
        version.ready = self.batches.started(version, started[0][1])

    async def _start_each(self, version: Version, places: list[tuple[int, Device]]) -> list[tuple[Instance, Ready]]:
        """An instance for each index and device, or none and the reason, as above."""
        failures: list[BaseException] = []
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._start_patiently(version, index, device, InstanceDied))
                    for index, device in places
                ]
        except* Exception as errors:  # noqa: BLE001 - raised again below, when the siblings are ended
            failures = list(errors.exceptions)
        if failures:
            for task in tasks:
                if not task.cancelled() and task.exception() is None:
                    self._node.stop(task.result()[0], kill=True)
            raise failures[0]
        return [task.result() for task in tasks]

    async def _start_patiently(
        self, version: Version, index: int, device: Device, transient: type[GatewayError]
    ) -> tuple[Instance, Ready]:
        """Start an instance, trying again after errors of this kind; the last one becomes LoadFailed."""
        failures = 0
        while True:
            try:
                return await self._start(version, index, device)
            except transient as error:
                failures += 1
                if version.state not in (State.LOADING, State.READY):
                    raise  # nobody wants it any more
                if failures == STARTS:
                    times = f", {STARTS} times in a row" if isinstance(error, InstanceDied) else ""
                    raise LoadFailed(f"{error.message}{times}") from None
                log.warning("%s: an instance could not be started: %s", version.title, error.message)
                self.restarts[version.title, "start"] += 1
            await asyncio.sleep(backoff(failures))

    async def _start(self, version: Version, index: int, device: Device) -> tuple[Instance, Ready]:
        """Spawn an instance and wait until it is ready; one that fails, or is not waited for, is ended."""
        try:
            background = version.background and version.state is State.LOADING
            instance = await self._node.spawn(
                version.artifact,
                index,
                device,
                background=background,
                plain=self._plain.get(_form_key(version), ""),
                disagreement=self.batches.against(version.artifact),
            )
        except OSError as error:
            raise LoadFailed(f"its process could not be started: {error.strerror or error}") from None
        instance.on_report = lambda report: self._hear(version, instance, report)
        version.starting.add(instance)
        try:
            ready = await asyncio.wait_for(asyncio.shield(instance.ready), self._load_timeout)
        except TimeoutError:
            self._node.stop(instance, kill=True)
            raise LoadFailed(
                f"it was not ready within {self._load_timeout:g} s{_UNTESTED * instance.testing}"
            ) from None
        except InstanceDied as error:
            self._node.stop(instance, kill=True)
            if instance.exited.done() and crashed(instance.exited.result()):
                self._use_plain(version, error.message)  # what was optimised may have crashed when it was tried
            raise
        except BaseException:
            self._node.stop(instance, kill=True)
            raise
        finally:
            version.starting.discard(instance)
        instance.exited.add_done_callback(lambda exited: self._tell_died(exit_report(instance, exited.result())))
        return instance, ready

    def _hear(self, version: Version, instance: Instance, report: Report) -> None:
        """An instance has found out something about its batches."""
        if self.batches.hear(version, instance, report):
            task = asyncio.ensure_future(self._publish())
            self._publishing.add(task)
            task.add_done_callback(self._publishing.discard)

    async def grow(self, version: Version, have: int) -> None:
        """Start the instances that a READY version has devices for beyond the first so many, and publish them.

        LoadFailed or OutOfMemory with the reason; then none of them stays.
        """
        started = await self._start_each(version, list(enumerate(version.devices))[have:])
        if not version.is_ready():
            for instance, _ in started:
                self._node.stop(instance, kill=True)
            raise LoadFailed(f"it is {version.state}")
        for instance, _ in started:
            version.instances.append(instance)
            self._watch(version, instance)
        await self._publish()

    async def shrink(self, version: Version, count: int) -> None:
        """Leave a READY version only its first so many devices; what runs on the others answers what it has."""
        del version.devices[count:]
        for task, index in self._replacing.get(version, {}).items():
            if index >= count:
                task.cancel()  # with it ends what it is starting
        leaving = [instance for instance in version.instances if instance.index >= count]
        version.instances = [instance for instance in version.instances if instance.index < count]
        await self._publish()
        await self._end(leaving)

    async def _end(self, instances: Sequence[Instance]) -> None:
        """End instances that nobody sends requests to: when they have answered what they have, or after a while."""
        for instance in instances:
            self._node.stop(instance)
        if not instances:
            return
        exits = [instance.exited for instance in instances]
        await asyncio.wait(exits, timeout=self._drain_timeout)
        for instance in instances:
            self._node.stop(instance, kill=True)
        await asyncio.wait(exits, timeout=self._drain_timeout)

    def watch(self, version: Version) -> None:
        """Replace the instances of a version that is READY whenever one dies."""
        for instance in version.instances:
            self._watch(version, instance)

    def _watch(self, version: Version, instance: Instance) -> None:
        tasks = self._replacing.setdefault(version, {})
        task = asyncio.create_task(self._replace_when_dead(version, instance))
        tasks[task] = instance.index
        task.add_done_callback(lambda done: tasks.pop(done, None))

    async def _replace_when_dead(self, version: Version, instance: Instance) -> None:
        """Wait for an instance's end and, if the version is still wanted, start another in its place."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        code = await asyncio.shield(instance.exited)
        lived, how = loop.time() - started, how_it_ended(instance, code)
        if crashed_optimised(instance, code):
            self._use_plain(version, f"a process that computed with it ended with {how}")
        if not version.is_ready() or self._closing or instance not in version.instances:
            return
        version.instances.remove(instance)
        log.warning("instance %s ended (%s) and is replaced", instance.name, how)
        self.restarts[version.title, instance.cause or how] += 1
        if instance.verdict is not None:
            version.reason = f"an instance was ended: {instance.verdict[1]}"
        if lived >= QUICK_SECONDS:
            version.quick_deaths.clear()
        elif counts_as_quick(exit_report(instance, code)):
            version.quick_deaths.append(instance.name)
        try:
            await self._publish()
            deaths = len(version.quick_deaths)
            if deaths > QUICK_DEATHS:
                await self._give_up(version, f"its instances ended {deaths} times in a row, the last one by {how}")
                return
            if deaths > 1:
                await asyncio.sleep(backoff(deaths - 1))
            await self._replace(version, instance)
        except Exception:
            log.exception("replacing %s failed", instance.name)

    def _use_plain(self, version: Version, reason: str) -> None:
        """Start no more instances that compute an optimised form of these files."""
        key = _form_key(version)
        if key not in self._plain:
            while len(self._plain) >= MAX_PLAIN:
                del self._plain[next(iter(self._plain))]
            self._plain[key] = reason
            if version.artifact.framework == "pytorch":
                log.warning("%s: its optimised form is not used from now on: %s", version.title, reason)

    def explained(self, names: Iterable[str]) -> None:
        """These instances were ended by requests, which are not sent again: that says nothing of their versions."""
        gone = set(names)
        for version in self._replacing:
            if version.quick_deaths:
                version.quick_deaths = [name for name in version.quick_deaths if name not in gone]

    def abandoned(self, name: str) -> None:
        """All requests that an instance computes were cancelled: end it, for others wait behind them."""
        for version in self._replacing:
            for instance in version.instances:
                if instance.name == name and not instance.exited.done() and instance.verdict is None:
                    log.warning("%s is ended: no client waits for what it computes", name)
                    instance.abandoned = True
                    self._node.stop(instance, kill=True)

    async def _replace(self, version: Version, dead: Instance) -> None:
        """Start an instance in a dead one's place and publish it; if none can be started, give the version up."""
        rounds = 0
        while version.is_ready() and not self._closing:
            try:
                device = await self._device_for(version, dead)
                another, ready = await self._start_patiently(version, dead.index, device, GatewayError)
            except GatewayError as error:
                if not version.instances:
                    await self._give_up(version, f"no instance can be started any more: {error.message}")
                    return
                rounds += 1  # the others serve on; this one is tried again, ever more slowly
                await asyncio.sleep(backoff(STARTS + rounds))
                continue
            if not version.is_ready():
                self._node.stop(another)
                return
            version.ready = self.batches.started(version, ready)
            version.instances.append(another)
            self._watch(version, another)
            await self._publish()
            return

    async def _device_for(self, version: Version, dead: Instance) -> Device:
        """The device of a dead instance, or if that is lost the one that its successor would be given now."""
        devices = self._node.devices()
        if any(device.name == dead.device.name for device in devices):
            return dead.device
        load = Counter(instance.device.name for instance in version.instances)
        cuda = await self._node.cuda(version.artifact.framework)
        group = scaled(version.artifact.config.groups, dead.index + 1)[dead.index]
        return place([group], devices, load, cuda=cuda)[0]

    async def _give_up(self, version: Version, reason: str) -> None:
        """A version whose instances cannot be started is FAILED, and what is left of it ended."""
        if not version.is_ready():
            return  # it is let go already
        version.become(State.FAILED, reason)
        log.error("%s FAILED: %s", version.title, reason)
        await self._publish()
        await self.end(version)

    async def end(self, version: Version) -> None:
        """End a version's processes: those that serve when they have answered what they have, the others now."""
        for task in self._replacing.pop(version, {}):
            if task is not asyncio.current_task():
                task.cancel()
        for instance in version.starting:
            self._node.stop(instance, kill=True)
        await self._end(version.instances)
        version.instances.clear()
        version.devices.clear()
        version.ready = None
        self.on_end(version)

    async def close(self) -> None:
        """Replace nothing any more."""
        self._closing = True
        tasks = [task for tasks in self._replacing.values() for task in tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, *self._publishing, return_exceptions=True)
