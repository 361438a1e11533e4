"""Signing in and out: plain forms, a session cookie that only the server reads."""

from __future__ import annotations

import asyncio
import html

from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from octavo.access import Access
from octavo.access.passwords import GuessLimit
from octavo.errors import OctavoError, Unauthenticated
from octavo.settings import Settings
from octavo.web.identity import session_cookie
from octavo.web.plain import LEAF, cookie, cookies, plain_page

_TRIES_PER_ADDRESS = 20


def routes(access: Access, settings: Settings) -> list[BaseRoute]:
    """`/login` (form, and `?token=` as the address printed at first start has it) and `/logout`."""
    limit = GuessLimit(most=_TRIES_PER_ADDRESS)
    seconds = int(settings.web.session_hours * 3600)

    async def login(request: Request) -> Response:
        given = await request.form() if request.method == "POST" else FormData(request.query_params)
        onward = local_path(_text(given, "next"))
        if request.method == "GET" and not _text(given, "token"):
            return HTMLResponse(_page(request, onward))
        try:
            token = await _begin(access, limit, request, given)
        except OctavoError as error:
            return HTMLResponse(_page(request, onward, error), error.status)
        answer = RedirectResponse(onward, 303, {"cache-control": "no-store"})
        secure = request.url.scheme == "https"
        answer.headers["set-cookie"] = cookie(session_cookie(request.scope), token, seconds=seconds, secure=secure)
        return answer

    async def logout(request: Request) -> Response:
        name = session_cookie(request.scope)
        token = cookies(request.scope).get(name, "")
        await asyncio.to_thread(access.logout, token)
        answer = RedirectResponse("/login", 303)
        answer.headers["set-cookie"] = cookie(name, "", seconds=0, secure=request.url.scheme == "https")
        return answer

    return [Route("/login", login, methods=["GET", "POST"]), Route("/logout", logout, methods=["POST"])]


def local_path(text: str) -> str:
    """`text` when it is a path of this site, else `/`: a link to the login page must not lead elsewhere."""
    plain = text.startswith("/") and not text.startswith(("//", "/\\")) and text.isprintable() and "\\" not in text
    return text if plain else "/"


async def _begin(access: Access, limit: GuessLimit, request: Request, given: FormData) -> str:
    """A session's token for what was typed."""
    address = request.client.host if request.client else ""
    limit.attempt(address)
    token, user = _text(given, "token").strip(), _text(given, "user").strip()
    if token:
        session = await asyncio.to_thread(access.login_with_token, token)
    elif user:
        session = await asyncio.to_thread(access.login, user, _text(given, "password"))
    else:
        raise Unauthenticated("nothing was entered", "", "Enter a token, or a name and a password.")
    limit.succeeded(address)
    return session


def _text(given: FormData, name: str) -> str:
    value = given.get(name, "")
    return value if isinstance(value, str) else ""


def _page(request: Request, onward: str, error: OctavoError | None = None) -> str:
    said = ""
    if error is not None:
        text = f"{error.what[:1].upper()}{error.what[1:]}. {error.fix}"
        said = f'<p class="o-alert" role="alert">{html.escape(text)}</p>'
    hidden = f'<input type="hidden" name="next" value="{html.escape(onward, quote=True)}">'
    body = (
        f'<div class="o-mark">{LEAF}</div><h1>Sign in to octavo</h1>{said}'
        f'<form method="post" action="/login" class="o-form">{hidden}'
        '<label>Token<input name="token" type="password" autocomplete="off" autofocus spellcheck="false"></label>'
        '<button class="o-button" type="submit">Sign in</button></form>'
        '<p class="o-divider"><span>or with a name</span></p>'
        f'<form method="post" action="/login" class="o-form">{hidden}'
        '<label>Name<input name="user" autocomplete="username" autocapitalize="none" spellcheck="false"></label>'
        '<label>Password<input name="password" type="password" autocomplete="current-password"></label>'
        '<button class="o-button o-button-quiet" type="submit">Sign in</button></form>'
        '<p class="o-quiet o-small">The first start of a workspace prints a token. More are made with '
        "<code>octavo users key-add NAME</code>.</p>"
    )
    return plain_page(request.scope, "Sign in", body)
