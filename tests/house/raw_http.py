"""HTTP byte by byte, for what no client would send."""

from __future__ import annotations

import contextlib
import socket

from .live_server import TOKEN, LiveServer


def exchange(server: LiveServer, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
    """Send a request byte by byte as given; its status and body."""
    with server.connect() as wire:
        wire.sendall(head_of(method, path, f"content-length: {len(body)}") + body)
        status, _, answer = read_answer(wire)
    return status, answer


def head_of(method: str, path: str, *more: str) -> bytes:
    """A request's head."""
    lines = [f"{method} {path} HTTP/1.1", "host: 127.0.0.1", f"authorization: Bearer {TOKEN}", *more]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def read_answer(wire: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """One answer: status, headers, body."""
    raw = b""
    while b"\r\n\r\n" not in raw:
        raw += (piece := wire.recv(2**16))
        assert piece, raw
    head, _, body = raw.partition(b"\r\n\r\n")
    first, *rest = head.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in rest)}
    while len(body) < int(headers.get("content-length", "0")):
        body += (piece := wire.recv(2**16))
        assert piece, raw
    return int(first.split()[1]), headers, body


def read_until_closed(wire: socket.socket) -> int:
    """Bytes that still come before the server hangs up."""
    count = 0
    with contextlib.suppress(ConnectionResetError):  # hung up without reading what was on its way
        while piece := wire.recv(2**16):
            count += len(piece)
    return count
