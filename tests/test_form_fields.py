from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import RequestError
from gateway.http.form_fields import MAX_FIELDS, MAX_URLENCODED, Field, content_type, multipart, urlencoded

HEADER = b"multipart/form-data; boundary=xyz"


def part(name: str, data: bytes, more: str = "") -> bytes:
    head = f'--xyz\r\nContent-Disposition: form-data; name="{name}"; filename="a.bin"\r\n{more}\r\n'
    return head.encode() + data + b"\r\n"


def test_fields_of_a_multipart_body_are_read_as_they_are() -> None:
    data = bytes(range(256))
    body = b"a preamble\r\n" + part("data", data) + part("text", b"", "Content-Type: Text/Plain; charset=x\r\n")
    assert multipart(HEADER, body + b"--xyz--\r\n") == [Field("data", b"", data), Field("text", b"text/plain", b"")]
    assert multipart(b'multipart/form-data; boundary="xyz"', b"--xyz--") == []


@pytest.mark.parametrize(
    ("header", "body", "said"),
    [
        (b"multipart/form-data", b"--xyz--", "no boundary"),
        (b"multipart/form-data; boundary=" + b"x" * 71, b"", "no boundary"),
        (HEADER, b"", "as its Content-Type says"),
        (HEADER, part("data", b"1"), "as its Content-Type says"),
        (HEADER, b"--xyz no header\r\n--xyz--", "as its Content-Type says"),
        (HEADER, part("data", b"1") * (MAX_FIELDS + 1) + b"--xyz--", "more than 128 fields"),
    ],
)
def test_a_torn_multipart_body_is_refused(header: bytes, body: bytes, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        multipart(header, body)


def test_fields_of_a_urlencoded_body_are_unescaped() -> None:
    assert urlencoded(b"data=a+b%20%ff&&x&y=1=2") == [
        Field("data", b"", b"a b \xff"),
        Field("x", b"", b""),
        Field("y", b"", b"1=2"),
    ]


@pytest.mark.parametrize("body", [b"a=" + b"b" * MAX_URLENCODED, b"a=b&" * (MAX_FIELDS + 1)])
def test_a_urlencoded_body_has_bounds(body: bytes) -> None:
    with pytest.raises(RequestError, match="more than"):
        urlencoded(body)


def test_the_content_type_is_the_first_and_in_lower_case() -> None:
    headers = [(b"host", b"h"), (b"content-type", b"Application/JSON ; charset=utf-8")]
    assert content_type(headers) == (b"application/json", headers[1][1])
    assert content_type([]) == (b"", b"")


@given(header=st.binary(max_size=60).map(lambda rest: b"multipart/form-data; boundary=" + rest), body=st.binary())
def test_whatever_comes_as_a_form_is_read_or_refused(header: bytes, body: bytes) -> None:
    for read in (lambda: multipart(header, body), lambda: multipart(HEADER, body), lambda: urlencoded(body)):
        fields: Any = ()
        try:
            fields = read()
        except RequestError:
            continue
        assert all(isinstance(field, Field) for field in fields)
