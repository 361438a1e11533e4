"""What the repository said, remembered until it changes: a request's look-up costs a dictionary access, not the disk.

Everything that reads the repository does so in a thread; an answer read before a change is not kept after it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace

from octavo.errors import OctavoError
from octavo.serving.digest import DamagedFiles
from octavo.serving.repository import Change, ModelVersion, Repository

log = logging.getLogger("octavo.serving")


@dataclass(frozen=True, slots=True)
class Listing:
    """A model of the repository.

    Attributes:
        lacks: version -> why it is not served; empty for those that are.
        default: the version a request without one gets; empty when there is none.
        error: why nothing of it can be served; empty when something can.
    """

    name: str
    lacks: Mapping[str, str] = field(default_factory=dict)
    default: str = ""
    error: str = ""


class Catalogue:
    """Look-ups in a repository. Used on one event loop."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._versions: dict[tuple[str, str], ModelVersion] = {}
        self._resolving: dict[tuple[str, str], asyncio.Task[ModelVersion]] = {}
        self._listings: dict[str, Listing] = {}
        self._changes: Counter[str] = Counter()

    def known(self, name: str, version: str = "") -> ModelVersion | None:
        """What `resolve` would answer at once."""
        return self._versions.get((name, version))

    async def resolve(self, name: str, version: str = "") -> ModelVersion:
        """The version for a request; many at once for one that is not known read its files once.

        Raises:
            OctavoError: as `Repository.resolve`.
        """
        key = (name, version)
        found = self._versions.get(key)
        if found is not None:
            return found
        task = self._resolving.get(key)
        if task is None:
            task = self._resolving[key] = asyncio.create_task(self._resolve(name, version))
            task.add_done_callback(lambda done: self._resolved(key, done))
        return await asyncio.shield(task)

    async def listings(self) -> list[Listing]:
        """Every model, by name; only those that are new or changed are read."""
        names = await asyncio.to_thread(self._repository.names)
        new = [name for name in names if name not in self._listings]
        before = {name: self._changes[name] for name in new}
        read = {listing.name: listing for listing in await asyncio.to_thread(self._list, new)} if new else {}
        self._listings |= {name: listing for name, listing in read.items() if self._changes[name] == before[name]}
        found = (read.get(name) or self._listings.get(name) for name in names)
        return [listing for listing in found if listing is not None]

    def forget(self, name: str) -> None:
        """The files or labels of a model changed, or may have."""
        self._changes[name] += 1
        self._listings.pop(name, None)
        for key in [key for key in (*self._versions, *self._resolving) if key[0] == name]:
            self._versions.pop(key, None)
            self._resolving.pop(key, None)

    async def watch(self, every: float, changed: Callable[[Change], None]) -> None:
        """Tell of every change of the repository, looking each `every` seconds, until cancelled."""
        snapshot, said = None, ""
        while True:
            try:
                first = snapshot is None
                changes, snapshot = await asyncio.to_thread(self._repository.changes, snapshot)
                if first:  # what was looked up before this first look may have changed in between
                    changes = [Change(name, "changed") for name in {name for name, _ in self._versions}]
                said = ""
            except (OctavoError, OSError) as error:
                if str(error) != said:
                    said = str(error)
                    log.warning("the repository cannot be read; models in memory go on answering: %s", error)
                changes = []
            for change in changes:
                log.debug("model %s %s", change.name, change.kind)
                changed(change)
            await asyncio.sleep(every)

    async def _resolve(self, name: str, version: str) -> ModelVersion:
        before = self._changes[name]
        try:
            found = await asyncio.to_thread(self._repository.resolve, name, version)
        except DamagedFiles as error:
            await self._note(name, version, str(error))
            raise
        if self._changes[name] == before:
            self._versions[name, version] = found
        return found

    async def _note(self, name: str, version: str, reason: str) -> None:
        """Have the listing tell that a version's files are damaged, until they change."""
        before = self._changes[name]
        listing = await asyncio.to_thread(self._read, name)
        with suppress(OctavoError):  # removed meanwhile: there is nothing to note
            number = await asyncio.to_thread(self._repository.choose, name, version)
            if self._changes[name] == before and not listing.error:
                self._listings[name] = replace(listing, lacks={**listing.lacks, number: reason})

    def lack(self, name: str, version: str) -> str:
        """Why a version is known not to be whole; empty when nothing is known."""
        listing = self._listings.get(name)
        return (listing.lacks.get(version, "") if listing.lacks else listing.error) if listing else ""

    def _resolved(self, key: tuple[str, str], done: asyncio.Task[ModelVersion]) -> None:
        if self._resolving.get(key) is done:
            del self._resolving[key]
        if not done.cancelled():
            done.exception()  # every waiter reads it itself; asyncio need not complain when none is left

    def _list(self, names: list[str]) -> list[Listing]:
        return [self._read(name) for name in names]

    def _read(self, name: str) -> Listing:
        try:
            return Listing(name, self._repository.availability(name), self._repository.choose(name))
        except OctavoError as error:
            return Listing(name, error=str(error))
