"""Deployments, step by step: publish, check, route. Every step may be done twice, and each is recorded before the next.

A version that an endpoint names must be served by its model, whose version policy mostly serves the newest only. So a
deployment labels its versions (`stable.NAME`, `candidate.NAME`, ...): a labelled version is always served and cannot
be removed. The label "default" stays at the stable version, so that a publish moves no traffic by itself.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import orjson

from octavo.errors import Conflict, Invalid, ModelFailed, NotFound, OctavoError, Unavailable
from octavo.serving.inference import InferRequest, ModelMetadata
from octavo.serving.model_config import DEFAULT_LABEL
from octavo.serving.packaging.artifact import open_staged, publish_models
from octavo.serving.packaging.deployment import Action, Deployment, Deployments, Pending, Release
from octavo.serving.packaging.layout import Artifact
from octavo.serving.packaging.spec import Rollout
from octavo.serving.question import read_tensors, text_tensors
from octavo.serving.service import Serving
from octavo.serving.tensors import Tensors
from octavo.settings import Settings

ROLES = ("stable", "candidate", "previous", "pending")

log = logging.getLogger("octavo.serving.deploy")


class Deployer:
    """Deploys to a server's endpoints, in somebody's name. Holds nothing of its own; used on the server's event loop.

    Every change may raise `Conflict` when somebody else works on the name, and `Unavailable` without a database.
    """

    def __init__(self, service: Serving, settings: Settings, by: str = "") -> None:
        self._service = service
        self._by = by
        self._settings = settings
        self._records = Deployments(service.documents, settings.serving.deploy_lease)

    async def all(self) -> list[Deployment]:
        """Every deployment, by name."""
        return await asyncio.to_thread(self._records.all)

    async def get(self, name: str) -> Deployment:
        """One; `NotFound` when nothing was deployed under this name."""
        return await asyncio.to_thread(self._records.get, name)

    async def deploy(
        self, name: str, digest: str, wanted: Rollout, permit: Callable[[str], None] | None = None
    ) -> Deployment:
        """Publish a staged package, check that it answers, and give it a share of the endpoint's traffic.

        Args:
            name: of the endpoint, made where there is none.
            digest: of the package (`artifact.stage`).
            wanted: a share or copies; empty: what the package says, else all of the traffic.
            permit: raises for a model that the caller may not change; called before anything is.

        Raises:
            ModelFailed: the version does not load or answer; the traffic is as it was.
            Invalid: the package is refused.
        """
        async with self._turn(name, new=True) as turn:
            await self._forget_pending(turn)
            async with _opened(digest, self._settings, name) as artifact:
                if permit is not None:
                    for model in artifact.models:
                        permit(model.name)
                stable = await self._adopt(turn.record, artifact)
                published = await asyncio.to_thread(publish_models, self._service.repository, artifact)
                pending = Pending(
                    main=published.main,
                    versions=published.versions,
                    digest=digest,
                    added=published.added,
                    founded=published.founded,
                )
                step = {"action": "deploy", "step": "published", "error": "", "note": "", "by": self._by}
                await turn.write(stable=stable, pending=pending, **step)
                await self._label(turn.record)
                await self._check(turn, pending.release, artifact.check)
            await turn.write(step="checked")
            rollout = wanted if wanted != Rollout() else artifact.rollout
            shadow = rollout.shadow or 0.0
            share = rollout.share if rollout.share is not None else (0.0 if shadow else 1.0)
            await self._route(turn, turn.record.routed(pending.release, share, shadow), "deploy")
            return turn.record

    async def roll_out(self, name: str, share: float) -> Deployment:
        """Give the candidate another share of the traffic, 0 to 1; with 1 it is still no more than a candidate.

        Raises:
            Conflict: there is no candidate.
            NotFound: nothing was deployed under this name; so for the other changes.
        """
        if not 0 <= share <= 1:
            raise Invalid(f"not a share: {share:g}", name, "Give 0 to 1, or 0% to 100%.")
        async with self._turn(name) as turn:
            if turn.record.candidate is None:
                raise Conflict("there is no version to roll out", name, "Deploy one with --share or --shadow first.")
            changed = turn.record.model_copy(update={"share": share, "shadow": 0.0})
            await self._route(turn, changed, "roll-out")
            return turn.record

    async def promote(self, name: str) -> Deployment:
        """Give the candidate all of the traffic; `Conflict` when there is none."""
        async with self._turn(name) as turn:
            if turn.finished != "promote":
                await self._route(turn, turn.record.promoted(), "promote")
            return turn.record

    async def roll_back(self, name: str) -> Deployment:
        """Take the candidate's traffic away, or without one, return to the version before; `Conflict` without both."""
        async with self._turn(name) as turn:
            if turn.finished != "roll-back":
                await self._route(turn, turn.record.rolled_back(), "roll-back")
            return turn.record

    @asynccontextmanager
    async def _turn(self, name: str, *, new: bool = False) -> AsyncIterator[_Turn]:
        """The lease of a name; ends what another left half-way first, and lets go whatever happens."""
        turn = _Turn(self._records, *await asyncio.to_thread(self._records.claim, name, new=new))
        try:
            if turn.record.step == "routing":
                await self._apply(turn, turn.record)
                turn.finished = turn.record.action
            yield turn
        finally:
            await asyncio.shield(turn.let_go())

    async def _adopt(self, record: Deployment, artifact: Artifact) -> Release | None:
        """Hold every model at its present version; the stable release: where there is none yet, what is served.

        What does not load serves nobody, so nobody would want it back.
        """
        repository = self._service.repository
        for model in artifact.models:
            present = await self._served(model.name)
            labels = await asyncio.to_thread(repository.labels, model.name) if present else {}
            if present and DEFAULT_LABEL not in labels:
                await self._service.set_label(model.name, DEFAULT_LABEL, present)
        if record.stable is not None:
            return record.stable
        main, version = artifact.main, ""
        try:
            endpoint, _ = await self._service.endpoints.get(record.name)
        except NotFound:
            pass  # a new name: what the model itself answers with is the stable version, if it is there
        else:
            if len(endpoint.variants) > 1:
                raise Conflict(
                    "the endpoint has several variants already",
                    endpoint.name,
                    "Remove it, or deploy under another --name.",
                )
            main, version = endpoint.live[0].model, endpoint.live[0].version
        found = await self._served(main, version)
        if not found:
            return None
        try:
            await self._service.load(main, found)
        except OctavoError as error:
            log.info("%s/%s is not what a roll-back returns to, it does not load: %s", main, found, error)
            return None
        return Release(main=main, versions={main: found})

    async def _served(self, model: str, version: str = "") -> str:
        """The version a model answers with; empty when it is not there or none of its versions is whole."""
        try:
            return await asyncio.to_thread(self._service.repository.choose, model, version)
        except (NotFound, Unavailable):
            return ""

    async def _check(self, turn: _Turn, release: Release, check: Mapping[str, Any]) -> None:
        """Load the release and ask it something; when it fails, the record says why and the traffic is as it was."""
        try:
            await self._service.load(release.main, release.version)
            metadata = await self._service.metadata(release.main, release.version)
            task = self._service.repository.config(release.main, release.version).parameters.get("task", "")
            question = _question(check, metadata, task)
            if question:
                await self._service.infer(InferRequest(release.main, question, release.version))
        except OctavoError as error:
            removed = await self._forget_pending(turn)
            failed = turn.record.model_copy(update={"error": str(error)})
            await turn.replace(failed.ended("failed", time.time()))
            became = "was taken away again" if release.main in removed else "gets no traffic"
            before = "; what was served before goes on." if turn.record.stable else "."
            raise ModelFailed(
                f"version {release.version} does not answer, and {became}: {error.what}",
                error.where or release.main,
                error.fix or f"Correct it and deploy again{before}",
            ) from error

    async def _forget_pending(self, turn: _Turn) -> list[str]:
        """Let go what was published and never answered; the models of which a version was removed.

        Such a version stays where it is, unless requests without a version would get it, as a new model's only one.
        """
        pending = turn.record.pending
        if pending is None:
            return []
        present = set(await asyncio.to_thread(self._service.repository.names))
        await self._unlabel(turn.record.model_copy(update={"pending": None}), present & pending.versions.keys())
        removed = [model for model in pending.added if await self._remove_default(pending, model)]
        await turn.write(pending=None)
        return removed

    async def _remove_default(self, pending: Pending, model: str) -> bool:
        """Remove a version that came with a release, if its model answers with it by default and no label wants it."""
        repository, version = self._service.repository, pending.versions[model]
        if await self._served(model) != version:
            return False
        if version in (await asyncio.to_thread(repository.labels, model)).values():
            return False
        alone = await asyncio.to_thread(repository.availability, model) == {version: ""}
        await self._service.remove(model, "" if alone and model in pending.founded else version)
        return True

    async def _route(self, turn: _Turn, wanted: Deployment, action: Action) -> None:
        """Record what is wanted, then make the labels and the endpoint so."""
        before, note = turn.record, wanted.note if action == "deploy" else ""
        await turn.replace(
            wanted.model_copy(update={"action": action, "step": "routing", "error": "", "note": note, "by": self._by})
        )
        await self._apply(turn, before)

    async def _apply(self, turn: _Turn, before: Deployment) -> None:
        await self._label(turn.record)
        await self._service.declare_endpoint(turn.record.endpoint())
        touched = {
            model for record in (before, turn.record) for _, release in record.releases() for model in release.versions
        }
        await self._unlabel(turn.record, touched)
        await turn.replace(turn.record.ended("done", time.time()))

    async def _label(self, record: Deployment) -> None:
        """Set the labels that keep a deployment's versions served."""
        for model, labels in _labels(record).items():
            present = await asyncio.to_thread(self._service.repository.labels, model)
            for label, version in labels.items():
                if present.get(label) != version:
                    await self._service.set_label(model, label, version)

    async def _unlabel(self, record: Deployment, models: Mapping[str, str] | set[str]) -> None:
        """Take away the labels of releases that are no more."""
        wanted = _labels(record)
        for model in models:
            present = await asyncio.to_thread(self._service.repository.labels, model)
            ours = {f"{role}.{record.name}" for role in ROLES}
            for label in sorted(ours & present.keys() - wanted.get(model, {}).keys()):
                await self._service.set_label(model, label, "")


