"""Everything the server has open: rows, access, jobs and the service of every installed wing."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import psutil

from octavo.web.identity import principal_of
from octavo.web.wings import Wing, wings, work_modules

if TYPE_CHECKING:
    from octavo.access import Access
    from octavo.jobs import Jobs
    from octavo.settings import Settings
    from octavo.storage.database import Database

log = logging.getLogger("octavo.web")


@dataclass
class House:
    """What a running server holds; made by `open`, on the event loop that serves.

    `services` are the wings' by name; `started` is the time, in seconds since 1970.
    """

    settings: Settings
    database: Database
    access: Access
    jobs: Jobs | None = None
    services: dict[str, Any] = field(default_factory=dict)
    started: float = field(default_factory=time.time)
    listeners: list[Any] = field(default_factory=list)

    @classmethod
    async def open(cls, settings: Settings) -> House:
        """Open all, bottom floor first.

        Raises:
            OctavoError: something cannot be opened; what was open already is closed again.
        """
        from octavo.access import Access
        from octavo.storage.database import Database

        settings.workspace.mkdir(parents=True, exist_ok=True)
        database = Database(settings.database_url)
        await asyncio.to_thread(database.upgrade)
        house = cls(settings, database, Access.open(database, settings))
        try:
            house.jobs = await asyncio.to_thread(house._open_jobs)
            for wing in wings():
                if wing.installed:
                    house.services[wing.name] = await wing.open(settings)
        except BaseException:
            await house.close()
            raise
        return house

    async def listen(self, http_port: int) -> int:
        """Open the ports that wings have beside the HTTP one; the gRPC port, 0 when there is none."""
        authenticate = partial(principal_of, self.access)
        for wing, service in self.installed():
            door = wing.door("listener")
            found = await door.GrpcListener.open(service, self.settings, http_port, authenticate) if door else None
            if found is not None:
                self.listeners.append(found)
        return self.listeners[0].port if self.listeners else 0

    async def close(self) -> None:
        """Close all, top floor first; a part that fails to close does not keep the others open."""
        closers: list[tuple[str, Callable[[], Awaitable[Any]]]] = [
            ("gRPC", listener.close) for listener in self.listeners
        ]
        closers += [(name, service.close) for name, service in reversed(self.services.items())]
        if self.jobs is not None:
            closers.append(("jobs", partial(asyncio.to_thread, self.jobs.close)))
        for name, close in closers:
            try:
                await close()
            except Exception:
                log.exception("%s did not close cleanly", name)
        self.listeners.clear()
        self.services.clear()
        self.jobs = None
        await asyncio.to_thread(self.database.close)

    def _open_jobs(self) -> Jobs:
        from octavo.jobs import Jobs

        jobs = Jobs.open(self.settings, modules=work_modules(), database=self.database)
        jobs.supervise()
        return jobs

    def installed(self) -> list[tuple[Wing, Any]]:
        """The wings that run, with their services."""
        return [(wing, self.services[wing.name]) for wing in wings() if wing.name in self.services]


def memory_bytes() -> int:
    """Proportional set size of this process and its children, bytes: shared pages are counted once."""
    me = psutil.Process()
    total = 0
    for process in [me, *me.children(recursive=True)]:
        try:
            total += process.memory_full_info().pss
        except psutil.Error:  # it ended meanwhile, or is somebody else's
            continue
    return total
