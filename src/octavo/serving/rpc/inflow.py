"""What the clients of one connection may send: the receiving half of HTTP/2's flow control.

A stream has a small window, so that a connection holds little however many streams it has. A message larger than that
gets a window of its own size, a few of them at a time; the others wait, and so does who sends faster than it is worked.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping

from octavo.serving.rpc.call import Call
from octavo.serving.rpc.frames import FIRST_WINDOW, ConnectionFault, Fault, Kind, write_number
from octavo.serving.rpc.limits import LARGE_AT_ONCE

CONNECTION_WINDOW = 2**30
"""So large that streams never wait for it: their own windows are what bounds them."""


class Inflow:
    """The windows of one connection.

    Args:
        transport: window updates go there.
        calls: the connection's, by stream.
        admitted: whether a call may send much; when that is not known yet, `allow` is called again once it is.
    """

    def __init__(
        self, transport: asyncio.Transport, calls: Mapping[int, Call], admitted: Callable[[Call], bool]
    ) -> None:
        self._transport = transport
        self._calls = calls
        self._admitted = admitted
        self._window = CONNECTION_WINDOW
        self._slots = 0

    def came(self, size: int) -> None:
        """Count a DATA frame's bytes, whoever they were for.

        Raises:
            ConnectionFault: more than was allowed.
        """
        self._window -= size
        if self._window < 0:
            raise ConnectionFault(Fault.FLOW_CONTROL_ERROR, "more data than the connection's window")
        if self._window < CONNECTION_WINDOW // 2:
            self._transport.write(write_number(Kind.WINDOW_UPDATE, 0, CONNECTION_WINDOW - self._window))
            self._window = CONNECTION_WINDOW

    def allow(self, call: Call) -> None:
        """Let a call's client send on, as far as there is room."""
        missing = call.assembler.missing
        room = FIRST_WINDOW - call.queued - call.assembler.held
        if call.slot and not missing:
            self.release(call)
        elif missing > max(call.window, room):
            if not call.slot and not call.queued and self._slots < LARGE_AT_ONCE and self._admitted(call):
                call.slot = True
                self._slots += 1
                call.waits_since = time.monotonic()
            if call.slot:
                room = missing
        more = room - call.window
        if more >= FIRST_WINDOW // 2 or (more > 0 and call.window < missing):
            call.window += more
            self._transport.write(write_number(Kind.WINDOW_UPDATE, call.stream, more))

    def release(self, call: Call) -> None:
        """A call's large message is there, or no longer wanted: the next may be sent."""
        if not call.slot:
            return
        call.slot = False
        self._slots -= 1
        for other in self._calls.values():
            if other is not call and other.assembler.missing > other.window and not other.ended:
                self.allow(other)
                if other.slot:
                    return
