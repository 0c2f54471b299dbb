# ruff: noqa: ASYNC110, ASYNC240 - what is tested is a directory, which tells nobody when it was looked at
import asyncio
import contextlib
import logging
import os
import shutil
import threading
import time
from collections.abc import AsyncIterator, Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from watchfiles._rust_notify import WatchfilesRustInternalError

from gateway.errors import ConfigError
from gateway.store import watch
from gateway.store.source import Inventory, scan
from gateway.store.watch import changes

PATIENCE = 10.0


def make(*files: Path, content: bytes = b"") -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)


class Follower:
    """Takes every inventory that comes, with the time of its coming."""

    def __init__(self) -> None:
        self.all: list[tuple[float, Inventory]] = []
        self._news = asyncio.Event()

    async def follow(self, store: Path, *arguments: Any, **more: Any) -> None:
        async with contextlib.aclosing(changes(store, *arguments, **more)) as inventories:
            async for inventory in inventories:
                self.all.append((time.monotonic(), inventory))
                self._news.set()

    def now(self) -> dict[str, str]:
        """model/version → problem, as told last."""
        return {f"{each.model}/{each.version}": each.problem for each in self.all[-1][1].artifacts}

    async def until(self, found: Callable[[dict[str, str]], bool]) -> float:
        """Wait until what was told last is like this; when it came."""
        async with asyncio.timeout(PATIENCE):
            while not (self.all and found(self.now())):
                self._news.clear()
                await self._news.wait()
        return self.all[-1][0]


@contextlib.asynccontextmanager
async def following(store: Path, mode: str = "auto", settle: float = 0, **more: Any) -> AsyncIterator[Follower]:
    follower = Follower()
    task = asyncio.create_task(follower.follow(store, mode, settle, **more))
    try:
        yield follower
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    assert not watching_threads()


def watching_threads() -> list[str]:
    return [each.name for each in threading.enumerate() if each.name == "store-watch"]


def inotify_watches() -> set[int]:
    """The inodes that this process is notified about."""
    found = set()
    for entry in Path("/proc/self/fdinfo").iterdir():
        with contextlib.suppress(OSError):
            lines = entry.read_text().splitlines()
            found |= {int(line.split("ino:")[1].split()[0], 16) for line in lines if line.startswith("inotify")}
    return found


