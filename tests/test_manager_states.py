"""The manager under any sequence of what store, API, requests, instances and memory can do, with a virtual clock."""

import asyncio
import contextlib
import logging
from collections.abc import Coroutine
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from stage import Stage, artifact
from virtual_time import VirtualLoop

from gateway.errors import GatewayError
from gateway.ipc.messages import ANY
from gateway.lifecycle import scarcity
from gateway.lifecycle.policy import aspired
from gateway.lifecycle.state import State
from gateway.nodes.node import Instance
from gateway.store.source import Artifact, Inventory

SIZES = {"a": 10, "b": 10, "big": 25}
BUDGET = 31
MODELS = st.sampled_from(sorted(SIZES))
NUMBERS = st.sampled_from([1, 2])
POLICIES = st.sampled_from(["latest", "all"])
FATES = st.sampled_from(["ready", "ready", "ready", "fails", "dies", "hangs"])
TIMEOUT = 60.0
"""Seconds of the virtual clock that a load or an end may take."""


class Errors(logging.Handler):
    """What was logged with a traceback: a bug, however it was caught."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self.found.append(logging.Formatter().format(record))


class ManagerStates(RuleBasedStateMachine):
    """Actions begin one after another and overlap; `idle` lets all of them end, and then nothing may be left over."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualLoop()
        self.errors = Errors()
        logging.getLogger("gateway").addHandler(self.errors)
        self.stage = Stage(budgets={"cpu": BUDGET}, timeout=TIMEOUT)
        self.stage.node.private = dict(SIZES)
        self.stage.footprints.known = dict(SIZES)
        self.stage.node.on_spawn = self._meet_fate
        self.fates: dict[str, str] = {}
        self.store: dict[tuple[str, int], Artifact] = {}
        self.stamp = 0
        self.tasks: list[asyncio.Task[None]] = []
        self.unloaded: dict[str, bool | None] = {}
        """Whether a model was unloaded through the API last; None: not known."""
        self.by_hand: set[str] = set()
        """Models of which single versions were registered, unregistered or scaled since."""
        for name in SIZES:
            self.store[name, 1] = artifact(name)
        self._reconcile()

    def teardown(self) -> None:
        try:
            self.idle()
            self.no_bug_was_caught_and_logged()
        finally:
            self.loop.run_until_complete(self.stage.manager.close())
            logging.getLogger("gateway").removeHandler(self.errors)
            self.loop.close()

    def _meet_fate(self, instance: Instance) -> None:
        node, fate = self.stage.node, self.fates.get(instance.artifact.model, "ready")
        if fate == "ready":
            node.succeed(instance)
        elif fate == "fails":
            node.fail(instance, "no layer fits")
        elif fate == "dies":
            node.end(instance, -11)

    # Running things

    def _begin(self, action: Coroutine[Any, Any, Any]) -> None:
        async def until_done() -> None:
            with contextlib.suppress(GatewayError):
                await action

        self.tasks.append(self.loop.create_task(until_done()))
        self._steps(1)

    def _steps(self, count: int) -> None:
        async def go_on() -> None:
            for _ in range(count):
                await asyncio.sleep(0)

        self.loop.run_until_complete(go_on())

    def _pass(self, seconds: float) -> None:
        self.loop.run_until_complete(asyncio.sleep(seconds))

    def _all_done(self) -> None:
        """Let all that has begun end, with what follows from it; what is started from now on succeeds."""
        self.fates.clear()

        async def ended() -> None:
            await asyncio.gather(*self.tasks)
            await self.stage.manager.loader.tidied()

        self.loop.run_until_complete(ended())
        self.tasks.clear()
        self._pass(2 * TIMEOUT)

    def _reconcile(self) -> None:
        self.stage.store = [self.store[key] for key in sorted(self.store)]
        self._begin(self.stage.manager.reconcile(Inventory(list(self.stage.store))))

    async def _by_hand(self, model: str, action: Coroutine[Any, Any, Any]) -> None:
        try:
            await action
        finally:
            self.by_hand.add(model)
            self.unloaded[model] = None

    # What may happen

    @rule(model=MODELS, number=NUMBERS, policy=POLICIES, pinned=st.booleans(), bad=st.sampled_from(["", "", "", "no"]))
    def files_appear_or_change(self, model: str, number: int, policy: str, pinned: bool, bad: str) -> None:
        self.stamp += 1
        config: dict[str, Any] = {"version_policy": policy, "pinned": pinned}
        for name, other in list(self.store):
            if name == model:  # model.yaml is the whole model's
                old = self.store[name, other]
                self.store[name, other] = artifact(name, other, old.problem, old.contents.stamp, **config)
        self.store[model, number] = artifact(model, number, bad, self.stamp, **config)
        self._reconcile()

    @rule(model=MODELS, number=NUMBERS)
    def files_vanish(self, model: str, number: int) -> None:
        self.store.pop((model, number), None)
        self._reconcile()

    @rule(model=MODELS, fate=FATES)
    def instances_will(self, model: str, fate: str) -> None:
        self.fates[model] = fate

    @rule(model=MODELS)
    def it_is_loaded(self, model: str) -> None:
        async def load() -> None:
            known = bool(self.stage.manager.registry.of(model))
            try:
                await self.stage.load(model)
            except GatewayError:
                if known:
                    self.unloaded[model] = None
                raise
            self.unloaded[model] = False
            self.by_hand.discard(model)

        self._begin(load())

    @rule(model=MODELS)
    def it_is_unloaded(self, model: str) -> None:
        async def unload() -> None:
            await self.stage.manager.unload(model)
            self.unloaded[model] = True
            self.by_hand.discard(model)

        self._begin(unload())

    @rule(model=MODELS, number=st.sampled_from([1, 2, ANY]), workers=st.sampled_from([0, 1, 2]))
    def a_version_is_registered(self, model: str, number: int, workers: int) -> None:
        found = [each for each in self.stage.store if each.model == model]
        self._begin(self._by_hand(model, self.stage.manager.register(model, found, number, workers)))

    @rule(model=MODELS, number=st.sampled_from([1, 2, ANY]))
    def a_version_is_unregistered(self, model: str, number: int) -> None:
        self._begin(self._by_hand(model, self.stage.manager.unregister(model, number)))

    @rule(model=MODELS, number=st.sampled_from([1, 2, ANY]), least=st.sampled_from([0, 1, 2]))
    def a_version_is_scaled(self, model: str, number: int, least: int) -> None:
        self._begin(self._by_hand(model, self.stage.manager.scale(model, number, least, least)))

    @rule(model=MODELS, number=NUMBERS)
    def a_request_wakes(self, model: str, number: int) -> None:
        self._begin(self.stage.manager.wake(model, number))

    @rule(model=MODELS, number=NUMBERS)
    def it_is_evicted(self, model: str, number: int) -> None:
        self._begin(self.stage.manager.loader.evict((model, number)))

    @rule(model=MODELS, number=NUMBERS, under_way=st.booleans())
    def requests_come_and_go(self, model: str, number: int, under_way: bool) -> None:
        self.stage.usage[model, number] = (self.loop.time(), int(under_way))

    @rule(which=st.integers(0, 5), code=st.sampled_from([-9, -11, 1]))
    def an_instance_ends(self, which: int, code: int) -> None:
        running = [each for each in self.stage.node.spawned if not each.exited.done()]
        if running:
            self.stage.node.end(running[which % len(running)], code)

    @rule(model=MODELS, scarce=st.booleans())
    def memory_grows_scarce(self, model: str, scarce: bool) -> None:
        node = self.stage.node
        node.left = 0 if scarce else 10**12
        node.grown = {model: scarcity.RESERVE_BYTES} if scarce else {}
        self._begin(self.stage.look_at_memory())
        self._steps(3)
        node.left, node.grown = 10**12, {}

    @rule(count=st.integers(1, 30))
    def a_moment_passes(self, count: int) -> None:
        self._steps(count)

    @rule(seconds=st.sampled_from([0.1, 1.0, 30.0]))
    def time_passes(self, seconds: float) -> None:
        self._pass(seconds)

    @rule()
    def idle(self) -> None:
        self._all_done()
        self._nothing_is_left_over()
        self._what_is_wanted_serves()

    # What must hold

    @invariant()
    def no_bug_was_caught_and_logged(self) -> None:
        assert not self.errors.found
        assert not self.loop.errors
        for task in self.tasks:
            assert not task.done() or task.exception() is None

    @invariant()
    def the_budget_is_kept(self) -> None:
        running = [each for each in self.stage.node.spawned if not each.exited.done()]
        assert sum(SIZES[each.artifact.model] for each in running) <= BUDGET

    def _nothing_is_left_over(self) -> None:
        manager, node = self.stage.manager, self.stage.node
        versions = list(manager.versions.values())
        for version in versions:
            assert version.state not in (State.NEW, State.LOADING, State.DRAINING), version.title
            assert len(version.instances) == len(version.devices), version.title
            assert bool(version.instances) is version.is_ready(), version.title
            assert not version.starting
            assert not version.dormant
        serving = [each.name for version in versions for each in version.instances]
        assert sorted(serving) == sorted(node.running)
        assert set(manager.residency.account.held) == {version for version in versions if version.is_ready()}
        assert not manager.residency.promised
        if self.stage.tables:
            assert self.stage.tables[-1] == manager.routes(), "the workers route by what is true"
        for model in SIZES:
            assert not manager.registry.lock(model).locked()

    def _what_is_wanted_serves(self) -> None:
        for model in SIZES:
            wanted = aspired([each for each in self.stage.store if each.model == model])
            there = self.stage.manager.registry.of(model)
            serving = {each.artifact.version for each in there if each.serves()}
            if self.unloaded.get(model):
                assert not serving, "what was unloaded through the API stays so"
            elif self.unloaded.get(model) is False or model not in self.unloaded:
                if not wanted:
                    assert not there, "what has left the store is gone"
                elif model not in self.by_hand:
                    assert len(serving) <= len(wanted), "one set of versions serves"
                    assert {each.version for each in wanted} <= {each.artifact.version for each in there}


PHASES = (Phase.generate, Phase.shrink)
"""Tracing lines to explain a failure takes longer than all the rest."""

ManagerStates.TestCase.settings = settings(
    max_examples=150,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    database=None,
    phases=PHASES,
)
test_the_manager_keeps_its_promises_whatever_happens = ManagerStates.TestCase
