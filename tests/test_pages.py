import pytest

from gateway.errors import Forbidden
from gateway.http.pages import check_page

FRIEND = "https://friend.example"


def may(**given: str) -> bool:
    headers = [(name.replace("_", "-").encode(), value.encode()) for name, value in given.items()]
    try:
        check_page(headers, {FRIEND})
    except Forbidden:
        return False
    return True


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"host": "127.0.0.1:8000"},
        {"host": "localhost"},
        {"host": "gateway:8000"},
        {"host": "[::1]:8000"},
        {"host": "api.LOCALHOST.:8000"},
        {"host": "host.docker.internal:8000"},
        {"host": "127.0.0.1:8000", "origin": "http://127.0.0.1:8000", "sec_fetch_site": "same-origin"},
        {"host": "127.0.0.1:8000", "sec_fetch_site": "none"},
        {"host": "127.0.0.1:8000", "origin": FRIEND, "sec_fetch_site": "cross-site"},
    ],
)
def test_programs_the_gateways_own_pages_and_friends_may(given: dict[str, str]) -> None:
    assert may(**given)


@pytest.mark.parametrize(
    "given",
    [
        {"host": "evil.example"},
        {"host": "127.0.0.1.evil.example:8000"},
        {"host": "evil.example:8000", "origin": "http://evil.example:8000"},
        {"host": "127.0.0.1:8000", "origin": "http://127.0.0.1:9000"},
        {"host": "127.0.0.1:8000", "origin": "null"},
        {"host": "localhost", "origin": "http://evil.example"},
        {"host": "localhost", "sec_fetch_site": "cross-site"},
        {"host": "localhost", "sec_fetch_site": "same-site"},
    ],
)
def test_pages_of_others_may_not(given: dict[str, str]) -> None:
    assert not may(**given)
