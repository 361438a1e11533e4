"""Endpoints of SageMaker's, made, changed and taken away step by step; whoever finds one half-way ends it the same way.

An endpoint's record says what is wanted. The work publishes each variant's model, labels the versions so that they stay
served (`sagemaker.ENDPOINT.VERSION`), loads them, declares the endpoint that requests go to, and only then records that
it is done. Every step may be done twice. A lease in the record says who works; work whose process died is taken up at
the next start of a server, or by the next look at the endpoint.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from octavo.errors import Conflict, Invalid, NotFound, OctavoError
from octavo.serving.autoscaling.targets import forget_targets
from octavo.serving.packaging.deployment import Lease, Release
from octavo.serving.sagemaker.archives import Archives
from octavo.serving.sagemaker.labels import label, unlabel
from octavo.serving.sagemaker.publishing import publish
from octavo.serving.sagemaker.records import (
    IN_PROGRESS,
    ConfigRecord,
    EndpointRecord,
    ModelRecord,
    Plan,
    Records,
    ServedVariant,
    Stored,
)
from octavo.serving.sagemaker.sources import check_source
from octavo.serving.sagemaker.tags import Tags

if TYPE_CHECKING:
    from octavo.serving.service import Serving
    from octavo.settings import Settings

T = TypeVar("T")

log = logging.getLogger("octavo.serving.sagemaker")


class ControlPlane:
    """What is declared to a server, and its work at it. Used on the server's event loop.

    Every method may raise `Unavailable` when the database does not answer.
    """

    def __init__(self, service: Serving, settings: Settings) -> None:
        documents = service.documents
        self.models = Records(documents, "sagemaker-model", "model", ModelRecord)
        self.configs = Records(documents, "sagemaker-config", "endpoint configuration", ConfigRecord)
        self.endpoints = Records(documents, "sagemaker-endpoint", "endpoint", EndpointRecord)
        self.tags = Tags(documents)
        self.archives = Archives(service, self.endpoints, settings, self._begin_task)
        self._service = service
        self._settings = settings
        self._working: dict[str, asyncio.Task[None]] = {}
        self._wanted: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Take up the work that was left, beside the requests."""
        self._begin_task(self.resume())

    async def close(self) -> None:
        """Stop working, and let others go on."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def plan(self, config: str) -> Plan:
        """What an endpoint of a configuration is to serve, with the models as they are declared now.

        Raises:
            NotFound: there is no such configuration, or no longer a model it names.
            Invalid: its variants do not go together.
        """
        stored = await asyncio.to_thread(self.configs.get, config)
        variants = []
        for variant in stored.record.variants:
            model = await asyncio.to_thread(self.models.get, variant.model)
            variants.append(ServedVariant(**variant.model_dump(), container=model.record.container))
        if len(variants) > 1 and any(variant.container.multi for variant in variants):
            what = "a MultiModel model shares an endpoint with other variants"
            raise Invalid(what, config, "Give it an endpoint of its own.")
        return Plan(config=config, variants=tuple(variants))

    async def create(self, record: EndpointRecord) -> None:
        """Add an endpoint and begin to make it.

        Raises:
            Invalid: there is one of that name, whoever declared it.
        """
        if self._service.endpoints.find(record.name) is not None:
            await asyncio.to_thread(self._refuse_other, record.name)
        await asyncio.to_thread(self.endpoints.create, record)
        self._begin(record.name)

    def _refuse_other(self, name: str) -> None:
        """Raise `Invalid` for an endpoint that was declared another way; one of SageMaker's is told by its record."""
        try:
            self.endpoints.get(name)
        except NotFound:
            what = f'Cannot create already existing endpoint "{name}"'
            raise Invalid(what, "EndpointName", "It is one of octavo's own: octavo endpoints rm NAME") from None

    async def update(self, name: str, change: Callable[[EndpointRecord], Plan]) -> None:
        """Begin to serve what `change` makes of an endpoint; until that answers, it serves what it did.

        Raises:
            NotFound: there is none.
            Invalid: it is being made or changed.
            Conflict: somebody else changed it meanwhile.
        """
        stored = await self._settled(name)
        await self._write(stored, status="Updating", next=change(stored.record), failure="")
        self._begin(name)

    async def delete(self, name: str) -> None:
        """Take an endpoint away; its models stay, but for what was fetched for it by request.

        Raises:
            NotFound, Invalid, Conflict: as `update`.
        """
        stored = await self._settled(name)
        await self._write(stored, status="Deleting")
        await asyncio.shield(self._begin(name))

    async def look(self, name: str) -> Stored[EndpointRecord]:
        """An endpoint; work at it that was left is taken up again.

        Raises:
            NotFound: there is none.
        """
        stored = await asyncio.to_thread(self.endpoints.get, name)
        if stored.record.left:
            self._begin(name)
        return stored

    async def resume(self) -> None:
        """Take up all work that was left."""
        try:
            found = await asyncio.to_thread(self.endpoints.all)
        except OctavoError as error:
            log.warning("work at endpoints is not taken up: %s", error)
            return
        for stored in found:
            if stored.record.left:
                self._begin(stored.record.name)

    async def _settled(self, name: str) -> Stored[EndpointRecord]:
        stored = await self.look(name)
        if stored.record.status in IN_PROGRESS:
            what = f'Cannot update in-progress endpoint "{name}"'
            raise Invalid(what, stored.record.status, "Wait until it is InService or Failed.")
        return stored

    def _begin(self, name: str) -> asyncio.Task[None]:
        """The work at an endpoint, which goes on whoever waits for it; what is at its end looks once more."""
        self._wanted.add(name)
        if name not in self._working:
            self._working[name] = self._begin_task(self._work(name))
        return self._working[name]

    def _begin_task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _work(self, name: str) -> None:
        try:
            while name in self._wanted:
                self._wanted.discard(name)
                await self._work_once(name)
        finally:
            del self._working[name]

    async def _work_once(self, name: str) -> None:
        try:
            stored = await asyncio.to_thread(self.endpoints.get, name)
            if not stored.record.left:
                return
            stored = await self._write(stored, lease=self._lease())
        except (NotFound, Conflict):
            return  # somebody else was faster
        try:
            await (self._take_away if stored.record.status == "Deleting" else self._bring_about)(stored)
        except Conflict:
            log.warning("somebody else has taken the endpoint %s over", name)
        except Exception as error:
            log.warning("the work on the endpoint %s is taken up again later", name, exc_info=error)
            await self._let_go(name)
        except asyncio.CancelledError:
            await asyncio.shield(self._let_go(name))
            raise

    def _lease(self) -> Lease:
        return Lease.here(self._settings.serving.deploy_lease)

    async def _let_go(self, name: str) -> None:
        """Give the lease back, if it is this process's."""
        try:
            stored = await asyncio.to_thread(self.endpoints.get, name)
            lease = stored.record.lease
            if lease is not None and lease.own:
                await self._write(stored, lease=None)
        except OctavoError as error:  # it ends by itself then
            log.warning("the lease of the endpoint %s was not given back: %s", name, error)

    async def _bring_about(self, stored: Stored[EndpointRecord]) -> None:
        """Make what is wanted answer, or record why it does not."""
        record = stored.record
        ready, failure = await _tried(record.name, self._prepared(record.name, record.next or record.plan))
        # To publish takes long; who was taken for dead meanwhile must not touch what another has made.
        stored = await self._write(stored, lease=self._lease())
        if ready is not None:
            _, failure = await _tried(record.name, self._route(record.name, ready))
        settled: dict[str, Any] = {"next": None, "lease": None, "failure": failure}
        if ready is not None and not failure:
            settled |= {"status": "InService", "plan": ready, "served": True}
        else:
            settled |= {"status": "InService" if record.served else "Failed"}
            if record.served:  # it may have failed half-way to the new one
                await self._restore(record)
        wanted = settled.get("plan", record.plan)
        await unlabel(self._service, record.name, await self._models(record), _versions(wanted))
        await self._write(stored, **settled)
        self.archives.changed(record.name)

    async def _restore(self, record: EndpointRecord) -> None:
        """Make what was served before an update answer again."""
        for variant in record.plan.variants:
            if variant.release is not None:
                await label(self._service, record.name, variant.release)
        await self._route(record.name, record.plan)

    async def _prepared(self, name: str, plan: Plan) -> Plan:
        """The plan with every variant's model published, labelled and loaded."""
        variants = []
        for variant in plan.variants:
            if variant.container.multi:
                await asyncio.to_thread(check_source, variant.container.source, self._settings)
                variants.append(variant)
                continue
            release = variant.release
            if variant.container.known:
                release = Release(main=variant.container.known, versions={variant.container.known: ""})
            elif release is None:
                repository, settings = self._service.repository, self._settings
                async with self.archives.turn:
                    release = await asyncio.to_thread(publish, repository, variant.container, variant.model, settings)
            await label(self._service, name, release)
            await self._service.load(release.main, release.version)
            variants.append(variant.model_copy(update={"release": release}))
        return plan.model_copy(update={"variants": tuple(variants)})

    async def _route(self, name: str, plan: Plan) -> None:
        if not plan.archives:
            await self._service.declare_endpoint(plan.endpoint(name))
            await self.archives.clear(name)
            return
        await self._undeclare(name)

    async def _take_away(self, stored: Stored[EndpointRecord]) -> None:
        record = stored.record
        await self._undeclare(record.name)
        await self.archives.clear(record.name)
        await unlabel(self._service, record.name, await self._models(record))
        await asyncio.to_thread(forget_targets, self._service.documents, record.name)
        await asyncio.to_thread(self.tags.forget, "endpoint", record.name)
        await asyncio.to_thread(self.endpoints.delete, record.name)
        self.archives.changed(record.name)

    async def _models(self, record: EndpointRecord) -> list[str]:
        """The models, with their parts, whose versions an endpoint's plans may have labelled."""
        plans = [record.plan, record.next] if record.next else [record.plan]
        mains = {variant.model for plan in plans for variant in plan.variants}
        names = await asyncio.to_thread(self._service.repository.names)
        return [name for name in names if name.partition(".")[0] in mains]

    async def _undeclare(self, name: str) -> None:
        try:
            await self._service.endpoints.delete(name)
        except NotFound:
            return

    async def _write(self, stored: Stored[EndpointRecord], **changes: Any) -> Stored[EndpointRecord]:
        record = stored.record.model_copy(update=changes)
        return await asyncio.to_thread(self.endpoints.write, record, stored.revision)


async def _tried(name: str, work: Awaitable[T]) -> tuple[T | None, str]:
    """What the work gives; or None, and what is told of its failure."""
    try:
        return await work, ""
    except OctavoError as error:
        log.warning("the endpoint %s is not brought about: %s", name, error)
        return None, str(error)[:1024]
    except Exception:
        log.exception("unexpected error at the endpoint %s", name)
        return None, "something unexpected went wrong; the server's log has it"


def _versions(plan: Plan) -> dict[str, set[str]]:
    """Every model of a plan with the versions that it serves."""
    found: dict[str, set[str]] = {}
    for variant in plan.variants:
        for model, version in (variant.release.versions if variant.release else {}).items():
            found.setdefault(model, set()).add(version)
    return found
