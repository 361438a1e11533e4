"""Who is asking: finds the principal behind a request, and turns away who may not come further.

A token comes as `Authorization: Bearer`, `X-API-Key` or `api-key` (as OpenAI's Azure clients send it); AWS's clients
sign (`signed_request`); a browser has a session cookie. Requests that a foreign page made a browser send are refused
(Origin, Sec-Fetch-Site), and so are names other than this machine's while the server listens on loopback only (DNS
rebinding).
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Collection
from typing import TYPE_CHECKING
from urllib.parse import quote

from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from octavo.access import ANONYMOUS, Principal
from octavo.errors import Forbidden, OctavoError, Unauthenticated
from octavo.web.plain import cookies
from octavo.web.problems import RequestProblem, wants_page
from octavo.web.signed_request import is_signed, signer_of

if TYPE_CHECKING:
    from octavo.access import Access

PUBLIC = frozenset({"/healthz", "/livez", "/readyz", "/ping", "/login", "/favicon.ico"})
PUBLIC_FOLDERS = ("/static/", "/_nicegui/", "/v2/health/")
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


def session_cookie(scope: Scope) -> str:
    """The session cookie's name: with the port, since browsers share cookies between the ports of a machine."""
    server = scope.get("server") or ("", 0)
    return f"octavo_session_{server[1]}"


class Identity:
    """ASGI app around `inside`; puts an `octavo.access.Principal` at `scope["state"]["principal"]`.

    Args:
        inside: what is behind the door.
        access: who knows the tokens.
        hosts: names that `Host` may have; empty means any.
    """

    def __init__(self, inside: ASGIApp, access: Access, hosts: Collection[str] = ()) -> None:
        self.inside = inside
        self.access = access
        self.hosts = frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand the request on with its principal, or turn it away."""
        if scope["type"] == "lifespan":
            await self.inside(scope, receive, send)
            return
        try:
            turned_away, receive = await self._identify(scope, receive)
        except OctavoError:
            if scope["type"] == "http":
                raise
            await send({"type": "websocket.close", "code": 1008})
            return
        await (turned_away or self.inside)(scope, receive, send)

    async def _identify(self, scope: Scope, receive: Receive) -> tuple[ASGIApp | None, Receive]:
        """Put the principal into `scope`; an answer instead when a browser has to sign in first.

        With it comes what gives the body: of a signed request it was read already.
        """
        fields = dict(scope["headers"])
        host = fields.get(b"host", b"")
        if self.hosts and _name(host) not in self.hosts:
            raise RequestProblem(
                421,
                "Wrong host",
                "this server does not answer to this name",
                _name(host)[:100],
                "Add it to web.allowed_hosts.",
            )
        token = _token(fields)
        if token:
            principal: Principal | None = await principal_of(self.access, token)
        elif scope["type"] == "http" and is_signed(fields):
            principal, receive = await signer_of(self.access, scope, receive)
        else:
            _refuse_foreign(scope, fields, host)
            principal = await self._of_cookie(scope, fields)
        scope.setdefault("state", {})["principal"] = principal or ANONYMOUS
        path: str = scope["path"]
        if principal is not None or path in PUBLIC or path.startswith(PUBLIC_FOLDERS):
            return None, receive
        if scope["type"] == "http" and wants_page(scope):
            query = f"?{scope['query_string'].decode('latin-1')}" if scope["query_string"] else ""
            return RedirectResponse(f"/login?next={quote(path + query, safe='/')}", 303), receive
        if token:
            raise Unauthenticated("this token is not known", "", "Check it, or ask an admin for another.")
        raise Unauthenticated("sign in first", "", "Send a token as `Authorization: Bearer ...`.")

    async def _of_cookie(self, scope: Scope, fields: dict[bytes, bytes]) -> Principal | None:
        if b"cookie" not in fields:
            return None
        token = cookies(scope).get(session_cookie(scope), "")
        if not token:
            return None
        known = self.access.remembered_session(token)
        return known or await asyncio.to_thread(self.access.session, token)


async def principal_of(access: Access, token: str) -> Principal | None:
    """Whose token this is; None when nobody's. It goes to a thread only when that needs a query."""
    return access.remembered(token) or await asyncio.to_thread(access.authenticate, token)


def loopback_hosts(address: str, extra: Collection[str] = ()) -> tuple[str, ...]:
    """The names to answer to when listening on `address`: any (empty) unless that is loopback."""
    if not is_loopback(address):
        return ()
    return ("localhost", "127.0.0.1", "[::1]", address, *(name.lower() for name in extra))


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach `address`."""
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def _token(fields: dict[bytes, bytes]) -> str:
    value = fields.get(b"authorization")
    if value is not None and value[:7].lower() == b"bearer ":
        return value[7:].strip().decode("latin-1")
    value = fields.get(b"x-api-key") or fields.get(b"api-key")
    return value.decode("latin-1") if value else ""


def _refuse_foreign(scope: Scope, fields: dict[bytes, bytes], host: bytes) -> None:
    """Refuse what a page of another site made the browser send with this site's cookie."""
    if scope["type"] == "http" and scope["method"] in _SAFE:
        return
    origin = fields.get(b"origin")
    site = fields.get(b"sec-fetch-site")
    foreign = site in (b"cross-site", b"same-site") if site else False
    if origin is not None:
        foreign = foreign or origin.partition(b"://")[2].lower() != host.lower()
    elif site is None and b"cookie" in fields:
        foreign = True  # every browser names one of the two
    if foreign:
        raise Forbidden(
            "the request comes from another site", "Origin", "Programs send a token as `Authorization: Bearer ...`."
        )


def _name(host: bytes) -> str:
    """`Host` without its port."""
    text = host.decode("latin-1").lower()
    return text.partition("]")[0] + "]" if text.startswith("[") else text.partition(":")[0]
