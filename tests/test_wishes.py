from typing import Any

import pytest

from gateway.errors import RequestError
from gateway.http.wishes import NONE, Wishes, wishes_of


def test_parameters_that_say_nothing_of_it_are_no_wishes() -> None:
    assert wishes_of({}) is NONE
    assert wishes_of({"binary_data_output": True, "sequence_id": 7}) is NONE


def test_all_wishes_are_read() -> None:
    parameters = {"timeout": 1_500_000, "priority": 7, "version_label": "stable"}
    assert wishes_of(parameters) == Wishes(1.5, 7, "stable")


def test_zero_is_what_triton_means_by_nothing_special() -> None:
    assert wishes_of({"timeout": 0, "priority": 0}) == NONE


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"timeout": -1}, "timeout must be a whole number of microseconds"),
        ({"timeout": 1.5}, "timeout must be a whole number"),
        ({"timeout": "1"}, "timeout must be a whole number"),
        ({"timeout": True}, "timeout must be a whole number"),
        ({"priority": 101}, "priority must be a whole number from 1"),
        ({"priority": -1}, "priority must be a whole number from 1"),
        ({"priority": [1]}, "priority must be a whole number"),
        ({"version_label": 1}, "version_label must be a string"),
    ],
)
def test_what_makes_no_sense_is_named(parameters: dict[str, Any], expected: str) -> None:
    with pytest.raises(RequestError, match=expected):
        wishes_of(parameters)


def test_a_timeout_beyond_all_numbers_is_a_long_one() -> None:
    found = wishes_of({"timeout": 10**400}).timeout
    assert found is not None
    assert 86_400 < found < float("inf")
