"""A request's body: read up to a limit, and unpacked up to the same limit."""

from __future__ import annotations

import asyncio
import zlib

from starlette.types import Receive, Scope

from octavo.errors import Cancelled, Invalid, TooLarge

_OFF_LOOP = 2**18  # bytes; larger packed bodies are unpacked in a thread
_WINDOW = {b"gzip": 31, b"x-gzip": 31, b"deflate": 15}


def header(scope: Scope, name: bytes) -> bytes | None:
    """The value of a request header (`name` in lower case); None when it was not sent."""
    for key, value in scope["headers"]:
        if key == name:
            return bytes(value)
    return None


async def read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """The whole body, unpacked when it came as gzip or deflate.

    Args:
        scope: the request's.
        receive: the request's.
        limit: bytes the body may have, packed and unpacked.

    Raises:
        TooLarge: more than `limit`; known as early as the headers tell it.
        Invalid: an unknown content encoding, or damaged data.
        Cancelled: the client left before it had sent everything.
    """
    coding = None
    for key, value in scope["headers"]:
        if key == b"content-length" and value.isdigit() and int(value) > limit:
            raise _too_large(limit)
        if key == b"content-encoding":
            coding = value.strip().lower()
    body = await _receive_all(receive, limit)
    if not coding or coding == b"identity":
        return body
    if coding not in _WINDOW:
        known = ", ".join(name.decode() for name in _WINDOW)
        raise Invalid(f"unknown content encoding {coding.decode('latin-1')!r}", "Content-Encoding", f"Use {known}.")
    if len(body) > _OFF_LOOP:
        return await asyncio.to_thread(unpack, body, _WINDOW[coding], limit)
    return unpack(body, _WINDOW[coding], limit)


async def _receive_all(receive: Receive, limit: int) -> bytes:
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Cancelled("the client left before it had sent the whole body", "body")
        chunk: bytes = message.get("body", b"")
        if not chunks and not message.get("more_body"):
            if len(chunk) > limit:
                raise _too_large(limit)
            return chunk
        size += len(chunk)
        if size > limit:
            raise _too_large(limit)
        chunks.append(chunk)
        if not message.get("more_body"):
            return b"".join(chunks)


def unpack(packed: bytes, window: int, limit: int) -> bytes:
    """Unpack zlib's formats without ever holding more than `limit` bytes.

    Raises:
        TooLarge: it would be more.
        Invalid: damaged or cut off.
    """
    parts = []
    left = limit
    while packed:
        stream = zlib.decompressobj(window)
        try:
            part = stream.decompress(packed, left + 1)
        except zlib.error as error:
            raise Invalid(f"the packed body is damaged: {error}", "body", "Does Content-Encoding name it?") from None
        left -= len(part)
        if left < 0:
            raise _too_large(limit)
        if not stream.eof:
            raise Invalid("the packed body ends too early", "body", "Send all of it.")
        parts.append(part)
        packed = stream.unused_data  # gzip allows several members after each other
    return b"".join(parts)


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"the body is larger than {limit:,} bytes", "web.max_body", "Send less, or raise web.max_body.")
