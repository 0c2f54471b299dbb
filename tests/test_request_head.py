from typing import Any

import httptools
import pytest

from gateway.http.request_head import HeadRefused, check_head, head_without_offer, learned

HEAD = b"POST /v2/models/m/infer?a HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n"
URL = b"/v2/models/m/infer?a"
HEADERS = [(b"host", b"x"), (b"content-length", b"4")]


def test_the_head_of_a_request_alone_in_its_segment_is_remembered() -> None:
    found = learned(HEAD + b"body", 4, URL, HEADERS)
    assert found is not None
    assert (found.head, found.length, found.path, found.url) == (HEAD, len(HEAD) + 4, URL[:-2], URL)
    assert found.headers == HEADERS


@pytest.mark.parametrize(
    ("segment", "size"),
    [
        (HEAD + b"body\r\n", 4),
        (HEAD + b"body" + HEAD, 4),
        (HEAD + b"body", -1),
        (b"\r\n\r\n" + HEAD + b"body", 4),
        (HEAD.replace(b"Host: x", b"Host: " + b"x" * 4096) + b"body", 4),
        (HEAD.replace(b"\r\n\r\n", b"\n\n") + b"body", 4),
        (HEAD + b" " * (1 << 17), 1 << 17),
    ],
    ids=["end of line behind", "request behind", "no length", "empty lines before", "long", "no empty line", "large"],
)
def test_a_segment_that_is_more_or_less_than_one_small_request_is_not(segment: bytes, size: int) -> None:
    assert learned(segment, size, URL, HEADERS) is None


class Parsed:
    """What httptools finds in some bytes."""

    def __init__(self, data: bytes) -> None:
        self.url, self.headers, self.body, self.complete = b"", [], b"", 0
        self.upgrades = self.stays_open = True
        self.parser: Any = httptools.HttpRequestParser(self)
        self.parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.upgrades, self.stays_open = self.parser.should_upgrade(), self.parser.should_keep_alive()

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.complete += 1


@pytest.mark.parametrize("offer", [b"upgrade", b"UPGRADE", b"UpGrade"])
def test_an_offer_is_taken_out_of_a_head_and_nothing_else(offer: bytes) -> None:
    headers = [(b"host", b"x"), (b"connection", b"close, Upgrade"), (offer.lower(), b"h2c"), (b"content-length", b"2")]
    parsed = Parsed(head_without_offer(b"POST", b"/p?q", "1.1", headers) + b"ab")
    assert (parsed.url, parsed.body, parsed.complete) == (b"/p?q", b"ab", 1)
    assert parsed.headers == [header for header in headers if header[0] != b"upgrade"]
    assert not parsed.upgrades
    assert not parsed.stays_open


def test_connect_is_refused() -> None:
    with pytest.raises(HeadRefused, match="CONNECT is not served here"):
        head_without_offer(b"CONNECT", b"a:1", "1.1", [])


@pytest.mark.parametrize(("size", "count"), [(1 << 17, 1), (0, 1001)])
def test_a_head_beyond_what_a_request_needs_is_refused(size: int, count: int) -> None:
    check_head(64 << 10, [0] * 1000)
    with pytest.raises(HeadRefused) as caught:
        check_head(size, [0] * count)
    assert caught.value.status == 431
