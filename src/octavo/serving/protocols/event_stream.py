"""AWS's event stream: an answer as frames, each with its own checksums, errors among them.

A frame: u32 total length, u32 length of the headers, u32 CRC-32 of those two, headers, payload, u32 CRC-32 of all
before; big-endian. A header: u8 length and name, u8 type (7: text), u16 length and value.
"""

from __future__ import annotations

import binascii
import logging
import struct
from collections.abc import AsyncIterator, Mapping

import orjson

from octavo.errors import OctavoError

MEDIA_TYPE = b"application/vnd.amazon.eventstream"
MAX_PAYLOAD = 2**20
"""Bytes of one frame's payload; AWS's clients take up to 16 MiB."""

_TEXT = 7

log = logging.getLogger("octavo.serving.event_stream")


def frame(headers: Mapping[str, str], payload: bytes) -> bytes:
    """One frame.

    Args:
        headers: names of at most 255 bytes, values of at most 65,535.
        payload: as it is.
    """
    written = b"".join(map(_header, headers.items()))
    prelude = struct.pack(">II", 16 + len(written) + len(payload), len(written))
    whole = b"".join((prelude, struct.pack(">I", binascii.crc32(prelude)), written, payload))
    return whole + struct.pack(">I", binascii.crc32(whole))


def payload_part(payload: bytes) -> bytes:
    """A piece of the answer as a frame."""
    kind = {":message-type": "event", ":event-type": "PayloadPart", ":content-type": "application/octet-stream"}
    return frame(kind, payload)


def exception(name: str, body: Mapping[str, str]) -> bytes:
    """An error that ends the stream, as a frame."""
    kind = {":message-type": "exception", ":exception-type": name, ":content-type": "application/json"}
    return frame(kind, orjson.dumps(body))


async def frames(parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The parts of an answer as frames; an error on the way is the last of them.

    A model's error is a `ModelStreamError`, anything unexpected an `InternalStreamFailure`.
    """
    try:
        async for part in parts:
            for at in range(0, len(part), MAX_PAYLOAD):
                yield payload_part(part[at : at + MAX_PAYLOAD])
    except OctavoError as error:
        code = "ModelInvocationTimeExceeded" if error.status == 504 else "StreamBroken"
        yield exception("ModelStreamError", {"Message": str(error), "ErrorCode": code})
    except Exception:
        log.exception("a stream ended unexpectedly")
        yield exception("InternalStreamFailure", {"Message": "something unexpected went wrong"})


def _header(item: tuple[str, str]) -> bytes:
    name, value = item[0].encode(), item[1].encode()
    return struct.pack(">B", len(name)) + name + struct.pack(">BH", _TEXT, len(value)) + value
