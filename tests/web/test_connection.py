"""What a connection does when its client takes too long; without waiting for it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from octavo.web.connection import (
    HEADER_SECONDS,
    LINGER_BYTES,
    LINGER_SECONDS,
    MAX_HEADERS,
    Connection,
    limited,
    overloaded,
)

REQUEST = b"POST /x HTTP/1.1\r\nhost: h\r\ncontent-length: 5\r\n\r\n"


class Wire(asyncio.Transport):
    """A transport that remembers what is done with it."""

    def __init__(self) -> None:
        super().__init__()
        self.written, self.closed, self.aborted = b"", False, False
        self.said_goodbye = False

    def write(self, data: Any) -> None:
        self.written += bytes(data)

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.aborted = True

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.said_goodbye = True

    def is_closing(self) -> bool:
        return self.closed or self.aborted

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


async def never(scope: Any, receive: Any, send: Any) -> None:
    await asyncio.Event().wait()


async def connect(most: int = 10, state: ServerState | None = None) -> tuple[Connection, Wire]:
    config = uvicorn.Config(never, http=limited(most, body_seconds=1.0), lifespan="off", log_config=None)
    config.load()
    connection = config.http_protocol_class(config, state or ServerState(), {}, asyncio.get_running_loop())  # type: ignore[operator]
    assert isinstance(connection, Connection)
    wire = Wire()
    connection.connection_made(wire)
    return connection, wire


def later(seconds: float) -> float:
    return asyncio.get_running_loop().time() + seconds


async def test_a_silent_client_is_left_alone_for_a_while_and_then_closed() -> None:
    connection, wire = await connect()
    connection.sweep(later(HEADER_SECONDS - 1))
    assert not wire.is_closing()
    connection.sweep(later(HEADER_SECONDS + 1))
    assert wire.closed
    assert wire.written == b""


async def test_slow_headers_get_408() -> None:
    connection, wire = await connect()
    connection.data_received(REQUEST[:20])
    connection.sweep(later(HEADER_SECONDS + 1))
    assert wire.written.startswith(b"HTTP/1.1 408 ")
    assert wire.closed


async def test_time_counts_from_the_first_byte_of_the_headers_not_the_last() -> None:
    connection, _ = await connect()
    begun = connection.since
    for byte in REQUEST[:20]:
        connection.data_received(bytes([byte]))
    assert connection.since == begun


async def test_a_body_that_nobody_reads_is_cut_off() -> None:
    connection, wire = await connect()
    connection.data_received(REQUEST + b"ab")
    connection.sweep(later(2))
    assert not wire.is_closing()  # the body limit answers 408 by itself
    connection.sweep(later(60))
    assert wire.aborted


async def test_a_request_that_is_all_there_may_take_its_time() -> None:
    connection, wire = await connect()
    connection.data_received(REQUEST + b"abcde")
    connection.sweep(later(3600))
    assert not wire.is_closing()


@pytest.mark.parametrize("size", [MAX_HEADERS - 100, MAX_HEADERS + 100])
async def test_headers_have_a_size(size: int) -> None:
    connection, wire = await connect()
    for _ in range(size // 100):
        connection.data_received(b"x" * 100 if connection.header_bytes else b"GET / HTTP/1.1\r\na: " + b"x" * 81)
    assert wire.written.startswith(b"HTTP/1.1 431 ") is (size > MAX_HEADERS)


async def test_connections_over_the_limit_are_answered_by_another_app() -> None:
    state = ServerState()
    first, _ = await connect(1, state)
    second, _ = await connect(1, state)
    assert first.app is not overloaded
    assert second.app is overloaded


async def test_closing_in_the_middle_of_a_body_says_goodbye_and_reads_on_for_a_while() -> None:
    for ends_by in ("time", "bytes"):
        connection, wire = await connect()
        connection.data_received(b"POST / HTTP/1.1\r\ncontent-length: 99999999\r\n\r\nabc")
        connection.transport.close()
        assert (wire.said_goodbye, wire.closed, connection.transport.is_closing()) == (True, False, True)
        connection.transport.write(b"too late")
        connection.data_received(b"more")
        connection.sweep(later(LINGER_SECONDS - 1))
        assert (wire.written, wire.is_closing()) == (b"", False)
        if ends_by == "time":
            connection.sweep(later(LINGER_SECONDS + 1))
        else:
            connection.data_received(bytes(LINGER_BYTES))
        assert wire.aborted
