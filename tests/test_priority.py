import os
import threading
from pathlib import Path
from typing import Any

import pytest

from gateway.instance import priority

NOBODY = 65534


def test_a_process_that_gave_way_is_raised_again_with_all_its_threads(helpers: Any) -> None:
    if not priority.can_be_raised():
        pytest.skip("CAP_SYS_NICE is needed")

    def act() -> list[list[int]]:
        priority.give_way()
        release = threading.Event()
        thread = threading.Thread(target=release.wait)
        thread.start()
        seen = []
        for _ in range(2):
            seen.append([os.getpriority(os.PRIO_PROCESS, int(each.name)) for each in Path("/proc/self/task").iterdir()])
            priority.raise_again(os.getpid())
        release.set()
        thread.join()
        return seen

    assert helpers.in_child(act) == [[19, 19], [0, 0]]


def test_without_the_capability_nobody_should_give_way(helpers: Any) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can become somebody else")
    assert helpers.in_child(priority.can_be_raised, NOBODY) is False


def test_raising_what_is_gone_is_no_error_and_touches_nobody_else() -> None:
    before = os.getpriority(os.PRIO_PROCESS, 0)
    priority.raise_again(2**22 + 1)
    assert os.getpriority(os.PRIO_PROCESS, 0) == before