async def sees(until: Callable[[], Any]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not until():
            await asyncio.sleep(0.01)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    make(tmp_path / "store/m/1/model.pt", tmp_path / "outside/2/model.pt")
    return tmp_path / "store"


@pytest.fixture(params=["auto", "poll"])
def how(request: pytest.FixtureRequest) -> dict[str, Any]:
    return {"mode": request.param, "poll_seconds": 0.05}


async def test_what_is_there_is_told_first(store: Path, how: dict[str, Any]) -> None:
    async with following(store, **how) as follower:
        await follower.until(lambda now: now == {"m/1": ""})
    assert len(follower.all) == 1


async def test_a_version_that_is_renamed_into_place_is_told(store: Path, how: dict[str, Any]) -> None:
    async with following(store, **how) as follower:
        await follower.until(bool)
        (store.parent / "outside/2").rename(store / "m/2")
        await follower.until(lambda now: now == {"m/1": "", "m/2": ""})
        make(store / "new/1/model.savedmodel/saved_model.pb")
        await follower.until(lambda now: "new/1" in now)
        assert follower.now() == {"m/1": "", "m/2": "", "new/1": ""}


async def test_a_version_that_is_deleted_is_gone(store: Path, how: dict[str, Any]) -> None:
    make(store / "m/2/model.pt")
    async with following(store, **how) as follower:
        await follower.until(lambda now: "m/2" in now)
        shutil.rmtree(store / "m/2")
        await follower.until(lambda now: now == {"m/1": ""})
        shutil.rmtree(store / "m")
        await follower.until(lambda now: not now)
        assert follower.all[-1][1].ignored == []


async def test_files_changed_in_place_make_another_stamp(store: Path, how: dict[str, Any]) -> None:
    make(store / "m/1/assets/deep/words")
    async with following(store, **how) as follower:
        await follower.until(bool)
        stamps = [follower.all[-1][1].artifacts[0].stamp]
        for file in ("m/1/model.pt", "m/1/assets/deep/words", "m/1/assets/deep/new", "m/model.yaml"):
            make(store / file, content=b"# another")
            await follower.until(lambda _: follower.all[-1][1].artifacts[0].stamp not in stamps)
            stamps.append(follower.all[-1][1].artifacts[0].stamp)
        assert len(set(stamps)) == 5


async def test_a_directory_that_another_took_the_place_of_is_watched_again(store: Path) -> None:
    async with following(store) as follower:
        await follower.until(bool)
        for number in range(5):
            shutil.rmtree(store / "m")
            make(store / "m/1/model.pt")
            make(store / f"m/1/{number}")
            await follower.until(lambda now: now == {"m/1": ""})
            await sees(lambda: (store / "m/1").stat().st_ino in inotify_watches())
            stamp = follower.all[-1][1].artifacts[0].stamp
            make(store / "m/1/model.pt", content=b"x")
            await follower.until(lambda _, stamp=stamp: follower.all[-1][1].artifacts[0].stamp != stamp)
        assert follower.now() == {"m/1": ""}


async def test_a_version_is_not_told_while_it_is_being_copied(store: Path) -> None:
    settle = 0.5
    async with following(store, settle=settle) as follower:
        await follower.until(lambda now: now == {"m/1": ""})
        (store / "m/2").mkdir()
        times = [time.monotonic()]
        with (store / "m/2/model.pt").open("wb", buffering=0) as file:
            for _ in range(40):
                file.write(b"x" * 1000)
                times.append(time.monotonic())
                await asyncio.sleep(0.02)
        told = await follower.until(lambda now: now == {"m/1": "", "m/2": ""})
    # On a busy machine the copying itself may have paused for so long.
    paused = max(after - before for before, after in pairwise(times))
    assert told - times[-1] >= settle - 0.05 or paused >= settle  # the clock of the file system has ticks
    assert follower.all[-1][1].model("m")[1].contents.size == 40_000
    assert {len(inventory.artifacts) for _, inventory in follower.all} == {1, 2}


async def test_a_running_model_s_files_are_told_as_they_were_until_they_have_settled(store: Path) -> None:
    os.utime(store / "m/1/model.pt")
    async with following(store, settle=0.3) as follower:
        await follower.until(lambda now: now == {"m/1": ""})
        (store / "m/model.yaml").write_text("threads: [1")  # half of it
        make(store / "other/1/model.pt")
        await asyncio.sleep(0.1)
        (store / "m/model.yaml").write_text("threads: 1")
        await follower.until(lambda _: any(each.config.threads == 1 for each in follower.all[-1][1].model("m")))
    assert {each.problem for _, inventory in follower.all for each in inventory.artifacts} == {""}


async def test_the_first_inventory_waits_for_what_was_copied_a_moment_ago(store: Path) -> None:
    make(store / "m/2/model.pt")
    started = time.monotonic()
    async with following(store, settle=0.4) as follower:
        told = await follower.until(bool)
        assert follower.now() == {"m/1": "", "m/2": ""}
    assert told - started >= 0.3


async def test_the_first_inventory_does_not_wait_for_ever(store: Path) -> None:
    async with following(store, settle=0.3) as follower:
        async with asyncio.timeout(PATIENCE):
            while not follower.all:
                make(store / "slow/1/model.pt", content=os.urandom(8))
                await asyncio.sleep(0.02)
        assert follower.now() == {"m/1": ""}
        await follower.until(lambda now: "slow/1" in now)


async def test_off_is_one_inventory_and_the_end(store: Path) -> None:
    found = []
    async with asyncio.timeout(PATIENCE):
        async for inventory in changes(store, "off", 0):
            found.append(inventory)
            make(store / "m/2/model.pt")
    assert len(found) == 1
    assert not watching_threads()


async def test_a_store_that_is_taken_away_changes_nothing_and_is_said_once(
    store: Path, how: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    async with following(store, **(how | {"poll_seconds": 0.02})) as follower:
        await follower.until(bool)
        store.rename(store.with_name("away"))
        await sees(lambda: "what is loaded stays" in caplog.text)
        make(store.with_name("away") / "m/2/model.pt")
        await asyncio.sleep(0.2)
        assert len(follower.all) == 1
        store.with_name("away").rename(store)
        await follower.until(lambda now: now == {"m/1": "", "m/2": ""})
        make(store / "m/3/model.pt")
        await follower.until(lambda now: "m/3" in now)
    assert caplog.text.count("what is loaded stays") == 1
    assert caplog.text.count("can be read again") == 1


async def test_a_store_that_may_not_be_read_for_a_while_changes_nothing(
    store: Path, helpers: Any, caplog: pytest.LogCaptureFixture
) -> None:
    make(store / "n/1/model.pt")
    with helpers.ordinary_user():
        async with following(store, poll_seconds=0.02) as follower:
            await follower.until(bool)
            store.chmod(0)
            await sees(lambda: "cannot be read: Permission denied" in caplog.text)
            store.chmod(0o700)
            await sees(lambda: "can be read again" in caplog.text)
            assert len(follower.all) == 1
            (store / "m").chmod(0)
            make(store / "n/2/model.pt")
            await follower.until(lambda now: now == {"m/1": "", "n/1": "", "n/2": ""})
            (store / "m").chmod(0o700)
            make(store / "m/2/model.pt")
            await follower.until(lambda now: "m/2" in now)


async def test_a_file_system_that_is_unmounted_is_not_a_store_that_was_emptied(
    store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    elsewhere = Path("/dev/shm") / f"test-{os.getpid()}-{time.monotonic_ns()}"
    elsewhere.mkdir()
    try:
        if elsewhere.stat().st_dev == tmp_path.stat().st_dev:
            pytest.skip("there is only one file system")
        link = tmp_path / "link"
        link.symlink_to(store)
        async with following(link, "poll", poll_seconds=0.02) as follower:
            await follower.until(bool)
            (tmp_path / "next").symlink_to(elsewhere)
            (tmp_path / "next").rename(link)
            await sees(lambda: "another file system" in caplog.text)
            assert follower.now() == {"m/1": ""}
            make(elsewhere / "other/1/model.pt")
            await follower.until(lambda now: now == {"other/1": ""})
    finally:
        shutil.rmtree(elsewhere)


async def test_a_store_that_never_could_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        await anext(changes(tmp_path / "nowhere", "auto", 0))


async def test_a_pipe_is_told_as_a_problem(store: Path, how: dict[str, Any]) -> None:
    async with following(store, **how) as follower:
        await follower.until(bool)
        (store / "m/2").mkdir()
        os.mkfifo(store / "m/2/model.pt")
        await follower.until(lambda now: "m/2" in now)
        assert follower.now() == {"m/1": "", "m/2": "'model.pt' is a FIFO"}


async def test_links_are_not_followed_out_of_the_store_by_notifications_either(store: Path) -> None:
    (store / "m/1/all").symlink_to(store.parent)
    (store / "out").symlink_to(store.parent / "outside")
    async with following(store) as follower:
        await follower.until(bool)
        watched = {path.stat().st_ino for path in (store, store / "m", store / "m/1")}
        await sees(lambda: inotify_watches() == watched)
        make(store / "m/1/more")
        await sees(lambda: len(follower.all) == 2)
        await sees(lambda: inotify_watches() == watched)
    await sees(lambda: not inotify_watches())
    assert not watching_threads()


async def test_a_name_that_is_no_text_does_not_end_the_notifications(store: Path) -> None:
    async with following(store) as follower:
        await follower.until(bool)
        for number in range(3):
            make(store / f"m/1/\udcff{number}", store / f"m/1/in\udcff{number}/file")
            make(store / f"m/{number + 2}/model.pt")
            await follower.until(lambda now, number=number: f"m/{number + 2}" in now)
        assert len(follower.now()) == 4
        assert watching_threads()


async def test_too_many_files_to_be_notified_about_are_looked_at_instead(
    store: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise WatchfilesRustInternalError("OS file watch limit reached.")

    monkeypatch.setattr(watch, "RustNotify", refuse)
    async with following(store, poll_seconds=0.02) as follower:
        await follower.until(bool)
        for number in (2, 3):
            make(store / f"m/{number}/model.pt")
            await follower.until(lambda now, number=number: f"m/{number}" in now)
    assert caplog.text.count("OS file watch limit reached") == 1


class Silent:
    """Notifications that are lost."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def watch(self, _debounce: int, _step: int, _timeout: int, stop: threading.Event) -> str:
        stop.wait()
        return "stop"

    def close(self) -> None: ...


async def test_lost_notifications_delay_a_change_and_do_not_lose_it(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "RustNotify", Silent)
    monkeypatch.setattr(watch, "LOOK_SECONDS", 0.1)
    async with following(store) as follower:
        await follower.until(bool)
        assert follower.now() == {"m/1": ""}
        make(store / "m/2/model.pt")
        await follower.until(lambda now: "m/2" in now)


async def test_cancelling_ends_the_threads_promptly_even_amid_a_look(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, proceed, real = threading.Event(), threading.Event(), watch.scan

    def scan(path: Path) -> Inventory:
        entered.set()
        proceed.wait(PATIENCE)
        return real(path)

    monkeypatch.setattr(watch, "scan", scan)
    task = asyncio.create_task(Follower().follow(store, "auto", 0))
    await asyncio.to_thread(entered.wait, PATIENCE)
    started = time.monotonic()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert time.monotonic() - started < 1.0
    proceed.set()
    await asyncio.get_running_loop().shutdown_default_executor()  # the look ends, and has started nothing
    assert not watching_threads()
    await sees(lambda: not inotify_watches())


async def test_the_event_loop_is_never_held_up_by_a_slow_store(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = watch.scan
    looks = []

    def scan(path: Path) -> Inventory:
        looks.append(threading.current_thread())
        return real(path)

    monkeypatch.setattr(watch, "scan", scan)
    async with following(store) as follower:
        await follower.until(bool)
    assert looks
    assert threading.main_thread() not in looks


@pytest.fixture(autouse=True)
def _log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


async def test_a_store_that_is_a_link_and_is_swapped_is_noticed_at_once(tmp_path: Path) -> None:
    for release in ("first", "second"):
        make(tmp_path / "git" / release / "models" / release / "1" / "model.pt")
    (tmp_path / "git" / "current").symlink_to("first")
    (tmp_path / "store").symlink_to("git/current/models")
    async with following(tmp_path / "store") as follower:
        await follower.until(lambda now: set(now) == {"first/1"})
        began = time.monotonic()
        (tmp_path / "git" / "next").symlink_to("second")
        (tmp_path / "git" / "next").rename(tmp_path / "git" / "current")
        assert await follower.until(lambda now: set(now) == {"second/1"}) - began < watch.POLL_SECONDS
        make(tmp_path / "git" / "second" / "models" / "third" / "1" / "model.pt")
        await follower.until(lambda now: set(now) == {"second/1", "third/1"})


async def test_what_changes_next_to_a_link_to_the_store_is_none_of_its_business(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "real" / "m" / "1" / "model.pt")
    (tmp_path / "store").symlink_to("real")
    looks = []
    monkeypatch.setattr(watch, "scan", lambda store: looks.append(store) or scan(store))
    async with following(tmp_path / "store") as follower:
        await follower.until(lambda now: set(now) == {"m/1"})
        before = len(looks)
        for number in range(20):
            make(tmp_path / f"noise{number}")
        make(tmp_path / "real" / "n" / "1" / "model.pt")
        await follower.until(lambda now: set(now) == {"m/1", "n/1"})
        assert len(looks) - before < 10
