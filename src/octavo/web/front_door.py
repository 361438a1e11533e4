"""The outermost door: gives each request its id, counts it, dresses its answer, and turns errors into answers.

Plain ASGI, as are `body` and `identity` behind it: together they cost a request well under 60 microseconds.
"""

from __future__ import annotations

import logging
from time import perf_counter
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from octavo.errors import OctavoError
from octavo.telemetry import choose_request_id, count_request, request_id
from octavo.web.problems import problem_response, readable

log = logging.getLogger("octavo.web")

_POLICY = (
    b"default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    b"img-src 'self' data: blob:; font-src 'self' data:; media-src 'self' data: blob:; worker-src 'self' blob:; "
    b"connect-src 'self'; frame-ancestors 'none'; base-uri 'self'; form-action 'self'"
)
_FOR_ALL = ((b"x-content-type-options", b"nosniff"),)
_FOR_PAGES = (
    (b"content-security-policy", _POLICY),
    (b"referrer-policy", b"same-origin"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-opener-policy", b"same-origin"),
)


class FrontDoor:
    """ASGI app around `inside`."""

    def __init__(self, inside: ASGIApp) -> None:
        self.inside = inside

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; nothing but cancellation gets out."""
        if scope["type"] != "http":
            await self.inside(scope, receive, send)
            return
        began = perf_counter()
        mark = choose_request_id(dict(scope["headers"]).get(b"x-request-id"))
        request_id.set(mark)
        encoded = mark.encode("ascii")
        status = 0

        async def dressed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = _dress(message.get("headers", ()), encoded)
            await send(message)

        try:
            await self.inside(scope, receive, dressed)
        except Exception as error:
            if not isinstance(error, OctavoError) and type(error).__name__ != "HTTPException":
                log.exception("unexpected error in %s %s", scope["method"], _route(scope))
            if status:
                return  # the answer is under way; uvicorn closes the connection when it stays incomplete
            await problem_response(scope, readable(error, scope["path"]))(scope, receive, dressed)
        finally:
            count_request(scope["method"], _route(scope), status or 499, perf_counter() - began)
            log.debug("%s %s %d", scope["method"], scope["path"], status)


def _dress(headers: Any, encoded_id: bytes) -> list[tuple[bytes, bytes]]:
    dressed = [*headers, (b"x-request-id", encoded_id), *_FOR_ALL]
    for name, value in headers:
        if name == b"content-type":
            if value.startswith(b"text/html"):
                dressed.extend(_FOR_PAGES)
            break
    return dressed


def _route(scope: Scope) -> str:
    """The template of the route that answered; one name for all that matched none, so that series stay few."""
    path: str | None = getattr(scope.get("route"), "path", None)
    if path is not None:
        return path or "/"
    return "console" if "endpoint" in scope else "none"
