import gzip
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import PayloadTooLarge, RequestError, UnsupportedEncoding
from gateway.http.compression import MAX_MEMBERS, chosen_encoding, compress, decompress

quick = settings(max_examples=100, deadline=None)
ENCODINGS = ("gzip", "x-gzip", "deflate")
plains = st.binary(max_size=300) | st.builds(
    lambda part, times: part * times, st.binary(max_size=5), st.integers(0, 500)
)


def packed(body: bytes, encoding: str) -> bytes:
    return gzip.compress(body) if "gzip" in encoding else zlib.compress(body)


def raw_deflate(body: bytes, level: int = -1) -> bytes:
    packer = zlib.compressobj(level, wbits=-15)
    return packer.compress(body) + packer.flush()


@quick
@given(plains, st.sampled_from(["gzip", "deflate"]))
def test_what_is_packed_unpacks(body: bytes, encoding: str) -> None:
    assert decompress(compress(body, encoding), encoding, len(body)) == body


@quick
@given(plains, st.sampled_from(ENCODINGS))
def test_what_other_programs_pack_unpacks_up_to_the_limit_exactly(body: bytes, encoding: str) -> None:
    assert decompress(packed(body, encoding), encoding, len(body)) == body
    if body:
        with pytest.raises(PayloadTooLarge):
            decompress(packed(body, encoding), encoding, len(body) - 1)


@quick
@given(plains, st.integers(0, 9))
def test_deflate_without_its_wrapper_unpacks_too(body: bytes, level: int) -> None:
    assert decompress(bytearray(raw_deflate(body, level)), "deflate", 10_000) == body


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_bomb_is_stopped_at_the_limit(encoding: str) -> None:
    bomb = packed(bytes(20 << 20), encoding)
    assert len(bomb) < 25_000
    with pytest.raises(PayloadTooLarge, match="1000000"):
        decompress(bomb, encoding, 1_000_000)


def test_a_bomb_without_a_wrapper_is_stopped_too() -> None:
    with pytest.raises(PayloadTooLarge):
        decompress(raw_deflate(bytes(20 << 20)), "deflate", 1_000_000)


@quick
@given(plains, st.sampled_from(ENCODINGS), st.data())
def test_a_body_that_is_cut_off_is_a_request_error(body: bytes, encoding: str, data: st.DataObject) -> None:
    whole = packed(body, encoding)
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(RequestError):
        decompress(whole[:cut], encoding, 10_000)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_garbage_after_the_end_is_a_request_error(encoding: str) -> None:
    with pytest.raises(RequestError):
        decompress(packed(b"hello", encoding) + b"more", encoding, 100)


@quick
@given(st.binary(max_size=100), st.sampled_from(ENCODINGS), st.integers(0, 200))
def test_any_bytes_unpack_or_are_a_request_error(body: bytes, encoding: str, limit: int) -> None:
    try:
        plain = decompress(body, encoding, limit)
    except RequestError:
        return
    assert len(plain) <= limit


@quick
@given(st.lists(plains, min_size=2, max_size=8), st.sampled_from(["gzip", "x-gzip"]))
def test_gzip_of_several_members_is_what_they_hold_one_after_another(bodies: list[bytes], encoding: str) -> None:
    whole = b"".join(map(gzip.compress, bodies))
    size = sum(map(len, bodies))
    assert decompress(whole, encoding, size) == b"".join(bodies)
    if size:
        with pytest.raises(PayloadTooLarge):
            decompress(whole, encoding, size - 1)
    with pytest.raises(RequestError, match="cut off"):
        decompress(whole[:-1], encoding, size)
    with pytest.raises(RequestError, match="cut off"):
        decompress(whole + b"more", encoding, size)


def test_a_bomb_over_several_members_is_stopped_at_the_limit() -> None:
    with pytest.raises(PayloadTooLarge):
        decompress(gzip.compress(bytes(600_000)) * 2, "gzip", 1_000_000)


def test_members_are_bounded_in_number() -> None:
    empty = gzip.compress(b"")
    assert decompress(empty * MAX_MEMBERS, "gzip", 10) == b""
    with pytest.raises(RequestError, match="members"):
        decompress(empty * (10 * MAX_MEMBERS), "gzip", 10)


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip", "", "GZIP", "x" * 1000])
def test_an_encoding_we_do_not_read_is_named_in_a_short_sentence(encoding: str) -> None:
    with pytest.raises(UnsupportedEncoding) as caught:
        decompress(b"", encoding, 100)
    assert encoding[:40] in caught.value.message
    assert len(caught.value.message) < 120


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        (b"gzip", "gzip"),
        (b"deflate", "deflate"),
        (b"gzip, deflate, br", "gzip"),
        (b"deflate, gzip", "gzip"),
        (b"GZip ; Q=0.5", "gzip"),
        (b"gzip;q=0", None),
        (b"gzip;q=0.0, deflate;q=0.1", "deflate"),
        (b"gzip;q=0, *", "deflate"),
        (b"*", "gzip"),
        (b"*;q=0", None),
        (b"*;q=0, gzip", "gzip"),
        (b"identity", None),
        (b"identity;q=1, gzip;q=0", None),
        (b"br, zstd", None),
        (b"", None),
        (b",,;q=1", None),
        (b"gzip;q=", "gzip"),
        (b"gzip;q=wrong", None),
        (b"\xff\xfe", None),
    ],
)
def test_the_answer_is_packed_as_the_client_accepts(accept: bytes, chosen: str | None) -> None:
    assert chosen_encoding(accept) == chosen


@quick
@given(st.binary(max_size=60))
def test_any_accept_encoding_has_an_answer(accept: bytes) -> None:
    assert chosen_encoding(accept) in ("gzip", "deflate", None)
