"""HTTP/2 frames (RFC 9113): bytes to frames and back. Pure: it knows no connection."""

from __future__ import annotations

from enum import IntEnum
from struct import Struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What a client that knows it speaks HTTP/2 sends first."""

LARGEST_FRAME = 2**16
"""Bytes of a frame from the client; what is larger ends the connection."""

LARGEST_WINDOW = 2**31 - 1
FIRST_WINDOW = 65535
"""Of a connection, and of a stream until settings say otherwise."""

HEAD = 9
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20

Frame = tuple[int, int, int, bytes]
"""Kind, flags, stream and payload."""

_head = Struct(">HBBBI")
_tail = Struct(">IBI")


class Kind(IntEnum):
    """Of a frame."""

    DATA = 0
    HEADERS = 1
    PRIORITY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PUSH_PROMISE = 5
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8
    CONTINUATION = 9


class Setting(IntEnum):
    """Of a connection."""

    HEADER_TABLE_SIZE = 1
    ENABLE_PUSH = 2
    MAX_CONCURRENT_STREAMS = 3
    INITIAL_WINDOW_SIZE = 4
    MAX_FRAME_SIZE = 5
    MAX_HEADER_LIST_SIZE = 6


class Fault(IntEnum):
    """Why a stream or a connection ends."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    ENHANCE_YOUR_CALM = 11


class ConnectionFault(Exception):
    """The client broke the protocol, or a limit: its connection ends.

    Args:
        fault: told in the farewell.
        why: one sentence for whoever debugs the client.
    """

    def __init__(self, fault: Fault, why: str) -> None:
        super().__init__(why)
        self.fault = fault


def read_frames(buffer: bytes) -> tuple[list[Frame], bytes]:
    """The whole frames of a buffer, and what is left of it.

    Raises:
        ConnectionFault: a frame is said to be larger than `LARGEST_FRAME`.
    """
    frames: list[Frame] = []
    at, end = 0, len(buffer)
    while end - at >= HEAD:
        high, low, kind, flags, stream = _head.unpack_from(buffer, at)
        size = high << 8 | low
        if size > LARGEST_FRAME:
            raise ConnectionFault(Fault.FRAME_SIZE_ERROR, f"a frame of {size} bytes; {LARGEST_FRAME} are taken")
        start = at + HEAD
        if start + size > end:
            break
        at = start + size
        frames.append((kind, flags, stream & LARGEST_WINDOW, buffer[start:at]))
    return frames, buffer[at:]


def write_frame(kind: Kind, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame; its payload has less than 2^24 bytes."""
    return _tail.pack(len(payload) << 8 | kind, flags, stream) + payload


def unpadded(payload: bytes) -> bytes:
    """The payload of a padded frame without its padding.

    Raises:
        ConnectionFault: the padding is longer than the frame.
    """
    if not payload or payload[0] >= len(payload):
        raise ConnectionFault(Fault.PROTOCOL_ERROR, "the padding is longer than the frame")
    return payload[1 : len(payload) - payload[0]]


_setting = Struct(">HI")


def write_settings(settings: dict[Setting, int]) -> bytes:
    """A SETTINGS frame."""
    return write_frame(Kind.SETTINGS, 0, 0, b"".join(_setting.pack(key, value) for key, value in settings.items()))


def read_settings(payload: bytes) -> dict[int, int]:
    """The settings of a SETTINGS frame by number, unknown ones among them.

    Raises:
        ConnectionFault: it is cut, or a value is outside its range.
    """
    if len(payload) % _setting.size:
        raise ConnectionFault(Fault.FRAME_SIZE_ERROR, "settings are cut")
    settings = dict(_setting.iter_unpack(payload))
    if settings.get(Setting.ENABLE_PUSH, 0) > 1:
        raise ConnectionFault(Fault.PROTOCOL_ERROR, "ENABLE_PUSH is 0 or 1")
    if settings.get(Setting.INITIAL_WINDOW_SIZE, 0) > LARGEST_WINDOW:
        raise ConnectionFault(Fault.FLOW_CONTROL_ERROR, "INITIAL_WINDOW_SIZE is over 2^31 - 1")
    if not 2**14 <= settings.get(Setting.MAX_FRAME_SIZE, 2**14) < 2**24:
        raise ConnectionFault(Fault.PROTOCOL_ERROR, "MAX_FRAME_SIZE is outside its range")
    return settings


def write_number(kind: Kind, stream: int, number: int) -> bytes:
    """A frame with one number: RST_STREAM or WINDOW_UPDATE."""
    return write_frame(kind, 0, stream, number.to_bytes(4, "big"))


def read_number(payload: bytes) -> int:
    """The number of such a frame.

    Raises:
        ConnectionFault: it is not one of four bytes.
    """
    if len(payload) != 4:
        raise ConnectionFault(Fault.FRAME_SIZE_ERROR, "a number has four bytes")
    return int.from_bytes(payload, "big")


def write_goaway(last_stream: int, fault: Fault, why: str = "") -> bytes:
    """The farewell: streams after `last_stream` were not and will not be looked at."""
    return write_frame(Kind.GOAWAY, 0, 0, _goaway.pack(last_stream, fault) + why.encode())


_goaway = Struct(">II")
