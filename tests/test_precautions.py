"""What `gateway serve` sees to before it starts anything."""

import resource
from typing import Any

from gateway.precautions import raise_open_files


def test_the_limit_of_open_files_is_raised_to_what_is_allowed(helpers: Any) -> None:
    def act() -> list[int]:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 512))
        raise_open_files()
        return list(resource.getrlimit(resource.RLIMIT_NOFILE))

    assert helpers.in_child(act) == [512, 512]
