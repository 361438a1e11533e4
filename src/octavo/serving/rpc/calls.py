"""The calls of one connection: how each begins, is worked on and ends."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from octavo.serving.rpc.call import Call
from octavo.serving.rpc.frames import END_HEADERS, END_STREAM, Fault, Kind, write_frame, write_number
from octavo.serving.rpc.head import Head
from octavo.serving.rpc.inflow import Inflow
from octavo.serving.rpc.limits import Patience
from octavo.serving.rpc.outflow import Outflow
from octavo.serving.rpc.status import TRAILERS_OK, Code, Refused, http_refusal, refusal, trailers

if TYPE_CHECKING:
    from octavo.serving.rpc.server import GrpcServer

log = logging.getLogger("octavo.serving.grpc")

FAILED = "the server failed; its log says why"
_LAST = END_HEADERS | END_STREAM


class Calls:
    """Those that are under way.

    Args:
        server: whose methods are called.
        transport: of the connection.
        patience: with the client.
        emptied: told when the last call is over.

    Attributes:
        open: by stream. One that nobody waits for any more stays until its task has ended, so that calls which are
            taken back at once never make more work than the limit of streams allows.
    """

    def __init__(
        self, server: GrpcServer, transport: asyncio.Transport, patience: Patience, emptied: Callable[[], None]
    ) -> None:
        self._server = server
        self._transport = transport
        self._patience = patience
        self._emptied = emptied
        self.open: dict[int, Call] = {}
        self.inflow = Inflow(transport, self.open, self._admitted)
        self.outflow = Outflow(transport, patience, self._over)

    def begin(self, stream: int, head: Head, ends: bool) -> None:
        """Take a call, or say why not; `ends` when its client has sent all with the headers."""
        method = self._server.methods.get(head.path)
        if head.http_status != 200:
            self._deny(stream, http_refusal(head.http_status), ends)
        elif head.refused is not None:
            self._deny(stream, refusal(head.refused), ends)
        elif method is None:
            what = head.path[:200].decode("latin-1")
            self._deny(stream, refusal(Refused(Code.UNIMPLEMENTED, f"there is no method {what}")), ends)
        elif self._server.calls >= self._server.limits.calls:
            self._deny(stream, refusal(Refused(Code.RESOURCE_EXHAUSTED, "too many calls are under way")), ends)
        else:
            call = Call(stream, method, head, self._server.limits.message, self.inflow, self.outflow)
            self.open[stream] = call
            self._server.calls += 1
            if method.unary is None:
                self._start(call)
            if ends:
                self.ended(call)
            elif method.unary is not None:
                call.waits_since = time.monotonic()

    def _deny(self, stream: int, block: bytes, ended: bool) -> None:
        self._transport.write(write_frame(Kind.HEADERS, _LAST, stream, block))
        if not ended:
            self.reset(stream, Fault.NO_ERROR)

    def ended(self, call: Call) -> None:
        """The client has sent all of a call."""
        call.ended = True
        call.waits_since = None
        self.inflow.release(call)
        if call.assembler.held:
            self.stop(call, Refused(Code.INTERNAL, "the call ends in the middle of a message"))
        elif call.method.unary is None:
            call.arrived()
        elif len(call.received) == 1:
            self._start(call)
        else:
            why = f"this method takes one message, {len(call.received)} came"
            self.stop(call, Refused(Code.UNIMPLEMENTED, why))

    def _admitted(self, call: Call) -> bool:
        """Whether a call may send a large message; who asks is looked at when that is first asked."""
        if call.admission is None:
            call.admission = self._server.loop.create_task(self._admit(call))
        return call.admitted

    async def _admit(self, call: Call) -> None:
        try:
            await self._server.admit(call.metadata)
        except Refused as refused:
            self.stop(call, refused)
        except Exception:
            log.exception("a call failed")
            self.stop(call, Refused(Code.INTERNAL, FAILED))
        else:
            call.admitted = True
            if self.open.get(call.stream) is call and not (call.gone or call.late):
                self.inflow.allow(call)

    def _start(self, call: Call) -> None:
        call.task = self._server.loop.create_task(self._work(call))

    async def _work(self, call: Call) -> None:
        call.started = True
        try:
            if call.method.unary is not None:
                message = call.take()
                answer = await call.method.unary(message[1] if not message[0] else await call.plain(message), call)
            elif call.method.stream is not None:
                await call.method.stream(call)
        except Refused as refused:
            self._refuse(call, refused)
        except asyncio.CancelledError:
            self._refuse(call, call.late or Refused(Code.CANCELLED, "the call was given up"))
        except Exception:
            log.exception("a call failed")
            self._refuse(call, Refused(Code.INTERNAL, FAILED))
        else:
            if call.gone:
                self._forget(call)
            elif call.method.unary is not None:
                self.outflow.answer(call, answer)
            else:
                self._finish(call, TRAILERS_OK)

    def _refuse(self, call: Call, refused: Refused) -> None:
        """End a call with a status; its task is through."""
        call.task = None
        if call.gone:
            self._forget(call)
        elif call.head_sent:
            self._finish(call, trailers(refused.code, refused.message, refused.metadata))
        else:
            call.head_sent = True
            self._finish(call, refusal(refused))

    def _finish(self, call: Call, block: bytes) -> None:
        if call.head_sent or block is not TRAILERS_OK:
            self.outflow.end(call, block)
        else:  # a stream without one answer
            call.head_sent = True
            self.outflow.end(call, refusal(Refused(Code.OK, "")))

    def _over(self, call: Call) -> None:
        """The answer is out."""
        self._patience.answered()
        if not call.ended and not call.gone:
            self.reset(call.stream, Fault.NO_ERROR)
        self._forget(call)

    def stop(self, call: Call, refused: Refused) -> None:
        """End a call from the server's side, whatever is done for it now."""
        if call.gone or call.late is not None or call.trailers is not None:
            return
        call.late = refused
        self.inflow.release(call)
        if call.task is not None:
            call.task.cancel()
        if call.task is None or not call.started:
            self._refuse(call, refused)

    def abandon(self, call: Call, fault: Fault) -> None:
        """End a call whose client broke a rule, without an answer."""
        self.reset(call.stream, fault)
        self.drop(call)

    def drop(self, call: Call) -> None:
        """Nobody waits for a call's answer. While its task ends, it still counts as under way."""
        if call.gone:
            return
        call.gone = True
        self.outflow.forget(call)
        self.inflow.release(call)
        if call.task is not None:
            call.task.cancel()
        if call.task is None or not call.started or call.task.done():
            self._forget(call)

    def _forget(self, call: Call) -> None:
        if self.open.pop(call.stream, None) is None:
            return
        self._server.calls -= 1
        self.inflow.release(call)
        if not self.open:
            self._emptied()

    def reset(self, stream: int, fault: Fault) -> None:
        """End a stream without an answer."""
        self._transport.write(write_number(Kind.RST_STREAM, stream, fault))
