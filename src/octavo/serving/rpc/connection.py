"""One client's connection: HTTP/2 frames in, calls to their methods, answers out.

What a client may do without end (open streams, take calls back, ping, send headers, leave things half done, read
nothing) has a limit here; see `limits.py`. `sweep` is called once a second instead of one timer per call.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, cast

from octavo.serving.rpc import limits
from octavo.serving.rpc.call import Call
from octavo.serving.rpc.calls import Calls
from octavo.serving.rpc.frames import (
    ACK,
    END_HEADERS,
    END_STREAM,
    FIRST_WINDOW,
    LARGEST_FRAME,
    PADDED,
    PREFACE,
    PRIORITY,
    ConnectionFault,
    Fault,
    Kind,
    Setting,
    read_frames,
    read_number,
    read_settings,
    unpadded,
    write_frame,
    write_goaway,
    write_number,
    write_settings,
)
from octavo.serving.rpc.head import HeadReader
from octavo.serving.rpc.inflow import CONNECTION_WINDOW
from octavo.serving.rpc.messages import PREFIX
from octavo.serving.rpc.status import Code, Refused

if TYPE_CHECKING:
    from octavo.serving.rpc.server import GrpcServer

log = logging.getLogger("octavo.serving.grpc")

_GREETING = write_settings(
    {
        Setting.MAX_CONCURRENT_STREAMS: limits.MAX_STREAMS,
        Setting.MAX_FRAME_SIZE: LARGEST_FRAME,
        Setting.MAX_HEADER_LIST_SIZE: limits.MAX_HEADERS,
    }
) + write_number(Kind.WINDOW_UPDATE, 0, CONNECTION_WINDOW - FIRST_WINDOW)
_SPOKEN = b"This port speaks gRPC over plaintext HTTP/2.\n"
_NOT_HTTP2 = (
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%s"
    % (len(_SPOKEN), _SPOKEN)
)
_DATA, _HEADERS, _CONTINUATION = int(Kind.DATA), int(Kind.HEADERS), int(Kind.CONTINUATION)


class _Block:
    """A header block whose continuations are still to come."""

    __slots__ = ("ends", "pieces", "since", "size", "stream")

    def __init__(self, stream: int, ends: bool) -> None:
        self.stream = stream
        self.ends = ends
        self.pieces: list[bytes] = []
        self.size = 0
        self.since = time.monotonic()


class Connection(asyncio.Protocol):
    """See the module's description.

    Args:
        server: what all connections share.
    """

    def __init__(self, server: GrpcServer) -> None:
        self._server = server
        self._heads = HeadReader()
        self._patience = limits.Patience()
        self._rest = b""
        self._greeted = False  # the client's preface came
        self._settled = False  # and its settings
        self._block: _Block | None = None
        self._last = 0  # the highest stream the client has opened
        self._draining = False
        self._closed_since: float | None = None
        self._heard = True
        self._quiet_since = time.monotonic()
        self._pinged_at: float | None = None

    # The transport's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say what is taken."""
        self._transport = cast(asyncio.Transport, transport)
        self._calls = Calls(self._server, self._transport, self._patience, self._idle)
        self._server.connections.add(self)
        self._transport.write(_GREETING)
        if len(self._server.connections) > self._server.limits.connections:
            self._farewell(ConnectionFault(Fault.ENHANCE_YOUR_CALM, "too many connections"))

    def data_received(self, data: bytes) -> None:
        """Take whole frames; keep the rest."""
        self._heard = True
        if self._closed_since is not None:
            return
        buffer = self._rest + data if self._rest else data
        try:
            if not self._greeted:
                buffer = self._greet(buffer)
            frames, self._rest = read_frames(buffer) if self._greeted else ([], buffer)
            for kind, flags, stream, payload in frames:
                if self._block is not None and kind != _CONTINUATION:
                    raise ConnectionFault(Fault.PROTOCOL_ERROR, "a header block was not continued")
                if kind == _DATA:
                    self._take_data(flags, stream, payload)
                elif kind == _HEADERS:
                    self._take_headers(flags, stream, payload)
                else:
                    self._take_other(kind, flags, stream, payload)
                if self._closed_since is not None:
                    return
        except ConnectionFault as fault:
            self._farewell(fault)

    def pause_writing(self) -> None:
        """The client reads too slowly."""
        self._calls.outflow.paused_since = time.monotonic()

    def resume_writing(self) -> None:
        """It has read."""
        self._calls.outflow.paused_since = None
        self._calls.outflow.pump()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody is there any more."""
        self._closed_since = self._closed_since or time.monotonic()
        self._server.connections.discard(self)
        for call in list(self._calls.open.values()):
            self._calls.drop(call)

    # The server's side.

    @property
    def calls(self) -> tuple[Call, ...]:
        """Those that are under way."""
        return tuple(self._calls.open.values())

    def drain(self) -> None:
        """Take no more calls; close when those under way are answered."""
        if not self._draining and self._closed_since is None:
            self._draining = True
            self._transport.write(write_goaway(self._last, Fault.NO_ERROR, "the server stops"))
            if not self._calls.open:
                self._close()

    def stop(self) -> None:
        """End the calls under way."""
        for call in list(self._calls.open.values()):
            self._calls.stop(call, Refused(Code.UNAVAILABLE, "the server stops"))

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()

    def sweep(self, now: float) -> None:
        """Once a second: end what takes too long, and look whether the client still lives."""
        patient = self._server.limits.message_seconds
        if self._closed_since is not None:
            if now - self._closed_since > limits.PONG_SECONDS:
                self._transport.abort()
            return
        self._patience.second()
        if not self._settled and now - self._quiet_since > limits.PREFACE_SECONDS:
            self._farewell(ConnectionFault(Fault.PROTOCOL_ERROR, "no settings came"))
            return
        if self._block is not None and now - self._block.since > limits.PREFACE_SECONDS:
            self._farewell(ConnectionFault(Fault.PROTOCOL_ERROR, "a header block was not ended"))
            return
        if self._calls.outflow.paused_since is not None and now - self._calls.outflow.paused_since > patient:
            self._transport.abort()
            return
        for call in list(self._calls.open.values()):
            self._sweep_call(call, now, patient)
        self._keep_alive(now)

    def _sweep_call(self, call: Call, now: float, patient: float) -> None:
        if call.stalled_since is not None and now - call.stalled_since > patient:
            self._calls.abandon(call, Fault.CANCEL)
        elif call.deadline is not None and now > call.deadline:
            self._calls.stop(call, Refused(Code.DEADLINE_EXCEEDED, "the call's deadline passed"))
        elif call.waits_since is not None and now - call.waits_since > patient and not call.held_back:
            self._calls.stop(call, Refused(Code.DEADLINE_EXCEEDED, f"a message took over {patient:g} seconds to come"))

    def _keep_alive(self, now: float) -> None:
        if self._heard:
            self._heard, self._quiet_since, self._pinged_at = False, now if self._settled else self._quiet_since, None
        elif self._pinged_at is not None:
            if now - self._pinged_at > limits.PONG_SECONDS:
                self._transport.abort()
        elif now - self._quiet_since > limits.IDLE_SECONDS:
            self._pinged_at = now
            self._transport.write(write_frame(Kind.PING, 0, 0, b"octavo??"))

    # What comes.

    def _greet(self, buffer: bytes) -> bytes:
        if not PREFACE.startswith(buffer[: len(PREFACE)]):
            self._closed_since = time.monotonic()
            if buffer[:1].isalpha():  # HTTP/1.1, from a browser perhaps; a TLS greeting is not worth an answer
                self._transport.write(_NOT_HTTP2)
            self._transport.close()
        elif len(buffer) >= len(PREFACE):
            self._greeted = True
            return buffer[len(PREFACE) :]
        return buffer

    def _take_data(self, flags: int, stream: int, payload: bytes) -> None:
        size = len(payload)
        self._calls.inflow.came(size)
        call = self._calls.open.get(stream)
        if call is None or call.gone or call.late is not None:
            self._after_end(stream)
            return
        if call.ended:
            self._calls.abandon(call, Fault.STREAM_CLOSED)
            return
        call.window -= size
        if call.window < 0:
            self._calls.abandon(call, Fault.FLOW_CONTROL_ERROR)
            return
        if flags & PADDED:
            payload = unpadded(payload)
        if payload:
            try:
                found = call.assembler.feed(payload)
            except Refused as refused:
                self._calls.stop(call, refused)
                return
            if found:
                self._patience.call()
                call.received += found
                call.queued += sum(len(raw) for _, raw in found) + PREFIX * len(found)
            elif len(payload) < limits.SMALL_PIECE:
                self._idle_frame()
        elif not flags & END_STREAM:
            self._idle_frame()
        if flags & END_STREAM:
            self._calls.ended(call)
            return
        if not call.assembler.held and call.method.unary is None:
            call.waits_since = None
        elif call.waits_since is None:
            call.waits_since = time.monotonic()
        if call.received:
            call.arrived()
        self._calls.inflow.allow(call)

    def _take_headers(self, flags: int, stream: int, payload: bytes) -> None:
        if not stream & 1:
            raise ConnectionFault(Fault.PROTOCOL_ERROR, "headers on a stream that is no client's")
        if flags & PADDED:
            payload = unpadded(payload)
        if flags & PRIORITY:
            if len(payload) < 5:
                raise ConnectionFault(Fault.FRAME_SIZE_ERROR, "a priority is cut")
            payload = payload[5:]
        if flags & END_HEADERS:
            self._take_block(stream, payload, bool(flags & END_STREAM))
        else:
            self._block = _Block(stream, bool(flags & END_STREAM))
            self._continue(self._block, payload)

    def _continue(self, block: _Block, piece: bytes) -> None:
        block.pieces.append(piece)
        block.size += len(piece)
        if block.size > limits.MAX_BLOCK or len(block.pieces) > limits.MAX_CONTINUATIONS + 1:
            raise ConnectionFault(Fault.ENHANCE_YOUR_CALM, "a header block without an end")

    def _take_block(self, stream: int, block: bytes, ends: bool) -> None:
        head = self._heads.read(block)
        call = self._calls.open.get(stream)
        if call is not None:
            if not ends:
                self._calls.abandon(call, Fault.PROTOCOL_ERROR)
            elif not (call.ended or call.gone or call.late):
                self._calls.ended(call)
        elif stream <= self._last:
            self._after_end(stream)
        else:
            self._last = stream
            self._patience.call()
            if head is None:
                self._calls.reset(stream, Fault.PROTOCOL_ERROR)
            elif self._draining or len(self._calls.open) >= limits.MAX_STREAMS:
                self._calls.reset(stream, Fault.REFUSED_STREAM)
            else:
                self._calls.begin(stream, head, ends)

    def _take_other(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == Kind.WINDOW_UPDATE:
            self._take_window(stream, payload)
        elif kind == Kind.RST_STREAM:
            self._take_reset(stream, payload)
        elif kind == _CONTINUATION:
            self._take_continuation(flags, stream, payload)
        elif kind == Kind.PUSH_PROMISE:
            raise ConnectionFault(Fault.PROTOCOL_ERROR, "clients promise nothing")
        elif kind == Kind.PRIORITY:
            if len(payload) != 5 or not stream:
                raise ConnectionFault(Fault.FRAME_SIZE_ERROR, "a priority is cut")
        elif kind in (Kind.SETTINGS, Kind.PING, Kind.GOAWAY):
            if stream:
                raise ConnectionFault(Fault.PROTOCOL_ERROR, "a frame of the connection on a stream")
            self._take_control(kind, flags, payload)
        self._idle_frame()

    def _take_control(self, kind: int, flags: int, payload: bytes) -> None:
        if kind == Kind.GOAWAY:
            self._draining = True
            if not self._calls.open:
                self._close()
        elif kind == Kind.PING:
            if len(payload) != 8:
                raise ConnectionFault(Fault.FRAME_SIZE_ERROR, "a ping has eight bytes")
            if not flags & ACK:
                self._transport.write(write_frame(Kind.PING, ACK, 0, payload))
        elif flags & ACK:
            if payload:
                raise ConnectionFault(Fault.FRAME_SIZE_ERROR, "settings that are confirmed are empty")
        else:
            settings = read_settings(payload)
            self._settled = True
            self._transport.write(write_frame(Kind.SETTINGS, ACK, 0))
            self._calls.outflow.apply(settings, list(self._calls.open.values()))

    def _take_window(self, stream: int, payload: bytes) -> None:
        more = read_number(payload) & (2**31 - 1)
        call = self._calls.open.get(stream)
        if stream and call is None:
            self._after_end(stream)
            return
        if not more:
            if call is None:
                raise ConnectionFault(Fault.PROTOCOL_ERROR, "a window grows by nothing")
            self._calls.abandon(call, Fault.PROTOCOL_ERROR)
            return
        try:
            self._calls.outflow.grow(call, more)
        except OverflowError:
            if call is not None:
                self._calls.abandon(call, Fault.FLOW_CONTROL_ERROR)

    def _take_reset(self, stream: int, payload: bytes) -> None:
        read_number(payload)
        call = self._calls.open.get(stream)
        if call is None:
            self._after_end(stream)
            return
        if not self._patience.reset():
            raise ConnectionFault(Fault.ENHANCE_YOUR_CALM, "too many calls were taken back")
        self._calls.drop(call)

    def _take_continuation(self, flags: int, stream: int, payload: bytes) -> None:
        block = self._block
        if block is None or block.stream != stream:
            raise ConnectionFault(Fault.PROTOCOL_ERROR, "a continuation of nothing")
        self._continue(block, payload)
        if flags & END_HEADERS:
            self._block = None
            self._take_block(stream, b"".join(block.pieces), block.ends)

    def _after_end(self, stream: int) -> None:
        """A frame for a call that is over: it crossed the answer on its way. One never begun has none."""
        if stream > self._last or not stream & 1:
            raise ConnectionFault(Fault.PROTOCOL_ERROR, f"stream {stream} was never opened")
        self._idle_frame()

    def _idle_frame(self) -> None:
        if not self._patience.idle_frame():
            raise ConnectionFault(Fault.ENHANCE_YOUR_CALM, "too many frames that carry nothing")

    # The end.

    def _farewell(self, fault: ConnectionFault) -> None:
        log.info("a client's connection is closed: %s", fault)
        self._transport.write(write_goaway(self._last, fault.fault, str(fault)))
        self._close()

    def _idle(self) -> None:
        """The last call is over."""
        if self._draining:
            self._close()

    def _close(self) -> None:
        if self._closed_since is None:
            self._closed_since = time.monotonic()
            self._transport.close()
