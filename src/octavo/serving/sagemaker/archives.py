"""The archives of MultiModel endpoints, each published when a request first names it.

Archive `cust-1/enc.tar.gz` below the data of the endpoint `front` becomes the model `front.cust-1.enc`. A record tells
which archive a name stands for, so that none is taken for another, and what of the repository goes with the endpoint.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from octavo.aws_errors import AwsError
from octavo.errors import Conflict, Invalid, NotFound, OctavoError
from octavo.serving.packaging.deployment import Release
from octavo.serving.sagemaker.labels import label, unlabel
from octavo.serving.sagemaker.publishing import publish
from octavo.serving.sagemaker.records import Container, EndpointRecord, Record, Records, Stored
from octavo.serving.sagemaker.sources import below

if TYPE_CHECKING:
    from octavo.serving.service import Serving
    from octavo.settings import Settings

log = logging.getLogger("octavo.serving.sagemaker")

Begin = Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]
"""Does work beside the requests."""

_MOST_FAILURES = 1000


class ArchiveRecord(Record):
    """An archive.

    Attributes:
        name: of the model it becomes.
        prefix: the endpoint's data.
        target: the archive's path below it.
        release: what was published of it; None before that is done.
    """

    endpoint: str
    prefix: str
    target: str
    release: Release | None = None

    @property
    def versions(self) -> dict[str, str]:
        """The models that are this archive's, and their versions; before it is published, any of the main one."""
        return self.release.versions if self.release else {self.name: ""}


@dataclass(frozen=True, slots=True)
class _MultiModel:
    """An endpoint as it was looked at: its variant, what holds its archives, and since when; nothing of all others."""

    variant: str = ""
    container: Container | None = None
    made: datetime | None = None


