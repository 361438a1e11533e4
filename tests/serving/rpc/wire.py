"""A gRPC server of a few plain methods, and a client that writes any bytes it likes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress

from octavo.serving.rpc import Call, Code, GrpcServer, Limits, Method, Refused
from octavo.serving.rpc.frames import (
    END_HEADERS,
    END_STREAM,
    PREFACE,
    Fault,
    Frame,
    Kind,
    read_frames,
    write_frame,
    write_number,
    write_settings,
)
from octavo.serving.rpc.hpack import Decoder, literal

PATH = b"/test.Echo/"
LIMITS = Limits(message=2**20, connections=50, calls=1000, message_seconds=30.0)


class Echo:
    """Methods to ask; counts what it was asked and what was given up."""

    def __init__(self) -> None:
        self.asked = 0
        self.given_up = 0
        self.taken = 0
        self.gate = asyncio.Event()

    def methods(self) -> dict[str, Method]:
        unary = {"Say": self.say, "Wait": self.wait, "Large": self.large, "Fail": self.fail, "Refuse": self.refuse}
        methods = {name: Method(unary=call) for name, call in unary.items()}
        methods |= {"Chat": Method(stream=self.chat), "Flood": Method(stream=self.flood)}
        methods["Slow"] = Method(stream=self.slow)
        return {(PATH + name.encode()).decode(): method for name, method in methods.items()}

    async def say(self, message: bytes, call: Call) -> bytes:
        self.asked += 1
        return message + call.metadata.get("x-suffix", "").encode()

    async def wait(self, message: bytes, call: Call) -> bytes:
        self.asked += 1
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.given_up += 1
            raise
        return message

    async def large(self, message: bytes, call: Call) -> bytes:
        return b"x" * int(message)

    async def fail(self, message: bytes, call: Call) -> bytes:
        raise RuntimeError("secret")

    async def refuse(self, message: bytes, call: Call) -> bytes:
        raise Refused(Code.NOT_FOUND, "nicht da: 100 % ü\n", (("retry-after", "3"),))

    async def chat(self, call: Call) -> None:
        async for message in call.messages():
            await call.send(message)

    async def slow(self, call: Call) -> None:
        async for _ in call.messages():
            self.taken += 1
            await self.gate.wait()

    async def flood(self, call: Call) -> None:
        async for message in call.messages():
            for _ in range(int(message)):
                await call.send(b"x" * 2**16)
                self.asked += 1


async def admit(metadata: Mapping[str, str]) -> None:
    if "x-nobody" in metadata:
        raise Refused(Code.UNAUTHENTICATED, "sign in first")


@asynccontextmanager
async def serving(echo: Echo, limits: Limits = LIMITS) -> AsyncIterator[tuple[GrpcServer, int]]:
    server = GrpcServer(echo.methods(), limits, admit)
    port = await server.start("127.0.0.1", 0)
    try:
        yield server, port
    finally:
        await server.close(0.0)


def headers(method: bytes = b"Say", **more: bytes) -> bytes:
    """A header block as a client writes it; `more` replaces or adds, `_` for `-`, empty leaves out."""
    given = {
        b":method": b"POST",
        b":scheme": b"http",
        b":path": PATH + method,
        b":authority": b"test",
        b"te": b"trailers",
        b"content-type": b"application/grpc",
    }
    given |= {name.replace("pseudo_", ":").replace("_", "-").encode(): value for name, value in more.items()}
    return b"".join(literal(name, value) for name, value in given.items() if value)


def message(raw: bytes, packed: int = 0) -> bytes:
    return bytes((packed,)) + len(raw).to_bytes(4, "big") + raw


class Client:
    """A raw connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.decoder = Decoder()
        self._rest = b""
        self.frames: list[Frame] = []

    def write(self, *parts: bytes) -> None:
        self.writer.write(b"".join(parts))

    def call(self, stream: int, raw: bytes = b"hello", method: bytes = b"Say", **more: bytes) -> None:
        self.write(
            write_frame(Kind.HEADERS, END_HEADERS, stream, headers(method, **more)),
            write_frame(Kind.DATA, END_STREAM, stream, message(raw)),
        )

    async def next(self, seconds: float = 20.0) -> Frame | None:
        """The next frame; None at the connection's end."""
        while not self.frames:
            data = b""
            with suppress(ConnectionError):
                data = await asyncio.wait_for(self.reader.read(2**16), seconds)
            if not data:
                return None
            self.frames, self._rest = read_frames(self._rest + data)
        return self.frames.pop(0)

    async def until(self, kind: Kind, stream: int | None = None) -> Frame:
        """The next frame of a kind."""
        while (frame := await self.next()) is not None:
            if frame[0] == kind and stream in (None, frame[2]):
                return frame
        raise AssertionError(f"the connection ended before {kind.name}")

    async def answer(self, stream: int) -> tuple[bytes, dict[bytes, bytes]]:
        """A call's messages with their prefixes, and all its headers and trailers."""
        body, found = b"", {}
        while (frame := await self.next()) is not None:
            kind, flags, of, payload = frame
            if kind == Kind.HEADERS:
                decoded = dict(self.decoder.decode(payload, 2**16))
                found.update(decoded if of == stream else {})
            if of == stream and kind == Kind.DATA:
                body += payload
            if of == stream and kind == Kind.RST_STREAM:
                return body, found | {b"reset": payload[3:]}
            if of == stream and kind in (Kind.HEADERS, Kind.DATA) and flags & END_STREAM:
                return body, found
        raise AssertionError("the connection ended before the answer")

    async def farewell(self) -> Fault:
        """Why the server ends the connection."""
        _, _, _, payload = await self.until(Kind.GOAWAY)
        while await self.next() is not None:
            pass
        return Fault(int.from_bytes(payload[4:8], "big"))

    async def lives(self) -> bool:
        """Whether the server still answers here."""
        self.write(write_frame(Kind.PING, 0, 0, b"lives???"))
        while (frame := await self.next()) is not None:
            if frame[0] == Kind.PING and frame[3] == b"lives???":
                return True
        return False


@asynccontextmanager
async def connected(port: int, settings: dict[int, int] | None = None, greet: bool = True) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    client = Client(reader, writer)
    if greet:
        client.write(PREFACE, write_settings(settings or {}))  # type: ignore[arg-type]
    try:
        yield client
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


def window(stream: int, more: int) -> bytes:
    return write_number(Kind.WINDOW_UPDATE, stream, more)
