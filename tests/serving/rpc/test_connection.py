"""A connection, byte by byte: what clients may do, and what ends their call or their connection."""

from __future__ import annotations

import asyncio
import gzip
import time
from dataclasses import replace

import pytest

from octavo.serving.rpc import limits
from octavo.serving.rpc.frames import (
    END_HEADERS,
    END_STREAM,
    FIRST_WINDOW,
    PADDED,
    PREFACE,
    PRIORITY,
    Fault,
    Kind,
    Setting,
    write_frame,
    write_number,
    write_settings,
)
from octavo.serving.rpc.server import GrpcServer

from .wire import LIMITS, Echo, connected, headers, message, serving, window

LATER = 1e6  # seconds


async def until(true: object) -> None:
    while not true():  # type: ignore[operator]
        await asyncio.sleep(0.01)


def sweep(server: GrpcServer, later: float) -> None:
    for connection in list(server.connections):
        connection.sweep(time.monotonic() + later)


async def test_calls_are_answered() -> None:
    async with serving(Echo()) as (server, port), connected(port) as client:
        for stream in range(1, 99, 2):
            client.call(stream, b"%d" % stream, x_suffix=b"!")
        found = [await client.answer(stream) for stream in range(1, 99, 2)]
        assert [body for body, _ in found] == [message(b"%d!" % stream) for stream in range(1, 99, 2)]
        assert all(
            (told[b":status"], told[b"content-type"], told[b"grpc-status"]) == (b"200", b"application/grpc", b"0")
            for _, told in found
        )
        assert server.calls == 0


async def test_bytes_may_come_one_by_one() -> None:
    async with serving(Echo()) as (_, port), connected(port, greet=False) as client:
        call = write_frame(Kind.HEADERS, END_HEADERS, 1, headers())
        call += write_frame(Kind.DATA, END_STREAM, 1, message(b"slowly"))
        for byte in PREFACE + write_settings({}) + call:
            client.write(bytes((byte,)))
            await asyncio.sleep(0)
        assert (await client.answer(1))[0] == message(b"slowly")


async def test_padding_priorities_continuations_and_trailers_are_taken() -> None:
    async with serving(Echo()) as (_, port), connected(port) as client:
        block = headers()
        client.write(
            write_frame(Kind.HEADERS, PADDED | PRIORITY, 1, b"\x03" + bytes(5) + block[:10] + bytes(3)),
            write_frame(Kind.CONTINUATION, 0, 1, block[10:20]),
            write_frame(Kind.CONTINUATION, END_HEADERS, 1, block[20:]),
            write_frame(Kind.PRIORITY, 0, 1, bytes(5)),
            write_frame(Kind.DATA, PADDED, 1, b"\x02" + message(b"padded") + bytes(2)),
            write_frame(77, 0, 1, b"unknown kinds are skipped"),  # type: ignore[arg-type]
            write_frame(Kind.HEADERS, END_HEADERS | END_STREAM, 1, b"\x00\x01x\x011"),
        )
        assert (await client.answer(1))[0] == message(b"padded")