class Archives:
    """The archives of all MultiModel endpoints. Used on the server's event loop.

    Attributes:
        turn: how many models are fetched and published at once.
    """

    def __init__(self, service: Serving, endpoints: Records[EndpointRecord], settings: Settings, begin: Begin) -> None:
        self.turn = asyncio.Semaphore(settings.serving.parallel_loads)
        self._service = service
        self._endpoints = endpoints
        self._settings = settings
        self._begin = begin
        self._records = Records(service.documents, "sagemaker-archive", "archive", ArchiveRecord)
        self._seen: dict[str, tuple[_MultiModel, float]] = {}
        self._ready: dict[str, tuple[_MultiModel, str]] = {}
        self._fetching: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._failed: dict[tuple[str, str], tuple[OctavoError, float]] = {}

    async def variant(self, endpoint: str) -> str:
        """The variant of an endpoint of archives; empty for any other."""
        return (await self._look(endpoint)).variant

    async def find(self, endpoint: str, target: str, name: str, permit: Callable[[str], None]) -> str:
        """The model of an archive, published first where it is not.

        Args:
            endpoint: one of archives.
            target: the archive's path, as the client named it.
            name: the model it becomes.
            permit: raises when the caller may not ask that.

        Raises:
            Invalid, NotFound, Forbidden: no such archive, or it is refused.
            AwsError: `ModelNotReadyException` when it is not published in time; that goes on.
        """
        found = await self._look(endpoint)
        if found.container is None:
            raise NotFound("the endpoint was removed or changed meanwhile", endpoint)
        permit(name)
        target = target.removeprefix("/")
        if self._ready.get(name) == (found, target) and await self._service.knows(name):
            return name
        if not name.startswith(f"{endpoint}."):
            raise Invalid(f"the name of {target[:100]!r} is too long", "TargetModel", "Use a shorter path.")
        key = name, target
        failure, until = self._failed.get(key, (None, 0.0))
        if failure is not None and time.monotonic() < until:
            raise failure.with_traceback(None)
        task = self._fetching.get(key)
        if task is None:
            task = self._fetching[key] = self._begin(self._publish(endpoint, found.container, found, target, name))
            task.add_done_callback(lambda done: self._fetched(key, done))
        try:
            await asyncio.wait_for(asyncio.shield(task), self._settings.serving.default_deadline)
        except TimeoutError:
            what = f"the archive {target[:100]!r} is still being fetched"
            raise AwsError("ModelNotReadyException", 429, what, endpoint, "Ask again.") from None
        return name

    def changed(self, endpoint: str) -> None:
        """Look at an endpoint again at its next request."""
        self._seen.pop(endpoint, None)

    async def clear(self, endpoint: str) -> None:
        """Remove every archive of an endpoint from the repository."""
        for stored in await asyncio.to_thread(self._records.all):
            if stored.record.endpoint == endpoint:
                await self._remove_versions(stored.record)
                with suppress(NotFound):
                    await asyncio.to_thread(self._records.delete, stored.record.name)

    def _fetched(self, key: tuple[str, str], done: asyncio.Task[None]) -> None:
        del self._fetching[key]
        error = None if done.cancelled() else done.exception()
        if not isinstance(error, OctavoError):
            return
        now = time.monotonic()
        if len(self._failed) >= _MOST_FAILURES:
            self._failed = {old: failure for old, failure in self._failed.items() if now < failure[1]}
        self._failed[key] = error, now + self._settings.serving.load_backoff

    async def _look(self, endpoint: str) -> _MultiModel:
        """The endpoint, as it was a few seconds ago at most; without a database, as it was last."""
        known, until = self._seen.get(endpoint, (_MultiModel(), 0.0))
        now = time.monotonic()
        if now < until:
            return known
        try:
            known = _multi_model(await asyncio.to_thread(self._endpoints.get, endpoint))
        except NotFound:
            known = _MultiModel()
        except OctavoError as error:
            log.warning("the endpoint %s is as it was: %s", endpoint, error)
        self._seen = {name: seen for name, seen in self._seen.items() if now < seen[1]}
        self._seen[endpoint] = known, now + self._settings.serving.watch_seconds
        return known

    async def _publish(self, endpoint: str, container: Container, found: _MultiModel, target: str, name: str) -> None:
        """Publish an archive, unless its model is there; afterwards it is known to be ready."""
        stored = await self._record(name)
        there = await self._service.knows(name)
        if stored is None:
            ready = there  # by hand
        else:
            record = stored.record
            own = record.prefix == container.source
            if own and there and record.release and record.target != target:
                what = f"{target[:100]!r} would have the name of {record.target!r}"
                raise Invalid(what, f"{name} of {endpoint}", "Call one of the archives otherwise.")
            ready = own and there and record.release is not None
        if not ready:
            await self._publish_new(endpoint, container, target, name, stored)
            if await asyncio.to_thread(self._gone, endpoint, found):
                await self.clear(endpoint)
                raise NotFound("the endpoint was removed or changed meanwhile", endpoint)
        self._ready[name] = found, target

    async def _publish_new(
        self, endpoint: str, container: Container, target: str, name: str, stored: Stored[ArchiveRecord] | None
    ) -> None:
        """Publish an archive whose model is not there, or is of an archive from elsewhere."""
        source = await asyncio.to_thread(below, container.source, target, self._settings)
        single = container.model_copy(update={"source": source, "multi": False})
        wanted = ArchiveRecord(name=name, endpoint=endpoint, prefix=container.source, target=target)
        before = stored or await self._announce(wanted)
        own = before.record.versions.keys()
        try:
            async with self.turn:
                release = await asyncio.to_thread(publish, self._service.repository, single, name, self._settings, own)
        except OctavoError:
            if stored is None and not await self._service.knows(name):
                await asyncio.to_thread(self._records.delete, name)
            raise
        await label(self._service, endpoint, release)
        with suppress(Conflict):  # another server published it too, as the same version
            done = wanted.model_copy(update={"release": release})
            await asyncio.to_thread(self._records.write, done, before.revision)
        if before.record.release is not None:
            await self._remove_versions(before.record, keep=release)

    async def _announce(self, wanted: ArchiveRecord) -> Stored[ArchiveRecord]:
        """Record that an archive is being published: what a killed server leaves of it is the endpoint's then."""
        try:
            return await asyncio.to_thread(self._records.write, wanted, 0)
        except Conflict:  # another server was faster
            return await asyncio.to_thread(self._records.get, wanted.name)

    async def _record(self, name: str) -> Stored[ArchiveRecord] | None:
        try:
            return await asyncio.to_thread(self._records.get, name)
        except NotFound:
            return None

    def _gone(self, endpoint: str, found: _MultiModel) -> bool:
        try:
            return _multi_model(self._endpoints.get(endpoint)) != found
        except NotFound:
            return True

    async def _remove_versions(self, record: ArchiveRecord, keep: Release | None = None) -> None:
        """Take the versions of an archive out of the repository, and its models where nothing else is in them."""
        kept = keep.versions if keep else {}
        await unlabel(self._service, record.endpoint, record.versions, {model: [one] for model, one in kept.items()})
        for model, version in record.versions.items():
            if kept.get(model) != version:
                await self._remove(model, version)

    async def _remove(self, model: str, version: str) -> None:
        try:
            only = await asyncio.to_thread(self._service.repository.versions, model) == [version]
            await self._service.remove(model, "" if only else version)
        except NotFound:
            return
        except Conflict as error:  # somebody else's label is at it
            log.info("a version stays in the repository: %s", error)


def _multi_model(stored: Stored[EndpointRecord]) -> _MultiModel:
    record = stored.record
    if record.served and record.status != "Deleting":
        for variant in record.plan.variants:
            if variant.container.multi:
                return _MultiModel(variant.name, variant.container, stored.created)
    return _MultiModel()
