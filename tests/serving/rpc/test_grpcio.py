"""The server as gRPC's own client sees it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest

from octavo.serving.rpc import GrpcServer
from octavo.serving.rpc.limits import MAX_STREAMS

from .wire import LIMITS, PATH, Echo, admit, serving

LARGE = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


def named(name: str) -> str:
    return PATH.decode() + name


async def test_one_call_and_many_at_once() -> None:
    async with serving(Echo()) as (server, port), grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        say = channel.unary_unary(named("Say"))
        assert await say(b"hello", metadata=(("x-suffix", "!"),)) == b"hello!"
        numbers = [b"%d" % number for number in range(3 * MAX_STREAMS)]
        assert await asyncio.gather(*(say(number) for number in numbers)) == numbers
        assert server.calls == 0


@pytest.mark.parametrize(
    "compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip, grpc.Compression.Deflate]
)
@pytest.mark.parametrize("size", [0, 1, 65_530, 2**20])
async def test_messages_of_any_size(compression: grpc.Compression, size: int) -> None:
    raw = bytes(range(256)) * (size // 256 + 1)
    async with serving(Echo()) as (_, port), grpc.aio.insecure_channel(f"127.0.0.1:{port}", LARGE) as channel:
        for _ in range(3):
            assert await channel.unary_unary(named("Say"))(raw[:size], compression=compression) == raw[:size]
        many = [channel.unary_unary(named("Say"))(raw[:size], compression=compression) for _ in range(12)]
        assert await asyncio.gather(*many) == [raw[:size]] * 12


async def test_a_large_answer() -> None:
    async with serving(Echo()) as (_, port), grpc.aio.insecure_channel(f"127.0.0.1:{port}", LARGE) as channel:
        assert await channel.unary_unary(named("Large"))(b"30000000") == b"x" * 30_000_000


@pytest.mark.parametrize(
    ("name", "raw", "code", "says"),
    [
        ("Refuse", b"", grpc.StatusCode.NOT_FOUND, "nicht da: 100 % ü\n"),
        ("Fail", b"", grpc.StatusCode.INTERNAL, "the server failed"),
        ("Nothing", b"", grpc.StatusCode.UNIMPLEMENTED, "Nothing"),
        ("Say", bytes(2**20 + 1), grpc.StatusCode.RESOURCE_EXHAUSTED, "1048577"),
        ("Say", bytes(2**24), grpc.StatusCode.RESOURCE_EXHAUSTED, "16777216"),
    ],
)
async def test_errors(name: str, raw: bytes, code: grpc.StatusCode, says: str) -> None:
    async with serving(Echo()) as (server, port), grpc.aio.insecure_channel(f"127.0.0.1:{port}", LARGE) as channel:
        for _ in range(3):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary(named(name))(raw)
            assert caught.value.code() == code
            assert says in (caught.value.details() or "")
        if name == "Refuse":
            assert ("retry-after", "3") in tuple(caught.value.trailing_metadata() or ())
        assert server.calls == 0


async def test_deadlines_and_giving_up() -> None:
    echo = Echo()
    async with serving(echo) as (server, port), grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary(named("Wait"))(b"", timeout=0.3)
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        call = channel.unary_unary(named("Wait"))(b"")
        while server.calls == 0 or echo.asked < 2:
            await asyncio.sleep(0.01)
        call.cancel()
        while server.calls:
            await asyncio.sleep(0.01)
        assert echo.given_up == 2


async def test_streams_both_ways() -> None:
    async def ask() -> AsyncIterator[bytes]:
        for number in range(300):
            yield b"%d" % number * 3000

    async with serving(Echo()) as (server, port), grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        chats = [channel.stream_stream(named("Chat"))(ask()) for _ in range(3)]
        for chat in chats:
            assert [answer async for answer in chat] == [b"%d" % number * 3000 for number in range(300)]
        flood = channel.stream_stream(named("Flood"))(iter([b"40"]))
        assert sum([len(answer) async for answer in flood]) == 40 * 2**16
        assert server.calls == 0


async def test_a_client_follows_a_server_that_starts_anew() -> None:
    echo = Echo()
    first = GrpcServer(echo.methods(), LIMITS, admit)
    port = await first.start("127.0.0.1", 0)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        say = channel.unary_unary(named("Say"))
        assert await say(b"one") == b"one"
        await first.close(5.0)
        second = GrpcServer(echo.methods(), LIMITS, admit)
        await second.start("127.0.0.1", port)
        assert await say(b"two", wait_for_ready=True) == b"two"
        await second.close(5.0)


async def test_a_client_that_waits_in_a_thread() -> None:
    async with serving(Echo()) as (_, port):

        def ask() -> list[bytes]:
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                say = channel.unary_unary(named("Say"))
                futures = [say.future(b"%d" % number) for number in range(200)]
                return [future.result() for future in futures]

        assert await asyncio.to_thread(ask) == [b"%d" % number for number in range(200)]