@pytest.mark.parametrize(
    ("method", "more", "raw", "told"),
    [
        (b"Nothing", {}, b"", {b"grpc-status": b"12"}),
        (b"Say", {"pseudo_method": b"GET"}, b"", {b":status": b"405"}),
        (b"Say", {"content_type": b"application/json"}, b"", {b":status": b"415"}),
        (b"Say", {"content_type": b"application/grpc+json"}, b"", {b":status": b"415"}),
        (b"Say", {"grpc_encoding": b"br"}, b"", {b"grpc-status": b"12"}),
        (b"Say", {"grpc_timeout": b"soon"}, b"", {b"grpc-status": b"3"}),
        (b"Say", {"grpc_timeout": b"0m"}, b"", {b"grpc-status": b"0"}),
        (b"Say", {"x": b"\0"}, b"", {b"reset": bytes((Fault.PROTOCOL_ERROR,))}),
        (b"Say", {}, bytes(2**20 + 1), {b"grpc-status": b"8"}),
        (b"Refuse", {}, b"", {b"grpc-status": b"5", b"grpc-message": b"nicht da: 100 %25 %C3%BC%0A",
                              b"retry-after": b"3"}),
        (b"Fail", {}, b"", {b"grpc-status": b"13", b"grpc-message": b"the server failed; its log says why"}),
        (b"Say", {f"x{number}": b"y" * 900 for number in range(20)}, b"", {b"grpc-status": b"8"}),
    ],
)  # fmt: skip
async def test_a_call_that_cannot_be_answered_ends_alone(
    method: bytes, more: dict[str, bytes], raw: bytes, told: dict[bytes, bytes]
) -> None:
    async with serving(Echo()) as (server, port), connected(port) as client:
        client.write(
            write_frame(Kind.HEADERS, END_HEADERS, 1, headers(method, **more)),
            write_frame(Kind.DATA, 0 if raw else END_STREAM, 1, message(raw)[:1000]),
        )
        _, found = await client.answer(1)
        assert {key: found.get(key) for key in told} == told
        if raw:
            assert (await client.until(Kind.RST_STREAM))[3] == bytes(4)
            client.write(write_frame(Kind.DATA, 0, 1, bytes(1000)))  # it was on its way
        client.call(3)
        assert (await client.answer(3))[0] == message(b"hello")
        assert server.calls == 0


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", b"12"),
        (message(b"1") + message(b"2"), b"12"),
        (message(b"cut")[:-1], b"13"),
        (b"\0\0", b"13"),
        (b"\7" + bytes(9), b"13"),
    ],
)
async def test_a_plain_method_takes_one_whole_message(body: bytes, status: bytes) -> None:
    async with serving(Echo()) as (server, port), connected(port) as client:
        client.write(opened(1, b"Say"), write_frame(Kind.DATA, END_STREAM, 1, body))
        assert (await client.answer(1))[1][b"grpc-status"] == status
        assert await client.lives()
        assert server.calls == 0


async def test_packed_messages() -> None:
    async with serving(Echo()) as (_, port), connected(port) as client:
        packed = gzip.compress(b"words" * 10_000)
        bomb = gzip.compress(bytes(2**24))
        for stream, raw, more, status in (
            (1, packed, {"grpc_encoding": b"gzip"}, b"0"),
            (3, bomb, {"grpc_encoding": b"gzip"}, b"8"),
            (5, packed, {"grpc_encoding": b"deflate"}, b"13"),
            (7, packed, {}, b"13"),
        ):
            client.write(
                write_frame(Kind.HEADERS, END_HEADERS, stream, headers(**more)),
                write_frame(Kind.DATA, END_STREAM, stream, message(raw, 1)),
            )
            body, told = await client.answer(stream)
            assert told[b"grpc-status"] == status
            assert body == (message(b"words" * 10_000) if status == b"0" else b"")


async def test_an_answer_keeps_to_the_clients_windows() -> None:
    async with serving(Echo()) as (server, port), connected(port, {Setting.INITIAL_WINDOW_SIZE: 10}) as client:
        client.call(1, b"100", b"Large")
        client.call(3, b"40", b"Large")
        got = {1: b"", 3: b""}

        async def more(stream: int, size: int) -> None:
            while len(got[stream]) < size:
                _, _, of, payload = await client.until(Kind.DATA)
                got[of] += payload

        await more(1, 10)
        await more(3, 10)
        client.write(window(1, 50))
        await more(1, 60)
        client.write(write_settings({Setting.INITIAL_WINDOW_SIZE: 45}))  # 35 more for each
        await more(3, 45)
        await more(1, 95)
        assert (len(got[1]), len(got[3])) == (95, 45)
        client.write(write_settings({Setting.INITIAL_WINDOW_SIZE: 0}), window(1, 45 + 10))
        body, told = await client.answer(1)
        assert (got[1] + body, told[b"grpc-status"]) == (message(b"x" * 100), b"0")
        assert got[3] == message(b"x" * 40)
        assert server.calls == 0


async def test_a_large_answer_goes_in_frames_as_the_connections_window_grows() -> None:
    async with serving(Echo()) as (_, port), connected(port, {Setting.INITIAL_WINDOW_SIZE: 2**20}) as client:
        client.call(1, b"200000", b"Large")
        body = b""
        while len(body) < 200_005:
            _, _, _, payload = await client.until(Kind.DATA)
            assert len(payload) <= 2**14
            body += payload
            client.write(window(0, len(payload)))
        assert body == message(b"x" * 200_000)
        assert (await client.answer(1))[1][b"grpc-status"] == b"0"


