"""The ASGI layers one by one, around small apps."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Scope

from octavo.access import ANONYMOUS, Grant, Principal
from octavo.errors import Busy, Forbidden, Invalid, OctavoError, TooLarge, Unauthenticated
from octavo.web.body import BodyLimit
from octavo.web.front_door import FrontDoor
from octavo.web.identity import Identity, is_loopback, loopback_hosts
from octavo.web.problems import RequestProblem

ALICE = Principal("alice", "key", (Grant("viewer"),))
BOB = Principal("bob", "user", (Grant("admin"),))


class Accounts:
    """Knows alice's key at once, carol's after a query, bob's session."""

    def __init__(self) -> None:
        self.queries = 0

    def remembered(self, token: str) -> Principal | None:
        return ALICE if token == "alice-key" else None

    def authenticate(self, token: str) -> Principal | None:
        self.queries += 1
        return Principal("carol", "key") if token == "carol-key" else None

    def remembered_session(self, token: str) -> Principal | None:
        return None

    def session(self, token: str) -> Principal | None:
        return BOB if token == "bob-session" else None


class Answer:
    """Status, headers and body an ASGI app sent."""

    def __init__(self) -> None:
        self.status, self.headers, self.body = 0, {}, b""

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        elif message["type"] == "http.response.body":
            self.body += message.get("body", b"")

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)


async def fine(scope: Scope, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": b"fine"})


async def read_all(scope: Scope, receive: Any, send: Any) -> None:
    while (await receive()).get("more_body"):
        pass
    await fine(scope, receive, send)


def failing(error: BaseException) -> ASGIApp:
    async def app(scope: Scope, receive: Any, send: Any) -> None:
        raise error

    return app


async def ask(
    app: ASGIApp, path: str = "/x", method: str = "GET", body: list[bytes] | None = None, **headers: str
) -> Answer:
    fields = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    pieces = list(body or [b""])
    answer = Answer()

    async def receive() -> Message:
        if not pieces:
            await asyncio.sleep(3600)
        return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

    scope = {
        "type": "http", "method": method, "path": path, "query_string": b"", "headers": fields,
        "server": ("127.0.0.1", 8600), "state": {},
    }  # fmt: skip
    await app(scope, receive, answer.send)
    return answer


async def principal_of(**headers: str) -> Principal:
    seen: list[Principal] = []

    async def app(scope: Scope, receive: Any, send: Any) -> None:
        seen.append(scope["state"]["principal"])

    await ask(Identity(app, Accounts()), path=headers.pop("path", "/x"), **headers)
    return seen[0]


@pytest.mark.parametrize(
    ("headers", "name"),
    [
        ({"authorization": "Bearer alice-key"}, "alice"),
        ({"authorization": "bearer  carol-key "}, "carol"),
        ({"x_api_key": "alice-key"}, "alice"),
        ({"api_key": "alice-key"}, "alice"),
        ({"cookie": "a=b; octavo_session_8600=bob-session"}, "bob"),
    ],
)
async def test_a_request_is_its_tokens_owners(headers: dict[str, str], name: str) -> None:
    assert (await principal_of(**headers)).name == name


async def test_a_remembered_token_needs_no_query() -> None:
    accounts = Accounts()
    await ask(Identity(fine, accounts), authorization="Bearer alice-key")
    assert accounts.queries == 0


async def test_public_addresses_are_anyones() -> None:
    for path in ("/healthz", "/livez", "/readyz", "/login", "/static/style.css", "/v2/health/live"):
        assert await principal_of(path=path) == ANONYMOUS


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer nobody"},
        {"authorization": "Basic YTpi"},
        {"cookie": "octavo_session_8600=nobody"},
        {"cookie": "octavo_session_8601=bob-session"},
        {"cookie": ";;=;octavo_session_8600"},
    ],
)
async def test_nobody_gets_no_further(headers: dict[str, str]) -> None:
    with pytest.raises(Unauthenticated):
        await ask(Identity(fine, Accounts()), **headers)


