"""From one version of a model to the next, without a request that notices.

Until a new default is in memory the one before goes on answering; what nobody can ask for any more leaves.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from octavo.errors import NotFound, OctavoError
from octavo.serving.catalogue import Catalogue
from octavo.serving.repository import Change, ModelVersion, Repository
from octavo.serving.residency import Residency
from octavo.serving.resident import READY, Resident

log = logging.getLogger("octavo.serving")


class Turnover:
    """Which version answers while versions change; used on the server's event loop.

    Attributes:
        listeners: told of every change, after it counts here.
    """

    def __init__(self, repository: Repository, catalogue: Catalogue, residency: Residency) -> None:
        self.listeners: list[Callable[[Change], None]] = []
        self._repository = repository
        self._catalogue = catalogue
        self._residency = residency
        self._previous: dict[str, ModelVersion] = {}
        self._refreshing: dict[str, asyncio.Task[None]] = {}
        self._leaving: set[asyncio.Task[None]] = set()

    def close(self) -> None:
        """Give up the loads of new defaults and what waits to leave."""
        for task in (*self._refreshing.values(), *self._leaving):
            task.cancel()

    def to_lease(self, version: ModelVersion) -> ModelVersion:
        """The version to answer with where a request asks for the default, which is `version`."""
        previous = self._previous.get(version.name)
        if previous is None:
            return version
        name = version.name
        failed = self._residency.failures.reason(name, version.version)
        at_once = previous.version == version.version or bool(version.config.ensemble)  # which is never in memory
        if at_once or self._in_memory(version) or not (failed or self._in_memory(previous)):
            if self._catalogue.known(name) is version:  # else the files have changed again
                del self._previous[name]
            return version
        if name not in self._refreshing and not self._residency.failures.refuses(version):
            task = self._refreshing[name] = asyncio.create_task(self._refresh(version))
            task.add_done_callback(lambda _: self._refreshing.pop(name, None))
        return previous

    def changed(self, change: Change) -> None:
        """The files or labels of a model changed: look again at its next request."""
        name = change.name
        before = self._catalogue.known(name)
        if before is not None and self._in_memory(before):
            self._previous.setdefault(name, before)
        self._residency.failures.forget(name)
        self._catalogue.forget(name)
        if change.kind == "removed":
            self._previous.pop(name, None)
            self._in_background(self.leave(name))
        for listener in self.listeners:
            listener(change)

    def arrived(self, resident: Resident) -> None:
        """A version is in memory: where it is the default, send out those that nobody can ask for any more."""
        alone = len(self._residency.versions(resident.version.name)) == 1
        if not alone and self._catalogue.known(resident.version.name) == resident.version:
            self._in_background(self._leave_unserved(resident.version))

    async def leave_if_changed(self, version: ModelVersion) -> None:
        """Send out what is in memory of a version whose files were changed in place."""
        resident = self._residency.find(version.name, version.version)
        if resident is not None and resident.state == READY and resident.version.digest != version.digest:
            await self.leave(version.name, version.version)

    async def leave(self, name: str, version: str = "") -> None:
        """Send a model (one version, or all that are in memory) out, after what is in flight."""
        for resident in self._residency.versions(name):
            if version in ("", resident.version.version):
                with suppress(NotFound):  # it was evicted while another version left
                    await self._residency.unload(name, resident.version.version)

    def _in_memory(self, version: ModelVersion) -> bool:
        resident = self._residency.find(version.name, version.version)
        return resident is not None and resident.state == READY and resident.version.digest == version.digest

    async def _refresh(self, version: ModelVersion) -> None:
        """Load a new default beside the one before."""
        try:
            await self._residency.load(version)
        except OctavoError as error:
            log.warning("version %s of %s is not served: %s", version.version, version.name, error)

    async def _leave_unserved(self, default: ModelVersion) -> None:
        name = default.name
        others = [one for one in self._residency.versions(name) if one.key != default.key]
        for resident in others:
            try:
                await asyncio.to_thread(self._repository.choose, name, resident.version.version)
            except NotFound:
                await self.leave(name, resident.version.version)
            except OctavoError as error:
                log.warning("version %s of %s stays in memory: %s", resident.version.version, name, error)

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)