async def test_a_large_message_gets_the_window_it_needs() -> None:
    async with serving(Echo()) as (_, port), connected(port, {Setting.INITIAL_WINDOW_SIZE: 2**21}) as client:
        client.write(window(0, 2**22))
        raw = message(b"y" * 2**20)
        client.write(write_frame(Kind.HEADERS, END_HEADERS, 1, headers()))
        client.write(*(write_frame(Kind.DATA, 0, 1, raw[at : at + 5000]) for at in range(0, 60_000, 5000)))
        at, room = 60_000, FIRST_WINDOW - 60_000
        while at < len(raw):
            _, _, stream, payload = await client.until(Kind.WINDOW_UPDATE)
            room += int.from_bytes(payload, "big") if stream == 1 else 0
            while room > 0 and at < len(raw):
                size = min(room, 2**15)
                last = at + size >= len(raw)
                client.write(write_frame(Kind.DATA, END_STREAM if last else 0, 1, raw[at : at + size]))
                at, room = at + size, room - size
        body, told = await client.answer(1)
        assert told[b"grpc-status"] == b"0"
        assert body == raw


async def test_few_large_messages_may_come_at_a_time() -> None:
    async with serving(Echo()) as (server, port), connected(port) as client:
        streams = range(1, 1 + 2 * (limits.LARGE_AT_ONCE + 2), 2)
        raw = message(bytes(2**20))
        for stream in streams:
            client.write(
                write_frame(Kind.HEADERS, END_HEADERS, stream, headers()),
                write_frame(Kind.DATA, 0, stream, raw[:FIRST_WINDOW]),
            )
        await client.until(Kind.WINDOW_UPDATE, streams[limits.LARGE_AT_ONCE - 1])
        allowed = [call.stream for one in server.connections for call in one.calls if call.slot]
        assert allowed == list(streams)[: limits.LARGE_AT_ONCE]
        client.write(write_number(Kind.RST_STREAM, 3, Fault.CANCEL))
        assert (await client.until(Kind.WINDOW_UPDATE, streams[limits.LARGE_AT_ONCE]))[3] == (
            len(raw) - FIRST_WINDOW
        ).to_bytes(4, "big")


async def test_nobody_sends_a_large_message() -> None:
    async with serving(Echo()) as (server, port), connected(port) as client:
        raw = message(bytes(2**20))[:FIRST_WINDOW]
        for stream, more in ((1, {"x_nobody": b"1"}), (3, {})):
            client.write(write_frame(Kind.HEADERS, END_HEADERS, stream, headers(**more)))
            client.write(write_frame(Kind.DATA, 0, stream, raw))
        assert (await client.answer(1))[1][b"grpc-status"] == b"16"
        assert [call.stream for one in server.connections for call in one.calls] == [3]
        client.call(5, b"small", x_nobody=b"1")
        assert (await client.answer(5))[0] == message(b"small")


async def test_who_sends_more_than_allowed_is_cut_off() -> None:
    async with serving(Echo()) as (_, port), connected(port) as client:
        client.write(write_frame(Kind.HEADERS, END_HEADERS, 1, headers()))
        client.write(write_frame(Kind.DATA, 0, 1, message(bytes(2**20))[:FIRST_WINDOW]))
        client.write(write_frame(Kind.DATA, 0, 1, bytes(2**16)), write_frame(Kind.DATA, 0, 1, bytes(2**16)))
        for _ in range(16):
            client.write(write_frame(Kind.DATA, 0, 1, bytes(2**16)))
        assert (await client.until(Kind.RST_STREAM, 1))[3] == bytes((0, 0, 0, Fault.FLOW_CONTROL_ERROR))
        assert await client.lives()


async def test_a_stream_sends_no_faster_than_it_is_worked_on() -> None:
    echo = Echo()
    async with serving(echo) as (server, port), connected(port) as client:
        client.write(write_frame(Kind.HEADERS, END_HEADERS, 1, headers(b"Slow")))
        client.write(*(write_frame(Kind.DATA, 0, 1, message(bytes(6000))) for _ in range(10)))
        assert await client.lives()
        await until(lambda: echo.taken)
        (call,) = (call for one in server.connections for call in one.calls)
        waiting = sum(len(raw) + 5 for _, raw in call.received)
        assert waiting == 9 * 6005
        assert call.window + waiting <= FIRST_WINDOW
        echo.gate.set()
        await client.until(Kind.WINDOW_UPDATE, 1)
        await until(lambda: echo.taken == 10)
        client.write(write_frame(Kind.DATA, END_STREAM, 1, message(b"")))
        assert (await client.answer(1))[1][b"grpc-status"] == b"0"


