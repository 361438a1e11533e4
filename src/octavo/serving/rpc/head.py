"""The headers of a call, read once: what is asked for, and what goes with it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from octavo.serving.rpc.frames import ConnectionFault, Fault
from octavo.serving.rpc.hpack import CompressionFault, Decoder, Header, HeadersTooLarge
from octavo.serving.rpc.limits import MAX_BLOCK, MAX_HEADERS
from octavo.serving.rpc.messages import PACKINGS
from octavo.serving.rpc.status import Code, Refused

_KNOWN_HEADS = 16
_SHORT_BLOCK = 512  # bytes; clients that repeat themselves send less
_PSEUDO = frozenset((b":method", b":path", b":scheme", b":authority"))
_OF_HTTP1 = frozenset((b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"))
_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
_TIMEOUT = re.compile(rb"(\d{1,8})([HMSmun])")
_SECONDS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}


class Malformed(Exception):
    """Headers that break HTTP/2's rules: the stream ends without an answer."""


class Head(NamedTuple):
    """What a call's headers say.

    Attributes:
        path: `/package.Service/Method`.
        metadata: the other headers; of one sent twice, the last.
        timeout: seconds the client waits; None when it does not say.
        packing: what messages are packed with; empty for nothing.
        http_status: what a client that speaks no gRPC is answered; 200 for one that does.
        refused: why the call cannot be taken, apart from that.
    """

    path: bytes
    metadata: Mapping[str, str]
    timeout: float | None = None
    packing: bytes = b""
    http_status: int = 200
    refused: Refused | None = None


def read_head(headers: Sequence[Header]) -> Head:
    """The head of a call.

    Raises:
        Malformed: they break HTTP/2's rules.
    """
    pseudo: dict[bytes, bytes] = {}
    fields: dict[bytes, bytes] = {}
    for name, value in headers:
        if name[:1] == b":":
            if fields or name in pseudo or name not in _PSEUDO:
                raise Malformed(f"header {name!r} is out of place")
            pseudo[name] = value
            continue
        if not _NAME.fullmatch(name) or name in _OF_HTTP1 or b"\r" in value or b"\n" in value or b"\0" in value:
            raise Malformed(f"header {name!r} is none")
        fields[name] = value
    if b":method" not in pseudo or not pseudo.get(b":path", b"").startswith(b"/"):
        raise Malformed("no method or no path")
    metadata = {name.decode(): value.decode("latin-1") for name, value in fields.items()}
    head = Head(pseudo[b":path"], metadata)
    kind = fields.get(b"content-type", b"")
    if pseudo[b":method"] != b"POST":
        return head._replace(http_status=405)
    if not (kind in (b"application/grpc", b"application/grpc+proto") or kind.startswith(b"application/grpc;")):
        return head._replace(http_status=415)
    packing = fields.get(b"grpc-encoding", b"identity")
    if packing == b"identity":
        packing = b""
    elif packing not in PACKINGS:
        why = f"messages packed with {packing[:40].decode('latin-1')!r} are not taken"
        return head._replace(refused=Refused(Code.UNIMPLEMENTED, why))
    timeout = fields.get(b"grpc-timeout")
    if timeout is None:
        return head._replace(packing=packing)
    found = _TIMEOUT.fullmatch(timeout)
    if found is None:
        return head._replace(refused=Refused(Code.INVALID_ARGUMENT, "'grpc-timeout' is no time"))
    return head._replace(packing=packing, timeout=int(found[1]) * _SECONDS[found[2]])


class HeadReader:
    """Reads the header blocks of one connection, in the order in which they come."""

    def __init__(self) -> None:
        self._decoder = Decoder()
        self._known: dict[bytes, Head] = {}

    def read(self, block: bytes) -> Head | None:
        """What a header block says; None when it breaks HTTP/2's rules.

        Equal blocks say the same until the table changes, and clients send nearly the same for every call.
        """
        known = self._known.get(block)
        if known is not None:
            return known
        if len(block) > MAX_BLOCK:
            raise ConnectionFault(Fault.ENHANCE_YOUR_CALM, "a header block without an end")
        before = self._decoder.changes
        head: Head | None = None
        try:
            head = read_head(self._decoder.decode(block, MAX_HEADERS))
        except CompressionFault as fault:
            raise ConnectionFault(Fault.COMPRESSION_ERROR, str(fault)) from None
        except HeadersTooLarge:
            why = f"the call's headers have over {MAX_HEADERS} bytes"
            head = Head(b"", {}, refused=Refused(Code.RESOURCE_EXHAUSTED, why))
        except Malformed:
            pass
        if self._decoder.changes != before:
            self._known.clear()
        elif head is not None and len(block) <= _SHORT_BLOCK:
            if len(self._known) >= _KNOWN_HEADS:
                self._known.clear()
            self._known[block] = head
        return head
