"""What goes to the client of one connection: answers, and the sending half of HTTP/2's flow control."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from struct import Struct

from octavo.serving.rpc.call import Call
from octavo.serving.rpc.frames import (
    END_HEADERS,
    END_STREAM,
    FIRST_WINDOW,
    LARGEST_WINDOW,
    ConnectionFault,
    Fault,
    Kind,
    Setting,
    write_frame,
)
from octavo.serving.rpc.limits import Patience
from octavo.serving.rpc.messages import PREFIX
from octavo.serving.rpc.status import HEADERS, TRAILERS_OK

_prefix = Struct(">BI")
# An answer in one write: headers, the message's frame with its prefix; then the message; then the trailers.
_before = Struct(f">IBI{len(HEADERS)}sIBIBI")
_after = Struct(f">IBI{len(TRAILERS_OK)}s")
_HEADERS_HEAD = len(HEADERS) << 8 | Kind.HEADERS
_TRAILERS_HEAD = len(TRAILERS_OK) << 8 | Kind.HEADERS
_LAST = END_HEADERS | END_STREAM


class Outflow:
    """Windows, and what waits for them.

    Args:
        transport: answers go there.
        patience: a client that reads much may say so often.
        over: told when a call's answer is out, to the last byte.

    Attributes:
        first_window: of a new stream.
        paused_since: when the transport said that its client does not read; None while it does.
    """

    def __init__(self, transport: asyncio.Transport, patience: Patience, over: Callable[[Call], None]) -> None:
        self._transport = transport
        self._patience = patience
        self._over = over
        self._window = FIRST_WINDOW
        self._largest = 2**14  # bytes of a frame
        self._blocked: dict[int, Call] = {}
        self.first_window = FIRST_WINDOW
        self.paused_since: float | None = None

    def answer(self, call: Call, message: bytes) -> None:
        """Send the one message of an answer, and end it well."""
        size = len(message)
        whole = size + PREFIX
        if whole > self._largest or whole > self._window or whole > call.send_window or self.paused_since is not None:
            self.send(call, message)
            self.end(call, TRAILERS_OK)
            return
        self._window -= whole
        stream = call.stream
        before = _before.pack(_HEADERS_HEAD, END_HEADERS, stream, HEADERS, whole << 8 | Kind.DATA, 0, stream, 0, size)
        self._transport.write(before + message + _after.pack(_TRAILERS_HEAD, _LAST, stream, TRAILERS_OK))
        self._over(call)

    def send(self, call: Call, message: bytes) -> None:
        """Send one message as far as the windows allow, and the rest when they do."""
        if call.gone:
            return
        if not call.head_sent:
            call.head_sent = True
            self._transport.write(write_frame(Kind.HEADERS, END_HEADERS, call.stream, HEADERS))
        call.outgoing.append(memoryview(_prefix.pack(0, len(message)) + message))
        call.unsent += PREFIX + len(message)
        self._block(call)

    def end(self, call: Call, trailers: bytes) -> None:
        """Send the last header block, once all messages are sent."""
        call.trailers = trailers
        self._block(call)

    def forget(self, call: Call) -> None:
        """What of a call is still to be sent is not wanted any more."""
        self._blocked.pop(call.stream, None)
        call.outgoing.clear()
        call.unsent = 0

    def grow(self, call: Call | None, more: int) -> None:
        """The client takes more, from one call or from all together.

        Raises:
            ConnectionFault: the connection's window gets larger than there are.
            OverflowError: the call's does.
        """
        if call is None:
            self._window += more
            if self._window > LARGEST_WINDOW:
                raise ConnectionFault(Fault.FLOW_CONTROL_ERROR, "the connection's window is over 2^31 - 1")
        else:
            call.send_window += more
            if call.send_window > LARGEST_WINDOW:
                raise OverflowError
        if self._blocked:
            self.pump()

    def apply(self, settings: dict[int, int], calls: list[Call]) -> None:
        """The client's settings.

        Raises:
            ConnectionFault: a call's window gets larger than there are.
        """
        self._largest = min(settings.get(Setting.MAX_FRAME_SIZE, self._largest), 2**18)
        first = settings.get(Setting.INITIAL_WINDOW_SIZE, self.first_window)
        for call in calls:
            call.send_window += first - self.first_window
            if call.send_window > LARGEST_WINDOW:
                raise ConnectionFault(Fault.FLOW_CONTROL_ERROR, "a window is over 2^31 - 1")
        self.first_window = first
        self.pump()

    def pump(self) -> None:
        """Send what may be sent, a frame of each call in turn."""
        moved = True
        while moved and self.paused_since is None:
            moved = False
            for call in list(self._blocked.values()):
                moved |= self._send_piece(call)

    def _block(self, call: Call) -> None:
        """Put a call in the row of those that have something to send."""
        if call.stream in self._blocked:
            return  # it is in the row already, and stands still
        self._blocked[call.stream] = call
        call.stalled_since = time.monotonic()
        self.pump()

    def _send_piece(self, call: Call) -> bool:
        """Send one frame of a call; False when it has none or may not."""
        if call.outgoing:
            room = min(self._largest, self._window, call.send_window)
            if room <= 0:
                return False
            piece = call.outgoing[0]
            if len(piece) > room:
                call.outgoing[0] = piece[room:]
                piece = piece[:room]
            else:
                call.outgoing.popleft()
            self._window -= len(piece)
            call.send_window -= len(piece)
            call.unsent -= len(piece)
            call.stalled_since = time.monotonic()
            self._transport.write(write_frame(Kind.DATA, 0, call.stream, bytes(piece)))
            self._patience.sent(len(piece))
            call.drained()
        if not call.outgoing:
            del self._blocked[call.stream]
            call.stalled_since = None
            if call.trailers is not None:
                self._transport.write(write_frame(Kind.HEADERS, _LAST, call.stream, call.trailers))
                self._over(call)
        return True
