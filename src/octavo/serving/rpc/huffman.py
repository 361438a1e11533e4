"""The Huffman code of HTTP/2 headers (RFC 7541, appendix B), decoded four bits at a time."""

from __future__ import annotations

from functools import cache

# The code is canonical: lengths in bits, and the symbols of each length in ascending order, give it whole.
_SYMBOLS = {
    5: b"012aceiost",
    6: b" %-./3456789=A_bdfghlmnpru",
    7: b":BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz",
    8: b"&*,;XZ",
    10: b'!"()?',
    11: b"'+|",
    12: b"#>",
    13: b"\x00$@[]~",
    14: b"^}",
    15: b"<`{",
    19: b"\\\xc3\xd0",
    20: b"\x80\x82\x83\xa2\xb8\xc2\xe0\xe2",
    21: b"\x99\xa1\xa7\xac\xb0\xb1\xb3\xd1\xd8\xd9\xe3\xe5\xe6",
    22: b"\x81\x84\x85\x86\x88\x92\x9a\x9c\xa0\xa3\xa4\xa9\xaa\xad\xb2\xb5\xb9\xba\xbb\xbd\xbe\xc4\xc6\xe4\xe8\xe9",
    23: b"\x01\x87\x89\x8a\x8b\x8c\x8d\x8f\x93\x95\x96\x97\x98\x9b\x9d\x9e\xa5\xa6\xa8\xae\xaf\xb4\xb6\xb7\xbc\xbf\xc5"
    b"\xe7\xef",
    24: b"\t\x8e\x90\x91\x94\x9f\xab\xce\xd7\xe1\xec\xed",
    25: b"\xc7\xcf\xea\xeb",
    26: b"\xc0\xc1\xc8\xc9\xca\xcd\xd2\xd5\xda\xdb\xee\xf0\xf2\xf3\xff",
    27: b"\xcb\xcc\xd3\xd4\xd6\xdd\xde\xdf\xf1\xf4\xf5\xf6\xf7\xf8\xfa\xfb\xfc\xfd\xfe",
    28: b"\x02\x03\x04\x05\x06\x07\x08\x0b\x0c\x0e\x0f\x10\x11\x12\x13\x14\x15\x17\x18\x19\x1a\x1b\x1c\x1d\x1e\x1f\x7f"
    b"\xdc\xf9",
    30: b"\n\r\x16",
}
_LONGEST_PADDING = 7

Step = tuple[int, int]
"""The next state and the symbol that was completed on the way, -1 for none; state -1 is an error."""


def codes() -> dict[int, tuple[int, int]]:
    """Every symbol's code and its length in bits; the end-of-string symbol, all ones, is not among them."""
    found = {}
    code = last = 0
    for length, symbols in _SYMBOLS.items():
        code <<= length - last
        last = length
        for symbol in symbols:
            found[symbol] = (code, length)
            code += 1
    return found


def decode(raw: bytes) -> bytes:
    """A string from its Huffman form.

    Raises:
        ValueError: it holds the end-of-string symbol, or its padding is none.
    """
    steps, ends = _machine()
    state = 0
    found = bytearray()
    for byte in raw:
        for nibble in (byte >> 4, byte & 15):
            state, symbol = steps[state << 4 | nibble]
            if symbol >= 0:
                found.append(symbol)
            if state < 0:
                raise ValueError("the end-of-string symbol stands in a string")
    if not ends[state]:
        raise ValueError("a string ends inside a symbol")
    return bytes(found)


@cache
def _machine() -> tuple[list[Step], list[bool]]:
    """Steps by state and four bits, and whether a string may end in a state. A state is a node of the code's tree."""
    nodes: list[list[int | None]] = [[None, None]]  # a child: a node, or ~symbol
    depths, ones = [0], [True]
    for symbol, (code, length) in codes().items():
        at = 0
        for bit in range(length - 1, 0, -1):
            way = code >> bit & 1
            child = nodes[at][way]
            if child is None:
                child = len(nodes)
                nodes.append([None, None])
                depths.append(depths[at] + 1)
                ones.append(ones[at] and way == 1)
                nodes[at][way] = child
            at = child
        nodes[at][code & 1] = ~symbol
    steps = [_step(nodes, state, nibble) for state in range(len(nodes)) for nibble in range(16)]
    return steps, [one and depth <= _LONGEST_PADDING for one, depth in zip(ones, depths, strict=True)]


def _step(nodes: list[list[int | None]], state: int, nibble: int) -> Step:
    symbol = -1
    for bit in (3, 2, 1, 0):
        child = nodes[state][nibble >> bit & 1]
        if child is None:
            return -1, -1
        if child < 0:
            symbol, state = ~child, 0
        else:
            state = child
    return state, symbol  # no symbol is shorter than five bits, so four bits complete one at the most
