"""The load generator for gRPC: pre-built messages in hand-made HTTP/2 frames, from a process of its own.

As lean as its HTTP twin in `load.py`: of an answer it reads frame heads and keeps the message. Headers are sent as
gRPC's own clients send them: spelled out by a connection's first call, one byte each afterwards.
"""

from __future__ import annotations

import asyncio
import struct
import time
from collections import deque
from collections.abc import Callable, Sequence

import uvloop
from load import Answer, Load, in_own_process, measure

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_LARGEST = 2**31 - 1
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY = 0, 1, 3, 4, 6, 7
_END_STREAM, _ACK, _END_HEADERS = 1, 1, 4
_LONG_FRAME = 2**14


def closed_loop(port: int, messages: Sequence[bytes], connections: int, streams: int = 1, token: str = "") -> Load:
    """`connections` times `streams` calls of ModelInfer at a time, until every message is sent.

    Args:
        port: of the server.
        messages: serialized `ModelInferRequest`s.
        connections: HTTP/2 connections.
        streams: calls at a time on each.
        token: sent as `authorization: Bearer`, when there is one.
    """
    return in_own_process(_closed_loop, port, messages, connections, streams, token)


def _closed_loop(port: int, messages: Sequence[bytes], connections: int, streams: int, token: str) -> Load:
    async def run() -> Load:
        answers: list[Answer] = []
        waiting = deque(enumerate(messages))
        done = asyncio.Event()

        def next_one(connection: _Connection) -> None:
            if waiting and not connection.transport.is_closing():
                connection.send(*waiting.popleft())
            elif len(answers) + len(waiting) == len(messages):  # nothing is in flight
                done.set()

        loop = asyncio.get_running_loop()
        opened = [
            (await loop.create_connection(lambda: _Connection(answers, next_one, port, token), "127.0.0.1", port))[1]
            for _ in range(connections)
        ]
        load = await measure(answers, done, lambda: [next_one(one) for one in opened for _ in range(streams)])
        for connection in opened:
            connection.transport.close()
        return load

    return uvloop.run(run())


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">IBI", len(payload) << 8 | kind, flags, stream) + payload


def _literal(first: int, *texts: bytes) -> bytes:
    """A header that enters the table: `first` is the pattern with the name's index, or 0x40 when it is spelled."""
    return bytes((first,)) + b"".join(_length(text) + text for text in texts)


def _length(text: bytes) -> bytes:
    return bytes((len(text),)) if len(text) < 127 else bytes((127, len(text) - 127))


class _Connection(asyncio.Protocol):
    """One connection; `answered(connection)` is called for every call that ended."""

    def __init__(self, answers: list[Answer], answered: Callable[[_Connection], None], port: int, token: str) -> None:
        self._answers = answers
        self._answered = answered
        spelled = [
            _literal(0x44, b"/inference.GRPCInferenceService/ModelInfer"),
            _literal(0x41, b"127.0.0.1:%d" % port),
            _literal(0x40, b"te", b"trailers"),
            _literal(0x5F, b"application/grpc"),
        ]
        if token:
            spelled.append(_literal(0x57, b"Bearer " + token.encode()))
        self._headers = b"\x83\x86" + b"".join(spelled)  # POST, http
        self._indexed = b"\x83\x86" + bytes(0x80 | 62 + at for at in reversed(range(len(spelled))))
        self._stream = -1
        self._sent: dict[int, tuple[int, float]] = {}
        self._found: dict[int, bytes] = {}
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]
        settings = struct.pack(">HIHI", 2, 0, 4, _LARGEST)  # no push, window
        window = _frame(8, 0, 0, struct.pack(">I", _LARGEST - 65535))
        self.transport.write(_PREFACE + _frame(_SETTINGS, 0, 0, settings) + window)

    def send(self, index: int, message: bytes) -> None:
        """Make one call."""
        self._stream += 2
        body = struct.pack(">BI", 0, len(message)) + message
        parts = [_frame(_HEADERS, _END_HEADERS, self._stream, self._headers)]
        cuts = range(0, len(body), _LONG_FRAME)
        parts += [
            _frame(_DATA, _END_STREAM if at == cuts[-1] else 0, self._stream, body[at : at + _LONG_FRAME])
            for at in cuts
        ]
        self._headers = self._indexed
        self._sent[self._stream] = (index, time.perf_counter())
        self.transport.write(b"".join(parts))

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer + data if self._buffer else data
        at, end = 0, len(buffer)
        while end - at >= 9:
            size = int.from_bytes(buffer[at : at + 3], "big")
            if end - at < 9 + size:
                break
            kind, flags, stream = struct.unpack_from(">BBI", buffer, at + 3)
            self._take(kind, flags, stream, buffer[at + 9 : at + 9 + size])
            at += 9 + size
        self._buffer = buffer[at:]

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == _DATA:
            self._found[stream] = self._found.get(stream, b"") + payload
        elif kind == _SETTINGS and not flags & _ACK:
            self.transport.write(_frame(_SETTINGS, _ACK, 0, b""))
        elif kind == _PING and not flags & _ACK:
            self.transport.write(_frame(_PING, _ACK, 0, payload))
        elif kind == _GOAWAY:
            self.transport.close()
        if kind == _RESET or (kind in (_DATA, _HEADERS) and flags & _END_STREAM):
            self._end(stream)

    def _end(self, stream: int) -> None:
        index, since = self._sent.pop(stream)
        message = self._found.pop(stream, b"")[5:]
        # Which status it was is for the caller's check of the answers: an error has no message.
        self._answers.append(Answer(index, time.perf_counter() - since, 200 if message else 0, message))
        self._answered(self)

    def connection_lost(self, exc: Exception | None) -> None:
        for stream in list(self._sent):
            self._end(stream)
