"""HPACK (RFC 7541): header blocks of a connection to headers. Answers need no encoder, they are spelled out."""

from __future__ import annotations

from octavo.serving.rpc import huffman

TABLE_BYTES = 4096
"""Of the dynamic table; the protocol's default, which is not negotiated."""

Header = tuple[bytes, bytes]

_ENTRY = 32  # bytes an entry counts besides its name and value
_LONGEST_NUMBER = 5  # bytes, more than any length here needs
_STATIC: tuple[Header, ...] = tuple(
    (name, value)
    for name, _, value in (
        line.encode().partition(b" ")
        for line in (
            ":authority", ":method GET", ":method POST", ":path /", ":path /index.html", ":scheme http",
            ":scheme https", ":status 200", ":status 204", ":status 206", ":status 304", ":status 400", ":status 404",
            ":status 500", "accept-charset", "accept-encoding gzip, deflate", "accept-language", "accept-ranges",
            "accept", "access-control-allow-origin", "age", "allow", "authorization", "cache-control",
            "content-disposition", "content-encoding", "content-language", "content-length", "content-location",
            "content-range", "content-type", "cookie", "date", "etag", "expect", "expires", "from", "host", "if-match",
            "if-modified-since", "if-none-match", "if-range", "if-unmodified-since", "last-modified", "link",
            "location", "max-forwards", "proxy-authenticate", "proxy-authorization", "range", "referer", "refresh",
            "retry-after", "server", "set-cookie", "strict-transport-security", "transfer-encoding", "user-agent",
            "vary", "via", "www-authenticate",
        )
    )
)  # fmt: skip


class CompressionFault(Exception):
    """A header block that cannot be read: the connection's table is lost, and with it the connection."""


class HeadersTooLarge(Exception):
    """More headers than are taken; the table is in order."""


class Decoder:
    """The receiving side of a connection: blocks must be decoded in the order in which they came.

    Attributes:
        changes: how often the table has changed; equal blocks mean equal headers while it has not.
    """

    def __init__(self) -> None:
        self.changes = 0
        self._table: list[Header] = []  # the newest first
        self._bytes = 0
        self._limit = TABLE_BYTES

    def decode(self, block: bytes, most: int) -> list[Header]:
        """The headers of one block.

        Args:
            block: whole, continuations included.
            most: bytes of names and values, and 32 for each header.

        Raises:
            CompressionFault: not a header block.
            HeadersTooLarge: more than `most`.
        """
        headers: list[Header] = []
        at, taken = 0, 0
        try:
            while at < len(block):
                first = block[at]
                if first & 0x80:
                    index, at = _number(block, at, 7)
                    header = self._entry(index)
                elif first & 0xE0 == 0x20:
                    if headers or taken:
                        raise CompressionFault("the table's size changes in the middle of a block")
                    at = self._resize(block, at)
                    continue
                else:
                    header, at = self._literal(block, at, first)
                taken += len(header[0]) + len(header[1]) + _ENTRY
                if taken <= most:
                    headers.append(header)
        except (IndexError, ValueError) as problem:
            raise CompressionFault(str(problem)) from None
        if taken > most:
            raise HeadersTooLarge
        return headers

    def _literal(self, block: bytes, at: int, first: int) -> tuple[Header, int]:
        enters = bool(first & 0x40)
        index, at = _number(block, at, 6 if enters else 4)
        if index:
            name = self._entry(index)[0]
        else:
            name, at = _string(block, at)
        value, at = _string(block, at)
        if enters:
            self._enter((name, value))
        return (name, value), at

    def _entry(self, index: int) -> Header:
        if index > len(_STATIC):
            return self._table[index - len(_STATIC) - 1]
        if not index:
            raise CompressionFault("a header with index 0")
        return _STATIC[index - 1]

    def _enter(self, header: Header) -> None:
        self.changes += 1
        self._table.insert(0, header)
        self._bytes += len(header[0]) + len(header[1]) + _ENTRY
        self._shrink()

    def _resize(self, block: bytes, at: int) -> int:
        self._limit, at = _number(block, at, 5)
        if self._limit > TABLE_BYTES:
            raise CompressionFault("a larger table than was offered")
        self.changes += 1
        self._shrink()
        return at

    def _shrink(self) -> None:
        while self._bytes > self._limit:
            name, value = self._table.pop()
            self._bytes -= len(name) + len(value) + _ENTRY


def literal(name: bytes, value: bytes) -> bytes:
    """A header spelled out, which enters no table."""
    return b"\x00" + _spelled(name) + _spelled(value)


def _spelled(text: bytes) -> bytes:
    if len(text) < 127:
        return bytes((len(text),)) + text
    rest = len(text) - 127
    size = bytearray((127,))
    while rest > 127:
        size.append(rest & 127 | 128)
        rest >>= 7
    size.append(rest)
    return bytes(size) + text


def _number(block: bytes, at: int, bits: int) -> tuple[int, int]:
    """A number whose first byte gives its lowest `bits`, and where it ends."""
    most = (1 << bits) - 1
    value = block[at] & most
    at += 1
    if value < most:
        return value, at
    for shift in range(0, 7 * _LONGEST_NUMBER, 7):
        byte = block[at]
        at += 1
        value += (byte & 127) << shift
        if byte < 128:
            return value, at
    raise CompressionFault("a number without an end")


def _string(block: bytes, at: int) -> tuple[bytes, int]:
    packed = block[at] & 0x80
    size, at = _number(block, at, 7)
    raw = block[at : at + size]
    if len(raw) != size:
        raise CompressionFault("a string runs past the block's end")
    return huffman.decode(raw) if packed else raw, at + size
