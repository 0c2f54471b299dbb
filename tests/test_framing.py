import struct
import tracemalloc
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import ProtocolError
from gateway.ipc import framing
from gateway.ipc.framing import (
    CANCEL,
    FAILURE,
    INFER,
    MAX_HEADER,
    MAX_OUTPUT,
    MAX_PAYLOAD,
    MAX_REPLY,
    OFFSET,
    RELEASE,
    REMEMBERED_BYTES,
    REPLY_HEAD,
    REQUEST_HEAD,
    RESULT,
    FrameReader,
    RequestHeader,
    ResultHeader,
    TensorHeader,
    encode,
    reply_frame,
    reply_reader,
    request_frame,
    request_reader,
    result_header,
    split_payload,
)

quick = settings(max_examples=150, deadline=None)

ids = st.integers(0, 2**64 - 1)
pieces = st.lists(st.binary(max_size=60), max_size=4)
seconds = st.floats(0, 1e9)
requests = st.tuples(
    st.sampled_from([INFER, CANCEL, RELEASE]),
    ids,
    st.binary(max_size=70),
    pieces,
    seconds,
    seconds,
    st.integers(0, 255),
)
times = st.tuples(st.floats(0, 1e3, width=32), st.floats(0, 1e3, width=32), st.integers(0, 2**32 - 1))
replies = st.tuples(st.sampled_from([RESULT, FAILURE]), ids, st.binary(max_size=70), pieces, times)
cuts = st.lists(st.integers(0, 2000), max_size=30)