async def test_streams_answer_as_they_are_asked() -> None:
    async with serving(Echo()) as (server, port), connected(port) as client:
        client.write(write_frame(Kind.HEADERS, END_HEADERS, 1, headers(b"Chat")))
        for number in range(5):
            client.write(write_frame(Kind.DATA, 0, 1, message(b"%d" % number)))
            assert (await client.until(Kind.DATA))[3] == message(b"%d" % number)
        client.write(write_frame(Kind.DATA, END_STREAM, 1))
        assert (await client.answer(1))[1][b"grpc-status"] == b"0"
        client.write(write_frame(Kind.HEADERS, END_HEADERS | END_STREAM, 3, headers(b"Chat")))
        body, told = await client.answer(3)
        assert (body, told[b"grpc-status"]) == (b"", b"0")
        assert server.calls == 0


async def test_a_damaged_message_ends_its_stream() -> None:
    async with serving(Echo()) as (server, port), connected(port) as client:
        client.write(write_frame(Kind.HEADERS, END_HEADERS, 1, headers(b"Chat")))
        client.write(write_frame(Kind.DATA, 0, 1, message(b"good")))
        assert (await client.until(Kind.DATA))[3] == message(b"good")
        client.write(write_frame(Kind.DATA, 0, 1, message(bytes(2**20 + 1))[:100]))
        assert (await client.answer(1))[1][b"grpc-status"] == b"8"
        assert await client.lives()
        assert server.calls == 0


async def test_a_client_that_reads_nothing_stops_its_stream_and_is_given_up() -> None:
    echo = Echo()
    async with serving(echo) as (server, port), connected(port) as client:
        client.call(1, b"1000", b"Flood")
        await until(lambda: echo.asked)
        assert await client.lives()
        assert echo.asked < 10
        sweep(server, LATER)
        assert (await client.until(Kind.RST_STREAM, 1))[3] == bytes((0, 0, 0, Fault.CANCEL))
        await until(lambda: server.calls == 0)


async def test_who_gives_up_is_not_worked_for() -> None:
    echo = Echo()
    async with serving(echo) as (server, port):
        async with connected(port) as client:
            for stream in (1, 3, 5):
                client.call(stream, method=b"Wait")
            await until(lambda: echo.asked == 3)
            client.write(write_number(Kind.RST_STREAM, 3, Fault.CANCEL))
            await until(lambda: echo.given_up == 1)
            assert server.calls == 2
            client.call(7, method=b"Wait")  # and taken back before it was begun
            client.write(write_number(Kind.RST_STREAM, 7, Fault.CANCEL))
            assert await client.lives()
            assert (server.calls, echo.asked) == (2, 3)
        await until(lambda: echo.given_up == 3)
        assert server.calls == 0
        assert not server.connections


async def test_an_answer_that_is_given_up_is_not_sent() -> None:
    async with serving(Echo()) as (server, port), connected(port, {Setting.INITIAL_WINDOW_SIZE: 10}) as client:
        client.call(1, b"100", b"Large")
        assert len((await client.until(Kind.DATA, 1))[3]) == 10
        client.write(write_number(Kind.RST_STREAM, 1, Fault.CANCEL))
        client.write(write_settings({Setting.INITIAL_WINDOW_SIZE: 2**16}))
        client.call(3)
        while (frame := await client.next()) is not None and frame[2] != 3:
            assert frame[2] == 0
        assert server.calls == 0


async def test_a_deadline_ends_a_call() -> None:
    echo = Echo()
    async with serving(echo) as (server, port), connected(port) as client:
        client.call(1, method=b"Wait", grpc_timeout=b"1H")
        client.call(3, method=b"Wait")
        await until(lambda: echo.asked == 2)
        sweep(server, 10)
        assert server.calls == 2
        sweep(server, 3601)
        assert (await client.answer(1))[1][b"grpc-status"] == b"4"
        assert (echo.given_up, server.calls) == (1, 1)


async def test_a_client_may_have_so_many_calls() -> None:
    echo = Echo()
    async with serving(echo, replace(LIMITS, calls=limits.MAX_STREAMS)) as (_, port):
        async with connected(port) as client, connected(port) as other:
            last = 2 * limits.MAX_STREAMS + 1
            for stream in range(1, last + 1, 2):
                client.call(stream, method=b"Wait")
            assert (await client.answer(last))[1][b"reset"] == bytes((Fault.REFUSED_STREAM,))
            other.call(1)
            assert (await other.answer(1))[1][b"grpc-status"] == b"8"
            echo.gate.set()
            for stream in range(1, last - 1, 2):
                await client.answer(stream)
            client.call(last + 2)
            assert (await client.answer(last + 2))[1][b"grpc-status"] == b"0"


