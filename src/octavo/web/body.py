"""Bodies have a size and a time: larger gets 413, slower gets 408, chunked or not."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from octavo.errors import TooLarge
from octavo.web.problems import RequestProblem


class BodyLimit:
    """ASGI app around `inside`.

    Args:
        inside: what reads the bodies.
        most: bytes a body may have.
        seconds: a client may take to send all of it.
    """

    def __init__(self, inside: ASGIApp, most: int, seconds: float) -> None:
        self.inside = inside
        self.most = most
        self.seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand the request on with a `receive` that keeps to the limits."""
        if scope["type"] != "http":
            await self.inside(scope, receive, send)
            return
        fields = dict(scope["headers"])
        announced = fields.get(b"content-length")
        if announced is not None:
            if int(announced) > self.most:
                raise self._too_large()
        elif b"transfer-encoding" not in fields:
            await self.inside(scope, receive, send)
            return
        await self.inside(scope, self._limited(receive), send)

    def _limited(self, receive: Receive) -> Receive:
        deadline = asyncio.get_running_loop().time() + self.seconds
        got = 0
        complete = False

        async def limited() -> Message:
            nonlocal got, complete
            if complete:
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise RequestProblem(
                    408,
                    "Too slow",
                    f"the body did not arrive within {self.seconds:g} seconds",
                    "web.body_timeout",
                    "Send it faster, or in smaller requests.",
                ) from None
            got += len(message.get("body", b""))
            if got > self.most:
                raise self._too_large()
            complete = not message.get("more_body", False)
            return message

        return limited

    def _too_large(self) -> TooLarge:
        return TooLarge(
            f"the body is larger than {self.most:,} bytes", "web.max_body", "Send less, or raise web.max_body."
        )