def cut(data: bytes, at: Sequence[int]) -> list[bytes]:
    edges = [0, *sorted(min(edge, len(data)) for edge in at), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


def feed(reader: FrameReader[Any], parts: Sequence[bytes]) -> list[tuple[Any, bytes, bytes]]:
    return [frame for part in parts for frame in reader.feed(part)]


@quick
@given(st.lists(requests, max_size=6), cuts)
def test_requests_come_out_as_they_went_in_however_the_bytes_are_cut(frames: list[Any], at: list[int]) -> None:
    data = b"".join(
        b"".join(request_frame(kind, number, header, payload, *rest)) for kind, number, header, payload, *rest in frames
    )
    want = [
        ((kind, len(header), len(b"".join(payload)), number, *rest), header, b"".join(payload))
        for kind, number, header, payload, *rest in frames
    ]
    assert feed(request_reader(), cut(data, at)) == want


@quick
@given(st.lists(replies, max_size=6), cuts)
def test_replies_come_out_as_they_went_in_however_the_bytes_are_cut(frames: list[Any], at: list[int]) -> None:
    data = b"".join(
        b"".join(reply_frame(kind, number, header, payload, took)) for kind, number, header, payload, took in frames
    )
    want = [
        ((kind, len(header), len(b"".join(payload)), number, *took), header, b"".join(payload))
        for kind, number, header, payload, took in frames
    ]
    assert feed(reply_reader(), cut(data, at)) == want


def test_frames_come_out_one_byte_at_a_time() -> None:
    data = b"".join([*request_frame(INFER, 7, b"head", [b"body", b"more"], 1.5), *request_frame(CANCEL, 7)])
    reader = request_reader()
    counts = [len(reader.feed(data[at : at + 1])) for at in range(len(data))]
    assert [at for at, count in enumerate(counts) if count] == [REQUEST_HEAD.size + 11, len(data) - 1]


def test_a_frame_is_kept_back_until_its_last_byte() -> None:
    data = b"".join(reply_frame(RESULT, 1, b"h", [b"p" * 100]))
    reader = reply_reader()
    assert reader.feed(data[:-1]) == []
    assert [payload for _, _, payload in reader.feed(data[-1:])] == [b"p" * 100]


def test_a_frame_that_nobody_waits_for_is_not_stored() -> None:
    data = b"".join(reply_frame(RESULT, 7, b"h", [b"p" * 100]))
    assert reply_reader({7}.__contains__).feed(data[:-1]) == []
    with pytest.raises(ProtocolError, match="nobody"):
        reply_reader({8}.__contains__).feed(data[:-1])


def test_a_frame_that_trickles_in_takes_no_more_memory_than_its_bytes() -> None:
    data = b"".join(reply_frame(RESULT, 1, b"h", [bytes(20_000)]))
    reader = reply_reader()
    tracemalloc.start()
    try:
        for at in range(len(data) - 1):
            reader.feed(data[at : at + 1])
        assert tracemalloc.get_traced_memory()[0] < 2 * len(data)
    finally:
        tracemalloc.stop()
    assert len(reader.feed(data[-1:])) == 1


@quick
@given(st.lists(st.binary(max_size=200), max_size=5), st.sampled_from([request_reader, reply_reader]))
def test_garbage_raises_nothing_but_protocol_error(parts: list[bytes], make: Any) -> None:
    reader = make()
    try:
        feed(reader, parts)
    except ProtocolError:
        pass
    else:
        data = b"".join(parts)
        assert len(data) < reader._layout.size or data[0] in (1, 2, 3)  # noqa: SLF001 - the head's layout


@pytest.mark.parametrize("kind", [0, 4, 255])
def test_a_frame_of_no_known_kind_is_refused(kind: int) -> None:
    with pytest.raises(ProtocolError, match=f"kind {kind}"):
        request_reader().feed(REQUEST_HEAD.pack(kind, 0, 0, 1, 0.0, 0.0, 50))
    with pytest.raises(ProtocolError, match=f"kind {kind}"):
        reply_reader().feed(REPLY_HEAD.pack(kind, 0, 0, 1, 0.0, 0.0, 0))


def test_a_frame_that_announces_too_much_is_refused_before_it_is_stored() -> None:
    with pytest.raises(ProtocolError, match="bytes"):
        request_reader().feed(REQUEST_HEAD.pack(INFER, 0, MAX_PAYLOAD + 1, 1, 0.0, 0.0, 50))


def test_an_instance_may_announce_less_than_a_worker() -> None:
    frame = REPLY_HEAD.pack(RESULT, 0, MAX_REPLY, 1, 0.0, 0.0, 0)
    assert reply_reader().feed(frame) == []
    with pytest.raises(ProtocolError, match="bytes"):
        reply_reader().feed(REPLY_HEAD.pack(RESULT, 0, MAX_REPLY + 1, 1, 0.0, 0.0, 0))
    assert MAX_OUTPUT < MAX_REPLY < MAX_PAYLOAD


def test_a_header_over_the_limit_is_not_sent() -> None:
    assert request_frame(INFER, 1, b"x" * MAX_HEADER)[1] == b"x" * MAX_HEADER
    for make in (request_frame, reply_frame):
        with pytest.raises(ProtocolError, match="over the limit"):
            make(1, 1, b"x" * (MAX_HEADER + 1))


def test_a_payload_over_the_limit_is_not_sent() -> None:
    class Huge(bytes):
        def __len__(self) -> int:
            return MAX_PAYLOAD

    with pytest.raises(ProtocolError, match="over the limit"):
        request_frame(INFER, 1, b"", [Huge(), b"x"])


ARENA = memoryview(bytearray(range(256)))
tensor_headers = st.builds(
    TensorHeader,
    name=st.just("x"),
    datatype=st.just("UINT8"),
    shape=st.just(()),
    size=st.integers(0, 300),
    in_arena=st.booleans(),
)


@quick
@given(st.lists(tensor_headers, max_size=5), st.data())
def test_tensors_are_found_where_the_headers_say(headers: list[TensorHeader], data: st.DataObject) -> None:
    payload, want = b"", []
    for header in headers:
        if header.in_arena:
            if header.size > len(ARENA):
                return
            offset = data.draw(st.integers(0, len(ARENA) - header.size))
            payload += OFFSET.pack(offset)
            want.append(bytes(ARENA[offset : offset + header.size]))
        else:
            raw = data.draw(st.binary(min_size=header.size, max_size=header.size))
            payload += raw
            want.append(raw)
    assert [bytes(piece) for piece in split_payload(headers, payload, ARENA)] == want


@quick
@given(
    st.lists(
        st.builds(
            TensorHeader,
            name=st.just("x"),
            datatype=st.just("UINT8"),
            shape=st.just(()),
            size=st.integers(-(2**63), 2**64 - 1) | st.integers(-5, 20),
            in_arena=st.booleans(),
        ),
        max_size=4,
    ),
    st.binary(max_size=60) | st.builds(OFFSET.pack, st.integers(0, 300)),
    st.booleans(),
)
def test_a_payload_that_does_not_fit_its_headers_is_a_protocol_error_and_nothing_else(
    headers: list[TensorHeader], payload: bytes, has_arena: bool
) -> None:
    try:
        found = split_payload(headers, payload, ARENA if has_arena else None)
    except ProtocolError:
        return
    assert [len(piece) for piece in found] == [header.size for header in headers]


def test_an_offset_cut_short_is_a_protocol_error() -> None:
    with pytest.raises(ProtocolError):
        split_payload([TensorHeader("x", "UINT8", (1,), 1, in_arena=True)], b"\0" * 7, ARENA)


def test_a_tensor_of_negative_size_is_a_protocol_error() -> None:
    sizes = (9, -1)
    with pytest.raises(ProtocolError):
        split_payload([TensorHeader("x", "UINT8", (1,), size) for size in sizes], b"12345678", None)


@pytest.mark.parametrize("offset", [252, 256, 2**64 - 1])
def test_a_tensor_outside_the_arena_is_a_protocol_error(offset: int) -> None:
    header = TensorHeader("x", "UINT8", (5,), 5, in_arena=True)
    with pytest.raises(ProtocolError, match="outside the arena"):
        split_payload([header], OFFSET.pack(offset), ARENA)
    with pytest.raises(ProtocolError, match="outside the arena"):
        split_payload([header], OFFSET.pack(0), None)


def test_equal_result_headers_are_one_object_and_say_whether_something_is_lent() -> None:
    def made(in_arena: bool) -> bytes:
        return encode(ResultHeader((TensorHeader("y", "FP32", (1,), 4, in_arena=in_arena),)))

    assert result_header(made(in_arena=False)) is result_header(made(in_arena=False))
    assert not result_header(made(in_arena=False)).lent
    assert result_header(made(in_arena=True)).lent


def test_the_store_of_result_headers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(framing, "HEADERS", 10)
    for size in range(100):
        result_header(encode(ResultHeader((TensorHeader("bounded", "UINT8", (size,), size),))))
        assert len(framing._result_headers) <= 10  # noqa: SLF001 - its size is the point


def test_a_large_result_header_is_not_kept() -> None:
    raw = encode(ResultHeader((TensorHeader("x" * REMEMBERED_BYTES, "UINT8", (1,), 1),)))
    assert result_header(raw).outputs == result_header(raw).outputs
    assert raw not in framing._result_headers  # noqa: SLF001 - that is the point


@quick
@given(st.binary(max_size=100))
def test_a_result_header_that_is_none_is_a_decode_error(raw: bytes) -> None:
    try:
        header = result_header(raw)
    except msgspec.DecodeError:
        return
    assert isinstance(header, ResultHeader)


def test_a_request_header_survives_its_encoding() -> None:
    header = RequestHeader("forward", (TensorHeader("x", "FP32", (2, -0, 3), 24, in_arena=True),), ("y",))
    assert msgspec.msgpack.decode(encode(header), type=RequestHeader) == header


def test_the_heads_have_the_sizes_both_sides_were_built_for() -> None:
    assert struct.calcsize(REQUEST_HEAD.format) == 32
    assert struct.calcsize(REPLY_HEAD.format) == 28
