"""The gRPC server: a port, its connections, and one timer for all of them."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Awaitable, Callable, Mapping

from octavo.serving.rpc.call import Method
from octavo.serving.rpc.connection import Connection
from octavo.serving.rpc.limits import Limits

log = logging.getLogger("octavo.serving.grpc")

_BACKLOG = 2048
_LAST_WORDS = 1.0  # seconds for the answers of calls that were stopped


Admit = Callable[[Mapping[str, str]], Awaitable[None]]


class GrpcServer:
    """A server on the running event loop.

    Args:
        methods: by path, `/package.Service/Method`.
        limits: what clients may take.
        admit: given a call's metadata, raises `Refused` for who may not send much. Asked before a message is taken that
            is larger than a window; the methods themselves look at who asks once they have the message.

    Attributes:
        connections: that are open.
        calls: how many are under way.
    """

    def __init__(self, methods: Mapping[str, Method], limits: Limits, admit: Admit) -> None:
        self.methods = {path.encode(): method for path, method in methods.items()}
        self.limits = limits
        self.admit = admit
        self.loop = asyncio.get_running_loop()
        self.connections: set[Connection] = set()
        self.calls = 0
        self._server: asyncio.Server | None = None
        self._sweeper: asyncio.Task[None] | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; the port, which is a free one for 0.

        Raises:
            OSError: the address cannot be had.
        """
        found = await self.loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            self._server = await self.loop.create_server(lambda: Connection(self), sock=listener, backlog=_BACKLOG)
        except BaseException:
            listener.close()
            raise
        self._sweeper = asyncio.create_task(self._sweep())
        return int(listener.getsockname()[1])

    async def close(self, grace: float) -> None:
        """Take no more calls; those under way have `grace` seconds, then they are ended."""
        if self._server is not None:
            self._server.close()
        for connection in list(self.connections):
            connection.drain()
        await self._until_closed(grace)
        for connection in list(self.connections):
            connection.stop()
        await self._until_closed(_LAST_WORDS)
        for connection in list(self.connections):
            connection.abort()
        if self._sweeper is not None:
            self._sweeper.cancel()

    async def _until_closed(self, seconds: float) -> None:
        """Connections close when their last call is answered and the answer is sent."""
        deadline = time.monotonic() + seconds
        while self.connections and time.monotonic() < deadline:
            await asyncio.sleep(0.02)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            now = time.monotonic()
            for connection in list(self.connections):
                try:
                    connection.sweep(now)
                except Exception:  # one connection's trouble must not end the limits of the others
                    log.exception("a connection could not be looked after")
                    connection.abort()
