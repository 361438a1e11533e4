"""How a call ends: gRPC's status codes, and the header blocks that begin and end an answer."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from urllib.parse import quote_from_bytes

from octavo.serving.rpc.hpack import literal

_MAX_MESSAGE = 4096  # bytes; clients limit what headers they take
_SAFE = bytes(code for code in range(0x20, 0x7F) if code != 0x25)
_KIND = b"application/grpc"
_ACCEPT = literal(b"grpc-accept-encoding", b"identity,deflate,gzip")


class Code(IntEnum):
    """gRPC's status codes."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class Refused(Exception):
    """Ends a call with a status other than OK.

    Args:
        code: of the status.
        message: one sentence for the client.
        metadata: sent with the status.
    """

    def __init__(self, code: Code, message: str, metadata: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.metadata = metadata


HEADERS = b"\x88\x0f\x10" + bytes((len(_KIND),)) + _KIND
"""Block before the first message of an answer: `:status: 200` and `content-type`, both named by their index."""

TRAILERS_OK = literal(b"grpc-status", b"0")
"""Block after the last message when all went well."""


def trailers(code: Code, message: str = "", metadata: Sequence[tuple[str, str]] = ()) -> bytes:
    """Block after the last message."""
    if code is Code.OK:
        return TRAILERS_OK
    text = message.encode()[:_MAX_MESSAGE].decode(errors="ignore").encode()
    block = literal(b"grpc-status", b"%d" % code) + literal(
        b"grpc-message", quote_from_bytes(text, safe=_SAFE).encode()
    )
    return block + b"".join(literal(name.encode(), value.encode("latin-1", "replace")) for name, value in metadata)


def refusal(refused: Refused) -> bytes:
    """Block of an answer that has no message: headers and trailers in one."""
    return HEADERS + _ACCEPT + trailers(refused.code, refused.message, refused.metadata)


def http_refusal(status: int) -> bytes:
    """Block of an answer to what is no gRPC at all."""
    return literal(b":status", b"%d" % status) + literal(b"content-type", b"text/plain")