async def test_a_browser_is_sent_to_the_login_page_and_back_afterwards() -> None:
    answer = await ask(Identity(fine, Accounts()), path="/models", accept="text/html,*/*")
    assert (answer.status, answer.headers["location"]) == (303, "/login?next=/models")


@pytest.mark.parametrize(
    ("headers", "passes"),
    [
        ({"origin": "http://127.0.0.1:8600", "sec_fetch_site": "same-origin"}, True),
        ({"origin": "http://127.0.0.1:8600"}, True),
        ({"origin": "http://evil.example"}, False),
        ({"origin": "http://127.0.0.1:9999"}, False),
        ({"origin": "null"}, False),
        ({"sec_fetch_site": "cross-site"}, False),
        ({"sec_fetch_site": "same-site"}, False),
        ({}, False),
    ],
)
async def test_another_sites_page_cannot_use_the_cookie(headers: dict[str, str], passes: bool) -> None:
    request = {"host": "127.0.0.1:8600", "cookie": "octavo_session_8600=bob-session", **headers}
    if passes:
        assert (await ask(Identity(fine, Accounts()), method="POST", **request)).status == 200
    else:
        with pytest.raises(Forbidden):
            await ask(Identity(fine, Accounts()), method="POST", **request)


async def test_a_token_is_not_bound_to_the_origin() -> None:
    request = {"host": "a", "origin": "http://b", "authorization": "Bearer alice-key"}
    assert (await ask(Identity(fine, Accounts()), method="POST", **request)).status == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8600", "", "127.0.0.1.evil.example"])
async def test_on_loopback_other_host_names_are_refused(host: str) -> None:
    door = Identity(fine, Accounts(), loopback_hosts("127.0.0.1"))
    with pytest.raises(RequestProblem) as error:
        await ask(door, host=host, authorization="Bearer alice-key")
    assert error.value.status == 421


@pytest.mark.parametrize("host", ["127.0.0.1:8600", "localhost:1", "LOCALHOST", "[::1]:8600"])
async def test_on_loopback_its_own_names_are_fine(host: str) -> None:
    door = Identity(fine, Accounts(), loopback_hosts("127.0.0.1"))
    assert (await ask(door, host=host, authorization="Bearer alice-key")).status == 200


async def test_a_proxy_in_front_has_a_name_of_its_own() -> None:
    door = Identity(fine, Accounts(), loopback_hosts("127.0.0.1", ("Octavo.example.org",)))
    for host in ("octavo.example.org", "octavo.example.org:443", "localhost"):
        assert (await ask(door, host=host, authorization="Bearer alice-key")).status == 200


def test_loopback() -> None:
    assert [is_loopback(a) for a in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "example.org")] == [True] * 3 + [
        False
    ] * 2
    assert loopback_hosts("0.0.0.0") == ()


async def test_a_websocket_of_nobody_or_another_site_is_closed() -> None:
    for headers in ([], [(b"cookie", b"octavo_session_8600=bob-session"), (b"origin", b"http://evil.example")]):
        sent: list[Message] = []

        async def send(message: Message, sent: list[Message] = sent) -> None:
            sent.append(message)

        scope = {"type": "websocket", "path": "/w", "headers": headers, "server": ("h", 8600), "query_string": b""}
        await Identity(fine, Accounts())(scope, None, send)  # type: ignore[arg-type]
        assert sent == [{"type": "websocket.close", "code": 1008}]


async def test_a_body_up_to_the_limit_passes() -> None:
    answer = await ask(BodyLimit(read_all, 10, 5), method="POST", body=[b"x" * 10], content_length="10")
    assert answer.status == 200


async def test_an_announced_body_over_the_limit_is_refused_unread() -> None:
    with pytest.raises(TooLarge):
        await ask(BodyLimit(fine, 10, 5), method="POST", body=[], content_length="11")


