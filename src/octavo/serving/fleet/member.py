"""A replica as the front knows it: how to call it, what it told last, what it has been asked and not answered."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Any, Protocol

from octavo.serving.fleet.report import Report

STARTING, READY, SUSPECT, DRAINING, LOST = "STARTING", "READY", "SUSPECT", "DRAINING", "LOST"


class ReplicaLost(Exception):
    """The replica, its node or the way there is gone; what was asked may have been done or not.

    Args:
        why: for the log.
        final: it will not come back.
    """

    def __init__(self, why: str, final: bool = True) -> None:
        super().__init__(why)
        self.final = final


class Link(Protocol):
    """The way to a replica that runs elsewhere."""

    def call(self, method: str, *arguments: Any) -> Awaitable[Any]:
        """Ask a method of `Replica`.

        Calls begin there in the order in which they are made here.

        Raises:
            ReplicaLost: there is no answer and none will come.
            ModelFailed: the method raised what it should not.
        """

    async def node(self) -> str:
        """The name of its node, once it runs; raises `ReplicaLost`."""

    def kill(self) -> None:
        """End it, whatever it does."""


class Cluster(Protocol):
    """Where replicas run."""

    def launch(self) -> Link:
        """Begin another replica; it may wait for room."""

    async def nodes(self) -> list[str]:
        """The names of the nodes that live."""

    async def close(self) -> None:
        """Leave; a cluster of our own ends."""


@dataclass(eq=False)
class Member:
    """A replica of the fleet.

    Attributes:
        id: a slot of the fleet, as `r1`; whoever takes a lost one's slot gets its models.
        keys: as `Report.keys`, and what was sent there since.
        launched, heard: when it was, and when it told something last; `time.monotonic()` seconds.
        listening: reports asked for and not given yet.
    """

    id: str
    link: Link
    launched: float
    heard: float
    state: str = STARTING
    node: str = ""
    report: Report | None = None
    keys: set[str] = field(default_factory=set)
    answered: int = 0
    listening: int = 0
    _calls: set[asyncio.Future[Any]] = field(default_factory=set)

    @property
    def in_flight(self) -> int:
        """Calls that it has not answered."""
        return len(self._calls)

    async def ask(self, method: str, *arguments: Any) -> Any:
        """Call it for a request: counted in `in_flight`, and ended by `give_up`.

        Raises:
            ReplicaLost: it is gone, or the front has given it up.
        """
        call = asyncio.ensure_future(self.link.call(method, *arguments))
        self._calls.add(call)
        try:
            return await call
        except asyncio.CancelledError:
            waiter = asyncio.current_task()
            if waiter is not None and waiter.cancelling():
                raise
            raise ReplicaLost(f"{self.id} was given up") from None
        finally:
            self._calls.discard(call)

    def give_up(self) -> None:
        """End what it has not answered, so that whoever waits asks another one."""
        for call in list(self._calls):
            call.cancel()