class _Turn:
    """One holder's time with a record; `finished` is the action of another that was ended at its start."""

    def __init__(self, records: Deployments, record: Deployment, revision: int) -> None:
        self.record = record
        self.finished: Action | None = None
        self._records = records
        self._revision = revision

    async def write(self, **changes: Any) -> None:
        """Record changes."""
        await self.replace(self.record.model_copy(update=changes))

    async def replace(self, record: Deployment) -> None:
        """Record another state of things."""
        self.record, self._revision = await asyncio.to_thread(self._records.write, record, self._revision)

    async def let_go(self) -> None:
        """Give the lease back; who lost it meanwhile leaves the record alone."""
        try:
            self.record = await asyncio.to_thread(self._records.release, self.record, self._revision)
        except OctavoError as error:
            log.warning("the turn of the deployment %s was not given back: %s", self.record.name, error)


@asynccontextmanager
async def _opened(digest: str, settings: Settings, name: str) -> AsyncIterator[Artifact]:
    opened = open_staged(digest, settings, name)
    artifact = await asyncio.to_thread(opened.__enter__)
    try:
        yield artifact
    finally:
        await asyncio.to_thread(opened.__exit__, None, None, None)


def _labels(record: Deployment) -> dict[str, dict[str, str]]:
    """Model -> label -> version, of everything a deployment keeps served."""
    wanted: dict[str, dict[str, str]] = {}
    for role, release in record.releases():
        for model, version in release.versions.items():
            labels = wanted.setdefault(model, {})
            labels[f"{role}.{record.name}"] = version
            if role == "stable":
                labels[DEFAULT_LABEL] = version
    return wanted


