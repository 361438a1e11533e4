"""One HTTP request and its answer, on bare ASGI: what every protocol's operations are written against.

A protocol is a tuple of `Operation`s and a way to tell an error. Nothing here costs more than a few microseconds per
request: no routing middleware, no dependency injection, no response object that is built twice.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import orjson
from starlette.types import Receive, Scope, Send

from octavo.access import ANONYMOUS, Action, Principal, allowed, require
from octavo.errors import Invalid, OctavoError, Unavailable
from octavo.serving.http_body import header, read_body
from octavo.serving.model_config import check_name, check_version

if TYPE_CHECKING:
    from octavo.jobs import Jobs
    from octavo.serving.service import Serving
    from octavo.settings import Settings

T = TypeVar("T")
Headers = Sequence[tuple[bytes, bytes]]

_NO_HEADERS: Headers = ()
_OFF_LOOP = 2**18  # bytes
_UNWATCHED = 0.03  # seconds an answer may take before its client is watched for leaving
_CLOSE_AFTER = (408, 413)  # the rest of the body is not read, so the connection cannot be used again


class Reply(NamedTuple):
    """An answer, ready to be sent; with `parts` it is sent as they come, and `body` is not."""

    status: int
    body: bytes
    media_type: bytes = b"application/json"
    headers: Headers = _NO_HEADERS
    parts: AsyncIterator[bytes] | None = None


class Door(NamedTuple):
    """What operations work with."""

    service: Serving
    settings: Settings
    jobs: Jobs | None = None


class Call:
    """A request on its way: who asks, for what, and whether they still wait."""

    __slots__ = ("_receive", "_watch", "gone", "principal", "scope")

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self.scope = scope
        self.gone = False
        state = scope.get("state")
        self.principal: Principal = state.get("principal", ANONYMOUS) if state else ANONYMOUS
        self._receive = receive
        self._watch: asyncio.Task[None] | None = None

    @property
    def model(self) -> str:
        """The model's name in the path; raises `Invalid` when it is not fit to be one."""
        return check_name(self.scope["path_params"]["model"])

    @property
    def version(self) -> str:
        """The version (number or label) in the path; empty when the path names none."""
        version: str = self.scope["path_params"].get("version", "")
        return check_version(version)

    def header(self, name: bytes) -> bytes | None:
        """A header's value, by its name in lower case."""
        return header(self.scope, name)

    def require(self, action: Action, model: str) -> None:
        """Raise `Unauthenticated` or `Forbidden` unless the caller may do `action` on the model."""
        require(self.principal, action, f"models/{model}")

    def visible(self, names: Sequence[str]) -> set[str]:
        """Those models the caller may see; raises `Unauthenticated` for nobody in particular who may see none."""
        found = {name for name in names if allowed(self.principal, "view", f"models/{name}")}
        if not found and self.principal.kind == "anonymous":
            require(self.principal, "view", "models/*")
        return found

    async def body(self, limit: int) -> bytes:
        """The whole body; see `read_body`."""
        return await read_body(self.scope, self._receive, limit)

    async def json(self, limit: int) -> dict[str, Any]:
        """The body as a JSON object; an empty body is an empty object.

        Raises:
            Invalid: not JSON, or not an object.
        """
        raw = await self.body(limit)
        return parse_object(raw) if raw.strip() else {}

    async def while_connected(self, work: Awaitable[T]) -> T:
        """The result of `work`, which is cancelled when the client leaves. Call it once the body is read.

        Watching takes a task of its own (~30 microseconds), so it begins only when the answer takes a while.
        """
        task = asyncio.current_task()
        timer = asyncio.get_running_loop().call_later(_UNWATCHED, self._begin_watch, task)
        try:
            return await work
        finally:
            timer.cancel()
            if self._watch is not None:
                self._watch.cancel()

    def _begin_watch(self, task: asyncio.Task[Any] | None) -> None:
        if task is not None:
            self._watch = asyncio.create_task(self._wait_for_leaving(task))

    async def _wait_for_leaving(self, task: asyncio.Task[Any]) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            continue
        self.gone = True
        task.cancel()


Handler = Callable[[Door, Call], Awaitable[Reply]]


@dataclass(frozen=True, slots=True)
class Operation:
    """One method on one path, and what the API's description says of it.

    Attributes:
        handle: does it.
        takes: media types of the body; empty when it takes none.
        gives: media types of the answer.
        described: whether the API's description lists it; what is only refused is not.
        page: a page of the console has the same address; a browser that opens it gets that.
    """

    method: str
    path: str
    handle: Handler
    summary: str
    takes: tuple[str, ...] = ()
    gives: tuple[str, ...] = ("application/json",)
    described: bool = True
    page: bool = False


def _plain_head(error: OctavoError) -> tuple[int, Headers]:
    return error.status, _NO_HEADERS


class Protocol(NamedTuple):
    """A name, its operations, and how it writes an error: the body, and the status with headers of its own."""

    name: str
    operations: tuple[Operation, ...]
    error_body: Callable[[OctavoError], bytes]
    error_media_type: bytes = b"application/json"
    error_head: Callable[[OctavoError], tuple[int, Headers]] = _plain_head


class Endpoint:
    """The ASGI app of one operation."""

    def __init__(self, door: Door, protocol: Protocol, operation: Operation) -> None:
        self.path = operation.path
        self._door = door
        self._handle = operation.handle
        self._protocol = protocol

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; to a client that has left, nothing is sent."""
        scope["route"] = self  # the template of the path, for whoever counts requests
        call = Call(scope, receive)
        try:
            reply = await self._handle(self._door, call)
        except OctavoError as error:
            reply = self._tell(error)
        except asyncio.CancelledError:
            if not call.gone:
                raise
            return
        headers = [(b"content-type", reply.media_type), *reply.headers]
        if reply.parts is not None:
            await send({"type": "http.response.start", "status": reply.status, "headers": headers})
            await _send_parts(send, reply.parts)
            return
        headers.insert(1, (b"content-length", str(len(reply.body)).encode()))
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        await send({"type": "http.response.body", "body": reply.body})

    def _tell(self, error: OctavoError) -> Reply:
        headers: list[tuple[bytes, bytes]] = []
        if isinstance(error, Unavailable):
            headers.append((b"retry-after", str(max(1, math.ceil(error.retry_after))).encode()))
        if error.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        if error.status in _CLOSE_AFTER:
            headers.append((b"connection", b"close"))
        protocol = self._protocol
        status, own = protocol.error_head(error)
        return Reply(status, protocol.error_body(error), protocol.error_media_type, [*headers, *own])


async def _send_parts(send: Send, parts: AsyncIterator[bytes]) -> None:
    async for part in parts:
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def parsed(body: bytes, parse: Callable[..., T], *arguments: Any) -> T:
    """`parse(body, *arguments)`; of a large body in a thread, so that it does not hold up everybody else's."""
    if len(body) > _OFF_LOOP:
        return await asyncio.to_thread(parse, body, *arguments)
    return parse(body, *arguments)


def parse_object(raw: bytes | memoryview) -> dict[str, Any]:
    """A JSON object; raises `Invalid` for anything else, NaN and endless nesting included."""
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise Invalid(f"the body is not JSON: {error}", "body", "Send a JSON object.") from None
    if not isinstance(value, dict):
        raise Invalid("the body is not a JSON object", "body", 'Send an object, as {"inputs": [...]}.')
    return value


def json_reply(value: object, status: int = 200) -> Reply:
    """An answer in JSON."""
    return Reply(status, orjson.dumps(value))