async def test_a_chunked_body_is_counted() -> None:
    with pytest.raises(TooLarge):
        await ask(BodyLimit(read_all, 10, 5), method="POST", body=[b"x" * 6, b"x" * 6], transfer_encoding="chunked")


async def test_a_body_that_does_not_come_is_given_up() -> None:
    with pytest.raises(RequestProblem) as error:
        await _never(BodyLimit(read_all, 10, 0.05))
    assert error.value.status == 408


async def _never(app: ASGIApp) -> None:
    async def receive() -> Message:
        await asyncio.sleep(3600)
        raise AssertionError

    scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"content-length", b"9")]}
    await app(scope, receive, Answer().send)


async def test_waiting_for_the_client_to_leave_is_not_limited() -> None:
    left = asyncio.Event()

    async def app(scope: Scope, receive: Callable[[], Any], send: Any) -> None:
        assert (await receive())["body"] == b"x"
        assert (await receive())["type"] == "http.disconnect"
        left.set()

    messages = [{"type": "http.request", "body": b"x"}]

    async def receive() -> Message:
        if messages:
            return messages.pop()
        await asyncio.sleep(0.1)
        return {"type": "http.disconnect"}

    scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"content-length", b"1")]}
    await BodyLimit(app, 10, 0.02)(scope, receive, Answer().send)
    assert left.is_set()


@pytest.mark.parametrize(
    ("error", "status"),
    [(Invalid("no", "field", "Do."), 400), (Busy("full"), 429), (HTTPException(404), 404), (ValueError("secret"), 500)],
)
async def test_an_error_is_told_in_the_callers_words(error: Exception, status: int) -> None:
    door = FrontDoor(failing(error))
    api, v2, v1 = await ask(door, "/api/x"), await ask(door, "/v2/x"), await ask(door, "/v1/x")
    page = await ask(door, "/x", accept="text/html")
    assert {answer.status for answer in (api, v2, v1, page)} == {status}
    assert api.headers["content-type"] == "application/problem+json"
    assert api.json["status"] == status
    assert isinstance(v2.json["error"], str)
    assert isinstance(v1.json["error"]["message"], str)
    assert page.headers["content-type"].startswith("text/html")
    assert b"secret" not in api.body + v2.body + v1.body + page.body


async def test_a_full_server_says_when_to_come_back() -> None:
    answer = await ask(FrontDoor(failing(Busy("full", retry_after=2.2))))
    assert answer.headers["retry-after"] == "3"


async def test_an_unexpected_error_is_logged_with_the_request_id(caplog: pytest.LogCaptureFixture) -> None:
    answer = await ask(FrontDoor(failing(RuntimeError("boom"))), x_request_id="abc-1")
    assert "abc-1" in answer.json["where"]
    assert "boom" in caplog.text


async def test_html_in_an_error_is_text() -> None:
    error = OctavoError("<script>alert(1)</script>", "<b>", "<i>")
    answer = await ask(FrontDoor(failing(error)), accept="text/html")
    assert b"<script>alert" not in answer.body
    assert b"<b>" not in answer.body


@pytest.mark.parametrize(
    ("given", "kept"), [("abc-1.2:3_x", True), ("a b", False), ("x" * 65, False), ("a\r\nb", False), ("", False)]
)
async def test_a_plain_request_id_is_kept(given: str, kept: bool) -> None:
    mark = (await ask(FrontDoor(fine), x_request_id=given)).headers["x-request-id"]
    assert (mark == given) is kept
    assert mark


async def test_pages_get_the_policies_that_data_does_not_need() -> None:
    async def page(scope: Scope, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/html")]})
        await send({"type": "http.response.body"})

    dressed, plain = await ask(FrontDoor(page)), await ask(FrontDoor(fine))
    assert "frame-ancestors 'none'" in dressed.headers["content-security-policy"]
    assert "content-security-policy" not in plain.headers
    assert plain.headers["x-content-type-options"] == "nosniff"
