"""Header compression against the examples of RFC 7541, and against anything."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.serving.rpc import huffman
from octavo.serving.rpc.hpack import TABLE_BYTES, CompressionFault, Decoder, HeadersTooLarge, literal

# Appendix C.3 (plain) and C.4 (Huffman): three requests on one connection.
PLAIN = (
    "828684410f7777772e6578616d706c652e636f6d",
    "828684be58086e6f2d6361636865",
    "828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565",
)
PACKED = (
    "828684418cf1e3c2e5f23a6ba0ab90f4ff",
    "828684be5886a8eb10649cbf",
    "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
)
REQUESTS = (
    {b":method": b"GET", b":scheme": b"http", b":path": b"/", b":authority": b"www.example.com"},
    {
        b":method": b"GET", b":scheme": b"http", b":path": b"/", b":authority": b"www.example.com",
        b"cache-control": b"no-cache",
    },
    {
        b":method": b"GET", b":scheme": b"https", b":path": b"/index.html", b":authority": b"www.example.com",
        b"custom-key": b"custom-value",
    },
)  # fmt: skip


def packed(text: bytes) -> bytes:
    """Huffman form, padded with ones."""
    codes = huffman.codes()
    bits = "".join(f"{codes[byte][0]:0{codes[byte][1]}b}" for byte in text)
    bits += "1" * (-len(bits) % 8)
    return int(bits or "0", 2).to_bytes(len(bits) // 8, "big")


@pytest.mark.parametrize("blocks", [PLAIN, PACKED])
def test_the_examples_of_the_rfc(blocks: tuple[str, ...]) -> None:
    decoder = Decoder()
    for block, expected in zip(blocks, REQUESTS, strict=True):
        assert dict(decoder.decode(bytes.fromhex(block), 2**14)) == expected


def test_entries_leave_a_full_table() -> None:
    decoder = Decoder()
    for number in range(200):
        decoder.decode(b"\x40\x01a\x7f\x49" + b"%0200d" % number, 2**14)
    assert decoder.decode(b"\xbe", 2**14) == [(b"a", b"%0200d" % 199)]
    kept = TABLE_BYTES // 233
    assert decoder.decode(bytes((0x80 | (61 + kept),)), 2**14) == [(b"a", b"%0200d" % (200 - kept))]
    with pytest.raises(CompressionFault):
        decoder.decode(bytes((0x80 | (62 + kept),)), 2**14)
    decoder.decode(b"\x20", 2**14)  # the table's size is 0 now
    with pytest.raises(CompressionFault):
        decoder.decode(b"\xbe", 2**14)


@pytest.mark.parametrize(
    "block",
    [
        b"\x80",  # index 0
        b"\xff\xff\xff\xff\xff\xff\xff\xff",  # a number without an end
        b"\xff",  # a number that is cut
        b"\xbe",  # an empty table
        b"\x00\x05ab",  # a string that is cut
        b"\x00\x01a",  # no value
        b"\x00\x81\x00\x01a",  # Huffman padding that is none
        b"\x00\x84\xff\xff\xff\xff\x01a",  # the end-of-string symbol
        b"\x00\x82\x1f\xff\x01a",  # more than seven bits of padding
        b"\x3f\xff\xff\x03",  # a larger table than offered
        b"\x82\x20",  # the size changes late
    ],
)
def test_what_is_no_block_is_refused(block: bytes) -> None:
    with pytest.raises(CompressionFault):
        Decoder().decode(block, 2**14)


def test_a_bomb_is_refused_and_the_table_stays_in_order() -> None:
    decoder = Decoder()
    decoder.decode(b"\x40\x01a\x7f\xa0\x1e" + b"v" * 3999, 2**14)
    with pytest.raises(HeadersTooLarge):
        decoder.decode(b"\xbe" * 1000 + b"\x40\x01b\x01c", 2**14)
    assert decoder.decode(b"\xbe", 2**14) == [(b"b", b"c")]


@given(st.binary(max_size=300))
def test_huffman_there_and_back(text: bytes) -> None:
    assert huffman.decode(packed(text)) == text


@given(st.lists(st.tuples(st.binary(min_size=1, max_size=300), st.binary(max_size=300)), max_size=8))
def test_literals_there_and_back(headers: list[tuple[bytes, bytes]]) -> None:
    block = b"".join(literal(name, value) for name, value in headers)
    assert Decoder().decode(block, 2**20) == headers


@given(st.lists(st.binary(max_size=60), max_size=5))
def test_anything_is_headers_or_a_fault(blocks: list[bytes]) -> None:
    decoder = Decoder()
    try:
        for block in blocks:
            decoder.decode(block, 2**14)
    except (CompressionFault, HeadersTooLarge):
        pass
