"""gRPC's messages in a stream of bytes: a flag, a length, the message, which may be packed."""

from __future__ import annotations

import zlib

from octavo.serving.rpc.status import Code, Refused

PREFIX = 5
"""Bytes before a message."""

PACKINGS = {b"gzip": 31, b"deflate": 15}
"""What messages may be packed with, and zlib's word for it."""

Message = tuple[bool, bytes]
"""Whether it is packed, and its bytes."""


class Assembler:
    """Puts messages together from the pieces in which they come.

    Attributes:
        held: bytes of the message that is not whole yet.
        missing: bytes that message still needs, its prefix apart; 0 between messages.

    Args:
        most: bytes a message may have.
    """

    __slots__ = ("_buffer", "_most", "_size", "missing")

    def __init__(self, most: int) -> None:
        self._most = most
        self._buffer = bytearray()
        self._size = -1  # of the message under way, its prefix apart; -1 while that is not known
        self.missing = 0

    @property
    def held(self) -> int:
        """Bytes of the message that is not whole yet."""
        return len(self._buffer)

    def feed(self, piece: bytes) -> list[Message]:
        """The messages that a piece makes whole.

        Raises:
            Refused: one is too large, or no message at all.
        """
        if not self._buffer and len(piece) >= PREFIX and self._length(piece) == len(piece) - PREFIX:
            return [(bool(piece[0]), piece[PREFIX:])]
        buffer = self._buffer
        buffer += piece
        found: list[Message] = []
        at = 0
        while len(buffer) - at >= PREFIX:
            if self._size < 0:
                self._size = self._length(buffer[at : at + PREFIX])
            end = at + PREFIX + self._size
            if end > len(buffer):
                break
            found.append((bool(buffer[at]), bytes(memoryview(buffer)[at + PREFIX : end])))
            at, self._size = end, -1
        del buffer[:at]
        self.missing = 0 if self._size < 0 else PREFIX + self._size - len(buffer)
        return found

    def _length(self, prefix: bytes | bytearray) -> int:
        if prefix[0] > 1:
            raise Refused(Code.INTERNAL, "a message begins with neither 0 nor 1")
        size = int.from_bytes(prefix[1:PREFIX], "big")
        if size > self._most:
            raise Refused(Code.RESOURCE_EXHAUSTED, f"a message of {size} bytes; at most {self._most} are taken")
        return size


def unpack(raw: bytes, packing: bytes, most: int) -> bytes:
    """A packed message in full.

    Args:
        raw: the packed bytes.
        packing: a key of `PACKINGS`.
        most: bytes it may have.

    Raises:
        Refused: it is larger, or damaged.
    """
    unpacker = zlib.decompressobj(PACKINGS[packing])
    try:
        message = unpacker.decompress(raw, most + 1)
    except zlib.error:
        raise Refused(Code.INTERNAL, f"the message is not {packing.decode()}") from None
    if len(message) > most:
        raise Refused(Code.RESOURCE_EXHAUSTED, f"a message of over {most} bytes; that many are taken")
    if not unpacker.eof or unpacker.unused_data:
        raise Refused(Code.INTERNAL, f"the message is not whole {packing.decode()}")
    return message
