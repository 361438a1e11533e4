"""The server's life: open the house, answer on uvicorn and uvloop, finish what is in flight, close the house."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
import uvloop

from octavo.running import Running, announced
from octavo.settings import Settings
from octavo.web.app import create_app
from octavo.web.connection import Connection, limited
from octavo.web.house import House

Started = Callable[[Running, str | None], None]
_FINISH_SECONDS = 10
_SWEEP_TICKS = 10  # of 0.1 s


def live(settings: Settings, listener: socket.socket, started: Started) -> None:
    """Serve on `listener` until SIGINT or SIGTERM; `started` as in `octavo.web.server.serve`."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(settings, listener, started))


async def _serve(settings: Settings, listener: socket.socket, started: Started) -> None:
    house = await House.open(settings)
    try:
        config = uvicorn.Config(
            create_app(house),
            http=limited(settings.web.max_connections, settings.web.body_timeout),
            ws="websockets-sansio",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=settings.web.keep_alive,
            timeout_graceful_shutdown=_FINISH_SECONDS,
            lifespan="on",
        )
        grpc = await _listen(house, listener)
        running = Running(_url(listener), os.getpid(), house.access.issue_run_token(), grpc)
        await _Server(config, settings, house, running, started).serve([listener])
    finally:
        await house.close()


class _Server(uvicorn.Server):
    """uvicorn's server, which announces itself, sweeps slow clients, and ends with exit code 0 when told to stop."""

    def __init__(
        self,
        config: uvicorn.Config,
        settings: Settings,
        house: House,
        running: Running,
        started: Started,
    ) -> None:
        super().__init__(config)
        self._announced = announced(settings, running)
        self._access, self._running, self._started = house.access, running, started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer, then say so."""
        await super().startup(sockets)
        if self.should_exit:
            return
        self._announced.__enter__()
        first_token = await asyncio.to_thread(self._access.first_start)
        self._started(self._running, first_token)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take back the announcement first, so that no command comes any more."""
        self._announced.__exit__(None, None, None)
        await super().shutdown(sockets)

    async def on_tick(self, counter: int) -> bool:
        """Every second, close the connections whose clients take too long."""
        if counter % _SWEEP_TICKS == 0:
            now = asyncio.get_running_loop().time()
            for connection in list(self.server_state.connections):
                if isinstance(connection, Connection):
                    connection.sweep(now)
        return await super().on_tick(counter)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop at the first signal, at once at the second; do not raise it again afterwards."""
        handlers = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _stop(self, number: int, frame: Any) -> None:
        self.force_exit = self.should_exit
        self.should_exit = True


def _url(listener: socket.socket) -> str:
    """An address that works on this machine, whatever is listened on."""
    host, port = listener.getsockname()[:2]
    return f"http://{_address(host, port)}"


async def _listen(house: House, listener: socket.socket) -> str:
    """Open the ports beside the HTTP one; the gRPC address, empty when there is none."""
    host, port = listener.getsockname()[:2]
    grpc = await house.listen(port)
    return _address(host, grpc) if grpc else ""


def _address(host: str, port: int) -> str:
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
