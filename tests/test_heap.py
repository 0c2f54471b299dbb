from pathlib import Path
from typing import Any

from gateway.instance import heap


def anonymous() -> int:
    """Bytes of anonymous memory in use."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) << 10


def test_what_is_free_below_something_in_use_goes_back_to_the_kernel(helpers: Any) -> None:
    def scenario() -> bool:
        blocks = [bytes([1]) * 100_000 for _ in range(500)]
        last = blocks[-1]
        blocks.clear()
        before = anonymous()
        heap.trim()
        return bool(last) and before - anonymous() > 40_000_000

    assert helpers.in_child(scenario) is True
