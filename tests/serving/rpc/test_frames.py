"""Frames and messages: however the bytes are cut, the same comes out."""

from __future__ import annotations

import gzip
import itertools
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.serving.rpc.frames import (
    LARGEST_FRAME,
    ConnectionFault,
    Kind,
    Setting,
    read_frames,
    read_number,
    read_settings,
    unpadded,
    write_frame,
    write_goaway,
    write_number,
    write_settings,
)
from octavo.serving.rpc.head import HeadReader, Malformed, read_head
from octavo.serving.rpc.messages import Assembler, unpack
from octavo.serving.rpc.status import Code, Refused, trailers

from .wire import headers, message

FRAME = st.tuples(st.sampled_from(list(Kind)), st.integers(0, 255), st.integers(0, 2**31 - 1), st.binary(max_size=50))


def cut(data: bytes, points: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(point % (len(data) + 1) for point in points)})
    return [data[start:stop] for start, stop in itertools.pairwise(edges)]


@given(st.lists(FRAME, max_size=8), st.lists(st.integers(0, 10_000), max_size=6))
def test_frames_there_and_back(frames: list[tuple[Kind, int, int, bytes]], points: list[int]) -> None:
    found, rest = [], b""
    for piece in cut(b"".join(write_frame(*frame) for frame in frames), points):
        more, rest = read_frames(rest + piece)
        found += more
    assert found == frames
    assert rest == b""


@given(st.binary(max_size=200))
def test_any_bytes_are_frames_or_a_fault(data: bytes) -> None:
    try:
        frames, rest = read_frames(data)
    except ConnectionFault:
        return
    assert sum(9 + len(payload) for _, _, _, payload in frames) + len(rest) == len(data)


def test_what_frames_hold() -> None:
    with pytest.raises(ConnectionFault):
        read_frames((LARGEST_FRAME + 1).to_bytes(3, "big") + bytes(6))
    settings = {Setting.INITIAL_WINDOW_SIZE: 5, Setting.MAX_FRAME_SIZE: 2**15}
    assert read_settings(write_settings(settings)[9:]) == settings
    for wrong in ({Setting.ENABLE_PUSH: 2}, {Setting.INITIAL_WINDOW_SIZE: 2**31}, {Setting.MAX_FRAME_SIZE: 5}):
        with pytest.raises(ConnectionFault):
            read_settings(write_settings(wrong)[9:])
    with pytest.raises(ConnectionFault):
        read_settings(b"12345")
    assert read_number(write_number(Kind.RST_STREAM, 1, 8)[9:]) == 8
    with pytest.raises(ConnectionFault):
        read_number(b"123")
    assert unpadded(b"\x02abcxx") == b"abc"
    for padded in (b"", b"\x01", b"\x05abc"):
        with pytest.raises(ConnectionFault):
            unpadded(padded)
    assert write_goaway(7, 0).endswith(b"\0\0\0\7\0\0\0\0")  # type: ignore[arg-type]


@given(st.lists(st.binary(max_size=40), max_size=6), st.lists(st.integers(0, 10_000), max_size=8))
def test_messages_there_and_back(raws: list[bytes], points: list[int]) -> None:
    assembler = Assembler(40)
    whole = b"".join(message(raw) for raw in raws)
    found = [one for piece in cut(whole, points) for one in assembler.feed(piece)]
    assert found == [(False, raw) for raw in raws]
    assert (assembler.held, assembler.missing) == (0, 0)


def test_a_message_that_is_not_whole_tells_what_it_needs() -> None:
    assembler = Assembler(100)
    assert assembler.feed(message(b"x" * 60)[:25]) == []
    assert (assembler.held, assembler.missing) == (25, 40)


@pytest.mark.parametrize(("raw", "code"), [(message(bytes(101)), 8), (b"\x02\0\0\0\0", 13), (b"\0\xff\xff\xff\xff", 8)])
def test_messages_are_refused_by_their_prefix(raw: bytes, code: int) -> None:
    for piece in (raw, raw[:5]):
        with pytest.raises(Refused) as caught:
            Assembler(100).feed(piece)
        assert caught.value.code == code


def test_packed_messages() -> None:
    raw = b"words " * 100
    assert unpack(gzip.compress(raw), b"gzip", 600) == raw
    assert unpack(zlib.compress(raw), b"deflate", 600) == raw
    for data, most, code in (
        (gzip.compress(bytes(2**24)), 2**20, Code.RESOURCE_EXHAUSTED),
        (gzip.compress(raw)[:-3], 600, Code.INTERNAL),
        (gzip.compress(raw) + b"more", 600, Code.INTERNAL),
        (b"nothing", 600, Code.INTERNAL),
    ):
        with pytest.raises(Refused) as caught:
            unpack(data, b"gzip", most)
        assert caught.value.code == code


def head(**more: bytes) -> object:
    reader = HeadReader()
    return reader.read(headers(**more))


def test_heads() -> None:
    reader = HeadReader()
    found = reader.read(headers(grpc_timeout=b"1500m", grpc_encoding=b"gzip", x_one=b"1"))
    assert found is not None
    assert (found.path, found.timeout, found.packing, found.metadata["x-one"]) == (b"/test.Echo/Say", 1.5, b"gzip", "1")
    assert reader.read(headers(grpc_timeout=b"1500m", grpc_encoding=b"gzip", x_one=b"1")) is found
    for more in ({"grpc_timeout": b"123456789S"}, {"grpc_timeout": b"soon"}, {"grpc_encoding": b"br"}):
        assert head(**more).refused is not None  # type: ignore[attr-defined]
    assert head(pseudo_method=b"GET").http_status == 405  # type: ignore[attr-defined]
    assert head(content_type=b"application/json").http_status == 415  # type: ignore[attr-defined]
    for broken in ({"pseudo_path": b""}, {"pseudo_other": b"x"}, {"X": b"1"}, {"connection": b"close"}, {"x": b"a\nb"}):
        assert head(**broken) is None
    with pytest.raises(Malformed):
        read_head([(b"te", b"trailers"), (b":path", b"/")])


def test_equal_blocks_are_read_anew_when_the_table_has_changed() -> None:
    reader = HeadReader()
    entering = headers() + b"\x40\x01x\x011"
    block = headers() + b"\xbe"  # the newest entry
    assert reader.read(entering) is not None
    assert reader.read(block).metadata["x"] == "1"  # type: ignore[union-attr]
    reader.read(headers() + b"\x40\x01x\x012")
    assert reader.read(block).metadata["x"] == "2"  # type: ignore[union-attr]


def test_a_status_is_written_for_anybody_to_read() -> None:
    block = trailers(Code.NOT_FOUND, "100 % ü\n" + "x" * 9000, (("retry-after", "3"),))
    assert b"100 %25 %C3%BC%0A" in block
    assert len(block) < 4300
    assert block.endswith(b"\x0bretry-after\x013")
