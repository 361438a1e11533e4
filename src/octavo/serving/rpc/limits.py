"""What one client may take of the gRPC door."""

from __future__ import annotations

from dataclasses import dataclass

MAX_STREAMS = 256
"""Calls at a time on one connection; a client waits with more."""

MAX_HEADERS = 16 * 2**10
"""Bytes of one call's headers, unpacked."""

MAX_BLOCK = 32 * 2**10
"""Bytes of one header block, packed, with its continuations."""

MAX_CONTINUATIONS = 8
"""Frames of one header block besides its first."""

SMALL_PIECE = 64
"""Bytes; a frame with less of a message, which does not end it, counts as one that carries nothing."""

LARGE_AT_ONCE = 4
"""Messages larger than a window that one connection may be sending; its others wait."""

PREFACE_SECONDS = 15.0
"""For the first frames of a connection, and for the rest of a header block."""

IDLE_SECONDS = 60.0
"""Without a sign of life; then a client is asked for one, whether it has calls or not."""

PONG_SECONDS = 20.0
"""For that sign."""

_MOST_IDLE_FRAMES = 2000.0
_MOST_RESETS = 1000.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What is set by whoever runs the server.

    Attributes:
        message: bytes of one message, packed and unpacked.
        connections: open at a time.
        calls: under way at a time, over all connections.
        message_seconds: that a client may take to send one message, or to read a piece of an answer.
    """

    message: int
    connections: int
    calls: int
    message_seconds: float


class Patience:
    """How much of a connection's traffic was of no use: floods of pings, settings, empty frames or calls taken back.

    Each costs a little and is forgiven with time. What real clients do for each call (a window update, a ping that
    measures the line) is paid for by that call, and by the bytes of its answer.
    """

    __slots__ = ("_frames", "_resets")

    def __init__(self) -> None:
        self._frames = 0.0
        self._resets = 0.0

    def idle_frame(self) -> bool:
        """Count a frame that carries nothing; False when there were too many."""
        self._frames += 1
        return self._frames <= _MOST_IDLE_FRAMES

    def reset(self) -> bool:
        """Count a call that the client took back; False when there were too many."""
        self._resets += 1
        return self._resets <= _MOST_RESETS

    def call(self) -> None:
        """A call, or a message of one: it pays for some frames around it."""
        self._frames = max(0.0, self._frames - 8)

    def answered(self) -> None:
        """A call was answered: another may be taken back, as clients do whose deadlines are short."""
        self._resets = max(0.0, self._resets - 1)

    def sent(self, size: int) -> None:
        """Bytes of an answer went out: they pay for the window updates they cause."""
        self._frames = max(0.0, self._frames - size / 2048)

    def second(self) -> None:
        """A second has passed."""
        self._frames = max(0.0, self._frames - _MOST_IDLE_FRAMES / 20)
        self._resets = max(0.0, self._resets - _MOST_RESETS / 20)
