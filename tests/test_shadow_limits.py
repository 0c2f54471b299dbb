"""What a shadow may cost: copies are few, small, and no burden to the shadow's own callers."""

import asyncio
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from gateway.errors import InferenceFailed
from gateway.http import shadow as module
from gateway.http.shadow import Shadow, Shadows
from gateway.http.state import WorkerState
from gateway.ipc.batching import Batching
from gateway.ipc.channel import Channel
from gateway.ipc.framing import RequestHeader, ResultHeader, TensorHeader, encode
from gateway.ipc.messages import Ready, VersionRoute
from gateway.ipc.reply import InstanceLost, Reply
from gateway.metrics import ShadowCounters, VersionCounters
from gateway.routing import RoutingTable, Target
from gateway.store.manifest import ModelConfig
from gateway.store.manifest import Shadow as Config
from gateway.tensors import Signature, TensorSpec

PATIENCE = 5
SIGNATURE = Signature("f", (TensorSpec("x", "FP32", (-1,)),), (TensorSpec("y", "FP32", (-1,)),))


class PlayedChannel(Channel):
    """A channel that sends nothing: the test answers."""

    def __init__(self) -> None:
        super().__init__("played", 60.0, lambda _: None)
        self.asked: list[Callable[[Reply], None]] = []
        self.sent = asyncio.Event()

    def call(self, _header: Any, _payload: Any, _regions: Any, on_reply: Any, *_: Any) -> int:  # type: ignore[override]
        self.asked.append(on_reply)
        self.sent.set()
        return len(self.asked)


def answer(*numbers: float, shape: tuple[int, ...] = ()) -> Reply:
    raw = struct.pack(f"<{len(numbers)}f", *numbers)
    header = ResultHeader((TensorHeader("y", "FP32", shape or (len(numbers),), len(raw)),))
    return Reply(None, header, [memoryview(raw)], 0.0, 0.0, 1, 0.0)


def failure(error: Exception) -> Reply:
    return Reply(error, None, (), 0.0, 0.0, 0, 0.0)  # type: ignore[arg-type] # they are GatewayErrors


class Bench:
    """A worker of two models, `live` with a shadow, `other`, and no processes."""

    def __init__(self) -> None:
        self.channel, self.live_channel = PlayedChannel(), PlayedChannel()
        self.state = WorkerState(self, 1 << 20, 60.0)
        self.shadows = Shadows(self.state)
        self.targets = [
            self.target("live", self.live_channel, Config(100, model="other")),
            self.target("other", self.channel),
        ]
        self.use()

    def target(self, model: str, channel: Channel, shadow: Config | None = None) -> Target:
        ready = Ready(
            pid=1,
            platform="pytorch_torchscript",
            signatures={"f": SIGNATURE},
            default_signature="f",
            batching=Batching(1, ""),
            notes=[],
            load_seconds=0.0,
        )
        route = VersionRoute(
            model=model,
            version=1,
            platform="pytorch_torchscript",
            framework="pytorch",
            state="READY",
            reason="",
            config=ModelConfig(shadow=shadow),
            ready=ready,
        )
        return Target(route, [channel], VersionCounters(model, "1", "pytorch"))

    def use(self) -> None:
        self.shadows.assign(self.targets)
        self.state.use(RoutingTable([target.route for target in self.targets], self.targets, settled=True))

    async def ask(self, *_: Any) -> bytes:
        raise InferenceFailed("nobody to ask")

    def condemn(self, _: bytes) -> None:
        pass

    def explain(self, _: Any) -> None:
        pass

    @property
    def told(self) -> dict[str, int]:
        return self.counters.requests

    @property
    def counters(self) -> ShadowCounters:
        return self.targets[0].counters.shadows["other default"]

    def see(self, numbers: int = 1, reply: Reply | None = None) -> None:
        header = encode(RequestHeader("f", (TensorHeader("x", "FP32", (numbers,), 4 * numbers),)))
        shadow = self.targets[0].shadow
        assert shadow is not None
        shadow.see(header, [bytes(4 * numbers)], 1, self.live_channel, reply or answer(*[1.0] * numbers), 0.0)

    async def all_told(self, **outcomes: int) -> None:
        """Wait until so much has become of the copies."""
        async with asyncio.timeout(PATIENCE):
            while sum(self.told.values()) < sum(outcomes.values()):  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.001)
        assert self.told == outcomes

    async def sent(self, number: int) -> None:
        """Wait until so many copies were sent."""
        async with asyncio.timeout(PATIENCE):
            while len(self.channel.asked) < number:
                self.channel.sent.clear()
                await self.channel.sent.wait()


@pytest.fixture
async def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.002)
    return Bench()


