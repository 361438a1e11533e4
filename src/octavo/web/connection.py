"""A connection that does not wait for ever: uvicorn's HTTP protocol, with limits it does not have.

Headers have 64 KiB and a time, a body that nobody reads has one too, and a connection over the limit gets 503 with
`Retry-After`. One that closes while its client still sends lingers, or the client would get a reset and not the answer.
`sweep` is called once a second instead of one timer per connection.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEADERS = 64 * 2**10
HEADER_SECONDS = 15.0
LINGER_SECONDS = 2.0
LINGER_BYTES = 8 * 2**20
_SLACK = 5.0  # the body limit answers 408 itself; this is for bodies that nobody reads

_REFUSALS = {
    408: b"Request Timeout",
    431: b"Request Header Fields Too Large",
}


class Connection(HttpToolsProtocol):
    """One client's connection. `most` and `body_seconds` are set on the class by `limited`."""

    most = 0
    body_seconds = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start waiting for headers."""
        self.lingers_until = 0.0
        self.linger_bytes = LINGER_BYTES
        self.door = _Transport(transport, self)
        super().connection_made(self.door)
        self.in_headers = True
        self.header_bytes = 0
        self.since: float | None = self.loop.time()
        if len(self.connections) > self.most:
            self.app = overloaded

    def data_received(self, data: bytes) -> None:
        """Feed the parser; refuse endless headers; throw away what comes after the last answer."""
        if self.lingers_until:
            self.linger_bytes -= len(data)
            if self.linger_bytes < 0:
                self.transport.abort()
            return
        if self.since is None:
            self.since, self.in_headers = self.loop.time(), True
        super().data_received(data)
        if self.in_headers:
            self.header_bytes += len(data)
            if self.header_bytes > MAX_HEADERS:
                self.refuse(431)

    def on_headers_complete(self) -> None:
        """Headers are there; the body's time begins."""
        self.in_headers = False
        self.header_bytes = 0
        self.since = self.loop.time()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The request is there; nothing is waited for."""
        self.since = None
        super().on_message_complete()

    def handle_websocket_upgrade(self) -> None:
        """Hand the bare transport on: a websocket has messages, not bodies."""
        self.transport = self.door.real
        super().handle_websocket_upgrade()

    def sweep(self, now: float) -> None:
        """Close the connection when its client has been sending for too long."""
        if self.lingers_until:
            if now > self.lingers_until:
                self.transport.abort()
            return
        if self.since is None or self.transport.is_closing():
            return
        waited = now - self.since
        if self.in_headers and waited > HEADER_SECONDS:
            self.refuse(408)
        elif not self.in_headers and waited > self.body_seconds + _SLACK:
            self.transport.abort()

    def in_body(self) -> bool:
        """Whether the client is still sending a request's body."""
        return self.since is not None and not self.in_headers

    def refuse(self, status: int) -> None:
        """Answer without a request, and close."""
        busy = self.cycle is not None and not self.cycle.response_complete
        if self.header_bytes and not busy:
            line = b"HTTP/1.1 %d %s\r\n" % (status, _REFUSALS[status])
            self.transport.write(line + b"connection: close\r\ncontent-length: 0\r\n\r\n")
        self.transport.close()


class _Transport(asyncio.Transport):
    """The real one, but closing in the middle of a request's body says goodbye first and reads on for a while."""

    def __init__(self, real: asyncio.Transport, connection: Connection) -> None:
        super().__init__()
        self.real = real
        self.connection = connection
        self.write = real.write  # type: ignore[method-assign]
        self.get_extra_info = real.get_extra_info  # type: ignore[method-assign]
        self.set_protocol = real.set_protocol  # type: ignore[method-assign]
        self.pause_reading = real.pause_reading  # type: ignore[method-assign]
        self.resume_reading = real.resume_reading  # type: ignore[method-assign]
        self.set_write_buffer_limits = real.set_write_buffer_limits  # type: ignore[method-assign]
        self.abort = real.abort  # type: ignore[method-assign]

    def is_closing(self) -> bool:
        return bool(self.connection.lingers_until) or self.real.is_closing()

    def close(self) -> None:
        connection = self.connection
        can_linger = self.real.can_write_eof() and not self.real.is_closing()  # TLS cannot
        if connection.lingers_until or not connection.in_body() or not can_linger:
            self.real.close()
            return
        connection.lingers_until = connection.loop.time() + LINGER_SECONDS
        self.write = _drop  # type: ignore[method-assign]
        self.real.write_eof()
        self.real.resume_reading()


def _drop(data: object) -> None:
    """What an app still has to say on a connection that was refused already."""


def limited(most: int, body_seconds: float) -> type[Connection]:
    """The connection class for a server with at most `most` connections."""
    return type("LimitedConnection", (Connection,), {"most": most, "body_seconds": body_seconds})


async def overloaded(_scope: Any, _receive: Any, send: Any) -> None:
    """ASGI app of a connection over the limit."""
    body = b'{"type":"about:blank","title":"Unavailable","status":503,"detail":"too many connections"}'
    headers = [
        (b"content-type", b"application/problem+json"),
        (b"content-length", str(len(body)).encode()),
        (b"retry-after", b"1"),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": body})