async def test_connections_over_the_limit_are_told_so() -> None:
    async with serving(Echo(), replace(LIMITS, connections=1)) as (_, port), connected(port) as client:
        assert await client.lives()
        async with connected(port) as other:
            assert await other.farewell() == Fault.ENHANCE_YOUR_CALM
        assert await client.lives()


def opened(stream: int = 1, method: bytes = b"Wait") -> bytes:
    return write_frame(Kind.HEADERS, END_HEADERS, stream, headers(method))


@pytest.mark.parametrize(
    ("sent", "fault"),
    [
        (opened(2), Fault.PROTOCOL_ERROR),
        (opened(0), Fault.PROTOCOL_ERROR),
        (write_frame(Kind.DATA, 0, 1, b"x"), Fault.PROTOCOL_ERROR),
        (write_frame(Kind.DATA, 0, 0, b"x"), Fault.PROTOCOL_ERROR),
        (opened(5) + write_frame(Kind.DATA, 0, 7, b"x"), Fault.PROTOCOL_ERROR),
        (opened() + write_frame(Kind.DATA, PADDED, 1, b"\x09x"), Fault.PROTOCOL_ERROR),
        (write_number(Kind.RST_STREAM, 1, 8), Fault.PROTOCOL_ERROR),
        (write_number(Kind.RST_STREAM, 0, 8), Fault.PROTOCOL_ERROR),
        (write_frame(Kind.RST_STREAM, 0, 1, b"x"), Fault.FRAME_SIZE_ERROR),
        (window(0, 0), Fault.PROTOCOL_ERROR),
        (window(0, 2**31 - 1), Fault.FLOW_CONTROL_ERROR),
        (window(9, 1), Fault.PROTOCOL_ERROR),
        (write_frame(Kind.WINDOW_UPDATE, 0, 0, b"x"), Fault.FRAME_SIZE_ERROR),
        (write_settings({Setting.INITIAL_WINDOW_SIZE: 2**31}), Fault.FLOW_CONTROL_ERROR),
        (opened() + window(1, 2**31 - 1 - FIRST_WINDOW)
         + write_settings({Setting.INITIAL_WINDOW_SIZE: FIRST_WINDOW + 1}), Fault.FLOW_CONTROL_ERROR),
        (write_frame(Kind.SETTINGS, 0, 0, b"x"), Fault.FRAME_SIZE_ERROR),
        (write_frame(Kind.SETTINGS, 1, 0, b"123456"), Fault.FRAME_SIZE_ERROR),
        (write_frame(Kind.SETTINGS, 0, 1), Fault.PROTOCOL_ERROR),
        (write_frame(Kind.PING, 0, 0, b"x"), Fault.FRAME_SIZE_ERROR),
        (write_frame(Kind.PING, 0, 1, bytes(8)), Fault.PROTOCOL_ERROR),
        (write_frame(Kind.PRIORITY, 0, 1, b"x"), Fault.FRAME_SIZE_ERROR),
        (write_frame(Kind.PUSH_PROMISE, 0, 1, bytes(8)), Fault.PROTOCOL_ERROR),
        (write_frame(Kind.HEADERS, END_HEADERS | PRIORITY, 1, b"x"), Fault.FRAME_SIZE_ERROR),
        (write_frame(Kind.HEADERS, END_HEADERS, 1, b"\xff"), Fault.COMPRESSION_ERROR),
        (b"\xff\xff\xff" + bytes(6), Fault.FRAME_SIZE_ERROR),
        (write_frame(Kind.CONTINUATION, 0, 1, b"x"), Fault.PROTOCOL_ERROR),
        (write_frame(Kind.HEADERS, 0, 1, headers()) + write_frame(Kind.PING, 0, 0, bytes(8)), Fault.PROTOCOL_ERROR),
        (write_frame(Kind.HEADERS, 0, 1) + write_frame(Kind.CONTINUATION, 0, 3), Fault.PROTOCOL_ERROR),
        # Floods.
        (write_frame(Kind.HEADERS, 0, 1) + write_frame(Kind.CONTINUATION, 0, 1) * 50, Fault.ENHANCE_YOUR_CALM),
        (write_frame(Kind.HEADERS, 0, 1) + write_frame(Kind.CONTINUATION, 0, 1, bytes(2**14)) * 3,
         Fault.ENHANCE_YOUR_CALM),
        (write_frame(Kind.HEADERS, END_HEADERS, 1, bytes(2**15 + 1)), Fault.ENHANCE_YOUR_CALM),
        (write_frame(Kind.PING, 0, 0, bytes(8)) * 3000, Fault.ENHANCE_YOUR_CALM),
        (write_settings({}) * 3000, Fault.ENHANCE_YOUR_CALM),
        (write_frame(Kind.PRIORITY, 0, 1, bytes(5)) * 3000, Fault.ENHANCE_YOUR_CALM),
        (write_frame(99, 0, 1) * 3000, Fault.ENHANCE_YOUR_CALM),  # type: ignore[arg-type]
        (opened(1, b"Chat") + write_frame(Kind.DATA, 0, 1) * 3000, Fault.ENHANCE_YOUR_CALM),
        (opened(1, b"Chat") + write_frame(Kind.DATA, 0, 1, message(bytes(9000))[:5])
         + write_frame(Kind.DATA, 0, 1, b"x") * 3000, Fault.ENHANCE_YOUR_CALM),
        (opened() + window(1, 1) * 3000, Fault.ENHANCE_YOUR_CALM),
    ],
)  # fmt: skip
async def test_who_breaks_the_protocol_loses_the_connection(sent: bytes, fault: Fault) -> None:
    async with serving(Echo()) as (server, port):
        async with connected(port) as client, connected(port) as other:
            client.write(sent)
            assert await client.farewell() == fault
            assert await other.lives()
        await until(lambda: not server.connections)
        assert server.calls == 0


