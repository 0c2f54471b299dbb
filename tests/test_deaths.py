import asyncio
import signal

import msgspec
import pytest
from stage import artifact, ready_of

from gateway.lifecycle.deaths import counts_as_quick, crashed_optimised, exit_report, how_it_ended
from gateway.lifecycle.placement import CPU
from gateway.nodes.node import Instance


async def instance(*, optimised: bool = False, ready: bool = True) -> Instance:
    loop = asyncio.get_running_loop()
    made = Instance(artifact(), "m/1#0.7", 0, CPU, "/nowhere", loop.create_future(), loop.create_future())
    if ready:
        made.ready.set_result(msgspec.structs.replace(ready_of(1), optimised=optimised))
    return made


async def test_an_end_is_told_by_its_code_or_as_abandoned() -> None:
    one = await instance()
    assert (how_it_ended(one, 3), how_it_ended(one, -9)) == ("exit 3", "signal 9")
    one.abandoned = True
    assert how_it_ended(one, -9) == "abandoned"


@pytest.mark.parametrize("code", [-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS, -signal.SIGILL, -signal.SIGFPE])
async def test_a_crash_is_the_optimised_form_s_where_one_was_used(code: int) -> None:
    assert crashed_optimised(await instance(optimised=True), code)
    assert exit_report(await instance(optimised=True), code).blameless
    assert not crashed_optimised(await instance(), code)
    assert not crashed_optimised(await instance(ready=False), code)


async def test_ends_that_the_gateway_brought_about_are_no_crash_of_the_optimised_form() -> None:
    limited = await instance(optimised=True)
    limited.verdict = "out_of_memory", "too much"
    report = exit_report(limited, -signal.SIGSEGV)
    assert (report.error_code, report.reason, report.blameless) == ("out_of_memory", "too much", False)


async def test_only_ends_without_another_cause_count_as_quick() -> None:
    assert counts_as_quick(exit_report(await instance(), -signal.SIGSEGV))
    assert counts_as_quick(exit_report(await instance(), 1))
    assert not counts_as_quick(exit_report(await instance(), -signal.SIGALRM))
    assert not counts_as_quick(exit_report(await instance(optimised=True), -signal.SIGSEGV))
    abandoned = await instance()
    abandoned.abandoned = True
    assert not counts_as_quick(exit_report(abandoned, -signal.SIGKILL))