def _question(check: Mapping[str, Any], metadata: ModelMetadata, task: str) -> Tensors:
    """What a new version is asked: its package's example, a text, or zeros where any model of its inputs takes them.

    Empty where no question is known to be right; then to load is enough.
    """
    if check:
        kinds = {spec.name: spec.datatype for spec in metadata.inputs}
        given = {
            name: value if isinstance(value, dict) or name not in kinds else {"datatype": kinds[name], "data": value}
            for name, value in check.items()
        }
        return read_tensors(orjson.dumps(given), "check")
    if task == "text-embedding":
        return text_tensors(["hello"])
    shapes = {
        spec.name: [1 if at == 0 and axis == -1 else axis for at, axis in enumerate(spec.shape)]
        for spec in metadata.inputs
    }
    plain = all(spec.datatype not in ("BYTES", "BOOL") for spec in metadata.inputs)
    if metadata.platform == "python" or not plain or any(-1 in shape for shape in shapes.values()):
        return {}
    zeros = {spec.name: {"datatype": spec.datatype, "data": _zeros(shapes[spec.name])} for spec in metadata.inputs}
    return read_tensors(orjson.dumps(zeros), "check")


def _zeros(shape: list[int]) -> Any:
    return [_zeros(shape[1:]) for _ in range(shape[0])] if shape else 0