async def test_calls_taken_back_at_once_end_the_connection() -> None:
    echo = Echo()
    async with serving(echo) as (server, port):
        async with connected(port) as client:
            for stream in range(1, 3001, 2):
                client.call(stream, method=b"Wait")
                client.write(write_number(Kind.RST_STREAM, stream, Fault.CANCEL))
            assert await client.farewell() == Fault.ENHANCE_YOUR_CALM
        await until(lambda: not server.connections)
        assert server.calls == 0


async def test_calls_taken_back_among_answered_ones_are_no_flood() -> None:
    async with serving(Echo()) as (_, port), connected(port) as client:
        for stream in range(1, 6001, 4):
            client.call(stream, method=b"Wait")
            client.write(write_number(Kind.RST_STREAM, stream, Fault.CANCEL))
            client.call(stream + 2)
            if stream % 128 == 125:
                await client.answer(stream + 2)
        assert await client.lives()


async def test_what_real_calls_need_is_no_flood() -> None:
    async with serving(Echo()) as (_, port), connected(port) as client:
        for stream in range(1, 8001, 2):
            client.call(stream)
            client.write(window(0, 10), write_frame(Kind.PING, 0, 0, bytes(8)))
            if stream % 64 == 63:
                for answered in range(stream - 62, stream + 1, 2):
                    assert (await client.answer(answered))[1][b"grpc-status"] == b"0"
        assert await client.lives()


async def test_a_client_that_reads_much_may_say_so_often() -> None:
    async with serving(Echo()) as (_, port), connected(port) as client:
        client.call(1, b"64000000", b"Large")
        left = 64_000_005
        while left:
            _, _, _, payload = await client.until(Kind.DATA)
            left -= len(payload)
            client.write(window(0, len(payload)), window(1, len(payload)))
        assert (await client.answer(1))[1][b"grpc-status"] == b"0"


@pytest.mark.parametrize(
    ("sent", "answered"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"This port speaks gRPC"),
        (b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", b"This port speaks gRPC"),
        (b"\x16\x03\x01\x02\x00", b""),
    ],
)
async def test_who_speaks_something_else_is_told_so(sent: bytes, answered: bytes) -> None:
    async with serving(Echo()) as (server, port), connected(port, greet=False) as client:
        client.write(sent)
        assert answered in await client.reader.read()
        await until(lambda: not server.connections)


