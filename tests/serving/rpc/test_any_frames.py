"""Whatever frames come in whatever order: no exception, and nothing stays behind."""

from __future__ import annotations

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.serving.rpc.connection import Connection
from octavo.serving.rpc.frames import END_HEADERS, END_STREAM, PREFACE, Kind, read_frames, write_frame, write_settings
from octavo.serving.rpc.server import GrpcServer

from .wire import LIMITS, Echo, admit, headers, message

STREAM = st.sampled_from([0, 1, 1, 3, 3, 5, 2, 7])
FLAGS = st.sampled_from([0, END_STREAM, END_HEADERS, END_HEADERS | END_STREAM, 0x8, 0x20, 0xFF])
BLOCK = st.sampled_from([headers(name) for name in (b"Say", b"Wait", b"Chat", b"Slow", b"Large", b"None")])
NUMBER = st.sampled_from([0, 1, 8, 2**16, 2**31 - 1, 2**31]).map(lambda number: number.to_bytes(4, "big"))
BODY = st.one_of(
    st.binary(max_size=20).map(message),
    st.binary(max_size=20),
    st.just(message(b"300000")),
    st.just(message(bytes(2**16))[:30_000]),
)
SETTINGS = st.dictionaries(st.integers(0, 8), st.sampled_from([0, 1, 2**14, 2**16, 2**31 - 1])).map(
    lambda found: write_settings(found)[9:]  # type: ignore[arg-type]
)
FRAME = st.one_of(
    st.tuples(st.just(Kind.HEADERS), FLAGS, STREAM, BLOCK),
    st.tuples(st.just(Kind.DATA), FLAGS, STREAM, BODY),
    st.tuples(st.sampled_from([Kind.WINDOW_UPDATE, Kind.RST_STREAM]), st.just(0), STREAM, NUMBER),
    st.tuples(st.just(Kind.SETTINGS), st.sampled_from([0, 1]), st.just(0), SETTINGS),
    st.tuples(st.sampled_from(list(Kind)), FLAGS, STREAM, st.binary(max_size=12)),
)


class Wire(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:  # type: ignore[override]
        self.written += data

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True


async def converse(pieces: list[bytes]) -> None:
    problems: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
    echo = Echo()
    server = GrpcServer(echo.methods(), LIMITS, admit)
    connection, wire = Connection(server), Wire()
    connection.connection_made(wire)
    connection.data_received(PREFACE + write_settings({}))
    for number, piece in enumerate(pieces):
        connection.data_received(piece)
        await asyncio.sleep(0)
        if number % 3 == 0:
            connection.pause_writing()
        elif number % 3 == 1:
            connection.resume_writing()
    connection.resume_writing()
    connection.sweep(1e12)
    connection.connection_lost(None)
    echo.gate.set()
    while server.calls:
        await asyncio.sleep(0)
    assert not connection.calls
    assert not server.connections
    assert read_frames(wire.written)[1] == b""
    await asyncio.sleep(0)
    assert not problems


@settings(deadline=None, max_examples=200)
@given(st.lists(FRAME, max_size=25), st.integers(1, 400))
def test_any_frames(frames: list[tuple[Kind, int, int, bytes]], size: int) -> None:
    pieces = [write_frame(*frame) for frame in frames]
    asyncio.run(converse(pieces))
    whole = b"".join(pieces)[:5000]
    asyncio.run(converse([whole[at : at + size] for at in range(0, len(whole), size)]))
