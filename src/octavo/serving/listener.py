"""The gRPC port of serving: opened when the HTTP door has its own, closed before it."""

from __future__ import annotations

import logging
import socket
from typing import TYPE_CHECKING, Any

from octavo.errors import Unavailable

if TYPE_CHECKING:
    from octavo.serving.protocols.kserve_grpc import Authenticate
    from octavo.serving.service import Serving
    from octavo.settings import Settings

log = logging.getLogger("octavo.serving.grpc")

_GRACE = 10.0


class GrpcListener:
    """A gRPC server beside the HTTP one, on the same event loop.

    Attributes:
        port: on which it listens.
    """

    def __init__(self, server: Any, port: int) -> None:
        self._server = server
        self.port = port

    @classmethod
    async def open(
        cls, service: Serving, settings: Settings, http_port: int, authenticate: Authenticate
    ) -> GrpcListener | None:
        """Listen on `serving.grpc_port`; None where that is 0, or where it is the default and the port is taken.

        Raises:
            Unavailable: the port that was asked for is taken.
        """
        wanted = settings.serving.grpc_port
        if wanted == 0:
            return None
        import grpc

        from octavo.serving.protocols.kserve_grpc import InferenceCalls

        most = settings.web.max_body
        server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", most),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),
            ],
            maximum_concurrent_rpcs=settings.web.max_connections,
        )
        server.add_generic_rpc_handlers((InferenceCalls(service, authenticate).handler(),))
        host = f"[{settings.web.host}]" if ":" in settings.web.host else settings.web.host
        free = settings.web.port == 0 and wanted < 0
        port = 0 if free else (http_port + 1 if wanted < 0 else wanted)
        if port and not _is_free(settings.web.host, port):
            if wanted < 0:
                log.warning("no gRPC: port %s is taken; set serving.grpc_port", port)
                return None
            raise Unavailable(f"port {port} is taken", "serving.grpc_port", "Name another, or 0 for none.")
        try:
            port = server.add_insecure_port(f"{host}:{port}")
        except RuntimeError:  # taken since it was looked at
            raise Unavailable(f"port {port} is taken", "serving.grpc_port", "Name another, or 0 for none.") from None
        await server.start()
        return cls(server, port)

    async def close(self) -> None:
        """Take no more calls; those under way may finish."""
        await self._server.stop(_GRACE)


def _is_free(host: str, port: int) -> bool:
    """Whether a port can be bound; asked first, since the library reports a taken one with a page of its own log."""
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except (OSError, OverflowError):  # taken, not ours to take, or over 65535
        return False
    return True