async def test_a_client_that_says_nothing_is_not_waited_for() -> None:
    async with serving(Echo()) as (server, port):
        async with connected(port, greet=False) as client:
            client.write(PREFACE)
            await until(lambda: server.connections)
            sweep(server, limits.PREFACE_SECONDS + 1)
            assert await client.farewell() == Fault.PROTOCOL_ERROR
        async with connected(port) as client:
            assert await client.lives()
            client.write(write_frame(Kind.HEADERS, 0, 1, headers()))
            await until(lambda: any(one._block for one in server.connections))
            sweep(server, limits.PREFACE_SECONDS + 1)
            assert await client.farewell() == Fault.PROTOCOL_ERROR


async def test_a_message_has_a_time_to_come() -> None:
    async with serving(Echo()) as (server, port), connected(port) as client:
        client.write(opened(1, b"Say"), write_frame(Kind.DATA, 0, 1, message(b"half")[:7]))
        client.write(opened(3, b"Chat"))
        assert await client.lives()
        sweep(server, LIMITS.message_seconds - 1)
        assert server.calls == 2
        sweep(server, LIMITS.message_seconds + 1)
        assert (await client.answer(1))[1][b"grpc-status"] == b"4"
        assert server.calls == 1  # a stream may be quiet between messages


async def test_a_plain_call_that_is_never_ended_has_a_time_too() -> None:
    async with serving(Echo()) as (server, port), connected(port) as client:
        client.write(opened(1, b"Say"), write_frame(Kind.DATA, 0, 1, message(bytes(FIRST_WINDOW - 5))))
        client.write(opened(3, b"Say"), *(write_frame(Kind.DATA, 0, 3, message(bytes(1000))) for _ in range(9)))
        assert await client.lives()
        sweep(server, LIMITS.message_seconds + 1)
        assert [(await client.answer(stream))[1][b"grpc-status"] for stream in (1, 3)] == [b"4", b"4"]
        assert server.calls == 0


async def test_large_messages_that_are_held_back_are_not_late() -> None:
    async with serving(Echo()) as (server, port), connected(port) as client:
        raw = message(bytes(2**20))[:FIRST_WINDOW]
        last = 2 * limits.LARGE_AT_ONCE + 1
        for stream in range(1, last + 1, 2):
            client.write(opened(stream, b"Say"), write_frame(Kind.DATA, 0, stream, raw))
        await client.until(Kind.WINDOW_UPDATE, last - 2)
        (call,) = (call for one in server.connections for call in one.calls if call.stream == last)
        assert call.held_back
        client.write(write_number(Kind.RST_STREAM, 1, Fault.CANCEL))
        await client.until(Kind.WINDOW_UPDATE, last)
        assert not call.held_back


async def test_a_quiet_client_is_asked_whether_it_lives() -> None:
    async with serving(Echo()) as (server, port), connected(port) as client:
        assert await client.lives()
        sweep(server, 0)
        sweep(server, limits.IDLE_SECONDS + 1)
        frame = await client.until(Kind.PING)
        client.write(write_frame(Kind.PING, 1, 0, frame[3]))
        assert await client.lives()
        sweep(server, 0)
        sweep(server, limits.IDLE_SECONDS + 1)
        sweep(server, limits.IDLE_SECONDS + limits.PONG_SECONDS + 2)
        await until(lambda: not server.connections)


async def test_a_server_that_stops_finishes_what_it_began() -> None:
    echo = Echo()
    async with serving(echo) as (server, port), connected(port) as client, connected(port) as idle:
        client.call(1, method=b"Wait")
        assert await idle.lives()
        await until(lambda: echo.asked)
        closing = asyncio.create_task(server.close(30.0))
        assert await idle.farewell() == Fault.NO_ERROR
        await client.until(Kind.GOAWAY)
        client.call(3)
        assert (await client.answer(3))[1][b"reset"] == bytes((Fault.REFUSED_STREAM,))
        echo.gate.set()
        assert (await client.answer(1))[1][b"grpc-status"] == b"0"
        await closing
        assert await client.next() is None
        with pytest.raises(ConnectionError):
            await asyncio.open_connection("127.0.0.1", port)


async def test_a_server_that_stops_does_not_wait_for_ever() -> None:
    echo = Echo()
    async with serving(echo) as (server, port), connected(port) as client:
        client.call(1, method=b"Wait")
        client.write(opened(3, b"Chat"))
        await until(lambda: server.calls == 2 and echo.asked)
        await server.close(0.0)
        answers = [await client.answer(stream) for stream in (1, 3)]
        assert [told[b"grpc-status"] for _, told in answers] == [b"14", b"14"]
        assert echo.given_up == 1
