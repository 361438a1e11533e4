"""A deployment: what an endpoint should serve, kept as a document, and who works on it.

The record holds what is wanted; labels and the endpoint are made to match it. So whoever finds a record that somebody
left half-way makes the same thing of it.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from typing import Any, Literal

import psutil
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from octavo.errors import Conflict, Invalid, NotFound
from octavo.serving.endpoint import Endpoint, Variant
from octavo.storage.documents import Document, Documents

KIND = "deployment"
MAX_NAME = 100
"""Shorter than a model's, since labels are made of it."""

MAX_HISTORY = 50
"""Changes that are remembered of each."""

Step = Literal["published", "checked", "routing", "done", "failed"]
Action = Literal["deploy", "roll-out", "promote", "roll-back"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Release(_Part):
    """Versions that belong together: the model clients ask, and every model with its version."""

    main: str
    versions: dict[str, str]
    digest: str = ""

    @property
    def version(self) -> str:
        """Of the model clients ask."""
        return self.versions[self.main]

    def same(self, other: Release | None) -> bool:
        """Whether both are the same versions, whatever package they came in."""
        return other is not None and (self.main, self.versions) == (other.main, other.versions)


class Pending(Release):
    """A release that was not asked anything yet.

    Attributes:
        added: the models whose version came with it; the others had it already.
        founded: those of them that did not exist before.
    """

    added: tuple[str, ...] = ()
    founded: tuple[str, ...] = ()

    @property
    def release(self) -> Release:
        """The release it becomes when it answers."""
        return Release(main=self.main, versions=self.versions, digest=self.digest)


class Event(_Part):
    """One change as it ended: when (seconds since 1970), what, by whom, and what the traffic was then.

    `stable` and `candidate` are `model@version`, empty for none; `error` tells why a version got no traffic.
    """

    at: float
    action: Action
    by: str = ""
    stable: str = ""
    candidate: str = ""
    share: float = 0.0
    shadow: float = 0.0
    error: str = ""


class Lease(_Part):
    """Who works on a deployment, and until when others leave it alone."""

    host: str
    pid: int
    started: float
    until: float

    @classmethod
    def here(cls, seconds: float) -> Lease:
        """A lease of this process, from now on."""
        started = psutil.Process().create_time()
        return cls(host=socket.gethostname(), pid=os.getpid(), started=started, until=time.time() + seconds)

    @property
    def own(self) -> bool:
        """Whether it is this process's."""
        own = Lease.here(0)
        return (own.host, own.pid, own.started) == (self.host, self.pid, self.started)

    @property
    def held(self) -> bool:
        """Whether its holder may still be at work: not late, and if on this machine, alive."""
        if time.time() >= self.until:
            return False
        if self.host != socket.gethostname():
            return True
        try:
            return abs(psutil.Process(self.pid).create_time() - self.started) < 1.0
        except psutil.NoSuchProcess:
            return False


class Deployment(_Part):
    """What an endpoint should serve.

    Attributes:
        action: the last change.
        step: how far it came; "routing" is ended by whoever comes next, whatever they came for.
        stable: takes the traffic, or what the candidate leaves of it.
        candidate: takes `share` of the traffic, or copies of `shadow` of it.
        previous: what a roll-back returns to when there is no candidate.
        pending: published, and not yet checked; all others were.
        note: what was asked for and does not apply.
        by: who asked for the last change; empty for whoever has the machine.
        history: the last changes that ended, the newest last.
    """

    name: str
    action: Action = "deploy"
    step: Step = "done"
    stable: Release | None = None
    candidate: Release | None = None
    previous: Release | None = None
    pending: Pending | None = None
    share: float = Field(0.0, ge=0, le=1)
    shadow: float = Field(0.0, ge=0, le=1)
    error: str = ""
    note: str = ""
    by: str = ""
    history: tuple[Event, ...] = ()
    lease: Lease | None = None

    @property
    def is_blank(self) -> bool:
        """Whether nothing was ever deployed: what a refused change of a new name leaves."""
        return not self.history and not any(True for _ in self.releases())

    def releases(self) -> Iterator[tuple[str, Release]]:
        """Every release that must stay served, by what it is."""
        for role in ("stable", "candidate", "previous", "pending"):
            if (release := getattr(self, role)) is not None:
                yield role, release

    def endpoint(self) -> Endpoint:
        """The endpoint that serves it."""
        if self.stable is None:
            raise NotFound("nothing is deployed yet", self.name, "Deploy something: octavo models deploy SOURCE")
        stable = _variant(self.stable, 1.0 - self.share)
        variants = [stable]
        if self.candidate is not None and self.shadow:
            variants.append(_variant(self.candidate, self.shadow, shadow=True))
        elif self.candidate is not None:
            variants.append(_variant(self.candidate, self.share))
        return Endpoint(name=self.name, variants=tuple(variants))

    def routed(self, release: Release, share: float, shadow: float) -> Deployment:
        """With a release that takes a share, copies, or (the first one, and a share of 1) everything."""
        if release.same(self.stable):
            note = _unmet(share, shadow, f"version {release.version} has all of the traffic already")
            cleared = {"candidate": None, "share": 0.0, "shadow": 0.0, "pending": None, "note": note}
            return self.model_copy(update=cleared)
        if self.stable is None:
            note = _unmet(share, shadow, "the first version of a name takes all of the traffic")
            return self._with_stable(release, None).model_copy(update={"note": note})
        if share >= 1 and not shadow:
            return self._with_stable(release, self.stable)
        update = {"candidate": release, "share": 0.0 if shadow else share, "shadow": shadow, "pending": None}
        return self.model_copy(update=update)

    def ended(self, step: Literal["done", "failed"], now: float) -> Deployment:
        """With its last change over, and noted in the history."""
        event = Event(
            at=now,
            action=self.action,
            by=self.by,
            stable=_named(self.stable),
            candidate=_named(self.candidate),
            share=self.share,
            shadow=self.shadow,
            error=self.error,
        )
        return self.model_copy(update={"step": step, "history": (*self.history, event)[-MAX_HISTORY:]})

    def promoted(self) -> Deployment:
        """With the candidate in the stable's place.

        Raises:
            Conflict: there is no candidate.
        """
        if self.candidate is None:
            raise Conflict("there is no version to promote", self.name, "Deploy one with --share or --shadow first.")
        return self._with_stable(self.candidate, self.stable)

    def rolled_back(self) -> Deployment:
        """Without the candidate, or where there is none, with the version before the stable one.

        Raises:
            Conflict: there is nothing before.
        """
        if self.candidate is not None:
            return self.model_copy(update={"candidate": None, "share": 0.0, "shadow": 0.0, "pending": None})
        if self.previous is None:
            raise Conflict("there is no version to roll back to", self.name, "Deploy the version wanted.")
        return self._with_stable(self.previous, None)

    def _with_stable(self, release: Release, before: Release | None) -> Deployment:
        cleared = {"candidate": None, "share": 0.0, "shadow": 0.0, "pending": None}
        return self.model_copy(update=cleared | {"stable": release, "previous": before})


def _unmet(share: float, shadow: float, why: str) -> str:
    """What to say of a share or copies that do not apply; nothing of all of the traffic."""
    if shadow:
        return f"copies of {shadow:.0%} do not apply: {why}"
    return f"the share of {share:.0%} does not apply: {why}" if share < 1 else ""


def _named(release: Release | None) -> str:
    return f"{release.main}@{release.version}" if release else ""


def variant_name(release: Release) -> str:
    """Its version's, so that what is counted of it stays its own when it is promoted."""
    return f"v{release.version}"


def _variant(release: Release, weight: float, *, shadow: bool = False) -> Variant:
    return Variant(
        name=variant_name(release), model=release.main, version=release.version, weight=round(weight, 6), shadow=shadow
    )


class Deployments:
    """The records of deployments. Methods block for a query; all may raise `Unavailable`."""

    def __init__(self, documents: Documents, lease_seconds: float) -> None:
        self._documents = documents
        self._seconds = lease_seconds

    def all(self) -> list[Deployment]:
        """Every one, by name."""
        found = [_read(document) for document in self._documents.list(KIND)]
        return [deployment for deployment in found if not deployment.is_blank]

    def get(self, name: str) -> Deployment:
        """One.

        Raises:
            NotFound: nothing was deployed under this name.
        """
        try:
            found = _read(self._documents.get(KIND, name))
        except NotFound:
            raise _unknown(name) from None
        if found.is_blank:
            raise _unknown(name)
        return found

    def claim(self, name: str, *, new: bool = False) -> tuple[Deployment, int]:
        """Take the lease of a name; the record and its revision.

        Args:
            name: of the deployment.
            new: whether one that is not there is made; nothing stays of it when it is given back as it is.

        Raises:
            Conflict: somebody else works on it.
            Invalid: the name is too long.
            NotFound: nothing was deployed under this name, and it is not to be made.
        """
        if len(name) > MAX_NAME:
            raise Invalid(
                f"the name has {len(name)} characters", name[:MAX_NAME], f"At most {MAX_NAME} are deployed to."
            )
        try:
            document = self._documents.get(KIND, name)
            found, revision = _read(document), document.revision
        except NotFound:
            found, revision = Deployment(name=name), 0
        if found.lease is not None and found.lease.held:
            raise _busy(name, found.lease)
        if found.is_blank and not new:
            raise _unknown(name)
        return self.write(found, revision)

    def write(self, deployment: Deployment, revision: int) -> tuple[Deployment, int]:
        """Write over a revision and hold the lease on; the record and its new revision.

        Raises:
            Conflict: somebody else wrote meanwhile.
        """
        held = deployment.model_copy(update={"lease": Lease.here(self._seconds)})
        return held, self._put(held, revision)

    def release(self, deployment: Deployment, revision: int) -> Deployment:
        """Write for the last time and let go, or forget a record that says nothing; raises as `write`."""
        if deployment.is_blank:
            self.write(deployment, revision)  # with the lease, so that nobody else begins before it is gone
            self._documents.delete(KIND, deployment.name)
            return deployment.model_copy(update={"lease": None})
        free = deployment.model_copy(update={"lease": None})
        self._put(free, revision)
        return free

    def _put(self, deployment: Deployment, revision: int) -> int:
        body = deployment.model_dump(mode="json")
        try:
            return self._documents.put(KIND, deployment.name, body, revision=revision).revision
        except Conflict:
            raise Conflict(
                "somebody else deploys to this name now", deployment.name, "Wait until that is done, then try again."
            ) from None


def _unknown(name: str) -> NotFound:
    return NotFound("nothing was deployed under this name", name, "List the deployments: octavo models deployments")


def _busy(name: str, lease: Lease) -> Conflict:
    left = max(1, int(lease.until - time.time()))
    return Conflict(
        f"process {lease.pid} on {lease.host} deploys to this name now",
        name,
        f"Wait until it is done; if it hangs, its turn ends in {left} s.",
    )


def _read(document: Document) -> Deployment:
    try:
        return Deployment.model_validate(dict(document.body))
    except ValidationError as error:
        first: Any = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise Invalid(f"the record of the deployment cannot be read: {place}: {first['msg']}", document.name) from None
