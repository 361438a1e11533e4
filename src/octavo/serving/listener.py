"""The gRPC port of serving: opened when the HTTP door has its own, closed before it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from octavo.errors import Unavailable

if TYPE_CHECKING:
    from octavo.serving.protocols.kserve_grpc import Authenticate
    from octavo.serving.rpc import GrpcServer
    from octavo.serving.service import Serving
    from octavo.settings import Settings

log = logging.getLogger("octavo.serving.grpc")

_GRACE = 10.0


class GrpcListener:
    """A gRPC server beside the HTTP one, on the same event loop.

    Attributes:
        port: on which it listens.
    """

    def __init__(self, server: GrpcServer, port: int) -> None:
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
        from octavo.serving.protocols.kserve_grpc import InferenceCalls
        from octavo.serving.rpc import GrpcServer, Limits

        web = settings.web
        limits = Limits(web.max_body, web.max_connections, web.max_connections, web.body_timeout)
        calls = InferenceCalls(service, authenticate)
        server = GrpcServer(calls.methods(), limits, calls.admit)
        free = web.port == 0 and wanted < 0
        port = 0 if free else (http_port + 1 if wanted < 0 else wanted)
        try:
            return cls(server, await server.start(web.host, port))
        except (OSError, OverflowError):  # taken, not ours to take, or over 65535
            if wanted < 0:
                log.warning("no gRPC: port %s is taken; set serving.grpc_port", port)
                return None
            raise Unavailable(f"port {port} is taken", "serving.grpc_port", "Name another, or 0 for none.") from None

    async def close(self) -> None:
        """Take no more calls; those under way may finish."""
        await self._server.close(_GRACE)
