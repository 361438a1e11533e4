"""One call as its handler sees it, and what a server is given to answer calls with."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from octavo.serving.rpc.frames import FIRST_WINDOW
from octavo.serving.rpc.head import Head
from octavo.serving.rpc.messages import PREFIX, Assembler, Message, unpack
from octavo.serving.rpc.status import Code, Refused

if TYPE_CHECKING:
    from octavo.serving.rpc.inflow import Inflow
    from octavo.serving.rpc.outflow import Outflow

_OFF_LOOP = 2**12  # bytes; what is packed unfolds up to a thousandfold, so larger messages are unpacked in a thread

_UNSENT = 2**18  # bytes of an answer's messages that may wait for the client


@dataclass(frozen=True, slots=True)
class Method:
    """One method of a service.

    Attributes:
        unary: one message in, one out.
        stream: any number in and out; reads `call.messages()`, writes with `call.send`. One of the two is there.

    Both end the call with another status by raising `Refused`.
    """

    unary: Callable[[bytes, Call], Awaitable[bytes]] | None = None
    stream: Callable[[Call], Awaitable[None]] | None = None


class Call:
    """One call: a stream of a connection.

    Attributes:
        metadata: headers by name in lower case.
        deadline: `time.monotonic()` seconds after which the client no longer waits; None when it never said.
    """

    __slots__ = (
        "_arrival", "_drained", "_inflow", "_most", "_outflow", "admission", "admitted", "assembler", "deadline",
        "ended", "gone", "head_sent", "late", "metadata", "method", "outgoing", "packing", "queued", "received",
        "send_window", "slot", "stalled_since", "started", "stream", "task", "trailers", "unsent", "waits_since",
        "window",
    )  # fmt: skip

    def __init__(self, stream: int, method: Method, head: Head, most: int, inflow: Inflow, outflow: Outflow) -> None:
        self._inflow = inflow
        self._outflow = outflow
        self.stream = stream
        self.method = method
        self.metadata = head.metadata
        self.packing = head.packing
        self.deadline = None if head.timeout is None else time.monotonic() + head.timeout
        self.assembler = Assembler(most)
        self._most = most
        # What comes in.
        self.received: deque[Message] = deque()
        self.queued = 0  # bytes of them
        self.ended = False  # the client has sent all
        self.window = FIRST_WINDOW  # bytes it may still send
        self.admission: asyncio.Task[None] | None = None  # looks whether it may send much
        self.admitted = False
        self.slot = False  # it may send a message larger than a window
        self.waits_since: float | None = None  # for the rest of a message
        self._arrival: asyncio.Future[None] | None = None
        # What goes out.
        self.send_window = outflow.first_window
        self.outgoing: deque[memoryview] = deque()
        self.unsent = 0  # bytes of it
        self.head_sent = False
        self.trailers: bytes | None = None
        self.stalled_since: float | None = None  # the client reads nothing
        self._drained: asyncio.Future[None] | None = None
        # How it is worked on.
        self.task: asyncio.Task[None] | None = None
        self.started = False
        self.gone = False  # nobody is there to be answered
        self.late: Refused | None = None  # why the server itself ends it

    @property
    def held_back(self) -> bool:
        """Whether it is the server that keeps the client from sending the rest of a message."""
        return self.window <= 0 and (self.assembler.missing > 0 or self.method.unary is None)

    def seconds_left(self) -> float | None:
        """Until the deadline; None when there is none."""
        return None if self.deadline is None else self.deadline - time.monotonic()

    async def messages(self) -> AsyncIterator[bytes]:
        """What the client sends, until it has sent all. Its next messages wait until these were taken.

        Raises:
            Refused: a message is damaged.
        """
        while True:
            while self.received:
                yield await self.plain(self.take())
            if self.ended:
                return
            self._arrival = asyncio.get_running_loop().create_future()
            await self._arrival

    def take(self) -> Message:
        """The next message that is there; its client may send more."""
        message = self.received.popleft()
        self.queued -= len(message[1]) + PREFIX
        if not self.ended:
            self._inflow.allow(self)
        return message

    async def send(self, message: bytes) -> None:
        """Send one message; returns when the client's window has room for more."""
        self._outflow.send(self, message)
        while self.unsent > _UNSENT:
            self._drained = asyncio.get_running_loop().create_future()
            await self._drained

    async def plain(self, message: Message) -> bytes:
        """A message that may be packed, unpacked.

        Raises:
            Refused: it is damaged or too large, or the call said of no packing.
        """
        packed, raw = message
        if not packed:
            return raw
        if not self.packing:
            raise Refused(Code.INTERNAL, "a packed message in a call whose 'grpc-encoding' is none")
        if len(raw) > _OFF_LOOP:
            return await asyncio.to_thread(unpack, raw, self.packing, self._most)
        return unpack(raw, self.packing, self._most)

    def arrived(self) -> None:
        """Wake who waits for messages."""
        _wake(self._arrival)

    def drained(self) -> None:
        """Wake who waits to send."""
        if self.unsent <= _UNSENT:
            _wake(self._drained)


def _wake(waiting: asyncio.Future[Any] | None) -> None:
    if waiting is not None and not waiting.done():
        waiting.set_result(None)
