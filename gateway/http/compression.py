"""gzip and deflate of request and response bodies, with a bound on what a small body may unpack to."""

import zlib

from gateway.errors import PayloadTooLarge, RequestError, UnsupportedEncoding

SMALLEST = 1024
"""Responses of fewer bytes are not worth packing."""
THREAD_FROM = 128 << 10
"""Bodies of more bytes are packed and unpacked in a thread, so that the event loop goes on."""
INLINE_BYTES = 1 << 10
"""Packed bodies up to this size are unpacked at once: they become a megabyte at most."""
MAX_MEMBERS = 10_000
"""Members of a gzip body; each costs microseconds, even an empty one of 20 bytes."""
PIECE = 16 << 10
"""Bytes of a further member that are handed to zlib at once; it copies what it leaves of them."""
LEVEL = 1  # tensors hardly shrink further, and the time is the caller's


def decompress(body: bytes | bytearray, encoding: str, limit: int) -> bytes:
    """The body as it was before its Content-Encoding.

    Raises UnsupportedEncoding for one we do not read, PayloadTooLarge for more than `limit` bytes, RequestError for
    garbage.
    """
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise UnsupportedEncoding(f"Content-Encoding '{encoding[:40]}' is not supported; gzip and deflate are")
    for wbits in (zlib.MAX_WBITS | 32, -zlib.MAX_WBITS) if encoding == "deflate" else (zlib.MAX_WBITS | 16,):
        unpacker = zlib.decompressobj(wbits)
        try:
            plain = unpacker.decompress(body, limit + 1)
        except zlib.error:
            continue  # some clients send deflate without its zlib wrapper
        if len(plain) > limit:
            raise _too_large(limit)
        if unpacker.eof and not unpacker.unused_data:
            return plain
        if unpacker.eof and encoding != "deflate":
            return _with_further_members(plain, memoryview(unpacker.unused_data), encoding, limit)
    raise _garbage(encoding)


def _with_further_members(first: bytes, rest: memoryview, encoding: str, limit: int) -> bytes:
    """The contents of all members of a gzip body (RFC 1952, 2.2), of which the first one is unpacked.

    Raises as `decompress` does.
    """
    parts, size, at = [first], len(first), 0
    for _ in range(MAX_MEMBERS):
        unpacker = zlib.decompressobj(zlib.MAX_WBITS | 16)
        while not unpacker.eof:
            piece = rest[at : at + PIECE]
            if not piece:
                raise _garbage(encoding)
            try:
                plain = unpacker.decompress(piece, limit - size + 1)
            except zlib.error:
                raise _garbage(encoding) from None
            at += len(piece) - len(unpacker.unconsumed_tail) - len(unpacker.unused_data)
            size += len(plain)
            if size > limit:
                raise _too_large(limit)
            parts.append(plain)
        if at == len(rest):
            return b"".join(parts)
    raise RequestError(f"the body has more than {MAX_MEMBERS} {encoding} members")


def _too_large(limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"the body unpacks to more than {limit} bytes")


def _garbage(encoding: str) -> RequestError:
    return RequestError(f"the body is not {encoding} data, or it is cut off")


def chosen_encoding(accept: bytes) -> str | None:
    """The encoding to answer in by an Accept-Encoding header: gzip, deflate or None."""
    offers: dict[str, float] = {}
    for item in accept.decode("latin-1").lower().split(","):
        name, _, parameters = item.partition(";")
        quality = parameters.strip().removeprefix("q=") or "1"
        try:
            offers[name.strip()] = float(quality)
        except ValueError:
            offers[name.strip()] = 0.0
    for name in ("gzip", "deflate"):
        if offers.get(name, offers.get("*", 0.0)) > 0:
            return name
    return None


def compress(body: bytes, encoding: str) -> bytes:
    """The body in this encoding, gzip or deflate."""
    packer = zlib.compressobj(LEVEL, zlib.DEFLATED, zlib.MAX_WBITS | 16 if encoding == "gzip" else zlib.MAX_WBITS)
    return packer.compress(body) + packer.flush()