async def test_some_are_sent_together_and_some_wait_and_the_others_are_dropped(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        bench.see()
    await bench.sent(3)
    monkeypatch.setattr(module, "WAITING", 10)
    for _ in range(10):
        bench.see()
    assert bench.told == {}
    bench.see()
    assert bench.told == {"dropped": 1}
    for each in bench.channel.asked[:2]:
        each(answer(1.0))
    await asyncio.sleep(0.02)  # several pauses' time
    assert len(bench.channel.asked) == 3  # the third is not done
    bench.channel.asked[2](answer(1.0))
    await bench.sent(3 + module.TOGETHER)
    assert len(bench.channel.asked) == 3 + module.TOGETHER
    assert bench.told == {"dropped": 1, "agreed": 3}


async def test_large_requests_are_not_copied(bench: Bench) -> None:
    bench.see(module.MOST_BYTES // 8 + 1)
    assert bench.told == {"dropped": 1}
    bench.see(module.MOST_BYTES // 8)
    assert bench.told == {"dropped": 1}
    await bench.sent(1)


async def test_what_waits_is_bounded_in_bytes(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAITING_BYTES", 20)
    bench.see()
    bench.see()
    assert bench.told == {}
    bench.see()
    assert bench.told == {"dropped": 1}


async def test_the_shadows_own_callers_keep_three_quarters_of_its_queue(bench: Bench) -> None:
    bench.channel.max_rows, bench.channel.rows = 8, 3
    bench.see()
    await bench.all_told(dropped=1)
    bench.channel.rows = 2
    bench.see()
    await bench.sent(1)
    assert bench.told == {"dropped": 1}


async def test_after_a_copy_that_ended_the_shadows_process_none_is_sent_for_a_while(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FIRST_REST_SECONDS", 60.0)
    bench.see()
    await bench.sent(1)
    bench.channel.asked[0](failure(InstanceLost(executing=True)))
    bench.use()  # for the routes change with that, and the shadow is still the same
    bench.see()
    assert bench.told == {"failed": 1, "dropped": 1}


async def test_a_copy_that_only_waited_when_the_process_ended_is_not_to_blame(bench: Bench) -> None:
    bench.see()
    await bench.sent(1)
    bench.channel.asked[0](failure(InstanceLost(executing=False)))
    bench.see()
    await bench.sent(2)
    assert bench.told == {"failed": 1}


async def test_an_answer_that_is_none_differs(bench: Bench) -> None:
    """An instance may say anything of its outputs."""
    for number, reply in enumerate((answer(1.0, shape=(5,)), answer(1.0, shape=(-1,)), answer(shape=(1 << 62, 4)))):
        bench.see()
        await bench.sent(number + 1)
        bench.channel.asked[number](reply)
    await bench.all_told(differed=3)
    bench.see(reply=answer(1.0, shape=(-1,)))
    await bench.sent(4)
    bench.channel.asked[3](answer(1.0, shape=(-1,)))
    await bench.all_told(differed=4)
    assert bench.counters.classes == {}


async def test_what_is_no_number_does_not_spoil_the_sum_of_the_differences(bench: Bench) -> None:
    bench.see()
    await bench.sent(1)
    bench.channel.asked[0](answer(float("nan")))
    await bench.all_told(differed=1)
    assert (bench.counters.difference.counts[-1], bench.counters.difference.total) == (1, 0.0)


async def test_a_mistake_of_ours_does_not_reach_the_caller(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    shadow = bench.targets[0].shadow
    assert shadow is not None
    shadow.see(b"no header", [], 1, bench.live_channel, answer(1.0), 0.0)
    assert bench.told == {"dropped": 1}
    assert "could not be copied" in caplog.text


async def test_a_model_may_not_be_its_own_shadow(bench: Bench) -> None:
    bench.targets[0] = bench.target("live", bench.live_channel, Config(100, model="live"))
    bench.use()
    bench.see()
    await asyncio.sleep(0.02)  # several pauses' time
    assert bench.targets[0].counters.shadows["live default"].requests == {}
    assert not bench.live_channel.asked


async def test_another_configuration_is_another_shadow(bench: Bench) -> None:
    before = bench.targets[0].shadow
    bench.use()
    assert bench.targets[0].shadow is before
    bench.targets[0] = bench.target("live", bench.live_channel, Config(50, model="other"))
    bench.use()
    after = bench.targets[0].shadow
    assert isinstance(after, Shadow)
    assert after is not before


async def test_large_answers_are_compared_beside_the_event_loop(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "COMPARE_HERE", 0)
    submitted = asyncio.Event()
    submit = ThreadPoolExecutor.submit

    def noted(pool: ThreadPoolExecutor, *call: Any) -> Any:
        submitted.set()
        return submit(pool, *call)

    monkeypatch.setattr(ThreadPoolExecutor, "submit", noted)
    bench.see()
    await bench.sent(1)
    bench.channel.asked[0](answer(1.0))
    assert submitted.is_set()
    assert bench.told == {}  # not compared yet, and so still under way
    await bench.all_told(agreed=1)
