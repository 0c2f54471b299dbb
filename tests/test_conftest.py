"""What tests do where a program that they want is missing."""

from typing import Any

import pytest


@pytest.mark.parametrize(
    ("value", "outcome"), [("", pytest.skip.Exception), ("1", pytest.fail.Exception)], ids=("skipped", "failed")
)
def test_a_missing_program_is_named_with_its_package(
    helpers: Any, monkeypatch: pytest.MonkeyPatch, value: str, outcome: type[BaseException]
) -> None:
    monkeypatch.setenv("TESTS_REQUIRE_ALL", value)
    with pytest.raises(outcome, match="nosuch-program is not installed: apt-get install nosuch"):
        helpers.installed("nosuch-program", "nosuch")
    assert helpers.installed("sh").endswith("/sh")
