"""The replicas there are: launched, listened to, replaced when they are lost, let go when they are too many.

All state lives on one event loop. What replicas told last is a moment old, which costs a load where a model has just
left and never an answer.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from octavo.errors import OctavoError, Unavailable
from octavo.serving.fleet.member import DRAINING, LOST, READY, STARTING, SUSPECT, Cluster, Member, ReplicaLost
from octavo.serving.fleet.replica import settings_for_replicas
from octavo.serving.fleet.report import Report
from octavo.serving.fleet.scaling import Tracker, policy_of
from octavo.settings import Settings

log = logging.getLogger("octavo.serving.fleet")

_CHILDHOOD = 60.0  # seconds; one that is lost before is the next one's warning
_LONGEST_PAUSE = 60.0
_STOP_SECONDS = 20.0
_LOOK = 0.05


class Replicas:
    """The replicas of a fleet; made on the event loop that uses them.

    Args:
        settings: the server's.
        told: called with every report.

    Attributes:
        members: all of them.
        tracker: says how many are wanted.
        trouble: what went wrong last; empty once a replica has come since.
        lost: how many were lost.
    """

    def __init__(self, settings: Settings, told: Callable[[Report], None]) -> None:
        self.members: list[Member] = []
        self.tracker = Tracker(policy_of(settings.fleet), time.monotonic, time.time)
        self.lost = 0
        self.trouble = ""
        self._cluster: Cluster | None = None
        self._settings = settings_for_replicas(settings)
        self._limits = settings.fleet
        self._told = told
        self._change = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._setbacks = 0
        self._not_before = 0.0
        self._looked = time.monotonic()

    @property
    def ready(self) -> list[Member]:
        """Those that take requests."""
        return [member for member in self.members if member.state == READY]

    @property
    def answering(self) -> list[Member]:
        """Those that can be asked, requests or not."""
        return [member for member in self.members if member.state not in (STARTING, LOST)]

    async def start(self, cluster: Cluster) -> None:
        """Begin on a cluster, which is closed with them, and wait for the first replica.

        Raises:
            Unavailable: none came in `fleet.start_seconds`.
        """
        self._cluster = cluster
        self._spawn(self._keep(cluster))
        deadline = time.monotonic() + self._limits.start_seconds
        while not self.ready:
            if time.monotonic() >= deadline:
                what = f"no replica started in {self._limits.start_seconds:g} s"
                fix = "Has the cluster a node with fleet.replica_cpus free? `ray status` tells."
                raise Unavailable(f"{what}; {self.trouble}" if self.trouble else what, "fleet", fix, 10.0)
            await self.changed(deadline)

    async def close(self) -> None:
        """Stop all and leave the cluster."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(self._stop(member) for member in self.members))
        self.members.clear()
        if self._cluster is not None:
            await self._cluster.close()

    async def nodes(self) -> list[str]:
        """The names of the cluster's nodes that live."""
        return await self._cluster.nodes() if self._cluster is not None else []

    async def changed(self, deadline: float) -> None:
        """Until one comes or goes, or the deadline (`time.monotonic()`) has passed."""
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                await self._change.wait()

    async def look(self, measured: bool = False) -> None:
        """Have all report; `measured` has them look at their memory first."""
        await asyncio.gather(*(self._hear(member, measured) for member in self.answering))

    def suspect(self, member: Member) -> None:
        """A call to it was lost: it gets no requests until it reports."""
        if member.state == READY:
            member.state = SUSPECT
            self._spawn(self._hear(member))

    async def _keep(self, cluster: Cluster) -> None:
        """Every now and then: have all report, replace what is lost, grow and shrink."""
        while True:
            try:
                self._miss()
                for member in self.answering:
                    if not member.listening:
                        self._spawn(self._hear(member))
                told = [member.report.snapshot for member in self.ready if member.report]
                self.tracker.look([(one.charged_bytes, one.budget_bytes) for one in told])
                self._fit(cluster)
            except Exception:
                log.exception("the fleet was not looked after")
                self._not_before = time.monotonic() + _LONGEST_PAUSE
            await asyncio.sleep(self._limits.report_seconds)

    def _miss(self) -> None:
        """Give up those that have been silent too long; not when it was the front that did not listen."""
        now = time.monotonic()
        deaf, self._looked = now - self._looked > self._limits.lost_seconds / 2, now
        for member in self.answering:
            if deaf:
                member.heard = now
            elif now - member.heard > self._limits.lost_seconds:
                self._lose(member, f"it was silent for {now - member.heard:.0f} s")

    def _fit(self, cluster: Cluster) -> None:
        """Launch or let go as many as lack or exceed: those that still start go first, then the emptiest."""
        present = [member for member in self.members if member.state not in (DRAINING, LOST)]
        lack = self.tracker.capacity - len(present)
        if lack > 0 and time.monotonic() >= self._not_before:
            for _ in range(lack):
                self._launch(cluster)
        going = sorted(present, key=lambda one: (one.state != STARTING, len(one.keys), -one.launched))
        for member in going[: max(0, -lack)]:
            self._retire(member)

    def _launch(self, cluster: Cluster) -> None:
        taken = {member.id for member in self.members}
        free = next(name for name in (f"r{number}" for number in range(1, len(taken) + 2)) if name not in taken)
        now = time.monotonic()
        member = Member(free, cluster.launch(), now, now)
        self.members.append(member)
        self._spawn(self._begin(member))

    async def _begin(self, member: Member) -> None:
        """Wait until it has a place and answers."""
        try:
            member.node = await member.link.node()
            member.launched = time.monotonic()  # the wait for a place does not count
            error = await member.link.call("start", self._settings)
            if isinstance(error, OctavoError):
                raise error
        except (ReplicaLost, OctavoError) as error:
            self._lose(member, f"it does not start: {error}")
            return
        await self._hear(member)
        if member.state != STARTING:
            return
        if member.report is None:
            self._lose(member, "it started and does not report")
            return
        member.state, self.trouble = READY, ""
        log.info("replica %s answers on node %s", member.id, member.node)
        self._announce()

    async def _hear(self, member: Member, measured: bool = False) -> None:
        member.listening += 1
        try:
            report: Report = await member.link.call("report", measured)
        except (ReplicaLost, OctavoError) as error:
            if getattr(error, "final", True):
                self._lose(member, str(error))
            elif member.state == READY:
                member.state = SUSPECT  # and lost, if it stays silent
            return
        finally:
            member.listening -= 1
        member.report, member.heard, member.keys = report, time.monotonic(), set(report.keys)
        if member.state == SUSPECT:
            member.state = READY
            self._announce()
        self._told(report)

    def _lose(self, member: Member, why: str) -> None:
        """Take one out: what it has not answered goes to others, and another takes its slot."""
        if member.state == LOST or member not in self.members:
            return
        now = time.monotonic()
        draining, member.state = member.state == DRAINING, LOST
        self.members.remove(member)
        member.give_up()
        member.link.kill()
        self._announce()
        if draining:
            return
        self.lost += 1
        self.trouble = f"{member.id} on node {member.node or '?'}: {why}"
        log.warning("replica %s is lost: %s", member.id, why)
        self._setbacks = self._setbacks + 1 if now - member.launched < _CHILDHOOD else 0
        self._not_before = now + (min(_LONGEST_PAUSE, 2.0 ** (self._setbacks - 1)) if self._setbacks else 0.0)

    def _retire(self, member: Member) -> None:
        """Let one go, after what it is working on."""
        log.info("replica %s goes", member.id)
        waits = member.state != STARTING
        member.state = DRAINING
        self._spawn(self._drain(member) if waits else self._leave(member))

    async def _drain(self, member: Member) -> None:
        deadline = time.monotonic() + self._limits.drain_seconds
        while member.in_flight and time.monotonic() < deadline:
            await asyncio.sleep(_LOOK)
        member.give_up()
        await self._hear(member)
        await self._leave(member)

    async def _leave(self, member: Member) -> None:
        await self._stop(member)
        if member in self.members:
            self.members.remove(member)
        self._announce()

    async def _stop(self, member: Member) -> None:
        """Close one that answers, and end it."""
        if member.node:
            with suppress(ReplicaLost, OctavoError, TimeoutError):
                async with asyncio.timeout(_STOP_SECONDS):
                    await member.link.call("stop")
        member.link.kill()

    def _announce(self) -> None:
        """Wake all who wait in `changed`."""
        self._change.set()
        self._change = asyncio.Event()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
