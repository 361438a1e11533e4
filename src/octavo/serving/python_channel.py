"""The control channel between the server and a Python model's worker: length-prefixed JSON over a Unix socket.

One question, one answer, in turn. File descriptors of shared memory may ride on a question; tensors never do.
"""

from __future__ import annotations

import select
import socket
import struct
import time
from collections.abc import Sequence
from typing import Any

import orjson

Message = dict[str, Any]

MAX_MESSAGE = 64 * 2**20
_CHUNK = 64 * 1024
_LENGTH = struct.Struct("<I")


class Channel:
    """One end of the socket.

    Args:
        sock: a connected stream socket, which the channel owns from here on.
        death: a pidfd of the process at the other end, or -1. A worker's own children may hold its end of the socket
            open, so that the end of file alone would not tell of its death.
    """

    def __init__(self, sock: socket.socket, death: int = -1) -> None:
        self._sock = sock
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        if death >= 0:
            self._poll.register(death, select.POLLIN)

    def send(self, message: Message, descriptors: Sequence[int] = (), timeout: float | None = None) -> None:
        """Send one message.

        Raises:
            TimeoutError: the other side did not read it in `timeout` seconds.
            EOFError: the other side is gone.
        """
        body = orjson.dumps(message)
        data = _LENGTH.pack(len(body)) + body
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{len(descriptors)}i", *descriptors))]
        self._sock.settimeout(timeout)
        try:
            sent = self._sock.sendmsg([data], rights if descriptors else [])
            if sent < len(data):
                self._sock.sendall(data[sent:])
        except TimeoutError:
            raise
        except OSError as error:
            raise EOFError(f"the channel is closed: {error}") from None

    def receive(self, timeout: float | None = None, descriptors: int = 0) -> tuple[Message, list[int]]:
        """The next message, and up to `descriptors` file descriptors that came with it.

        Raises:
            TimeoutError: it did not come in `timeout` seconds.
            EOFError: the other side is gone.
            ValueError: what came is not a message.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        space = socket.CMSG_SPACE(4 * descriptors) if descriptors else 0
        data = bytearray()
        received: list[int] = []
        want = _LENGTH.size
        while len(data) < want:
            self._wait(deadline)
            try:
                chunk, ancillary, _, _ = self._sock.recvmsg(_CHUNK, space, socket.MSG_CMSG_CLOEXEC)
            except OSError as error:
                raise EOFError(f"the channel is closed: {error}") from None
            if not chunk:
                raise EOFError("the channel is closed")
            for level, kind, raw in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    received += struct.unpack(f"{len(raw) // 4}i", raw)
            data += chunk
            if want == _LENGTH.size <= len(data):
                (size,) = _LENGTH.unpack_from(data)
                if size > MAX_MESSAGE:
                    raise ValueError(f"a message of {size} bytes")
                want += size
        message = orjson.loads(memoryview(data)[_LENGTH.size : want])
        if not isinstance(message, dict):
            raise ValueError("a message that is not an object")
        return message, received

    def close(self) -> None:
        """Close this end."""
        self._sock.close()

    def _wait(self, deadline: float | None) -> None:
        left = None if deadline is None else max(0.0, (deadline - time.monotonic()) * 1000)
        ready = [descriptor for descriptor, _ in self._poll.poll(left)]
        if not ready:
            raise TimeoutError("no answer in time")
        # A worker that answered and then died has answered: its death counts only when nothing is left to read.
        if self._sock.fileno() not in ready:
            raise EOFError("the process at the other end has died")
